#include "apps/pictures.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>

#include "apps/jsonl.h"
#include "base/error.h"
#include "engine/vision_runner.h"

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

bool is_image_name(const fs::path& file) {
  std::string extension = file.extension().string();
  for (char& c : extension)
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  constexpr std::string_view kExtensions[] = {".jpg", ".jpeg", ".png", ".webp", ".gif"};
  return std::find(std::begin(kExtensions), std::end(kExtensions), extension) != std::end(kExtensions);
}

}  // namespace

Pictures::Pictures(const PictureReader& reader, Taps* taps) : reader_(reader), loaded_(reader.loaded()), taps_(taps) {}

const VisionEncoder& Pictures::encoder() const {
  const VisionEncoder* encoder = loaded_.model->vision();
  if (encoder == nullptr)
    throw LoadError(fmt::format("{}: this model has no vision tower; it takes text only", loaded_.config.file));
  return *encoder;
}

void Pictures::add_image(const std::string& file) {
  encoder();
  const auto& config = reader_.configs().image;
  if (!config)
    throw LoadError(
        fmt::format("{} has no preprocessor_config.json, which says how images are prepared", loaded_.folder.string()));
  add_image(value_or_throw(read_image(read_text_file(file), *config), file));
}

void Pictures::add_video(const std::string& path, std::optional<double> fps) {
  encoder();
  const auto& config = reader_.configs().video;
  if (!config)
    throw LoadError(fmt::format("{} has no video_preprocessor_config.json, which says how videos are prepared",
                                loaded_.folder.string()));
  if (!fs::is_directory(path)) return add_video(value_or_throw(read_video_file(path, *config), path));
  std::vector<fs::path> files;
  for (const auto& entry : fs::directory_iterator(path))
    if (entry.is_regular_file() && is_image_name(entry.path())) files.push_back(entry.path());
  if (files.empty()) throw LoadError(path + " holds no images (.jpg, .jpeg, .png, .webp, .gif)");
  std::sort(files.begin(), files.end(), before);
  const auto frame = [&](int64_t i) {
    const fs::path& file = files[static_cast<size_t>(i)];
    return value_or_throw(decode_image(read_text_file(file)), file.string());
  };
  add_video(value_or_throw(read_video_frames(std::ssize(files), frame, fps, *config), path));
}

void Pictures::check_prepared(std::span<const float> patches, const PatchGrid& grid) const {
  const int64_t merge = encoder().spatial_merge_size(), size = encoder().patch_size();
  const int64_t values = 3 * encoder().temporal_patch_size() * size * size;
  if (grid.h % merge != 0 || grid.w % merge != 0)
    throw LoadError(fmt::format("a picture of {} x {} patches: both must be multiples of {}", grid.h, grid.w, merge));
  if (std::ssize(patches) != grid.patches() * values)
    throw LoadError(
        fmt::format("a patch has {} values, the vision tower takes {}", std::ssize(patches) / grid.patches(), values));
}

void Pictures::add_image_patches(std::span<const float> patches, const PatchGrid& grid) {
  check_prepared(patches, grid);
  add_image(make_picture({patches.begin(), patches.end()}, grid));
}

void Pictures::add_video_patches(std::span<const float> patches, const PatchGrid& grid) {
  check_prepared(patches, grid);
  add_video(make_picture({patches.begin(), patches.end()}, grid, std::vector<double>(static_cast<size_t>(grid.t))));
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
  for (const Entry& image : images_) grids.push_back(image.picture.input->grid);
  return grids;
}

std::vector<VideoPlace> Pictures::video_places() const {
  std::vector<VideoPlace> places;
  for (const Entry& video : videos_) places.push_back({video.picture.input->grid, video.picture.seconds});
  return places;
}

std::vector<PictureRows> Pictures::rows(const ExpandedPrompt& prompt) const {
  std::vector<PictureRows> rows;
  for (size_t i = 0; i < images_.size(); ++i) {
    const RowRange& range = prompt.image_rows[i];
    rows.push_back({range.begin, range.end - range.begin, images_[i].picture.input});
  }
  for (size_t i = 0; i < videos_.size(); ++i) {
    int64_t first = 0;
    for (const RowRange& range : prompt.video_rows[i]) {
      rows.push_back({range.begin, range.end - range.begin, videos_[i].picture.input, first});
      first += range.end - range.begin;
    }
  }
  std::sort(rows.begin(), rows.end(), [](const PictureRows& a, const PictureRows& b) { return a.begin < b.begin; });
  return rows;
}

namespace {

// Where token index `end` of the prompt with placeholders stands in the expanded one.
int64_t expanded_index(int64_t end, std::span<const RowRange> image_rows) {
  for (const RowRange& range : image_rows)
    if (range.begin < end) end += range.end - range.begin - 1;
  return end;
}

std::vector<std::array<int32_t, 3>> positions_of(const ExpandedPrompt& prompt) {
  const size_t T = prompt.tokens.size();
  std::vector<std::array<int32_t, 3>> positions(T);
  for (size_t i = 0; i < T; ++i)
    for (size_t axis = 0; axis < 3; ++axis) positions[i][axis] = prompt.positions[axis * T + i];
  return positions;
}

}  // namespace

// The token as people write it with --raw.
std::string Pictures::token_name(int32_t id) const {
  return loaded_.tokenizer ? std::string(loaded_.tokenizer->id_to_token(id)) : fmt::format("token {}", id);
}

// Without a picture they would be read as text.
void Pictures::refuse_placeholders(std::span<const int32_t> ids) const {
  const std::pair<const char*, const char*> kinds[] = {{"image_token_id", "image"}, {"video_token_id", "video"}};
  for (const auto& [key, what] : kinds) {
    const json::value* id = loaded_.config.config.if_contains(key);
    if (id == nullptr || !id->is_int64()) continue;
    if (const auto places = std::count(ids.begin(), ids.end(), id->get_int64()); places > 0)
      throw LoadError(fmt::format("the prompt has {} {} placeholder{} ({}), but no {} was given", places, what,
                                  places == 1 ? "" : "s", token_name(static_cast<int32_t>(id->get_int64())), what));
  }
}

void Pictures::place(Request& request) const {
  if (empty()) return refuse_placeholders(request.prompt_token_ids);
  const auto encode = [&](std::string_view text) {
    if (!loaded_.tokenizer) throw LoadError(loaded_.folder.string() + " has no tokenizer.json, which videos need");
    return loaded_.tokenizer->encode(text);
  };
  const ExpansionRule rule = this->rule();
  auto expanded = expand_placeholders(request.prompt_token_ids, image_grids(), video_places(), rule, encode);
  if (const auto* error = std::get_if<RequestError>(&expanded))
    throw LoadError(fmt::format("{} ({} for an image, {} for a video)", error->message,
                                token_name(rule.tokens.image_pad), token_name(rule.tokens.video_pad)));
  ExpandedPrompt prompt = std::get<ExpandedPrompt>(std::move(expanded));
  request.positions = positions_of(prompt);
  request.position_delta = static_cast<int32_t>(prompt.position_delta);
  request.pictures = rows(prompt);
  if (!videos_.empty()) request.checkpoint_hints.clear();  // texts of their own stand around videos
  for (int64_t& end : request.checkpoint_hints) end = expanded_index(end, prompt.image_rows);
  request.prompt_token_ids = std::move(prompt.tokens);
}

void Pictures::place_expanded(Sequence& sequence) {
  if (empty()) return refuse_placeholders(sequence.tokens);
  const ExpandedPrompt prompt =
      value_or_throw(locate_placeholders(sequence.tokens, image_grids(), video_places(), rule()), "input_ids");
  sequence.positions = positions_of(prompt);
  sequence.position_delta = static_cast<int32_t>(prompt.position_delta);
  std::map<const EncoderInput*, Tensor> embeds;
  for (std::deque<Entry>* entries : {&images_, &videos_})
    for (Entry& entry : *entries) {
      const EncoderInput& input = *entry.picture.input;
      entry.embeds = encode_patches(encoder(), *loaded_.backend, input.patches, {&input.grid, 1}, taps_);
      embeds[&input] = entry.embeds.rows;
    }
  for (const PictureRows& at : rows(prompt))
    sequence.images.push_back({at.begin, embeds.at(at.input.get()).slice(0, at.first_row, at.first_row + at.count)});
}

}  // namespace calandra::apps
