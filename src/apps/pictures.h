// Images and videos of one prompt, in their order, and their places in it.
#pragma once

#include <deque>
#include <string>
#include <vector>

#include "apps/picture_reader.h"
#include "engine/engine_core.h"
#include "vision/placeholders.h"

namespace calandra::apps {

class Pictures {
 public:
  // `reader` must outlive it. `taps`: of the vision tower.
  explicit Pictures(const PictureReader& reader, Taps* taps = nullptr);

  void add_image(Picture image) { images_.push_back({std::move(image)}); }
  void add_video(Picture video) { videos_.push_back({std::move(video)}); }
  // From files: decode, resize and cut into patches, for the vision tower. Throw LoadError naming the file: the model
  // has no vision tower or no processor file, or the picture cannot be read.
  void add_image(const std::string& file);
  // A video file (through ffmpeg), or the images of a folder, in the order of their numbers, at `fps`.
  void add_video(const std::string& path, std::optional<double> fps);
  // Patches that are prepared already (research). Throw LoadError when they do not suit the tower.
  void add_image_patches(std::span<const float> patches, const PatchGrid& grid);
  void add_video_patches(std::span<const float> patches, const PatchGrid& grid);
  void clear();

  bool empty() const { return images_.empty() && videos_.empty(); }
  // Content of a chat message with the pictures added since `first`: items {"type": "image"} and {"type": "video"},
  // then the text; the bare text when there are none.
  struct Count {
    size_t images = 0, videos = 0;
  };
  Count count() const { return {images_.size(), videos_.size()}; }
  json::value content(const std::string& text, Count first) const;

  // Expands the placeholders of a prompt and puts pictures and positions into the request; checkpoint hints move along.
  // Throws LoadError when there are not as many placeholders, also when there is no picture.
  void place(Request& request) const;
  // The same for a prompt whose placeholders are expanded already; runs the vision tower, whose results live here.
  void place_expanded(Sequence& sequence);

 private:
  struct Entry {
    Picture picture;
    ImageEmbeds embeds = {};  // of place_expanded
  };
  void check_prepared(std::span<const float> patches, const PatchGrid& grid) const;
  const VisionEncoder& encoder() const;
  void refuse_placeholders(std::span<const int32_t> ids) const;
  std::string token_name(int32_t id) const;
  ExpansionRule rule() const;
  std::vector<PatchGrid> image_grids() const;
  std::vector<VideoPlace> video_places() const;
  std::vector<PictureRows> rows(const ExpandedPrompt& prompt) const;

  const PictureReader& reader_;
  const LoadedModel& loaded_;
  Taps* taps_;
  std::deque<Entry> images_, videos_;
};

}  // namespace calandra::apps
