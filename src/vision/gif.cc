// The first frame of a GIF (GIF89a specification of CompuServe, 1990): colour tables, extensions, variable-length LZW,
// interlacing. Where the frame leaves canvas free it is filled as Pillow does: with the transparent colour, or else
// with colour 0. A frame that passes the canvas enlarges it.
#include <algorithm>
#include <array>
#include <utility>

#include "vision/decoders.h"

namespace calandra {
namespace {

// Bytes of the file; reading past the end gives zeros and is remembered.
class GifBytes {
 public:
  explicit GifBytes(std::string_view bytes) : bytes_(bytes) {}

  uint8_t byte() {
    if (at_ < bytes_.size()) return static_cast<uint8_t>(bytes_[at_++]);
    ended_ = true;
    return 0;
  }
  int word() {
    const int low = byte();
    return low | byte() << 8;
  }
  std::string_view bytes(size_t count) {
    if (count > bytes_.size() - at_) ended_ = true;
    const std::string_view found = bytes_.substr(at_, count);
    at_ += found.size();
    return found;
  }
  bool ended() const { return ended_; }

 private:
  std::string_view bytes_;
  size_t at_ = 0;
  bool ended_ = false;
};

using Palette = std::array<std::array<uint8_t, 3>, 256>;

// `packed` & 7 gives the number of colours; those that are missing are black.
Palette read_palette(GifBytes& in, int packed) {
  Palette palette{};
  for (int i = 0; i < 2 << (packed & 7); ++i) {
    for (uint8_t& level : palette[i]) level = in.byte();
  }
  return palette;
}

Palette grey_palette() {
  Palette palette;
  for (int i = 0; i < 256; ++i) palette[i].fill(static_cast<uint8_t>(i));
  return palette;
}

// Skips an extension; a graphic control one may name the transparent colour.
void read_extension(GifBytes& in, int* transparent) {
  constexpr int kGraphicControl = 0xF9;
  const int label = in.byte();
  bool first = true;
  for (int size = in.byte(); size != 0 && !in.ended(); size = in.byte()) {
    const std::string_view block = in.bytes(size);
    if (label == kGraphicControl && first && block.size() >= 4)
      *transparent = block[0] & 1 ? static_cast<uint8_t>(block[3]) : -1;
    first = false;
  }
}

// Codes of 3 to 12 bits, lowest bit first, out of a chain of blocks.
class CodeReader {
 public:
  explicit CodeReader(GifBytes& in) : in_(in) {}

  int next(int width) {  // -1: no more
    while (held_ < width) {
      if (block_.empty()) block_ = in_.bytes(in_.byte());
      if (block_.empty()) return -1;
      bits_ |= static_cast<uint32_t>(static_cast<uint8_t>(block_.front())) << held_;
      block_.remove_prefix(1);
      held_ += 8;
    }
    const int code = static_cast<int>(bits_ & ((1u << width) - 1));
    bits_ >>= width;
    held_ -= width;
    return code;
  }

 private:
  GifBytes& in_;
  std::string_view block_;
  uint32_t bits_ = 0;
  int held_ = 0;
};

// The LZW strings: each is an earlier one and a last colour.
class StringTable {
 public:
  explicit StringTable(int root_bits) : roots_(1 << root_bits) {
    for (int i = 0; i < roots_; ++i) entries_[i] = {-1, 1, static_cast<uint8_t>(i), static_cast<uint8_t>(i)};
    clear();
  }
  void clear() { size_ = roots_ + 2; }  // two codes are commands
  int roots() const { return roots_; }
  int size() const { return size_; }
  bool full() const { return size_ == kMost; }
  bool has(int code) const { return code < size_ && code != roots_ && code != roots_ + 1; }
  uint8_t first(int code) const { return entries_[code].first; }
  void add(int prefix, uint8_t last) {
    entries_[size_++] = {static_cast<int16_t>(prefix), static_cast<int16_t>(entries_[prefix].length + 1),
                         entries_[prefix].first, last};
  }
  // Writes as much of the string as there is room for and returns how much that is.
  size_t write(int code, uint8_t* to, size_t room) const {
    const size_t length = entries_[code].length, written = std::min(length, room);
    for (size_t i = length; i-- > 0; code = entries_[code].prefix) {
      if (i < written) to[i] = entries_[code].last;
    }
    return written;
  }

 private:
  static constexpr int kMost = 4096;
  struct Entry {
    int16_t prefix, length;
    uint8_t first, last;
  };
  const int roots_;
  int size_ = 0;
  std::array<Entry, kMost> entries_;
};

// Fills `pixels` with colour indices; "" or what is wrong.
std::string_view read_pixels(GifBytes& in, std::vector<uint8_t>& pixels) {
  const int root_bits = in.byte();
  if (root_bits < 1 || root_bits > 8) return "its LZW code size is not one of 1 to 8";
  CodeReader codes(in);
  StringTable table(root_bits);
  int width = root_bits + 1, previous = -1;
  size_t at = 0;
  while (at < pixels.size()) {
    const int code = codes.next(width);
    if (code < 0) return "the file ends early";
    if (code == table.roots()) {
      table.clear();
      width = root_bits + 1;
      previous = -1;
      continue;
    }
    if (code == table.roots() + 1) return "its data ends before its last pixel";
    if (previous >= 0 && !table.full()) {
      const bool repeats = code == table.size();  // the string that is only now being made
      if (!repeats && !table.has(code)) return "it holds an LZW code that is not defined yet";
      table.add(previous, table.first(repeats ? previous : code));
      if (table.size() == 1 << width && width < 12) ++width;
    } else if (!table.has(code)) {
      return "it holds an LZW code that is not defined yet";
    }
    at += table.write(code, pixels.data() + at, pixels.size() - at);
    previous = code;
  }
  return "";
}

// The row of the image that the n-th stored row is.
std::vector<int64_t> row_order(int64_t height, bool interlaced) {
  std::vector<int64_t> rows;
  const auto add = [&](int64_t first, int64_t step) {
    for (int64_t y = first; y < height; y += step) rows.push_back(y);
  };
  if (!interlaced) {
    add(0, 1);
  } else {
    add(0, 8);
    add(4, 8);
    add(2, 4);
    add(1, 2);
  }
  return rows;
}

}  // namespace

Decoded decode_gif(std::string_view bytes, const ImageLimits& limits) {
  constexpr int kExtension = 0x21, kFrame = 0x2C, kPadding = 0;
  constexpr int kHasPalette = 0x80, kInterlaced = 0x40;
  GifBytes in(bytes);
  in.bytes(6);  // the signature
  const int screen_width = in.word(), screen_height = in.word(), screen = in.byte();
  in.bytes(2);  // background and aspect ratio are not used
  Palette palette = screen & kHasPalette ? read_palette(in, screen) : grey_palette();
  int transparent = -1;
  for (int block = in.byte(); block != kFrame; block = in.byte()) {
    if (in.ended()) return bad_image("GIF", "the file ends early");
    if (block == kExtension)
      read_extension(in, &transparent);
    else if (block != kPadding)
      return bad_image("GIF", "it has no frame");
  }
  const int left = in.word(), top = in.word(), width = in.word(), height = in.word(), frame = in.byte();
  if (in.ended()) return bad_image("GIF", "the file ends early");
  if (width == 0 || height == 0) return bad_image("GIF", "its first frame has no pixels");
  const int64_t canvas_width = std::max(screen_width, left + width);
  const int64_t canvas_height = std::max(screen_height, top + height);
  if (auto error = check_size(canvas_width, canvas_height, limits)) return std::move(*error);
  if (frame & kHasPalette) palette = read_palette(in, frame);

  std::vector<uint8_t> pixels(size_t{1} * width * height);  // colour indices
  if (const std::string_view problem = read_pixels(in, pixels); !problem.empty()) return bad_image("GIF", problem);
  Image canvas = black_image(canvas_width, canvas_height);
  const auto& free_colour = palette[std::max(transparent, 0)];
  for (size_t i = 0; i < canvas.rgb.size(); ++i) canvas.rgb[i] = free_colour[i % 3];
  const uint8_t* from = pixels.data();
  for (const int64_t y : row_order(height, frame & kInterlaced)) {
    uint8_t* to = canvas.rgb.data() + ((top + y) * canvas_width + left) * 3;
    for (int x = 0; x < width; ++x, to += 3) std::copy_n(palette[*from++].begin(), 3, to);
  }
  return DecodedImage{std::move(canvas), 1};
}

}  // namespace calandra
