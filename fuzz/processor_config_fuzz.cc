// Arbitrary bytes as preprocessor_config.json and video_preprocessor_config.json: refused with a LoadError, or sizes
// with which images and videos of any shape are resized into bounds.
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "base/error.h"
#include "base/json.h"
#include "vision/video.h"

namespace calandra {
namespace {

void check(const std::variant<ImageSize, RequestError>& size, const PatchConfig& config) {
  if (std::holds_alternative<RequestError>(size)) return;
  const auto [height, width] = std::get<ImageSize>(size);
  const int64_t factor = config.patch_size * config.merge_size;
  if (height < factor || width < factor || height % factor != 0 || width % factor != 0) std::abort();
}

}  // namespace
}  // namespace calandra

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size) {
  using namespace calandra;
  constexpr ImageSize kSizes[] = {{1, 1}, {7, 9}, {1, 200}, {200, 1}, {65'535, 65'535}, {1080, 1920}, {65'535, 400}};
  json::value text;
  try {
    text = parse_json({reinterpret_cast<const char*>(bytes), size}, "config");
    const ImageProcessorConfig config = parse_image_processor_config(text, "preprocessor_config.json");
    for (const ImageSize image : kSizes) check(smart_resize(image, config.size_rule()), config);
  } catch (const LoadError&) {
  }
  try {
    const VideoProcessorConfig config = parse_video_processor_config(text, "video_preprocessor_config.json");
    for (const int64_t frames : {1, 2, 5, 1000}) {
      for (const ImageSize frame : kSizes) check(video_frame_size(frame, frames, config), config);
      const auto indices = sample_frames(frames, 29.97, config);
      for (const int64_t index : indices) {
        if (index < 0 || index >= frames) std::abort();
      }
      patch_seconds(indices, 29.97, config.temporal_patch_size);
    }
  } catch (const LoadError&) {
  }
  return 0;
}
