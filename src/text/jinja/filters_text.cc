// Filters that make or change text.
#include "text/jinja/arguments.h"
#include "text/jinja/arithmetic.h"
#include "text/jinja/compare.h"
#include "text/jinja/filters.h"
#include "text/jinja/format.h"
#include "text/jinja/interpreter.h"
#include "text/jinja/iterate.h"
#include "text/jinja/json_text.h"
#include "text/jinja/methods.h"
#include "text/jinja/printf_format.h"
#include "text/jinja/unicode.h"

#include <fmt/format.h>

namespace calandra::jinja {
namespace {

// str(value), but markup stays markup.
Value soft_text(Interpreter& in, const Value& value) {
  return value.is_string() ? value : in.string(to_text(in, value));
}
Value plain_text(Interpreter& in, const Value& value) { return in.string(to_text(in, value)); }

Value upper(Interpreter& in, const Value& value, Arguments a) {
  bind("upper", {}, 0, std::move(a));
  return map_case(in, soft_text(in, value), true);
}
Value lower(Interpreter& in, const Value& value, Arguments a) {
  bind("lower", {}, 0, std::move(a));
  return map_case(in, soft_text(in, value), false);
}
Value capitalized(Interpreter& in, const Value& value, Arguments a) {
  bind("capitalize", {}, 0, std::move(a));
  return capitalize(in, soft_text(in, value));
}

bool separates_words(char32_t c) {
  return is_space(c) || c == U'-' || c == U'(' || c == U'{' || c == U'[' || c == U'<';
}

// Unlike str.title, only white space, hyphens and opening brackets begin a word.
Value title(Interpreter& in, const Value& value, Arguments a) {
  bind("title", {}, 0, std::move(a));
  const Value source = soft_text(in, value);
  const MarkedString& text = source.as_string();
  TextBuilder out(in.meter());
  in.meter().work(text.size() * 8);
  const auto append = [&](const std::u32string& chars, size_t at) {
    for (const char32_t c : chars) out.append_char(c, text.input_at(at));
  };
  for (size_t begin = 0; begin < text.size();) {
    size_t at = begin;
    const bool separates = separates_words(next_char(text.text(), at));
    size_t end = at;
    while (end < text.size()) {
      size_t next = end;
      if (separates_words(next_char(text.text(), next)) != separates) break;
      end = next;
    }
    // The first letter in upper case, the rest lower-cased as a text of its own.
    size_t first = begin;
    append(to_upper(next_char(text.text(), first)), begin);
    const std::string_view rest = std::string_view(text.text()).substr(first, end - first);
    for (size_t i = 0; i < rest.size();) {
      const size_t offset = i;
      const char32_t c = next_char(rest, i);
      append(to_lower(rest, offset, c), first + offset);
    }
    begin = end;
  }
  return in.string(out.take());
}

Value trim(Interpreter& in, const Value& value, Arguments a) {
  const auto bound = bind("trim", {"chars"}, 0, std::move(a));
  if (!bound[0].is_missing() && !bound[0].is_none() && !bound[0].is_string()) {
    require_defined(bound[0]);
    type_error("strip arg must be None or str");
  }
  return strip(in, soft_text(in, value), bound[0], true, true);
}

Value replace_filter(Interpreter& in, const Value& value, Arguments a) {
  const auto bound = bind("replace", {"old", "new", "count"}, 2, std::move(a));
  const int64_t count = bound[2].is_none() ? -1 : integer_or(bound[2], -1, "count");
  if (!in.autoescape()) return replace(in, plain_text(in, value), to_text(in, bound[0]), to_text(in, bound[1]), count);
  const bool escapes = bound[0].is_markup() || (bound[1].is_markup() && !value.is_markup());
  const Value text = escapes ? escape(in, value) : soft_text(in, value);
  const auto part = [&](const Value& argument) {
    return text.is_markup() ? escape(in, argument).as_string() : to_text(in, argument);
  };
  return replace(in, text, part(bound[0]), part(bound[1]), count);
}

Value string_filter(Interpreter& in, const Value& value, Arguments a) {
  bind("string", {}, 0, std::move(a));
  return soft_text(in, value);
}

Value format_filter(Interpreter& in, const Value& value, Arguments a) {
  if (!a.positional.empty() && !a.named.empty())
    fail("FilterArgumentError", "can't handle positional and keyword arguments at the same time");
  const Value format = soft_text(in, value);
  if (a.named.empty()) return percent_format(in, format, Value::tuple(&in.meter(), std::move(a.positional)));
  boost::intrusive_ptr<DictBody> dict(new DictBody());
  for (const auto& [name, argument] : a.named) dict->set(in.string(name), argument);
  return percent_format(in, format, make_dict(&in.meter(), std::move(dict)));
}

Value escape_filter(Interpreter& in, const Value& value, Arguments a) {
  bind("escape", {}, 0, std::move(a));
  return escape(in, value);
}
Value force_escape(Interpreter& in, const Value& value, Arguments a) {
  bind("forceescape", {}, 0, std::move(a));
  return in.string(escape_text(in.meter(), to_text(in, value)), true);
}
Value safe(Interpreter& in, const Value& value, Arguments a) {
  bind("safe", {}, 0, std::move(a));
  return in.string(to_text(in, value), true);
}

Value to_json_filter(Interpreter& in, const Value& value, Arguments a) {
  const auto bound = bind("tojson", {"ensure_ascii", "indent", "separators", "sort_keys"}, 0, std::move(a));
  JsonStyle style;
  style.ensure_ascii = truth_or(bound[0], false);
  style.sort_keys = truth_or(bound[3], false);
  if (!bound[1].is_missing() && !bound[1].is_none()) {
    if (bound[1].is_string())
      style.indent = bound[1].text();
    else
      style.indent = std::string(static_cast<size_t>(std::clamp<int64_t>(to_index(bound[1], "indent"), 0, 1000)), ' ');
  }
  if (!bound[2].is_missing() && !bound[2].is_none()) {
    const std::vector<Value> parts = collect(in, bound[2]);
    if (parts.size() != 2) value_error("separators must be two strings");
    if (!parts[0].is_string() || !parts[1].is_string()) type_error("separators must be two strings");
    style.item_separator = parts[0].text();
    style.key_separator = parts[1].text();
  }
  // One mark for the whole: what stands around the user's strings can hold no special token of its own.
  return in.string(MarkedString(json_text(in, value, style), has_input(value)));
}

Value url_quoted(Interpreter& in, const Value& value, bool for_query) {
  const MarkedString text = to_text(in, value);
  std::string out;
  for (const char byte : text.text()) {
    const bool is_plain = (byte >= 'a' && byte <= 'z') || (byte >= 'A' && byte <= 'Z') ||
                          (byte >= '0' && byte <= '9') || byte == '_' || byte == '.' || byte == '-' || byte == '~' ||
                          (byte == '/' && !for_query);
    if (is_plain)
      out += byte;
    else if (byte == ' ' && for_query)
      out += '+';
    else
      out += fmt::format("%{:02X}", static_cast<unsigned char>(byte));
  }
  return in.string(MarkedString(std::move(out), text.any_input()));
}

Value url_encode(Interpreter& in, const Value& value, Arguments a) {
  bind("urlencode", {}, 0, std::move(a));
  if (value.is_string() || !is_iterable(value)) return url_quoted(in, value, false);
  TextBuilder out(in.meter());
  const auto add = [&](const Value& key, const Value& item) {
    if (out.size() > 0) out.append("&", false);
    out.append(url_quoted(in, key, true).as_string());
    out.append("=", false);
    out.append(url_quoted(in, item, true).as_string());
  };
  if (value.is(Kind::kDict)) {
    for (const auto& [key, item] : value.as_dict().entries) add(key, item);
  } else {
    for (const Value& pair : collect(in, value)) {
      const std::vector<Value> parts = collect(in, pair);
      if (parts.size() != 2) value_error("urlencode needs pairs");
      add(parts[0], parts[1]);
    }
  }
  return in.string(out.take());
}

Value xml_attributes(Interpreter& in, const Value& value, Arguments a) {
  const auto bound = bind("xmlattr", {"autospace"}, 0, std::move(a));
  require_defined(value);
  if (!value.is(Kind::kDict)) type_error("xmlattr needs a mapping, not " + type_name(value));
  TextBuilder out(in.meter());
  for (const auto& [key, item] : value.as_dict().entries) {
    if (item.is_none() || item.is_undefined()) continue;
    if (!key.is_string()) type_error("expected string or bytes-like object");
    if (key.text().find_first_of(" \t\n\r\f\v/>=") != std::string::npos)
      value_error("Invalid character in attribute name: " + text_repr(key.text()));
    if (out.size() > 0 || truth_or(bound[0], true)) out.append(" ", false);
    out.append(escape(in, key).as_string());
    out.append("=\"", false);
    out.append(escape(in, item).as_string());
    out.append("\"", false);
  }
  return in.string(out.take(), in.autoescape());
}

Value file_size(Interpreter& in, const Value& value, Arguments a) {
  const auto bound = bind("filesizeformat", {"binary"}, 0, std::move(a));
  const bool binary = truth_or(bound[0], false);
  const Value number = in.call_filter("float", value, {{Value::none()}, {}});
  if (!number.is(Kind::kFloat)) value_error("could not convert to float: " + repr(in, value));
  const double bytes = number.as_real(), base = binary ? 1024 : 1000;
  if (bytes == 1) return in.string("1 Byte");
  if (bytes < base) return in.string(fmt::format("{} Bytes", static_cast<int64_t>(bytes)));
  constexpr std::string_view kPrefixes = "kMGTPEZY";
  double unit = base;
  size_t i = 0;
  for (; i < kPrefixes.size(); ++i) {
    unit *= base;
    if (bytes < unit) break;
  }
  i = std::min(i, kPrefixes.size() - 1);
  const char prefix = binary && i == 0 ? 'K' : kPrefixes[i];
  return in.string(fmt::format("{:.1f} {}{}B", base * bytes / unit, prefix, binary ? "i" : ""));
}

// The named entities that text of templates has; html.unescape knows 2,231.
std::string_view entity_text(std::string_view name) {
  if (name == "amp") return "&";
  if (name == "lt") return "<";
  if (name == "gt") return ">";
  if (name == "quot") return "\"";
  if (name == "apos") return "'";
  if (name == "nbsp") return "\u00a0";
  fail("UnsupportedError", "striptags: the entity &" + std::string(name) + "; is not supported");
}

void append_unescaped(TextBuilder& out, const MarkedString& text) {
  size_t begin = 0;
  const std::string& bytes = text.text();
  for (size_t at = bytes.find('&'); at != std::string::npos; at = bytes.find('&', at + 1)) {
    const size_t end =
        bytes.find_first_not_of("#0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ", at + 1);
    if (end == std::string::npos || bytes[end] != ';' || end == at + 1) continue;
    out.append(text, begin, at);
    const std::string name = bytes.substr(at + 1, end - at - 1);
    if (name[0] == '#') {
      const bool hex = name.size() > 1 && (name[1] | 0x20) == 'x';
      const std::string digits = name.substr(hex ? 2 : 1);
      if (digits.empty() || digits.size() > 7 ||
          digits.find_first_not_of(hex ? "0123456789abcdefABCDEF" : "0123456789") != std::string::npos) {
        fail("UnsupportedError", "striptags: a character reference is malformed");
      }
      const auto code = static_cast<char32_t>(std::stoul(digits, nullptr, hex ? 16 : 10));
      out.append_char(code == 0 || code > 0x10ffff || (code >= 0xd800 && code < 0xe000) ? char32_t{0xfffd} : code,
                      text.input_at(at));
    } else {
      out.append(entity_text(name), text.input_at(at));
    }
    begin = end + 1;
    at = end;
  }
  out.append(text, begin, bytes.size());
}

// Removes comments, then tags; white space becomes single spaces; then entities become characters.
Value strip_tags(Interpreter& in, const Value& value, Arguments a) {
  bind("striptags", {}, 0, std::move(a));
  MarkedString text = to_text(in, value);
  for (const auto& [open, close] : {std::pair("<!--", "-->"), std::pair("<", ">")}) {
    MarkedString rest;
    size_t begin = 0;
    while (true) {
      const size_t at = text.text().find(open, begin);
      const size_t end = at == std::string::npos ? at : text.text().find(close, at);
      if (end == std::string::npos) break;
      rest.append(text, begin, at);
      begin = end + std::string_view(close).size();
    }
    rest.append(text, begin, text.size());
    text = std::move(rest);
  }
  MarkedString words;
  bool pending = false;
  for (size_t at = 0; at < text.size();) {
    const size_t begin = at;
    if (is_space(next_char(text.text(), at))) {
      pending = true;
      continue;
    }
    if (pending && !words.empty()) words.append(" ", text.input_at(begin));
    pending = false;
    words.append(text, begin, at);
  }
  TextBuilder out(in.meter());
  append_unescaped(out, words);
  return in.string(out.take());
}

Value refuse_urlize(Interpreter&, const Value&, Arguments) {
  fail("UnsupportedError", "the filter urlize (links in HTML) is not supported");
}

}  // namespace

FilterGroup text_filters() {
  return {
      {"upper", upper},
      {"lower", lower},
      {"capitalize", capitalized},
      {"title", title},
      {"trim", trim},
      {"replace", replace_filter},
      {"string", string_filter},
      {"format", format_filter},
      {"e", escape_filter},
      {"escape", escape_filter},
      {"forceescape", force_escape},
      {"safe", safe},
      {"tojson", to_json_filter},
      {"urlencode", url_encode},
      {"xmlattr", xml_attributes},
      {"filesizeformat", file_size},
      {"striptags", strip_tags},
      {"urlize", refuse_urlize},
  };
}

}  // namespace calandra::jinja
