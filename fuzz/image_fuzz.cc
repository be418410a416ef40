// Any bytes as an image file: refused with a RequestError, or an image within the limits. Images are small here, so
// that memory taken for a size that only a header claims would stand out.
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "vision/image.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size) {
  using namespace calandra;
  const ImageLimits kLimits{.max_file_bytes = 1 << 20, .max_pixels = 1 << 18, .max_side = 1 << 12};
  const auto decoded = decode_image({reinterpret_cast<const char*>(bytes), size}, kLimits);
  if (const auto* error = std::get_if<RequestError>(&decoded)) {
    if (error->status != 400 || error->message.empty()) std::abort();
    return 0;
  }
  const Image& image = std::get<Image>(decoded);
  if (image.height < 1 || image.width < 1 || image.height * image.width > kLimits.max_pixels) std::abort();
  if (std::ssize(image.rgb) != image.height * image.width * 3) std::abort();
  // Every pixel has a value (the memory sanitizer of a checking build sees it here).
  unsigned sum = 0;
  for (const uint8_t level : image.rgb) sum += level;
  return sum == 0xffffffff;
}
