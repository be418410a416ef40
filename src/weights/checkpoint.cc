#include "weights/checkpoint.h"

#include <fmt/format.h>

#include <set>

#include "base/error.h"
#include "base/json.h"
#include "base/log.h"

namespace calandra {

namespace fs = std::filesystem;

Checkpoint::Checkpoint(const fs::path& folder) : folder_(folder) {
  const fs::path index = folder / "model.safetensors.index.json", single = folder / "model.safetensors";
  if (fs::exists(index)) {
    open_shards(index);
  } else if (fs::exists(single)) {
    files_.emplace_back(single);
  } else {
    throw LoadError(folder.string() + " has neither model.safetensors nor model.safetensors.index.json; only safetensors weights are read");
  }

  std::set<std::string_view> seen;
  for (const SafetensorsFile& file : files_) {
    for (const SafetensorsFile::Entry& entry : file.entries())
      if (!seen.insert(entry.name).second)
        throw LoadError(file.path().string() + ": tensor " + entry.name + " is in another shard too");
  }
}

void Checkpoint::open_shards(const fs::path& index) {
  const json::value root = read_json_file(index);
  const json::object* object = root.if_object();
  const json::value* map = object == nullptr ? nullptr : object->if_contains("weight_map");
  if (map == nullptr || !map->is_object()) throw LoadError(index.string() + ": weight_map, an object of tensor names, is missing");

  std::set<std::string> names;
  for (const auto& item : map->get_object()) {
    if (!item.value().is_string()) throw LoadError(index.string() + ": weight_map must map " + std::string(item.key()) + " to a file name");
    const std::string name(item.value().get_string());
    if (name.empty() || name.find('/') != std::string::npos || name.find('\0') != std::string::npos || name == "." || name == "..")
      throw LoadError(fmt::format("{}: {} is mapped to \"{}\"; shards must be file names inside the folder", index.string(),
                                  std::string_view(item.key()), name));
    names.insert(name);
  }
  for (const std::string& name : names) {
    if (!fs::exists(folder_ / name))
      throw LoadError(fmt::format("{}: shard {} is missing in the folder; download the model again", index.string(), name));
    files_.emplace_back(folder_ / name);
  }
  for (const auto& item : map->get_object()) {
    const Place place = find(item.key());
    if (place.file != nullptr && place.file->path().filename() != std::string_view(item.value().get_string()))
      log_warning("{}: tensor {} is mapped to {}, it is in {}", index.string(), std::string_view(item.key()),
                  std::string_view(item.value().get_string()), place.file->path().filename().string());
  }
}

Checkpoint::Place Checkpoint::find(std::string_view name) const {
  for (const SafetensorsFile& file : files_)
    if (const SafetensorsFile::Entry* entry = file.find(name)) return {&file, entry};
  return {nullptr, nullptr};
}

}  // namespace calandra
