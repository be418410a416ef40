#include "apps/pictures.h"

#include <fmt/format.h>

#include <algorithm>

#include "apps/jsonl.h"
#include "base/error.h"
#include "vision/patchify.h"

namespace calandra::apps {
namespace {

namespace fs = std::filesystem;

template <class T>
T value_or_throw(std::variant<T, RequestError> result, const std::string& what) {
  if (const auto* error = std::get_if<RequestError>(&result)) throw LoadError(what + ": " + error->message);
  return std::get<T>(std::move(result));
}

int32_t token_of(const LoadedModel& loaded, const char* key) {
  const json::value* id = loaded.config.config.if_contains(key);
  if (id == nullptr || !id->is_int64())
    throw LoadError(fmt::format("{}: {} is missing; images and videos cannot be placed", loaded.config.file, key));
  return static_cast<int32_t>(id->get_int64());
}

// "frame2.png" before "frame10.png": numbers in names count as numbers.
bool before(const fs::path& a, const fs::path& b) {
  const std::string x = a.filename().string(), y = b.filename().string();
  const auto number = [](const std::string& s) {
    std::string digits;
    for (const char c : s)
      if (c >= '0' && c <= '9') digits += c;
    digits.erase(0, std::min(digits.find_first_not_of('0'), digits.size()));
    return digits;
  };
  const std::string m = number(x), n = number(y);
  return std::tuple(m.size(), m, x) < std::tuple(n.size(), n, y);
}

Image read_image(const fs::path& file) {
  return value_or_throw(decode_image(read_text_file(file.string())), file.string());
}

// Patches of other sizes would be read as something else, or as nothing.
void check_patches(const VisionEncoder& encoder, const PatchConfig& config, const fs::path& file) {
  const auto check = [&](const char* key, int64_t found, int64_t wanted) {
    if (found != wanted)
      throw LoadError(
          fmt::format("{}: {} is {}, but the vision_config of config.json says {}", file.string(), key, found, wanted));
  };
  check("patch_size", config.patch_size, encoder.patch_size());
  check("temporal_patch_size", config.temporal_patch_size, encoder.temporal_patch_size());
  check("merge_size", config.merge_size, encoder.spatial_merge_size());
}

}  // namespace

Pictures::Pictures(const LoadedModel& loaded, Taps* taps) : loaded_(loaded), taps_(taps) {
  if (loaded.model->vision() == nullptr || loaded.folder.empty()) return;
  const fs::path image = loaded.folder / "preprocessor_config.json";
  const fs::path video = loaded.folder / "video_preprocessor_config.json";
  if (fs::exists(image)) {
    image_config_ = read_image_processor_config(image);
    check_patches(*loaded.model->vision(), *image_config_, image);
  }
  if (fs::exists(video)) {
    video_config_ = read_video_processor_config(video);
    check_patches(*loaded.model->vision(), *video_config_, video);
  }
}

const VisionEncoder& Pictures::encoder() const {
  const VisionEncoder* encoder = loaded_.model->vision();
  if (encoder == nullptr)
    throw LoadError(fmt::format("{}: this model has no vision tower; it takes text only", loaded_.config.file));
  return *encoder;
}

Pictures::Picture Pictures::encode(std::span<const float> patches, const PatchGrid& grid) const {
  return {grid, encode_patches(encoder(), *loaded_.backend, patches, {&grid, 1}, taps_), {}};
}

void Pictures::add_image(const std::string& file) {
  encoder();
  if (!image_config_)
    throw LoadError(
        fmt::format("{} has no preprocessor_config.json, which says how images are prepared", loaded_.folder.string()));
  const Patches patches = value_or_throw(preprocess_image(read_image(file), *image_config_), file);
  images_.push_back(encode(patches.values, patches.grid));
}

void Pictures::add_video(const std::string& path, std::optional<double> fps) {
  encoder();
  if (!video_config_)
    throw LoadError(fmt::format("{} has no video_preprocessor_config.json, which says how videos are prepared",
                                loaded_.folder.string()));
  PreparedVideo video;
  if (fs::is_directory(path)) {
    std::vector<fs::path> files;
    for (const auto& entry : fs::directory_iterator(path))
      if (entry.is_regular_file()) files.push_back(entry.path());
    std::sort(files.begin(), files.end(), before);
    std::vector<Image> frames;
    for (const fs::path& file : files) frames.push_back(read_image(file));
    video = value_or_throw(preprocess_frames(std::move(frames), fps, *video_config_), path);
  } else {
    video = value_or_throw(preprocess_video_file(path, *video_config_), path);
  }
  Picture picture = encode(video.patches.values, video.patches.grid);
  picture.seconds = std::move(video.seconds);
  videos_.push_back(std::move(picture));
}

void Pictures::add_image_patches(std::span<const float> patches, const PatchGrid& grid) {
  images_.push_back(encode(patches, grid));
}

void Pictures::add_video_patches(std::span<const float> patches, const PatchGrid& grid) {
  Picture picture = encode(patches, grid);
  picture.seconds.resize(grid.t);
  videos_.push_back(std::move(picture));
}

void Pictures::clear() {
  images_.clear();
  videos_.clear();
}

json::value Pictures::content(const std::string& text, Count first) const {
  json::array items;
  for (size_t i = first.images; i < images_.size(); ++i) items.push_back(json::object{{"type", "image"}});
  for (size_t i = first.videos; i < videos_.size(); ++i) items.push_back(json::object{{"type", "video"}});
  if (items.empty()) return json::string(text);
  items.push_back(json::object{{"type", "text"}, {"text", text}});
  return items;
}

ExpansionRule Pictures::rule() const {
  ExpansionRule rule;
  rule.tokens = {token_of(loaded_, "image_token_id"), token_of(loaded_, "video_token_id"),
                 token_of(loaded_, "vision_start_token_id"), token_of(loaded_, "vision_end_token_id")};
  rule.merge_size = encoder().spatial_merge_size();
  return rule;
}

std::vector<PatchGrid> Pictures::image_grids() const {
  std::vector<PatchGrid> grids;
  for (const Picture& image : images_) grids.push_back(image.grid);
  return grids;
}

std::vector<VideoPlace> Pictures::video_places() const {
  std::vector<VideoPlace> places;
  for (const Picture& video : videos_) places.push_back({video.grid, video.seconds});
  return places;
}

std::vector<ImageSpan> Pictures::spans(const ExpandedPrompt& prompt) const {
  std::vector<ImageSpan> spans;
  for (size_t i = 0; i < images_.size(); ++i) spans.push_back({prompt.image_rows[i].begin, images_[i].embeds.rows});
  for (size_t i = 0; i < videos_.size(); ++i) {
    int64_t row = 0;
    for (const RowRange& range : prompt.video_rows[i]) {
      spans.push_back({range.begin, videos_[i].embeds.rows.slice(0, row, row + range.end - range.begin)});
      row += range.end - range.begin;
    }
  }
  std::sort(spans.begin(), spans.end(), [](const ImageSpan& a, const ImageSpan& b) { return a.begin < b.begin; });
  return spans;
}

namespace {

std::vector<std::array<int32_t, 3>> positions_of(const ExpandedPrompt& prompt) {
  const size_t T = prompt.tokens.size();
  std::vector<std::array<int32_t, 3>> positions(T);
  for (size_t i = 0; i < T; ++i)
    for (size_t axis = 0; axis < 3; ++axis) positions[i][axis] = prompt.positions[axis * T + i];
  return positions;
}

}  // namespace

void Pictures::place(Request& request) const {
  if (empty()) return;
  const auto encode = [&](std::string_view text) {
    if (!loaded_.tokenizer) throw LoadError(loaded_.folder.string() + " has no tokenizer.json, which videos need");
    return loaded_.tokenizer->encode(text);
  };
  ExpandedPrompt prompt = value_or_throw(
      expand_placeholders(request.prompt_token_ids, image_grids(), video_places(), rule(), encode), "prompt");
  request.positions = positions_of(prompt);
  request.position_delta = static_cast<int32_t>(prompt.position_delta);
  request.images = spans(prompt);
  request.prompt_token_ids = std::move(prompt.tokens);
}

void Pictures::place_expanded(Sequence& sequence) const {
  if (empty()) return;
  const ExpandedPrompt prompt =
      value_or_throw(locate_placeholders(sequence.tokens, image_grids(), video_places(), rule()), "input_ids");
  sequence.positions = positions_of(prompt);
  sequence.position_delta = static_cast<int32_t>(prompt.position_delta);
  sequence.images = spans(prompt);
}

}  // namespace calandra::apps
