// Methods of str. Text keeps its marks part by part; what is counted is characters, what is cut is bytes.
#include "text/jinja/arguments.h"
#include "text/jinja/arithmetic.h"
#include "text/jinja/compare.h"
#include "text/jinja/format.h"
#include "text/jinja/interpreter.h"
#include "text/jinja/iterate.h"
#include "text/jinja/methods.h"
#include "text/jinja/printf_format.h"
#include "text/jinja/unicode.h"

#include <algorithm>
#include <limits>

namespace calandra::jinja {
namespace {

const MarkedString& string_argument(const Value& value, const char* what) {
  require_defined(value);
  if (!value.is_string()) type_error(std::string(what) + " must be str, not " + type_name(value));
  return value.as_string();
}

// Markup stays markup, and then escapes what joins it.
Value like(Interpreter& in, const Value& self, MarkedString text) {
  return in.string(std::move(text), self.is_markup());
}
MarkedString escaped_for(Interpreter& in, const Value& self, const Value& other) {
  return self.is_markup() ? escape(in, other).as_string() : other.as_string();
}

// The part of a text that optional start and end arguments (characters, negative from the end) leave, in bytes.
struct Window {
  size_t begin = 0, end = 0;
  bool valid = true;  // start lies within the text
  int64_t first = 0;  // characters before begin
};

Window window(Interpreter& in, const std::string& text, const Value& start, const Value& end) {
  if (start.is_missing() && end.is_missing()) return {0, text.size(), true, 0};
  in.meter().work(text.size() * 2);
  const auto size = static_cast<int64_t>(char_count(text));
  const auto bound = [&](const Value& value, int64_t fallback) {
    if (value.is_missing() || value.is_none()) return fallback;
    const int64_t index = to_index(value, "slice indices");
    return index < 0 ? std::max<int64_t>(0, index + size) : index;
  };
  Window result;
  result.first = bound(start, 0);
  const int64_t last = std::min(size, bound(end, size));
  result.valid = result.first <= last;
  result.begin = char_offset(text, static_cast<size_t>(std::min(result.first, size)));
  result.end = std::max(result.begin, char_offset(text, static_cast<size_t>(last)));
  return result;
}

Value find_text(Interpreter& in, const Value& self, Arguments arguments, bool from_right, bool throws) {
  const auto bound = bind("find", {"", "", ""}, 1, std::move(arguments));
  const std::string& text = self.text();
  const std::string& wanted = string_argument(bound[0], "argument 1").text();
  in.meter().work(text.size());
  const Window range = window(in, text, bound[1], bound[2]);
  size_t at = std::string::npos;
  if (range.valid) {
    const std::string_view part = std::string_view(text).substr(range.begin, range.end - range.begin);
    at = from_right ? part.rfind(wanted) : part.find(wanted);
  }
  if (at == std::string::npos) {
    if (throws) value_error("substring not found");
    return Value::integer(-1);
  }
  return Value::integer(static_cast<int64_t>(char_count(std::string_view(text).substr(0, range.begin + at))));
}

Value count_text(Interpreter& in, const Value& self, Arguments arguments) {
  const auto bound = bind("count", {"", "", ""}, 1, std::move(arguments));
  const std::string& wanted = string_argument(bound[0], "argument 1").text();
  const std::string& text = self.text();
  in.meter().work(text.size());
  const Window range = window(in, text, bound[1], bound[2]);
  if (!range.valid) return Value::integer(0);
  const std::string_view part = std::string_view(text).substr(range.begin, range.end - range.begin);
  if (wanted.empty()) return Value::integer(static_cast<int64_t>(char_count(part)) + 1);
  int64_t count = 0;
  for (size_t at = part.find(wanted); at != std::string_view::npos; at = part.find(wanted, at + wanted.size())) ++count;
  return Value::integer(count);
}

Value has_affix(Interpreter& in, const Value& self, Arguments arguments, bool at_end) {
  const auto bound = bind(at_end ? "endswith" : "startswith", {"", "", ""}, 1, std::move(arguments));
  require_defined(bound[0]);
  const Window range = window(in, self.text(), bound[1], bound[2]);
  const std::string_view part = std::string_view(self.text()).substr(range.begin, range.end - range.begin);
  const auto matches = [&](const Value& affix) {
    if (!affix.is_string()) {
      type_error(std::string(at_end ? "endswith" : "startswith") + " first arg must be str or a tuple of str, not " +
                 type_name(affix));
    }
    in.meter().work(affix.text().size());
    return range.valid && (at_end ? part.ends_with(affix.text()) : part.starts_with(affix.text()));
  };
  if (!bound[0].is(Kind::kTuple)) return Value::boolean(matches(bound[0]));
  const auto& affixes = bound[0].items();
  return Value::boolean(std::any_of(affixes.begin(), affixes.end(), matches));
}

// --- split and join ---

std::vector<std::pair<size_t, size_t>> split_spaces(const std::string& text, int64_t limit, bool from_right) {
  std::vector<std::pair<size_t, size_t>> words;
  for (size_t at = 0; at < text.size();) {
    size_t next = at;
    if (is_space(next_char(text, next))) {
      at = next;
      continue;
    }
    const size_t begin = at;
    while (at < text.size()) {
      next = at;
      if (is_space(next_char(text, next))) break;
      at = next;
    }
    words.emplace_back(begin, at);
  }
  const auto count = static_cast<int64_t>(words.size());
  if (limit < 0 || count <= limit + 1) {
    if (limit == 0 && count == 1)
      words[0] = from_right ? std::pair<size_t, size_t>(0, words[0].second) : std::pair(words[0].first, text.size());
    else if (limit > 0 && count == limit + 1)
      (from_right ? words.front().first : words.back().second) = from_right ? 0 : text.size();
    return words;
  }
  // The rest of the text stays together, with its spaces, except at its outer end.
  if (from_right) {
    const auto keep = words.begin() + static_cast<std::ptrdiff_t>(count - limit);
    std::vector<std::pair<size_t, size_t>> kept(keep, words.end());
    kept.insert(kept.begin(), {0, std::prev(keep)->second});
    return kept;
  }
  const size_t rest = words[static_cast<size_t>(limit)].first;
  words.resize(static_cast<size_t>(limit));
  words.emplace_back(rest, text.size());
  return words;
}

std::vector<std::pair<size_t, size_t>> split_at(const std::string& text, const std::string& separator, int64_t limit,
                                                bool from_right) {
  std::vector<std::pair<size_t, size_t>> parts;
  if (from_right) {
    size_t end = text.size();
    while (limit-- != 0 && end >= separator.size()) {
      const size_t at = text.rfind(separator, end - separator.size());
      if (at == std::string::npos) break;
      parts.emplace_back(at + separator.size(), end);
      end = at;
    }
    parts.emplace_back(0, end);
    std::reverse(parts.begin(), parts.end());
    return parts;
  }
  size_t begin = 0;
  while (limit-- != 0) {
    const size_t at = text.find(separator, begin);
    if (at == std::string::npos) break;
    parts.emplace_back(begin, at);
    begin = at + separator.size();
  }
  parts.emplace_back(begin, text.size());
  return parts;
}

Value split(Interpreter& in, const Value& self, Arguments arguments, bool from_right) {
  const auto bound = bind("split", {"sep", "maxsplit"}, 0, std::move(arguments));
  const int64_t limit = integer_or(bound[1], -1, "maxsplit");
  const MarkedString& text = self.as_string();
  in.meter().work(text.size());
  in.meter().check(text.size() * 2);
  std::vector<std::pair<size_t, size_t>> parts;
  if (bound[0].is_missing() || bound[0].is_none()) {
    parts = split_spaces(text.text(), limit, from_right);
  } else {
    const std::string& separator = string_argument(bound[0], "separator").text();
    if (separator.empty()) value_error("empty separator");
    parts = split_at(text.text(), separator, limit, from_right);
  }
  in.meter().step(static_cast<int64_t>(parts.size()));
  std::vector<Value> items;
  for (const auto& [begin, end] : parts) items.push_back(like(in, self, text.slice(begin, end)));
  return Value::list(&in.meter(), std::move(items));
}

Value partition(Interpreter& in, const Value& self, Arguments arguments, bool from_right) {
  const auto bound = bind("partition", {""}, 1, std::move(arguments));
  const MarkedString& separator = string_argument(bound[0], "separator");
  if (separator.empty()) value_error("empty separator");
  const MarkedString& text = self.as_string();
  in.meter().work(text.size());
  const size_t at = from_right ? text.text().rfind(separator.text()) : text.text().find(separator.text());
  const Value none = like(in, self, MarkedString());
  if (at == std::string::npos) {
    return from_right ? Value::tuple(&in.meter(), {none, none, self}) : Value::tuple(&in.meter(), {self, none, none});
  }
  const size_t behind = at + separator.size();
  return Value::tuple(&in.meter(), {like(in, self, text.slice(0, at)), like(in, self, text.slice(at, behind)),
                                    like(in, self, text.slice(behind, text.size()))});
}

Value join(Interpreter& in, const Value& self, Arguments arguments) {
  const auto bound = bind("join", {""}, 1, std::move(arguments));
  if (!is_iterable(bound[0])) type_error("can only join an iterable");
  TextBuilder out(in.meter());
  size_t index = 0;
  const auto iterator = iterate(in, bound[0]);
  while (const auto item = iterator->next(in)) {
    in.meter().step();
    if (!item->is_string() && !self.is_markup()) {
      type_error("sequence item " + std::to_string(index) + ": expected str instance, " + type_name(*item) + " found");
    }
    if (index++ > 0) out.append(self.as_string());
    out.append(self.is_markup() ? escape(in, *item).as_string() : item->as_string());
  }
  return like(in, self, out.take());
}

// --- classes of characters ---

template <class Test>
Value all_chars(const Value& self, Test test, bool if_empty = false) {
  const std::string& text = self.text();
  if (text.empty()) return Value::boolean(if_empty);
  for (size_t at = 0; at < text.size();) {
    if (!test(next_char(text, at))) return Value::boolean(false);
  }
  return Value::boolean(true);
}

bool is_titled(const std::string& text) {
  bool previous_cased = false, any = false;
  for (size_t at = 0; at < text.size();) {
    const char32_t c = next_char(text, at);
    if (is_upper(c) || is_title(c)) {
      if (previous_cased) return false;
      previous_cased = any = true;
    } else if (is_lower(c)) {
      if (!previous_cased) return false;
      any = true;
    } else {
      previous_cased = false;
    }
  }
  return any;
}

bool is_identifier(const std::string& text) {
  for (size_t at = 0; at < text.size();) {
    const bool first = at == 0;
    const char32_t c = next_char(text, at);
    if (first ? !is_identifier_start(c) : !is_identifier_part(c)) return false;
  }
  return !text.empty();
}

// --- case and shape ---

Value expand_tabs(Interpreter& in, const Value& self, Arguments arguments) {
  const auto bound = bind("expandtabs", {"tabsize"}, 0, std::move(arguments));
  const int64_t size = integer_or(bound[0], 8, "tabsize");
  const MarkedString& text = self.as_string();
  TextBuilder out(in.meter());
  int64_t column = 0;
  for (size_t at = 0; at < text.size();) {
    const size_t begin = at;
    const char32_t c = next_char(text.text(), at);
    if (c == U'\t') {
      const int64_t fill = size > 0 ? size - column % size : 0;
      out.repeat(" ", text.input_at(begin), fill);
      column += fill;
    } else {
      out.append(text, begin, at);
      column = c == U'\n' || c == U'\r' ? 0 : column + 1;
    }
  }
  return like(in, self, out.take());
}

Value zero_fill(Interpreter& in, const Value& self, Arguments arguments) {
  const auto bound = bind("zfill", {""}, 1, std::move(arguments));
  const MarkedString& text = self.as_string();
  const int64_t fill = to_index(bound[0], "width") - static_cast<int64_t>(char_count(text.text()));
  const size_t sign = !text.empty() && (text.text()[0] == '-' || text.text()[0] == '+') ? 1 : 0;
  TextBuilder out(in.meter());
  out.append(text, 0, sign);
  out.repeat("0", false, fill);
  out.append(text, sign, text.size());
  return like(in, self, out.take());
}

Value padded(Interpreter& in, const Value& self, Arguments arguments, int side) {
  const auto bound = bind("pad", {"", ""}, 1, std::move(arguments));
  const MarkedString fill =
      bound[1].is_missing() ? MarkedString(" ", false) : string_argument(bound[1], "the fill character");
  if (char_count(fill.text()) != 1) type_error("The fill character must be exactly one character long");
  return pad(in, self, to_index(bound[0], "width"), fill, side);
}

Value without_affix(Interpreter& in, const Value& self, Arguments arguments, bool at_end) {
  const auto bound = bind(at_end ? "removesuffix" : "removeprefix", {""}, 1, std::move(arguments));
  const std::string& affix = string_argument(bound[0], "argument").text();
  const MarkedString& text = self.as_string();
  if (at_end ? !text.text().ends_with(affix) : !text.text().starts_with(affix)) return self;
  return like(in, self, at_end ? text.slice(0, text.size() - affix.size()) : text.slice(affix.size(), text.size()));
}

Value strip_method(Interpreter& in, const Value& self, Arguments arguments, bool left, bool right) {
  const auto bound = bind("strip", {""}, 0, std::move(arguments));
  if (!bound[0].is_missing() && !bound[0].is_none()) string_argument(bound[0], "strip arg");
  return strip(in, self, bound[0], left, right);
}

Value split_lines_method(Interpreter& in, const Value& self, Arguments arguments) {
  const auto bound = bind("splitlines", {"keepends"}, 0, std::move(arguments));
  std::vector<Value> lines;
  for (MarkedString& line : split_lines(self.as_string(), truth_or(bound[0], false)))
    lines.push_back(like(in, self, std::move(line)));
  return Value::list(&in.meter(), std::move(lines));
}

Value no_arguments(const char* name, const Arguments& arguments, Value result) {
  if (!arguments.positional.empty() || !arguments.named.empty())
    type_error(std::string("str.") + name + "() takes no arguments");
  return result;
}

#define CHARS(name, test)                                                                                           \
  {                                                                                                                 \
    name, [](Interpreter&, const Value& self, Arguments a) { return no_arguments(name, a, all_chars(self, test)); } \
  }
#define WITHOUT(name, expression)                                                \
  {                                                                              \
    name, []([[maybe_unused]] Interpreter& in, const Value& self, Arguments a) { \
      return no_arguments(name, a, expression);                                  \
    }                                                                            \
  }
#define WITH(name, expression)                                                       \
  {                                                                                  \
    name, [](Interpreter& in, const Value& self, Arguments a) { return expression; } \
  }

constexpr MethodEntry kMethods[] = {
    WITH("split", split(in, self, std::move(a), false)),
    WITH("rsplit", split(in, self, std::move(a), true)),
    WITH("splitlines", split_lines_method(in, self, std::move(a))),
    WITH("partition", partition(in, self, std::move(a), false)),
    WITH("rpartition", partition(in, self, std::move(a), true)),
    WITH("join", join(in, self, std::move(a))),
    WITH("strip", strip_method(in, self, std::move(a), true, true)),
    WITH("lstrip", strip_method(in, self, std::move(a), true, false)),
    WITH("rstrip", strip_method(in, self, std::move(a), false, true)),
    WITH("startswith", has_affix(in, self, std::move(a), false)),
    WITH("endswith", has_affix(in, self, std::move(a), true)),
    WITH("find", find_text(in, self, std::move(a), false, false)),
    WITH("rfind", find_text(in, self, std::move(a), true, false)),
    WITH("index", find_text(in, self, std::move(a), false, true)),
    WITH("rindex", find_text(in, self, std::move(a), true, true)),
    WITH("count", count_text(in, self, std::move(a))),
    WITH("removeprefix", without_affix(in, self, std::move(a), false)),
    WITH("removesuffix", without_affix(in, self, std::move(a), true)),
    WITH("ljust", padded(in, self, std::move(a), -1)),
    WITH("center", padded(in, self, std::move(a), 0)),
    WITH("rjust", padded(in, self, std::move(a), 1)),
    WITH("zfill", zero_fill(in, self, std::move(a))),
    WITH("expandtabs", expand_tabs(in, self, std::move(a))),
    WITH("format", brace_format(in, self, a)),
    {"format_map",
     [](Interpreter& in, const Value& self, Arguments a) {
       const auto bound = bind("format_map", {""}, 1, std::move(a));
       if (!bound[0].is(Kind::kDict)) type_error("format_map() needs a mapping");
       Arguments named;
       for (const auto& [key, value] : bound[0].as_dict().entries) {
         if (key.is_string()) named.named.emplace_back(key.text(), value);
       }
       return brace_format(in, self, named);
     }},
    {"replace",
     [](Interpreter& in, const Value& self, Arguments a) {
       const auto bound = bind("replace", {"", "", ""}, 2, std::move(a));
       string_argument(bound[0], "replace() argument 1");
       string_argument(bound[1], "replace() argument 2");
       return replace(in, self, escaped_for(in, self, bound[0]), escaped_for(in, self, bound[1]), integer_or(bound[2], -1, "count"));
     }},
    {"encode",
     [](Interpreter& in, const Value& self, Arguments a) {
       const auto bound = bind("encode", {"encoding", "errors"}, 0, std::move(a));
       const std::string encoding = bound[0].is_missing() ? "utf-8" : string_argument(bound[0], "encode() argument 'encoding'").text();
       if (encoding != "utf-8" && encoding != "utf8") fail("LookupError", "only UTF-8 is supported");
       if (!bound[1].is_missing()) string_argument(bound[1], "encode() argument 'errors'");
       return Value::bytes(&in.meter(), self.as_string());
     }},
    WITHOUT("upper", map_case(in, self, true)),
    WITHOUT("lower", map_case(in, self, false)),
    WITHOUT("capitalize", capitalize(in, self)),
    WITHOUT("title", title_case(in, self)),
    WITHOUT("swapcase", swap_case(in, self)),
    WITHOUT("casefold", fold_case(in, self)),
    CHARS("isalpha", is_alpha),
    CHARS("isdecimal", is_decimal),
    CHARS("isdigit", is_digit),
    CHARS("isnumeric", is_numeric),
    CHARS("isspace", is_space),
    CHARS("isalnum", [](char32_t c) { return is_alpha(c) || is_digit(c) || is_numeric(c); }),
    WITHOUT("isascii", all_chars(self, [](char32_t c) { return c < 0x80; }, true)),
    WITHOUT("isprintable", all_chars(self, is_printable, true)),
    WITHOUT("isupper", Value::boolean(is_cased_as(self.text(), true))),
    WITHOUT("islower", Value::boolean(is_cased_as(self.text(), false))),
    WITHOUT("istitle", Value::boolean(is_titled(self.text()))),
    WITHOUT("isidentifier", Value::boolean(is_identifier(self.text()))),
};

#undef CHARS
#undef WITHOUT
#undef WITH

}  // namespace

const MethodEntry* find_string_method(std::string_view name) {
  for (const MethodEntry& entry : kMethods) {
    if (entry.name == name) return &entry;
  }
  return nullptr;
}

}  // namespace calandra::jinja
