#include "apps/api/media.h"

#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/sysinfo.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "apps/api/data_url.h"
#include "base/error.h"
#include "base/log.h"
#include "net/url_policy.h"

namespace calandra::apps {
namespace {

constexpr int64_t kMaxFileBytes = 20 << 20;
constexpr double kVideoSeconds = 30;  // of ffmpeg
// Beside the decode: the resized picture in 8 bits and, twice for a picture, its patches in f32.
constexpr int64_t kPatchBytesPerPixel = 3 + 2 * 3 * int64_t{sizeof(float)};

RequestError bad(std::string code, std::string message) {
  return {400, std::move(code), "messages", std::move(message)};
}
RequestError given_up() { return bad("client_left", "the client has left"); }

int64_t host_memory() {
  struct sysinfo info {};
  return sysinfo(&info) == 0 ? static_cast<int64_t>(info.totalram) * info.mem_unit : int64_t{4} << 30;
}

// At least what the largest picture or video takes, so that every one can be decoded alone.
int64_t decoding_bytes(const ProcessorConfigs& configs) {
  const int64_t pixels =
      std::max(configs.image ? configs.image->max_pixels : 0, configs.video ? configs.video->max_pixels : 0);
  return std::max(kMaxImagePixels * kDecodeBytesPerPixel + pixels * kPatchBytesPerPixel, host_memory() / 8);
}

std::vector<std::string> domains_of(const MediaFlags& flags) {
  constexpr const char* kFlag = "--allowed-media-domains";
  std::vector<std::string> domains;
  for (const std::string& list : flags.allowed_media_domains)
    for (size_t begin = 0; begin <= list.size();) {
      const size_t end = std::min(list.find(',', begin), list.size());
      domains.push_back(net::checked_domain(kFlag, list.substr(begin, end - begin)));
      begin = end + 1;
    }
  return domains;
}

// {"image": 4}, or with vLLM's longer form {"image": {"count": 4}}.
void read_limits(const json::object& given, int64_t* images, int64_t* videos) {
  constexpr const char* kFlag = "--limit-mm-per-prompt";
  for (const auto& [key, value] : given) {
    const json::object* inner = value.if_object();
    const json::value* count = inner == nullptr ? &value : inner->if_contains("count");
    if (count == nullptr || !count->is_int64() || count->get_int64() < 0)
      throw UsageError(
          fmt::format("{}: {} must be a whole number, found {}", kFlag, std::string_view(key), to_json(value)));
    if (key == "image")
      *images = count->get_int64();
    else if (key == "video")
      *videos = count->get_int64();
    else if (count->get_int64() > 0)
      throw UsageError(fmt::format("{}: {} is not supported; image and video are", kFlag, std::string_view(key)));
  }
}

// A file in memory that another program can open by its name.
class MemoryFile {
 public:
  explicit MemoryFile(std::string_view bytes) : descriptor_(memfd_create("video", MFD_CLOEXEC)) {
    while (descriptor_ >= 0 && !bytes.empty()) {
      const ssize_t count = write(descriptor_, bytes.data(), bytes.size());
      if (count < 0 && errno == EINTR) continue;
      if (count < 0) break;
      bytes.remove_prefix(static_cast<size_t>(count));
    }
    is_whole_ = descriptor_ >= 0 && bytes.empty();
    if (!is_whole_) log_warning("there is no file in memory for a video: {}", strerrordesc_np(errno));
  }
  ~MemoryFile() {
    if (descriptor_ >= 0) close(descriptor_);
  }
  MemoryFile(const MemoryFile&) = delete;
  MemoryFile& operator=(const MemoryFile&) = delete;
  // False: the machine lacks files or memory.
  bool is_whole() const { return is_whole_; }
  std::string name() const { return fmt::format("/proc/{}/fd/{}", getpid(), descriptor_); }

 private:
  const int descriptor_;
  bool is_whole_ = false;
};

}  // namespace

// The parts of one request.
class MediaLoader::Work {
 public:
  Work(const MediaLoader& loader, const ProcessorConfigs& configs, const std::function<bool()>& gone)
      : loader_(loader), configs_(configs), gone_(gone) {}

  std::variant<Picture, RequestError> read(const MediaPart& part) {
    auto picture = part.is_video ? video(part.url) : image(part.url);
    hold_.reset();
    if (is_gone()) return given_up();
    if (auto* error = std::get_if<RequestError>(&picture)) {
      error->param = "messages";
      return std::move(*error);
    }
    return kept(std::get<Picture>(std::move(picture)));
  }

 private:
  bool is_gone() const { return gone_ && gone_(); }

  // Memory for a picture of this size, whose result has up to `most_pixels`. Of a video all frames take the first
  // one's.
  std::optional<RequestError> admit(int64_t width, int64_t height, int64_t most_pixels) {
    const int64_t bytes =
        std::min(width * height * kDecodeBytesPerPixel + most_pixels * kPatchBytesPerPixel, loader_.decoding_->most());
    if (hold_ && bytes <= hold_->bytes()) return std::nullopt;
    hold_.reset();
    if (auto hold = loader_.decoding_->wait(bytes, gone_))
      hold_.emplace(std::move(*hold));
    else
      return given_up();
    return std::nullopt;
  }

  std::optional<RequestError> too_long(int64_t tokens) const {
    if (tokens <= loader_.longest_ - tokens_) return std::nullopt;
    return bad("context_length_exceeded",
               fmt::format("the pictures have more tokens than the {} that a prompt may have; send fewer or smaller "
                           "ones, lower max_pixels in mm_processor_kwargs, or raise --max-model-len",
                           loader_.longest_));
  }

  std::variant<Picture, RequestError> image(std::string_view url) {
    const ImageProcessorConfig& config = *configs_.image;
    ImageLimits limits;
    limits.max_file_bytes = kMaxFileBytes;
    limits.admit = [&](int64_t width, int64_t height) -> std::optional<RequestError> {
      const auto size = smart_resize({height, width}, config.size_rule());  // turned, it has as many tokens
      if (const auto* error = std::get_if<RequestError>(&size)) return *error;
      const auto [h, w] = std::get<ImageSize>(size);
      const int64_t side = config.patch_size * config.merge_size;
      if (auto error = too_long(h * w / (side * side))) return error;
      return admit(width, height, h * w);
    };
    auto bytes = file(url);
    if (auto* error = std::get_if<RequestError>(&bytes)) return std::move(*error);
    return read_image(std::get<std::string>(bytes), config, limits);
  }

  std::variant<Picture, RequestError> video(std::string_view url) {
    VideoFileLimits limits;
    limits.seconds = kVideoSeconds;
    limits.gone = gone_;
    limits.frame.max_file_bytes = kMaxFileBytes;
    limits.frame.admit = [&](int64_t width, int64_t height) {
      return admit(width, height, configs_.video->max_pixels);
    };
    if (auto data = read_data_url(url); auto* found = std::get_if<DataUrl>(&data))
      if (found->media_type == "video/jpeg") return frames(found->payload, limits.frame);
    auto bytes = file(url);
    if (auto* error = std::get_if<RequestError>(&bytes)) return std::move(*error);
    const MemoryFile file(std::get<std::string>(bytes));
    if (!file.is_whole())
      return RequestError{503, "service_unavailable", "", "the server has no room for a video now; try again later"};
    return read_video_file(file.name(), *configs_.video, limits);
  }

  // vLLM's form: JPEG files, with commas between; as many a second as the model wants, so that all are taken.
  std::variant<Picture, RequestError> frames(std::string_view payload, const ImageLimits& limits) {
    const VideoProcessorConfig& config = *configs_.video;
    std::vector<std::string_view> files;
    for (size_t begin = 0; begin <= payload.size();) {
      const size_t end = std::min(payload.find(',', begin), payload.size());
      files.push_back(payload.substr(begin, end - begin));
      begin = end + 1;
    }
    if (std::ssize(files) > config.max_frames)
      return bad("invalid_video",
                 fmt::format("the video has {} frames; at most {} are accepted", files.size(), config.max_frames));
    const auto read = [&](int64_t i) -> std::variant<Image, RequestError> {
      if (is_gone()) return given_up();
      const auto bytes = decode_base64(files[static_cast<size_t>(i)]);
      if (!bytes) return bad("invalid_url", "a frame of the video is not base64");
      return decode_image(*bytes, limits);
    };
    return read_video_frames(std::ssize(files), read, config.fps, config);
  }

  std::variant<std::string, RequestError> file(std::string_view url) const {
    if (is_gone()) return given_up();
    if (url.starts_with("file:")) return loader_.local_folder_.read(url, kMaxFileBytes);
    auto data = read_data_url(url);
    const auto* found = std::get_if<DataUrl>(&data);
    if (found == nullptr && url.starts_with("data:")) return std::get<RequestError>(std::move(data));
    if (found == nullptr) return net::fetch(url, loader_.fetch_rules_, gone_);
    if (std::ssize(found->payload) / 4 * 3 > kMaxFileBytes)
      return bad("file_too_large", fmt::format("a file may have at most {} bytes", kMaxFileBytes));
    auto bytes = decode_base64(found->payload);
    if (!bytes) return bad("invalid_url", "the content of the data: URL is not base64");
    return std::move(*bytes);
  }

  // The picture with its bytes in the ledger, as long as the engine or anybody else has it.
  std::variant<Picture, RequestError> kept(Picture picture) {
    const int64_t side = loader_.loaded_.model->vision()->spatial_merge_size();
    const int64_t tokens = picture.input->grid.patches() / (side * side);
    if (auto error = too_long(tokens)) return std::move(*error);
    tokens_ += tokens;
    auto hold = loader_.kept_->take(static_cast<int64_t>(picture.input->patches.size() * sizeof(float)));
    if (!hold) return RequestError{503, "service_unavailable", "", "too many pictures are waiting; try again later"};
    struct Kept {
      std::shared_ptr<const EncoderInput> input;
      std::shared_ptr<ByteLedger> ledger;
      ByteLedger::Hold hold;
    };
    const auto owner = std::make_shared<Kept>(Kept{std::move(picture.input), loader_.kept_, std::move(*hold)});
    picture.input = std::shared_ptr<const EncoderInput>(owner, owner->input.get());
    return picture;
  }

  const MediaLoader& loader_;
  const ProcessorConfigs& configs_;
  const std::function<bool()>& gone_;
  std::optional<ByteLedger::Hold> hold_;
  int64_t tokens_ = 0;  // of the pictures so far
};

MediaLoader::MediaLoader(const LoadedModel& loaded, const MediaFlags& flags, int64_t longest)
    : loaded_(loaded),
      longest_(longest),
      reader_(loaded),
      fetch_rules_{.allowed_domains = domains_of(flags), .max_bytes = kMaxFileBytes},
      kept_(std::make_shared<ByteLedger>(host_memory() / 4)) {
  if (flags.limit_mm_per_prompt) read_limits(*flags.limit_mm_per_prompt, &most_images_, &most_videos_);
  if (!flags.allowed_local_media_path.empty())
    local_folder_ = net::LocalFolder("--allowed-local-media-path", flags.allowed_local_media_path);
  if (flags.mm_processor_kwargs) reader_.apply(*flags.mm_processor_kwargs);
  decoding_ = std::make_unique<ByteLedger>(decoding_bytes(reader_.configs()));
}

std::variant<Pictures, RequestError> MediaLoader::load(std::span<const MediaPart> parts, const json::object& kwargs,
                                                       const std::function<bool()>& gone) const {
  Pictures pictures(reader_);
  if (parts.empty()) return pictures;
  if (loaded_.model->vision() == nullptr)
    return bad("unsupported_parameter", "this model takes text only: it has no vision tower, or was loaded without it");
  const auto videos = std::count_if(parts.begin(), parts.end(), [](const MediaPart& part) { return part.is_video; });
  for (const auto& [what, count, most] : {std::tuple("image", std::ssize(parts) - videos, most_images_),
                                          std::tuple("video", static_cast<std::ptrdiff_t>(videos), most_videos_)})
    if (count > most)
      return bad("too_many_pictures",
                 fmt::format("a prompt may have at most {} {}s (--limit-mm-per-prompt), found {}", most, what, count));
  const ProcessorConfigs configs = reader_.configs_with(kwargs);
  const ProcessorConfigs& own = reader_.configs();
  if ((videos > 0 && !configs.video) || (videos < std::ssize(parts) && !configs.image))
    return bad("unsupported_parameter", "the model's folder does not say how these pictures are prepared");
  if ((own.image && configs.image->max_pixels > own.image->max_pixels) ||
      (own.video && configs.video->num_frames.value_or(configs.video->max_frames) > own.video->max_frames))
    return RequestError{400, "invalid_value", "mm_processor_kwargs",
                        "mm_processor_kwargs may lower max_pixels and the frames of a video, not raise them above what "
                        "the server allows (--mm-processor-kwargs)"};
  Work work(*this, configs, gone);
  for (const MediaPart& part : parts) {
    auto picture = work.read(part);
    if (auto* error = std::get_if<RequestError>(&picture)) return std::move(*error);
    if (part.is_video)
      pictures.add_video(std::get<Picture>(std::move(picture)));
    else
      pictures.add_image(std::get<Picture>(std::move(picture)));
  }
  return pictures;
}

}  // namespace calandra::apps
