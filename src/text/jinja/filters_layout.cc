// Filters that lay out text: indenting, wrapping, cutting, padding.
#include "text/jinja/arguments.h"
#include "text/jinja/arithmetic.h"
#include "text/jinja/compare.h"
#include "text/jinja/filters.h"
#include "text/jinja/format.h"
#include "text/jinja/interpreter.h"
#include "text/jinja/iterate.h"
#include "text/jinja/methods.h"
#include "text/jinja/unicode.h"

#include <algorithm>

namespace calandra::jinja {
namespace {

const Value& require_text(const Value& value, const char* filter) {
  require_defined(value);
  if (!value.is_string()) type_error(std::string(filter) + " needs a string, not " + type_name(value));
  return value;
}

Value indent(Interpreter& in, const Value& value, Arguments a) {
  const auto bound = bind("indent", {"width", "first", "blank"}, 0, std::move(a));
  TextBuilder spaces(in.meter());
  if (bound[0].is_string())
    spaces.append(bound[0].as_string());
  else
    spaces.repeat(" ", false, integer_or(bound[0], 4, "width"));
  const MarkedString indention = spaces.take();
  const bool first = truth_or(bound[1], false), blank = truth_or(bound[2], false);
  // jinja appends a newline before it splits; then an empty text has one (empty) line, and a trailing newline gives a
  // last empty one.
  MarkedString text = require_text(value, "indent").as_string();
  text.append("\n", false);
  const auto lines = split_lines(text, false);
  TextBuilder out(in.meter());
  for (size_t i = 0; i < lines.size(); ++i) {
    if (i > 0) out.append("\n", false);
    if (i == 0 ? first : blank || !lines[i].empty()) out.append(indention);
    out.append(lines[i]);
  }
  return in.string(out.take(), value.is_markup());
}

Value truncate(Interpreter& in, const Value& value, Arguments a) {
  const auto bound = bind("truncate", {"length", "killwords", "end", "leeway"}, 0, std::move(a));
  const int64_t length = integer_or(bound[0], 255, "length");
  const int64_t leeway = bound[3].is_none() ? 5 : integer_or(bound[3], 5, "leeway");
  const MarkedString end =
      bound[2].is_missing() ? MarkedString("...", false) : require_text(bound[2], "truncate").as_string();
  const auto end_size = static_cast<int64_t>(char_count(end.text()));
  if (length < end_size)
    fail("AssertionError", "expected length >= " + std::to_string(end_size) + ", got " + std::to_string(length));
  if (leeway < 0) fail("AssertionError", "expected leeway >= 0, got " + std::to_string(leeway));
  if (length_of(in, value) <= length + leeway) return value;
  const MarkedString& text = require_text(value, "truncate").as_string();
  size_t cut = char_offset(text.text(), static_cast<size_t>(length - end_size));
  if (!truth_or(bound[1], false)) {
    const size_t space = cut == 0 ? std::string::npos : text.text().rfind(' ', cut - 1);
    if (space != std::string::npos) cut = space;
  }
  TextBuilder out(in.meter());
  out.append(text, 0, cut);
  out.append(end);
  return in.string(out.take(), value.is_markup());
}

Value center(Interpreter& in, const Value& value, Arguments a) {
  const auto bound = bind("center", {"width"}, 0, std::move(a));
  const Value text = value.is_string() ? value : in.string(to_text(in, value));
  return pad(in, text, integer_or(bound[0], 80, "width"), MarkedString(" ", false), 0);
}

bool is_word_char(char32_t c) { return is_alpha(c) || is_numeric(c) || is_digit(c) || is_identifier_part(c); }

Value word_count(Interpreter& in, const Value& value, Arguments a) {
  bind("wordcount", {}, 0, std::move(a));
  const MarkedString text = to_text(in, value);
  int64_t count = 0;
  bool in_word = false;
  for (size_t at = 0; at < text.size();) {
    const bool is_word = is_word_char(next_char(text.text(), at));
    count += is_word && !in_word ? 1 : 0;
    in_word = is_word;
  }
  return Value::integer(count);
}

bool is_wrap_space(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }

// Greedy filling of one line, as Python's textwrap does it: words and the spaces between them are chunks; spaces at the
// edge of an output line go, except at the very beginning.
class Wrapper {
 public:
  Wrapper(const MarkedString& text, size_t width, bool breaks_words)
      : text_(text), width_(width), breaks_words_(breaks_words) {}

  std::vector<MarkedString> run() {
    for (size_t at = 0; at < text_.size();) {
      size_t end = at;
      const bool spaces = is_wrap_space(text_.text()[at]);
      while (end < text_.size() && is_wrap_space(text_.text()[end]) == spaces) ++end;
      chunk(at, end, spaces);
      at = end;
    }
    finish_line();
    return std::move(lines_);
  }

 private:
  size_t width_of(size_t begin, size_t end) const {
    return char_count(std::string_view(text_.text()).substr(begin, end - begin));
  }

  void chunk(size_t begin, size_t end, bool spaces) {
    size_t size = width_of(begin, end);
    if (spaces && line_begin_ == line_end_ && !lines_.empty()) return;
    if (used_ + size > width_) {
      if (size > width_ && breaks_words_ && !spaces) return break_word(begin, end);
      if (line_begin_ != line_end_) finish_line();
      if (spaces && !lines_.empty()) return;
    }
    add(begin, end, size);
  }

  void break_word(size_t begin, size_t end) {
    while (begin < end) {
      const size_t room = std::max<size_t>(1, width_ > used_ ? width_ - used_ : 0);
      if (width_ <= used_ && line_begin_ != line_end_) {
        finish_line();
        continue;
      }
      const size_t take =
          std::min(end, begin + char_offset(std::string_view(text_.text()).substr(begin, end - begin), room));
      add(begin, take, width_of(begin, take));
      begin = take;
      if (begin < end) finish_line();
    }
  }

  void add(size_t begin, size_t end, size_t size) {
    if (line_begin_ == line_end_) line_begin_ = begin;
    line_end_ = end;
    used_ += size;
  }

  void finish_line() {
    size_t end = line_end_;
    while (end > line_begin_ && is_wrap_space(text_.text()[end - 1])) --end;
    if (end > line_begin_) lines_.push_back(text_.slice(line_begin_, end));
    line_begin_ = line_end_ = used_ = 0;
  }

  const MarkedString& text_;
  size_t width_;
  bool breaks_words_;
  std::vector<MarkedString> lines_;
  size_t line_begin_ = 0, line_end_ = 0, used_ = 0;
};

Value word_wrap(Interpreter& in, const Value& value, Arguments a) {
  const auto bound = bind("wordwrap", {"width", "break_long_words", "wrapstring", "break_on_hyphens"}, 0, std::move(a));
  const int64_t width = integer_or(bound[0], 79, "width");
  if (width <= 0) value_error("invalid width " + std::to_string(width) + " (must be > 0)");
  const MarkedString& text = require_text(value, "wordwrap").as_string();
  if (truth_or(bound[3], true) && text.text().find('-') != std::string::npos) {
    fail("UnsupportedError", "wordwrap: breaking at hyphens is not supported (break_on_hyphens=false is)");
  }
  const MarkedString newline = bound[2].is_missing() || bound[2].is_none()
                                   ? MarkedString("\n", false)
                                   : require_text(bound[2], "wordwrap").as_string();
  TextBuilder out(in.meter());
  bool is_first = true;
  for (const MarkedString& line : split_lines(text, false)) {
    auto wrapped = Wrapper(line, static_cast<size_t>(width), truth_or(bound[1], true)).run();
    if (wrapped.empty()) wrapped.emplace_back();
    for (const MarkedString& part : wrapped) {
      if (!is_first) out.append(newline);
      is_first = false;
      out.append(part);
    }
  }
  return in.string(out.take());
}

}  // namespace

FilterGroup layout_filters() {
  return {{"indent", indent},
          {"truncate", truncate},
          {"center", center},
          {"wordcount", word_count},
          {"wordwrap", word_wrap}};
}

}  // namespace calandra::jinja
