// Operations on text that methods of str and filters share.
#include "text/jinja/format.h"
#include "text/jinja/interpreter.h"
#include "text/jinja/methods.h"
#include "text/jinja/unicode.h"

#include <algorithm>

namespace calandra::jinja {
namespace {

Value like(Interpreter& in, const Value& self, MarkedString text) {
  return in.string(std::move(text), self.is_markup());
}

// Rewrites a text character by character; each result keeps the mark of its character.
template <class Map>
Value map_chars(Interpreter& in, const Value& self, Map map) {
  const MarkedString& text = self.as_string();
  TextBuilder out(in.meter());
  in.meter().work(text.size() * 8);
  for (size_t at = 0; at < text.size();) {
    const size_t begin = at;
    const char32_t c = next_char(text.text(), at);
    for (const char32_t mapped : map(begin, c)) out.append_char(mapped, text.input_at(begin));
  }
  return like(in, self, out.take());
}

}  // namespace

Value swap_case(Interpreter& in, const Value& self) {
  return map_chars(in, self, [&](size_t at, char32_t c) {
    if (is_upper(c)) return to_lower(self.text(), at, c);
    return is_lower(c) ? to_upper(c) : std::u32string(1, c);
  });
}

Value fold_case(Interpreter& in, const Value& self) {
  return map_chars(in, self, [](size_t, char32_t c) { return to_folded(c); });
}

Value map_case(Interpreter& in, const Value& self, bool upper) {
  return map_chars(in, self, [&](size_t at, char32_t c) { return upper ? to_upper(c) : to_lower(self.text(), at, c); });
}

Value title_case(Interpreter& in, const Value& self) {
  bool in_word = false;
  return map_chars(in, self, [&](size_t at, char32_t c) {
    const auto mapped = in_word ? to_lower(self.text(), at, c) : to_title(c);
    in_word = is_cased(c);
    return mapped;
  });
}

Value capitalize(Interpreter& in, const Value& self) {
  return map_chars(in, self,
                   [&](size_t at, char32_t c) { return at == 0 ? to_title(c) : to_lower(self.text(), at, c); });
}

Value strip(Interpreter& in, const Value& self, const Value& chars, bool left, bool right) {
  const std::string& text = self.text();
  const bool spaces = chars.is_missing() || chars.is_none();
  std::u32string set;
  if (!spaces) {
    for (size_t at = 0; at < chars.text().size();) set += next_char(chars.text(), at);
  }
  const auto goes = [&](char32_t c) {
    if (!spaces) in.meter().work(set.size());
    return spaces ? is_space(c) : set.find(c) != std::u32string::npos;
  };
  size_t begin = 0, end = text.size();
  while (left && begin < end) {
    size_t next = begin;
    if (!goes(next_char(text, next))) break;
    begin = next;
  }
  while (right && end > begin) {
    const size_t previous = previous_offset(text, end);
    size_t at = previous;
    if (!goes(next_char(text, at))) break;
    end = previous;
  }
  in.meter().work(end - begin);
  return like(in, self, self.as_string().slice(begin, end));
}

Value replace(Interpreter& in, const Value& self, const MarkedString& from, const MarkedString& to, int64_t count) {
  const MarkedString& text = self.as_string();
  TextBuilder out(in.meter());
  in.meter().work(text.size());
  size_t begin = 0;
  if (from.empty()) {  // between all characters, and at both ends
    while (count != 0) {
      --count;
      out.append(to);
      if (begin >= text.size()) break;
      size_t next = begin;
      next_char(text.text(), next);
      out.append(text, begin, next);
      begin = next;
      in.meter().step();
    }
  }
  while (!from.empty() && count != 0) {
    const size_t at = text.text().find(from.text(), begin);
    if (at == std::string::npos) break;
    out.append(text, begin, at);
    out.append(to);
    begin = at + from.size();
    --count;
  }
  out.append(text, begin, text.size());
  return like(in, self, out.take());
}

Value pad(Interpreter& in, const Value& self, int64_t width, const MarkedString& fill, int side) {
  const MarkedString& text = self.as_string();
  const int64_t missing = std::max<int64_t>(0, width - static_cast<int64_t>(char_count(text.text())));
  // QUIRK: of an odd rest str.center puts the larger half left if the width is odd (CPython, unicode_center).
  const int64_t before = side < 0 ? 0 : side > 0 ? missing : missing / 2 + (missing & width & 1);
  TextBuilder out(in.meter());
  out.repeat(fill.text(), fill.any_input(), before);
  out.append(text);
  out.repeat(fill.text(), fill.any_input(), missing - before);
  return like(in, self, out.take());
}

std::vector<MarkedString> split_lines(const MarkedString& text, bool keep_ends) {
  std::vector<MarkedString> lines;
  size_t begin = 0;
  for (size_t at = 0; at < text.size();) {
    const size_t end = at;
    const char32_t c = next_char(text.text(), at);
    const bool breaks = (c >= 0x0a && c <= 0x0d) || (c >= 0x1c && c <= 0x1e) || c == 0x85 || c == 0x2028 || c == 0x2029;
    if (!breaks) continue;
    if (c == U'\r' && at < text.size() && text.text()[at] == '\n') ++at;
    lines.push_back(text.slice(begin, keep_ends ? at : end));
    begin = at;
  }
  if (begin < text.size()) lines.push_back(text.slice(begin, text.size()));
  return lines;
}

bool is_cased_as(std::string_view text, bool upper) {
  bool any = false;
  for (size_t at = 0; at < text.size();) {
    const char32_t c = next_char(text, at);
    if (upper ? (is_lower(c) || is_title(c)) : (is_upper(c) || is_title(c))) return false;
    any = any || (upper ? is_upper(c) : is_lower(c));
  }
  return any;
}

}  // namespace calandra::jinja
