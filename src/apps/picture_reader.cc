#include "apps/picture_reader.h"

#include <fmt/format.h>
#include <openssl/evp.h>

#include <array>
#include <cstring>

#include "base/check.h"
#include "base/error.h"
#include "vision/patchify.h"

namespace calandra::apps {
namespace {

namespace fs = std::filesystem;

constexpr const char* kWhere = "mm_processor_kwargs";

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

std::array<uint64_t, 4> content_hash(const std::vector<float>& patches, const PatchGrid& grid) {
  std::array<uint64_t, 4> hash{};
  const std::array<int64_t, 3> sizes{grid.t, grid.h, grid.w};
  const std::unique_ptr<EVP_MD_CTX, decltype(&EVP_MD_CTX_free)> context(EVP_MD_CTX_new(), EVP_MD_CTX_free);
  CHECK(context != nullptr);
  CHECK(EVP_DigestInit_ex(context.get(), EVP_sha256(), nullptr) == 1);
  CHECK(EVP_DigestUpdate(context.get(), sizes.data(), sizeof(sizes)) == 1);
  CHECK(EVP_DigestUpdate(context.get(), patches.data(), patches.size() * sizeof(float)) == 1);
  CHECK(EVP_DigestFinal_ex(context.get(), reinterpret_cast<unsigned char*>(hash.data()), nullptr) == 1);
  return hash;
}

// What a request may change of images, and of videos.
constexpr std::string_view kImageKeys[] = {"min_pixels", "max_pixels", "size"};
constexpr std::string_view kVideoKeys[] = {"fps", "num_frames", "min_frames", "max_frames", "do_sample_frames"};

template <size_t N>
bool contains(const std::string_view (&keys)[N], std::string_view key) {
  return std::find(std::begin(keys), std::end(keys), key) != std::end(keys);
}

json::object merged(const json::value& file, const json::object& kwargs) {
  json::object result = file.get_object();
  for (const auto& [key, value] : kwargs) {
    if (contains(kImageKeys, key) && key == "size") {  // the older names, which win where a file has both
      result.erase("min_pixels");
      result.erase("max_pixels");
    }
    if (key == "num_frames") result.erase("fps");
    result[key] = value;
  }
  return result;
}

}  // namespace

Picture make_picture(std::vector<float> patches, const PatchGrid& grid, std::vector<double> seconds) {
  const std::array<uint64_t, 4> hash = content_hash(patches, grid);
  return {std::make_shared<const EncoderInput>(EncoderInput{std::move(patches), grid, hash}), std::move(seconds)};
}

PictureReader::PictureReader(const LoadedModel& loaded) : loaded_(loaded) {
  const VisionEncoder* encoder = loaded.model->vision();
  if (encoder == nullptr || loaded.folder.empty()) return;
  constexpr size_t kMostBytes = 1 << 20;
  const fs::path image = loaded.folder / "preprocessor_config.json";
  const fs::path video = loaded.folder / "video_preprocessor_config.json";
  if (fs::exists(image)) {
    image_file_ = read_json_file(image, kMostBytes);
    configs_.image = parse_image_processor_config(image_file_, image.string());
    check_patches(*encoder, *configs_.image, image);
  }
  if (fs::exists(video)) {
    video_file_ = read_json_file(video, kMostBytes);
    configs_.video = parse_video_processor_config(video_file_, video.string());
    check_patches(*encoder, *configs_.video, video);
  }
}

ProcessorConfigs PictureReader::configs_with(const json::object& kwargs) const {
  json::object images, videos;
  for (const auto& [key, value] : kwargs) {
    if (contains(kImageKeys, key))
      images[key] = value;
    else if (contains(kVideoKeys, key))
      videos[key] = value;
    else
      throw LoadError(fmt::format("{}: {} is not known; known are {}, {}", kWhere, to_json(json::string(key)),
                                  fmt::join(kImageKeys, ", "), fmt::join(kVideoKeys, ", ")));
  }
  ProcessorConfigs configs = configs_;
  if (configs.image && !images.empty())
    configs.image = parse_image_processor_config(merged(image_file_, images), kWhere);
  if (configs.video && !videos.empty())
    configs.video = parse_video_processor_config(merged(video_file_, videos), kWhere);
  return configs;
}

void PictureReader::apply(const json::object& kwargs) {
  configs_ = configs_with(kwargs);
  for (const auto& [key, value] : kwargs)
    if (json::value& file = contains(kImageKeys, key) ? image_file_ : video_file_; file.is_object())
      file = merged(file, {{key, value}});
}

std::variant<Picture, RequestError> read_image(std::string_view bytes, const ImageProcessorConfig& config,
                                               const ImageLimits& limits) {
  auto image = decode_image(bytes, limits);
  if (auto* error = std::get_if<RequestError>(&image)) return std::move(*error);
  auto patches = preprocess_image(std::get<Image>(std::move(image)), config);
  if (auto* error = std::get_if<RequestError>(&patches)) return std::move(*error);
  auto& made = std::get<Patches>(patches);
  return make_picture(std::move(made.values), made.grid);
}

namespace {

std::variant<Picture, RequestError> picture_of(std::variant<PreparedVideo, RequestError> video) {
  if (auto* error = std::get_if<RequestError>(&video)) return std::move(*error);
  auto& made = std::get<PreparedVideo>(video);
  return make_picture(std::move(made.patches.values), made.patches.grid, std::move(made.seconds));
}

}  // namespace

std::variant<Picture, RequestError> read_video_file(const fs::path& file, const VideoProcessorConfig& config,
                                                    const VideoFileLimits& limits) {
  return picture_of(preprocess_video_file(file, config, limits));
}

std::variant<Picture, RequestError> read_video_frames(int64_t count, const ReadFrame& read, std::optional<double> fps,
                                                      const VideoProcessorConfig& config) {
  return picture_of(preprocess_frames(count, read, fps, config));
}

}  // namespace calandra::apps
