// Videos: which frames are taken, when they are shown, and their patches.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "vision/patchify.h"

namespace calandra {

// Frames per second of a video that does not say.
inline constexpr double kUnknownFps = 24;
// Most frames of one video that are turned into patches, whatever the configuration says.
inline constexpr int64_t kMaxTakenFrames = 1 << 16;

// Indices of the frames that are taken out of `total` > 0, evenly spread from the first to the last; `fps` is the
// video's own. With fps-based sampling never more than `total`; empty when there would be more than kMaxTakenFrames.
std::vector<int64_t> sample_frames(int64_t total, double fps, const VideoProcessorConfig& config);

// The moment of each temporal patch, seconds: the mean of its first and its last frame, of which a last one that is
// missing repeats the one before.
std::vector<double> patch_seconds(const std::vector<int64_t>& frame_indices, double fps, int64_t temporal_patch_size);

// "<1.4 seconds>", as it stands in the prompt.
std::string timestamp_text(double seconds);

// The size frames are brought to when `frames` of them are taken.
std::variant<ImageSize, RequestError> video_frame_size(ImageSize frame, int64_t frames,
                                                       const VideoProcessorConfig& config);

struct PreparedVideo {
  Patches patches;
  std::vector<int64_t> frame_indices;  // in the source
  double fps = kUnknownFps;            // of the source
  std::vector<double> seconds;         // [grid.t]
};

// A video given as `count` frames, of which only those that are taken are read, one at a time. Error (code
// "invalid_video"): no frames, frames of different sizes, too few; and what `read` gives.
using ReadFrame = std::function<std::variant<Image, RequestError>(int64_t index)>;
std::variant<PreparedVideo, RequestError> preprocess_frames(int64_t count, const ReadFrame& read,
                                                            std::optional<double> fps,
                                                            const VideoProcessorConfig& config);

// A video file through the programs ffprobe and ffmpeg, where they are installed: subprocesses without a shell that may
// open this one file only, of the containers mp4/mov, matroska/webm, avi, mpeg, mpegts, ogg, flv, asf and gif.
struct VideoFileLimits {
  double seconds = 120;                         // of wall time, for all processes together
  int64_t max_memory_bytes = int64_t{4} << 30;  // address space of each process
  ImageLimits frame = {};                       // size of a frame
  std::function<bool()> gone = {};              // asked now and then; true ends it
};
// Frames are resized as they arrive, so that memory holds one large frame at a time. Errors name what is missing (code
// "ffmpeg_missing") or wrong (code "invalid_video"); what ffmpeg itself says goes to the log.
std::variant<PreparedVideo, RequestError> preprocess_video_file(const std::filesystem::path& file,
                                                                const VideoProcessorConfig& config,
                                                                const VideoFileLimits& limits = {});

}  // namespace calandra
