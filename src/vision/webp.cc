// WebP through libwebp: a still image, or the first frame of an animation on a black canvas.
#include <webp/decode.h>
#include <webp/demux.h>

#include <memory>
#include <utility>

#include "vision/decoders.h"
#include "vision/exif.h"

namespace calandra {
namespace {

struct DeleteDemuxer {
  void operator()(WebPDemuxer* demuxer) const { WebPDemuxDelete(demuxer); }
};

int orientation_of(const WebPDemuxer* demuxer) {
  WebPChunkIterator chunk{};
  int orientation = 1;
  if (WebPDemuxGetChunk(demuxer, "EXIF", 1, &chunk))
    orientation = exif_orientation({reinterpret_cast<const char*>(chunk.chunk.bytes), chunk.chunk.size});
  WebPDemuxReleaseChunkIterator(&chunk);
  return orientation;
}

// Whether the frame, which must lie inside the canvas, was drawn on it.
bool draw(const WebPIterator& frame, Image* canvas) {
  WebPBitstreamFeatures features;
  if (WebPGetFeatures(frame.fragment.bytes, frame.fragment.size, &features) != VP8_STATUS_OK) return false;
  if (features.width != frame.width || features.height != frame.height) return false;
  if (frame.x_offset < 0 || frame.y_offset < 0 || frame.x_offset + int64_t{frame.width} > canvas->width ||
      frame.y_offset + int64_t{frame.height} > canvas->height)
    return false;
  const size_t first = (frame.y_offset * canvas->width + frame.x_offset) * 3;
  return WebPDecodeRGBInto(frame.fragment.bytes, frame.fragment.size, canvas->rgb.data() + first,
                           canvas->rgb.size() - first, static_cast<int>(canvas->width * 3)) != nullptr;
}

}  // namespace

Decoded decode_webp(std::string_view bytes, const ImageLimits& limits) {
  const WebPData file{reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()};
  const std::unique_ptr<WebPDemuxer, DeleteDemuxer> demuxer(WebPDemux(&file));
  if (!demuxer) return bad_image("WebP", "the file is damaged or ends early");
  const int64_t width = WebPDemuxGetI(demuxer.get(), WEBP_FF_CANVAS_WIDTH);
  const int64_t height = WebPDemuxGetI(demuxer.get(), WEBP_FF_CANVAS_HEIGHT);
  if (auto error = check_size(width, height, limits)) return std::move(*error);
  Image image = black_image(width, height);
  WebPIterator frame{};
  const bool drawn = WebPDemuxGetFrame(demuxer.get(), 1, &frame) && draw(frame, &image);
  WebPDemuxReleaseIterator(&frame);
  if (!drawn) return bad_image("WebP", "the pixel data of its first frame is damaged");
  return DecodedImage{std::move(image), orientation_of(demuxer.get())};
}

}  // namespace calandra
