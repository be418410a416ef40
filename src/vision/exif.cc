#include "vision/exif.h"

#include <cstdint>
#include <optional>

namespace calandra {
namespace {

// Bytes in the order that the TIFF header names; nothing is read outside of them.
struct TiffBytes {
  std::string_view bytes;
  bool big_endian = false;

  std::optional<uint32_t> number(size_t at, size_t size) const {
    if (at > bytes.size() || size > bytes.size() - at) return std::nullopt;
    uint32_t value = 0;
    for (size_t i = 0; i < size; ++i)
      value = value << 8 | static_cast<uint8_t>(bytes[big_endian ? at + i : at + size - 1 - i]);
    return value;
  }
};

}  // namespace

int exif_orientation(std::string_view block) {
  constexpr int kUpright = 1, kTag = 0x0112, kByte = 1, kShort = 3, kLong = 4, kEntryBytes = 12;
  constexpr std::string_view kMarker("Exif\0\0", 6);
  if (block.starts_with(kMarker)) block.remove_prefix(kMarker.size());
  if (!block.starts_with("II") && !block.starts_with("MM")) return kUpright;
  const TiffBytes tiff{block, block.starts_with("MM")};
  const auto directory = tiff.number(4, 4);
  if (tiff.number(2, 2) != 42u || !directory) return kUpright;
  const auto entries = tiff.number(*directory, 2);
  for (uint32_t i = 0; i < entries.value_or(0); ++i) {
    const size_t entry = size_t{*directory} + 2 + size_t{i} * kEntryBytes;
    const auto tag = tiff.number(entry, 2), type = tiff.number(entry + 2, 2), count = tiff.number(entry + 4, 4);
    if (!tag) return kUpright;
    if (*tag != kTag) continue;
    if (count != 1u) return kUpright;
    const size_t size = type == kByte ? 1 : type == kShort ? 2 : type == kLong ? 4 : 0;
    const auto value = tiff.number(entry + 8, size);
    return size > 0 && value && *value >= 1 && *value <= 8 ? static_cast<int>(*value) : kUpright;
  }
  return kUpright;
}

}  // namespace calandra
