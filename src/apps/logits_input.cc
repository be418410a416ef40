#include "apps/logits_input.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <cstring>

#include "base/error.h"

namespace calandra::apps {

LogitsInput::LogitsInput(const std::string& path) : path_(path), file_(std::filesystem::path(path)) {
  constexpr std::array kKnown = {"input_ids",      "next_token",          "pixel_values",
                                 "image_grid_thw", "pixel_values_videos", "video_grid_thw"};
  for (const auto& entry : file_.entries())
    if (std::find(kKnown.begin(), kKnown.end(), entry.name) == kKnown.end())
      throw LoadError(
          fmt::format("{}: tensor {} is not an input; inputs are {}", path, entry.name, fmt::join(kKnown, ", ")));
}

const SafetensorsFile::Entry& LogitsInput::find(const char* name) const {
  const SafetensorsFile::Entry* entry = file_.find(name);
  if (entry == nullptr) throw LoadError(fmt::format("{}: tensor {} is missing", path_, name));
  return *entry;
}

int32_t LogitsInput::checked(const char* name, int64_t id, int64_t vocab_size) const {
  if (id < 0 || id >= vocab_size)
    throw LoadError(fmt::format("{}: {} holds {}, the vocabulary has {}", path_, name, id, vocab_size));
  return static_cast<int32_t>(id);
}

// Of a tensor with that many axes.
std::vector<int64_t> LogitsInput::integers(const char* name, size_t rank) const {
  const SafetensorsFile::Entry& entry = find(name);
  if (entry.shape.size() != rank || (entry.dtype != "I32" && entry.dtype != "I64"))
    throw LoadError(
        fmt::format("{}: {} must have {} {} and be I32 or I64", path_, name, rank, rank == 1 ? "axis" : "axes"));
  const size_t width = entry.dtype == "I32" ? 4 : 8;
  std::vector<std::byte> bytes(entry.bytes);
  file_.read(entry, 0, entry.bytes, bytes.data());
  std::vector<int64_t> values;
  for (size_t i = 0; i < bytes.size(); i += width) {
    int32_t narrow = 0;
    int64_t wide = 0;
    std::memcpy(width == 4 ? static_cast<void*>(&narrow) : &wide, bytes.data() + i, width);
    values.push_back(width == 4 ? narrow : wide);
  }
  return values;
}

std::vector<int32_t> LogitsInput::ids(int64_t vocab_size) const {
  std::vector<int32_t> ids;
  for (const int64_t id : integers("input_ids", 1)) ids.push_back(checked("input_ids", id, vocab_size));
  if (ids.empty()) throw LoadError(path_ + ": input_ids is empty");
  return ids;
}

std::optional<int32_t> LogitsInput::next_token(int64_t vocab_size) const {
  if (!has("next_token")) return std::nullopt;
  const std::vector<int64_t> ids = integers("next_token", find("next_token").shape.size());
  if (ids.size() != 1) throw LoadError(fmt::format("{}: next_token holds {} ids, not one", path_, ids.size()));
  return checked("next_token", ids[0], vocab_size);
}

void LogitsInput::pictures(const char* pixels, const char* grids, const AddPicture& add) const {
  if (!has(pixels) && !has(grids)) return;
  const SafetensorsFile::Entry& entry = find(pixels);
  if (entry.shape.size() != 2 || entry.dtype != "F32")
    throw LoadError(fmt::format("{}: {} must be [patches, values] of F32", path_, pixels));
  std::vector<float> values(entry.bytes / sizeof(float));
  file_.read(entry, 0, entry.bytes, values.data());
  const std::vector<int64_t> sizes = integers(grids, 2);
  if (find(grids).shape[1] != 3) throw LoadError(fmt::format("{}: {} must be [pictures, 3]", path_, grids));
  int64_t row = 0;
  const int64_t width = entry.shape[1];
  for (size_t i = 0; i < sizes.size(); i += 3) {
    const PatchGrid grid{sizes[i], sizes[i + 1], sizes[i + 2]};
    constexpr int64_t kMost = 1 << 20;
    if (std::min({grid.t, grid.h, grid.w}) < 1 || std::max({grid.t, grid.h, grid.w}) > kMost ||
        row + grid.patches() > entry.shape[0])
      throw LoadError(fmt::format("{}: {} does not fit the {} rows of {}", path_, grids, entry.shape[0], pixels));
    add(std::span(values).subspan(row * width, grid.patches() * width), grid);
    row += grid.patches();
  }
  if (row != entry.shape[0])
    throw LoadError(fmt::format("{}: {} has {} rows, {} accounts for {}", path_, pixels, entry.shape[0], grids, row));
}

}  // namespace calandra::apps
