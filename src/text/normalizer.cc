#include "text/normalizer.h"

#include <utf8proc.h>

#include <algorithm>
#include <bitset>
#include <memory>
#include <vector>

#include "base/check.h"
#include "text/utf8.h"

namespace calandra {
namespace {

constexpr char32_t kFirstCombining = 0x300;  // nothing below takes part in a composition as second character
constexpr char32_t kTableEnd = 0x30000;      // nothing above has a decomposition or a combining class
constexpr unsigned char kFastLead = 0xCC;    // lead byte of U+0300

struct Range {
  char32_t first, last;
};

// Characters with a combining class or a part in a composition that are younger than Unicode 9 (Unicode Character
// Database).
constexpr Range kYoung[] = {
    {0x7FD, 0x7FD},     {0x898, 0x89F},     {0x8CA, 0x8D3},     {0x9FE, 0x9FE},     {0xC3C, 0xC3C},
    {0xD3B, 0xD3C},     {0xEBA, 0xEBA},     {0x1715, 0x1715},   {0x1ABF, 0x1ACE},   {0x1DF6, 0x1DFA},
    {0xA82C, 0xA82C},   {0x10D24, 0x10D27}, {0x10EAB, 0x10EAC}, {0x10EFD, 0x10EFF}, {0x10F46, 0x10F50},
    {0x10F82, 0x10F85}, {0x11070, 0x11070}, {0x1133B, 0x1133B}, {0x1145E, 0x1145E}, {0x11839, 0x1183A},
    {0x11930, 0x11930}, {0x11935, 0x11935}, {0x11938, 0x11938}, {0x1193D, 0x1193E}, {0x11943, 0x11943},
    {0x119E0, 0x119E0}, {0x11A34, 0x11A34}, {0x11A47, 0x11A47}, {0x11A99, 0x11A99}, {0x11D42, 0x11D42},
    {0x11D44, 0x11D45}, {0x11D97, 0x11D97}, {0x11F41, 0x11F42}, {0x16FF0, 0x16FF1}, {0x1E08F, 0x1E08F},
    {0x1E130, 0x1E136}, {0x1E2AE, 0x1E2AE}, {0x1E2EC, 0x1E2EF}, {0x1E4EC, 0x1E4EF},
};

bool is_young(char32_t code) {
  const Range* at = std::upper_bound(std::begin(kYoung), std::end(kYoung), code,
                                     [](char32_t c, const Range& range) { return c < range.first; });
  return at != std::begin(kYoung) && code <= at[-1].last;
}

int combining_class(char32_t code) {
  return is_young(code) ? 0 : utf8proc_get_property(static_cast<utf8proc_int32_t>(code))->combining_class;
}

void decompose(char32_t code, std::vector<utf8proc_int32_t>& out) {
  if (is_young(code)) {
    out.push_back(static_cast<utf8proc_int32_t>(code));
    return;
  }
  utf8proc_int32_t parts[8];  // the longest canonical decomposition has 4
  const auto count = utf8proc_decompose_char(static_cast<utf8proc_int32_t>(code), parts, std::size(parts),
                                             UTF8PROC_DECOMPOSE, nullptr);
  CHECK(count >= 1 && count <= static_cast<utf8proc_ssize_t>(std::size(parts)));
  out.insert(out.end(), parts, parts + count);
}

// Canonical order, then composition. The segment holds decomposed characters.
void compose(std::vector<utf8proc_int32_t>& segment) {
  // Our own stable sort: the library's insertion sort is quadratic on long runs of marks.
  const auto mark = [](utf8proc_int32_t c) { return combining_class(static_cast<char32_t>(c)) != 0; };
  for (auto at = segment.begin(); at != segment.end();) {
    const auto first = std::find_if(at, segment.end(), mark);
    at = std::find_if_not(first, segment.end(), mark);
    std::stable_sort(first, at, [](utf8proc_int32_t a, utf8proc_int32_t b) {
      return combining_class(static_cast<char32_t>(a)) < combining_class(static_cast<char32_t>(b));
    });
  }
  const auto length = utf8proc_normalize_utf32(segment.data(), static_cast<utf8proc_ssize_t>(segment.size()),
                                               static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE));
  CHECK(length >= 0);
  segment.resize(static_cast<size_t>(length));
}

// Characters before which any text can be cut and that stand for themselves: class 0, equal to their own normal form,
// never the second part of a composition.
class InertTable {
 public:
  InertTable() {
    inert_->set();
    std::vector<utf8proc_int32_t> parts;
    for (char32_t code = kFirstCombining; code < kTableEnd; ++code) {
      if ((code >= 0xD800 && code < 0xE000) || is_young(code)) continue;
      if (combining_class(code) != 0) inert_->reset(code);
      parts.clear();
      decompose(code, parts);
      if (parts.size() == 1 && parts[0] == static_cast<utf8proc_int32_t>(code)) continue;
      for (size_t i = 1; i < parts.size(); ++i) inert_->reset(static_cast<size_t>(parts[i]));
      compose(parts);
      if (parts.size() != 1 || parts[0] != static_cast<utf8proc_int32_t>(code)) inert_->reset(code);
    }
  }
  bool operator[](char32_t code) const { return code >= kTableEnd || inert_->test(code); }

 private:
  std::unique_ptr<std::bitset<kTableEnd>> inert_ = std::make_unique<std::bitset<kTableEnd>>();
};

bool is_inert(char32_t code) {
  static const InertTable table;
  return table[code];
}

}  // namespace

size_t nfc_segment_end(std::string_view text, size_t begin) {
  size_t at = begin + next_utf8(text, begin).length;
  while (at < text.size()) {
    const Utf8Step step = next_utf8(text, at);
    if (is_inert(step.code)) break;
    at += step.length;
  }
  return at;
}

std::string nfc(std::string_view text) {
  std::string out;
  size_t copied = 0;   // text before this is in `out`
  size_t segment = 0;  // start of the segment that the scan is in
  std::vector<utf8proc_int32_t> codes;
  for (size_t at = 0; at < text.size();) {
    if (const size_t end = skip_ascii(text, at); end > at) {
      segment = end - 1;
      at = end;
      continue;
    }
    if (static_cast<unsigned char>(text[at]) < kFastLead) {
      segment = at;
      at += static_cast<unsigned char>(text[at]) < 0x80 ? 1 : 2;
      continue;
    }
    const Utf8Step step = next_utf8(text, at);
    if (is_inert(step.code)) {
      segment = at;
      at += step.length;
      continue;
    }
    const size_t end = nfc_segment_end(text, at);
    codes.clear();
    for (size_t i = segment; i < end;) {
      const Utf8Step part = next_utf8(text, i);
      decompose(part.code, codes);
      i += part.length;
    }
    compose(codes);
    out.append(text, copied, segment - copied);
    for (const utf8proc_int32_t code : codes) append_utf8(out, static_cast<char32_t>(code));
    copied = segment = at = end;
  }
  out.append(text, copied);
  return out;
}

}  // namespace calandra
