// Sampling and timestamps as Transformers 5.17 has them: video_processing_qwen3_vl.py, processing_qwen3_vl.py.
#include "vision/video.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "base/check.h"

namespace calandra {
namespace {

RequestError bad_video(std::string message) { return {400, "invalid_video", "", std::move(message)}; }

int64_t sample_count(int64_t total, double fps, const VideoProcessorConfig& config) {
  if (!config.do_sample_frames) return total;
  if (config.num_frames) return *config.num_frames;
  // Bounded before it becomes an integer: a tiny fps makes this number huge.
  const double wanted = std::clamp(std::trunc(static_cast<double>(total) / fps * config.fps),
                                   static_cast<double>(config.min_frames), static_cast<double>(config.max_frames));
  return std::min(static_cast<int64_t>(wanted), total);
}

}  // namespace

std::vector<int64_t> sample_frames(int64_t total, double fps, const VideoProcessorConfig& config) {
  CHECK_GT(total, 0);
  CHECK(fps > 0);
  const int64_t count = sample_count(total, fps, config);
  if (count > kMaxTakenFrames) return {};
  std::vector<int64_t> indices(count);
  const double step = count > 1 ? static_cast<double>(total - 1) / static_cast<double>(count - 1) : 0;
  for (int64_t i = 0; i < count; ++i) indices[i] = static_cast<int64_t>(std::nearbyint(static_cast<double>(i) * step));
  if (count > 1) indices.back() = total - 1;
  return indices;
}

std::vector<double> patch_seconds(const std::vector<int64_t>& frame_indices, double fps, int64_t temporal_patch_size) {
  const int64_t frames = std::ssize(frame_indices);
  std::vector<double> seconds;
  for (int64_t first = 0; first < frames; first += temporal_patch_size) {
    const int64_t last = std::min(first + temporal_patch_size, frames) - 1;
    seconds.push_back(
        (static_cast<double>(frame_indices[first]) / fps + static_cast<double>(frame_indices[last]) / fps) / 2);
  }
  return seconds;
}

std::string timestamp_text(double seconds) { return fmt::format("<{:.1f} seconds>", seconds); }

std::variant<ImageSize, RequestError> video_frame_size(ImageSize frame, int64_t frames,
                                                       const VideoProcessorConfig& config) {
  SizeRule rule = config.size_rule();
  if (config.cap_pixels_per_frame && frames > 0) {
    constexpr int64_t kTokensPerFrame = 768;
    const int64_t fair = std::min(kTokensPerFrame * rule.factor * rule.factor, rule.max_pixels / frames);
    const auto smallest = static_cast<int64_t>(static_cast<double>(rule.min_pixels) * 1.05);
    rule.max_pixels = std::max(fair, smallest) * frames;
  }
  return smart_resize_video(frame, frames, config.temporal_patch_size, rule);
}

std::variant<PreparedVideo, RequestError> preprocess_frames(int64_t count, const ReadFrame& read,
                                                            std::optional<double> fps,
                                                            const VideoProcessorConfig& config) {
  if (count <= 0) return bad_video("the video has no frames");
  if (!(fps.value_or(kUnknownFps) > 0)) return bad_video(fmt::format("the video has {} frames per second", *fps));
  PreparedVideo video;
  video.fps = fps.value_or(kUnknownFps);
  video.frame_indices = sample_frames(count, video.fps, config);
  if (video.frame_indices.empty())
    return bad_video(fmt::format("the video has {} frames; at most {} are taken", count, kMaxTakenFrames));
  ImageSize source, size;
  std::vector<Image> taken;
  for (size_t i = 0; i < video.frame_indices.size(); ++i) {
    const int64_t index = video.frame_indices[i];
    if (i > 0 && index == video.frame_indices[i - 1]) {
      taken.push_back(taken.back());
      continue;
    }
    auto found = read(index);
    if (auto* error = std::get_if<RequestError>(&found)) return std::move(*error);
    Image& frame = std::get<Image>(found);
    const ImageSize frame_size{frame.height, frame.width};
    if (i == 0) {
      source = frame_size;
      const auto wanted = video_frame_size(source, std::ssize(video.frame_indices), config);
      if (const auto* error = std::get_if<RequestError>(&wanted)) return *error;
      size = std::get<ImageSize>(wanted);
    } else if (frame_size != source) {
      return bad_video(fmt::format("frame {} of the video has {} x {} pixels, the first one {} x {}", index,
                                   frame.width, frame.height, source.width, source.height));
    }
    taken.push_back(resize_bicubic(std::move(frame), size));
  }
  video.seconds = patch_seconds(video.frame_indices, video.fps, config.temporal_patch_size);
  video.patches = patchify_frames(taken, config);
  return video;
}

}  // namespace calandra
