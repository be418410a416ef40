// Video files through ffprobe (size, rate and number of the frames) and ffmpeg (the chosen frames as raw RGB).
#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <chrono>
#include <cmath>
#include <span>
#include <utility>

#include "base/json.h"
#include "base/log.h"
#include "vision/decoders.h"
#include "vision/subprocess.h"
#include "vision/video.h"

namespace calandra {
namespace {

RequestError bad_video(std::string message) { return {400, "invalid_video", "", std::move(message)}; }

RequestError ffmpeg_missing(std::string_view program) {
  return {
      400, "ffmpeg_missing", "",
      fmt::format("reading a video file needs the program {} of ffmpeg, which is not installed here; install ffmpeg "
                  "or give the video as a folder of images",
                  program)};
}

// Containers that hold their own bytes; playlists and other formats that name further files are left out.
constexpr const char* kContainers = "mov,matroska,avi,mpeg,mpegts,mpegvideo,ogg,flv,asf,gif,h264,hevc,ivf";

struct VideoStream {
  ImageSize size;  // upright
  double fps = kUnknownFps;
  int64_t frames = 0;
};

// One file and the time that is left for it.
class VideoFile {
 public:
  VideoFile(const std::filesystem::path& file, const VideoFileLimits& limits)
      : input_("file:" + std::filesystem::absolute(file).string()),
        limits_(limits),
        end_(Clock::now() + std::chrono::duration_cast<Clock::duration>(
                                std::chrono::duration<double>(std::clamp(limits.seconds, 0.0, 1e6)))) {}

  // `decode`: count the frames by decoding them, which is slow and exact, instead of counting packets.
  std::variant<VideoStream, RequestError> probe(bool decode) const;

  // The frames of ascending `indices`, resized, in that order; fewer when the video has fewer.
  std::variant<std::vector<Image>, RequestError> frames(const VideoStream& stream, const std::vector<int64_t>& indices,
                                                        ImageSize size) const;

 private:
  using Clock = std::chrono::steady_clock;
  std::optional<RequestError> run(std::vector<std::string> arguments,
                                  const std::function<bool(std::string_view)>& on_output) const;

  const std::string input_;
  const VideoFileLimits limits_;
  const Clock::time_point end_;
};

// One line without control characters: the words of a file's maker go to a terminal.
std::string plain(std::string text) {
  for (char& c : text)
    if (static_cast<unsigned char>(c) < ' ' || c == '\x7f') c = ' ';
  return text;
}

std::optional<RequestError> VideoFile::run(std::vector<std::string> arguments,
                                           const std::function<bool(std::string_view)>& on_output) const {
  const double left = std::chrono::duration<double>(end_ - Clock::now()).count();
  const std::string program = arguments[0];
  const ProcessEnd end = run_process(arguments, {left, limits_.max_memory_bytes, limits_.gone}, on_output);
  if (end.kind == ProcessEnd::Kind::kExited && end.status == 0) return std::nullopt;
  if (end.kind == ProcessEnd::Kind::kNotFound) return ffmpeg_missing(program);
  if (end.kind == ProcessEnd::Kind::kStopped && limits_.gone && limits_.gone())
    return bad_video("reading the video was given up");
  log_warning("{} failed (status {}): {}", program, end.status, plain(end.errors));
  if (end.kind == ProcessEnd::Kind::kTooLong)
    return bad_video(fmt::format("{} did not finish reading the video in {} seconds", program, limits_.seconds));
  if (end.kind == ProcessEnd::Kind::kStopped)
    return bad_video(program + " gave more output than the video's size allows");
  return bad_video(program + " cannot read the video");
}

// "30000/1001" or "3.5"; nothing for "0/0".
std::optional<double> read_positive(std::string_view text) {
  double over = 0, under = 1;
  const char* end = text.data() + text.size();
  const auto [slash, failure] = std::from_chars(text.data(), end, over);
  if (failure != std::errc()) return std::nullopt;
  if (slash != end && (*slash != '/' || std::from_chars(slash + 1, end, under).ec != std::errc())) return std::nullopt;
  const double rate = over / under;
  return std::isfinite(rate) && rate > 0 ? std::optional(rate) : std::nullopt;
}

// Frames per second: as the stream says, or else from its duration, which Ogg files have alone.
double rate_of(const json::object& stream, int64_t frames) {
  const auto text = [&](const char* key) {
    const json::value* value = stream.if_contains(key);
    return value && value->is_string() ? std::string_view(value->get_string()) : std::string_view();
  };
  if (const auto rate = read_positive(text("avg_frame_rate"))) return *rate;
  if (const auto seconds = read_positive(text("duration"))) return static_cast<double>(frames) / *seconds;
  return kUnknownFps;
}

// A number, also where it is written as a string; 0 when there is none.
int64_t number_of(const json::object& object, std::string_view key) {
  const json::value* value = object.if_contains(key);
  if (!value) return 0;
  if (value->is_int64()) return value->get_int64();
  if (value->is_double() && std::abs(value->get_double()) < 1e15) return std::llround(value->get_double());
  int64_t number = 0;
  if (value->is_string())
    std::from_chars(value->get_string().data(), value->get_string().data() + value->get_string().size(), number);
  return number;
}

// Degrees by which ffmpeg turns the frames before it gives them.
int64_t rotation_of(const json::object& stream) {
  if (const json::value* list = stream.if_contains("side_data_list"); list && list->is_array()) {
    for (const json::value& item : list->get_array()) {
      if (item.is_object() && item.get_object().contains("rotation")) return number_of(item.get_object(), "rotation");
    }
  }
  const json::value* tags = stream.if_contains("tags");
  return tags && tags->is_object() ? number_of(tags->get_object(), "rotate") : 0;
}

std::variant<VideoStream, RequestError> read_probe(const std::string& text, const char* frames_key) {
  const RequestError no_video = bad_video("the file holds no video");
  json::value root;
  try {
    root = parse_json(text, "ffprobe's answer");
  } catch (const LoadError& error) {
    log_warning("{}", error.what());
    return no_video;
  }
  const json::value* streams = root.is_object() ? root.get_object().if_contains("streams") : nullptr;
  if (!streams || !streams->is_array() || streams->get_array().empty() || !streams->get_array()[0].is_object())
    return no_video;
  const json::object& first = streams->get_array()[0].get_object();
  VideoStream stream{
      {number_of(first, "height"), number_of(first, "width")}, kUnknownFps, number_of(first, frames_key)};
  if (std::abs(rotation_of(first)) % 180 == 90) std::swap(stream.size.height, stream.size.width);
  if (stream.frames <= 0) return no_video;
  stream.fps = rate_of(first, stream.frames);
  return stream;
}

std::variant<VideoStream, RequestError> VideoFile::probe(bool decode) const {
  constexpr size_t kMostBytes = 1 << 20;
  std::string text;
  const std::string frames_key = decode ? "nb_read_frames" : "nb_read_packets";
  auto error = run(
      {"ffprobe", "-v", "error", "-protocol_whitelist", "file", "-format_whitelist", kContainers, "-select_streams",
       "V:0", decode ? "-count_frames" : "-count_packets", "-show_entries",
       "stream=width,height,avg_frame_rate,duration," + frames_key + ":stream_side_data=rotation:stream_tags=rotate",
       "-of", "json", "-i", input_},
      [&](std::string_view bytes) {
        text += bytes;
        return text.size() <= kMostBytes;
      });
  if (error) return std::move(*error);
  auto stream = read_probe(text, frames_key.c_str());
  if (const auto* found = std::get_if<VideoStream>(&stream)) {
    if (auto too_large = check_size(found->size.width, found->size.height, limits_.frame)) return std::move(*too_large);
  }
  return stream;
}

// The sum of the tests, halved again and again: ffmpeg refuses a sum of more than 100 terms side by side.
std::string any_of(std::span<const std::string> tests) {
  if (tests.size() == 1) return tests[0];
  const size_t half = tests.size() / 2;
  return "(" + any_of(tests.first(half)) + "+" + any_of(tests.subspan(half)) + ")";
}

std::variant<std::vector<Image>, RequestError> VideoFile::frames(const VideoStream& stream,
                                                                 const std::vector<int64_t>& indices,
                                                                 ImageSize size) const {
  std::vector<std::string> runs;
  int64_t wanted = 0;
  for (size_t i = 0; i < indices.size();) {
    const int64_t first = indices[i];
    int64_t last = first;
    for (++i; i < indices.size() && indices[i] <= last + 1; ++i) last = indices[i];
    runs.push_back(first == last ? fmt::format("eq(n\\,{})", first) : fmt::format("between(n\\,{}\\,{})", first, last));
    wanted += last - first + 1;
  }
  const std::string chosen = any_of(runs);
  constexpr size_t kMostBytes = 120'000;  // Linux refuses an argument of 128 KiB
  if (chosen.size() > kMostBytes)
    return bad_video(fmt::format("{} frames all over the video are to be taken, more than ffmpeg can be told", wanted));
  const auto [height, width] = stream.size;
  std::vector<Image> distinct;
  Image frame = black_image(width, height);
  size_t filled = 0;
  auto error = run({"ffmpeg",
                    "-nostdin",
                    "-v",
                    "error",
                    "-protocol_whitelist",
                    "file",
                    "-format_whitelist",
                    kContainers,
                    "-i",
                    input_,
                    "-map",
                    "0:V:0",
                    "-vf",
                    fmt::format("select={},scale={}:{}", chosen, width, height),
                    "-fps_mode",
                    "passthrough",
                    "-frames:v",
                    std::to_string(wanted),
                    "-f",
                    "rawvideo",
                    "-pix_fmt",
                    "rgb24",
                    "pipe:1"},
                   [&](std::string_view bytes) {
                     while (!bytes.empty()) {
                       if (std::ssize(distinct) == wanted) return false;
                       const size_t count = std::min(bytes.size(), frame.rgb.size() - filled);
                       std::copy_n(bytes.begin(), count, frame.rgb.begin() + filled);
                       bytes.remove_prefix(count);
                       filled += count;
                       if (filled < frame.rgb.size()) continue;
                       distinct.push_back(resize_bicubic(frame, size));
                       filled = 0;
                     }
                     return true;
                   });
  if (error) return std::move(*error);
  if (std::ssize(distinct) < wanted) return distinct;
  std::vector<Image> all;
  size_t at = 0;
  for (size_t i = 0; i < indices.size(); ++i) {
    if (i > 0 && indices[i] != indices[i - 1]) ++at;
    all.push_back(distinct[at]);
  }
  return all;
}

}  // namespace

std::variant<PreparedVideo, RequestError> preprocess_video_file(const std::filesystem::path& file,
                                                                const VideoProcessorConfig& config,
                                                                const VideoFileLimits& limits) {
  std::error_code failure;
  if (!std::filesystem::is_regular_file(file, failure)) return bad_video("the video file cannot be read");
  const VideoFile video(file, limits);
  // Packets are counted first. Some files have packets that show no frame; then the frames themselves are counted.
  for (const bool decode : {false, true}) {
    const auto probed = video.probe(decode);
    if (const auto* error = std::get_if<RequestError>(&probed)) return *error;
    const auto& stream = std::get<VideoStream>(probed);
    PreparedVideo prepared;
    prepared.fps = stream.fps;
    prepared.frame_indices = sample_frames(stream.frames, stream.fps, config);
    if (prepared.frame_indices.empty())
      return bad_video(fmt::format("the video has {} frames; at most {} are taken", stream.frames, kMaxTakenFrames));
    const auto size = video_frame_size(stream.size, std::ssize(prepared.frame_indices), config);
    if (const auto* error = std::get_if<RequestError>(&size)) return *error;
    auto frames = video.frames(stream, prepared.frame_indices, std::get<ImageSize>(size));
    if (auto* error = std::get_if<RequestError>(&frames)) return std::move(*error);
    const auto& images = std::get<std::vector<Image>>(frames);
    if (images.size() < prepared.frame_indices.size()) continue;
    prepared.seconds = patch_seconds(prepared.frame_indices, stream.fps, config.temporal_patch_size);
    prepared.patches = patchify_frames(images, config);
    return prepared;
  }
  return bad_video("ffmpeg gave fewer frames than the video says it has");
}

}  // namespace calandra
