// Bytes of images and videos to what a model's vision tower reads, as the processor files of its folder say.
#pragma once

#include <memory>
#include <optional>
#include <string_view>
#include <variant>
#include <vector>

#include "apps/loaded_model.h"
#include "engine/encoder_cache.h"
#include "vision/processor_config.h"
#include "vision/video.h"

namespace calandra::apps {

// An image or a video, prepared.
struct Picture {
  std::shared_ptr<const EncoderInput> input;
  std::vector<double> seconds = {};  // of a video's temporal patches
};
// Equal patches under an equal grid are the same picture, whatever they were made of.
Picture make_picture(std::vector<float> patches, const PatchGrid& grid, std::vector<double> seconds = {});

struct ProcessorConfigs {
  std::optional<ImageProcessorConfig> image;
  std::optional<VideoProcessorConfig> video;
};

class PictureReader {
 public:
  // Reads the files when they are there and the model was loaded with its tower. Throws LoadError when one is broken.
  // `loaded` must outlive it.
  explicit PictureReader(const LoadedModel& loaded);

  const LoadedModel& loaded() const { return loaded_; }
  const ProcessorConfigs& configs() const { return configs_; }
  // Those with vLLM's mm_processor_kwargs. Throws LoadError naming the key that is unknown or wrong.
  ProcessorConfigs configs_with(const json::object& kwargs) const;
  // From now on configs() are those.
  void apply(const json::object& kwargs);

 private:
  const LoadedModel& loaded_;
  json::value image_file_, video_file_;  // null: absent
  ProcessorConfigs configs_;
};

// Any thread may call them. Errors: 400.
std::variant<Picture, RequestError> read_image(std::string_view bytes, const ImageProcessorConfig& config,
                                               const ImageLimits& limits = {});
std::variant<Picture, RequestError> read_video_file(const std::filesystem::path& file,
                                                    const VideoProcessorConfig& config,
                                                    const VideoFileLimits& limits = {});
std::variant<Picture, RequestError> read_video_frames(int64_t count, const ReadFrame& read, std::optional<double> fps,
                                                      const VideoProcessorConfig& config);

}  // namespace calandra::apps
