#include "weights/weight_files.h"

#include <fmt/format.h>

#include "base/error.h"
#include "base/log.h"

namespace calandra {
namespace {

namespace fs = std::filesystem;

constexpr size_t kMaxIndexBytes = size_t{100} << 20;
constexpr size_t kMaxIndexEntries = 500'000;
constexpr size_t kNamesInWarning = 10;

// What an index says stays below the folder, also through links; in the cache of huggingface_hub the files of
// snapshots/<commit> are links into the blobs folder of the same repository.
bool stays_inside(const fs::path& folder, const fs::path& file) {
  const fs::path root = fs::canonical(folder), target = fs::canonical(file);
  const auto within = [&](const fs::path& above) { return target.parent_path() == above; };
  return within(root) ||
         (root.parent_path().filename() == "snapshots" && within(root.parent_path().parent_path() / "blobs"));
}

const json::object& weight_map_of(const json::value& root, const fs::path& index) {
  const json::object* object = root.if_object();
  const json::value* map = object == nullptr ? nullptr : object->if_contains("weight_map");
  if (map == nullptr || !map->is_object())
    throw LoadError(index.string() + ": weight_map, an object of tensor names, is missing");
  if (map->get_object().size() > kMaxIndexEntries)
    throw LoadError(fmt::format("{}: weight_map has {} entries, at most {} are read", index.string(),
                                map->get_object().size(), kMaxIndexEntries));
  return map->get_object();
}

}  // namespace

WeightFiles::WeightFiles(const fs::path& folder) : folder_(folder) {
  const fs::path index = folder / "model.safetensors.index.json", single = folder / "model.safetensors";
  std::error_code ignored;
  if (!fs::is_directory(folder, ignored))
    throw LoadError(folder.string() + " is no folder; a model is a folder with config.json and its weights");
  if (fs::exists(index, ignored)) {  // also beside a single file: a folder that lost shards must not load in part
    const json::value root = read_json_file(index, kMaxIndexBytes);
    const json::object& weight_map = weight_map_of(root, index);
    open_shards(index, weight_map);
    add_places();
    compare_with_index(index, weight_map);
  } else if (fs::exists(single, ignored)) {
    files_.emplace_back(single);
    add_places();
  } else {
    throw LoadError(
        folder.string() +
        " has neither model.safetensors nor model.safetensors.index.json; only safetensors weights are read");
  }
}

void WeightFiles::open_shards(const fs::path& index, const json::object& weight_map) {
  std::set<std::string> names;
  for (const auto& item : weight_map) {
    const std::string_view tensor = item.key();
    if (!item.value().is_string())
      throw LoadError(fmt::format("{}: weight_map must map {} to a file name", index.string(), tensor));
    const std::string name(item.value().get_string());
    if (name.empty() || name.find('/') != std::string::npos || name.find('\0') != std::string::npos || name == "." ||
        name == "..")
      throw LoadError(fmt::format("{}: {} is mapped to {}; shards must be file names inside the folder", index.string(),
                                  tensor, json::serialize(json::string(name))));
    names.insert(name);
  }
  files_.reserve(names.size());
  for (const std::string& name : names) {
    const fs::path shard = folder_ / name;
    std::error_code ignored;
    if (!fs::exists(shard, ignored))
      throw LoadError(
          fmt::format("{}: shard {} is missing in the folder; download the model again", index.string(), name));
    if (!stays_inside(folder_, shard))
      throw LoadError(fmt::format("{}: shard {} is a link that leaves the folder; put the file itself there",
                                  index.string(), name));
    files_.emplace_back(shard);
  }
}

void WeightFiles::add_places() {
  for (const SafetensorsFile& file : files_) {
    for (const SafetensorsFile::Entry& entry : file.entries()) {
      const auto [other, added] = places_.emplace(entry.name, Place{&file, &entry});
      if (!added)
        throw LoadError(fmt::format("{}: tensor {} is in another shard too, {}", file.path().string(), entry.name,
                                    other->second.file->path().filename().string()));
    }
  }
}

void WeightFiles::compare_with_index(const fs::path& index, const json::object& weight_map) const {
  std::vector<std::string> differences;
  for (const auto& item : weight_map) {
    const Place place = find(item.key());
    const std::string_view mapped = item.value().get_string();
    if (place.file == nullptr) {
      differences.push_back(fmt::format("{} is mapped to {}, it is in no shard", std::string_view(item.key()), mapped));
    } else if (const std::string shard = place.file->path().filename().string(); shard != mapped) {
      differences.push_back(
          fmt::format("{} is mapped to {}, it is in {}", std::string_view(item.key()), mapped, shard));
    }
  }
  for (const SafetensorsFile& file : files_) {
    for (const SafetensorsFile::Entry& entry : file.entries())
      if (!weight_map.contains(entry.name))
        differences.push_back(fmt::format("{} of {} is not listed", entry.name, file.path().filename().string()));
  }
  if (differences.empty()) return;
  const size_t shown = std::min(differences.size(), kNamesInWarning);
  std::string text;
  for (size_t i = 0; i < shown; ++i) text += (i > 0 ? "; tensor " : "tensor ") + differences[i];
  if (shown < differences.size()) text += fmt::format("; and {} more", differences.size() - shown);
  log_warning_once("{} disagrees with the shards, which are believed: {}", index.string(), text);
}

WeightFiles::Place WeightFiles::find(std::string_view name) const {
  const auto it = places_.find(name);
  return it == places_.end() ? Place{nullptr, nullptr} : it->second;
}

}  // namespace calandra
