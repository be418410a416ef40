#include "text/jinja/printf_format.h"

#include "text/jinja/arithmetic.h"
#include "text/jinja/compare.h"
#include "text/jinja/format.h"
#include "text/jinja/interpreter.h"
#include "text/jinja/unicode.h"

namespace calandra::jinja {
namespace {

constexpr int64_t kMaxWidth = int64_t{1} << 30;

std::string character(const Value& integral) {
  const int64_t code = to_index(integral, "%c");
  if (code < 0 || code > 0x10ffff) fail("OverflowError", "%c arg not in range(0x110000)");
  if (code >= 0xd800 && code < 0xe000) value_error("a surrogate is no character");
  std::string bytes;
  append_char(bytes, static_cast<char32_t>(code));
  return bytes;
}

// A field of `width` characters with its text at one side.
void append_padded(TextBuilder& out, const MarkedString& text, int64_t width, bool left) {
  const int64_t fill = width - static_cast<int64_t>(char_count(text.text()));
  if (!left) out.repeat(" ", false, fill);
  out.append(text);
  if (left) out.repeat(" ", false, fill);
}

class PercentFormatter {
 public:
  PercentFormatter(Interpreter& in, const Value& format, const Value& arguments)
      : in_(in), format_(format.as_string()), markup_(format.is_markup()), arguments_(arguments), out_(in.meter()) {}

  MarkedString run() {
    const std::string& text = format_.text();
    size_t at = 0;
    while (at < text.size()) {
      const size_t percent = std::min(text.find('%', at), text.size());
      out_.append(format_, at, percent);
      at = percent;
      if (at < text.size()) conversion(++at);
    }
    const bool is_mapping = arguments_.is(Kind::kDict) || arguments_.is(Kind::kList) || arguments_.is_undefined() ||
                            arguments_.is(Kind::kRange);
    const size_t given = arguments_.is(Kind::kTuple) ? arguments_.items().size() : is_mapping ? used_ : 1;
    if (!used_names_ && used_ < given) type_error("not all arguments converted during string formatting");
    return out_.take();
  }

 private:
  char peek(size_t at) const {
    if (at >= format_.size()) value_error("incomplete format");
    return format_.text()[at];
  }

  Value next_argument() {
    if (arguments_.is(Kind::kTuple)) {
      if (used_ < arguments_.items().size()) return arguments_.items()[used_++];
    } else if (used_ == 0) {
      ++used_;
      return arguments_;
    }
    type_error("not enough arguments for format string");
  }

  int64_t number(size_t& at) {
    if (peek(at) == '*') {
      ++at;
      const Value width = next_argument();
      if (!width.is_integral()) type_error("* wants int");
      return to_index(width, "a width");
    }
    int64_t value = 0;
    while (peek(at) >= '0' && peek(at) <= '9') {
      value = value * 10 + (peek(at++) - '0');
      if (value > kMaxWidth) value_error("width too big");
    }
    return value;
  }

  void conversion(size_t& at) {
    std::optional<Value> named;
    if (peek(at) == '(') {
      int open = 1;
      const size_t begin = ++at;
      for (; open > 0; ++at) {
        if (at >= format_.size()) value_error("incomplete format key");
        open += format_.text()[at] == '(' ? 1 : format_.text()[at] == ')' ? -1 : 0;
      }
      if (!arguments_.is(Kind::kDict)) type_error("format requires a mapping");
      const std::string key = format_.text().substr(begin, at - 1 - begin);
      const Value* value = arguments_.as_dict().find(std::string_view(key));
      if (value == nullptr) fail("KeyError", text_repr(key));
      named = *value;
      used_names_ = true;
    }
    NumberFormat format;
    bool left = false;
    for (;; ++at) {
      const char flag = peek(at);
      if (flag == '-')
        left = true;
      else if (flag == '+')
        format.plus = true;
      else if (flag == ' ')
        format.space = true;
      else if (flag == '#')
        format.alternate = true;
      else if (flag == '0')
        format.zero_fill = true;
      else
        break;
    }
    int64_t width = number(at);
    if (width < 0) {
      left = true;
      width = -width;
    }
    if (peek(at) == '.') format.precision = static_cast<int>(std::max<int64_t>(0, number(++at)));
    while (peek(at) == 'h' || peek(at) == 'l' || peek(at) == 'L') ++at;
    format.type = peek(at++);
    if (format.type == '%') return out_.append("%", format_.input_at(at - 1));
    const Value value = named ? *named : next_argument();
    append(value, format, width, left);
  }

  void append(const Value& value, NumberFormat format, int64_t width, bool left) {
    switch (format.type) {
      case 's':
      case 'r':
      case 'a': {
        Value text =
            format.type == 's' ? value : Value::string(&in_.meter(), MarkedString(repr(in_, value), has_input(value)));
        MarkedString shown = markup_ ? escape(in_, text).as_string() : to_text(in_, text);
        if (format.precision >= 0)
          shown = shown.slice(0, char_offset(shown.text(), static_cast<size_t>(format.precision)));
        return append_padded(out_, shown, width, left);
      }
      case 'c': {
        MarkedString shown = value.is_string() ? value.as_string() : MarkedString();
        if (value.is_integral()) shown = MarkedString(character(value), false);
        if (char_count(shown.text()) != 1) type_error("%c requires int or char");
        return append_padded(out_, shown, width, left);
      }
      case 'd':
      case 'i':
      case 'u':
      case 'x':
      case 'X':
      case 'o':
      case 'e':
      case 'E':
      case 'f':
      case 'F':
      case 'g':
      case 'G':
        return append_number(value, format, width, left);
      default:
        value_error(std::string("unsupported format character '") + format.type + "'");
    }
  }

  void append_number(const Value& value, NumberFormat format, int64_t width, bool left) {
    Value number = value;
    require_defined(value);
    const bool is_decimal_type = format.type == 'd' || format.type == 'i' || format.type == 'u';
    const bool is_integer_type = is_decimal_type || format.type == 'x' || format.type == 'X' || format.type == 'o';
    if (!number.is_number() || (is_integer_type && !is_decimal_type && number.is(Kind::kFloat))) {
      type_error(std::string("%") + format.type + " format: a real number is required, not " + type_name(value));
    }
    if (is_decimal_type && number.is(Kind::kFloat)) number = integer_from_real(in_, number.as_real());
    size_t prefix = 0;
    std::string digits = number_digits(number, format, prefix);
    if (is_integer_type && format.precision > static_cast<int64_t>(digits.size() - prefix)) {
      in_.meter().check(static_cast<size_t>(format.precision));
      digits.insert(prefix, static_cast<size_t>(format.precision) - (digits.size() - prefix), '0');
    }
    if (format.zero_fill && !left && width > static_cast<int64_t>(digits.size())) {
      in_.meter().check(static_cast<size_t>(width));
      digits.insert(prefix, static_cast<size_t>(width) - digits.size(), '0');
    }
    append_padded(out_, MarkedString(digits, false), width, left);
  }

  Interpreter& in_;
  const MarkedString& format_;
  bool markup_;
  const Value& arguments_;
  TextBuilder out_;
  size_t used_ = 0;
  bool used_names_ = false;
};

struct FieldSpec {
  MarkedString fill{" ", false};
  char align = 0;  // '<', '>', '=', '^'; 0: by type
  int64_t width = 0;
  NumberFormat number;
};

bool is_align(char c) { return c == '<' || c == '>' || c == '=' || c == '^'; }

int64_t spec_number(const std::string& text, size_t& at) {
  int64_t value = 0;
  while (at < text.size() && text[at] >= '0' && text[at] <= '9') {
    value = value * 10 + (text[at++] - '0');
    if (value > kMaxWidth) value_error("Too many decimal digits in format string");
  }
  return value;
}

FieldSpec parse_spec(const MarkedString& marked) {
  const std::string& text = marked.text();
  FieldSpec spec;
  size_t at = 0;
  size_t after_first = 0;
  if (!text.empty()) next_char(text, after_first);
  if (after_first < text.size() && is_align(text[after_first])) {
    spec.fill = marked.slice(0, after_first);
    spec.align = text[after_first];
    at = after_first + 1;
  } else if (!text.empty() && is_align(text[0])) {
    spec.align = text[at++];
  }
  const auto skip = [&](char c) { return at < text.size() && text[at] == c ? (++at, true) : false; };
  if (skip('+'))
    spec.number.plus = true;
  else if (skip(' '))
    spec.number.space = true;
  else
    skip('-');
  if (skip('#')) spec.number.alternate = true;
  if (skip('0')) {
    spec.number.zero_fill = true;
    if (spec.align == 0) {
      spec.fill = MarkedString("0", false);
      spec.align = '=';
    }
  }
  spec.width = spec_number(text, at);
  if (skip(','))
    spec.number.grouping = ',';
  else if (skip('_'))
    spec.number.grouping = '_';
  if (skip('.')) {
    if (at >= text.size() || text[at] < '0' || text[at] > '9') value_error("Format specifier missing precision");
    spec.number.precision = static_cast<int>(spec_number(text, at));
  }
  if (at < text.size()) spec.number.type = text[at++];
  if (at < text.size()) value_error("Invalid format specifier");
  return spec;
}

class BraceFormatter {
 public:
  BraceFormatter(Interpreter& in, const Arguments& arguments, bool markup)
      : in_(in), arguments_(arguments), markup_(markup) {}

  MarkedString run(const MarkedString& format, int depth = 2) {
    if (depth < 0) value_error("Max string recursion exceeded");
    const std::string& text = format.text();
    TextBuilder out(in_.meter());
    for (size_t at = 0; at < text.size();) {
      const size_t brace = std::min(text.find_first_of("{}", at), text.size());
      out.append(format, at, brace);
      if (brace == text.size()) break;
      at = brace + 1;
      if (at < text.size() && text[at] == text[brace]) {
        out.append(format, brace, brace + 1);
        ++at;
        continue;
      }
      if (text[brace] == '}') value_error("Single '}' encountered in format string");
      const size_t end = closing(text, at);
      out.append(field(format, at, end, depth));
      at = end + 1;
    }
    return out.take();
  }

 private:
  static size_t closing(const std::string& text, size_t at) {
    if (at >= text.size()) value_error("Single '{' encountered in format string");
    for (int open = 1; at < text.size(); ++at) {
      open += text[at] == '{' ? 1 : text[at] == '}' ? -1 : 0;
      if (open == 0) return at;
    }
    value_error("expected '}' before end of string");
  }

  MarkedString field(const MarkedString& format, size_t begin, size_t end, int depth) {
    const std::string& text = format.text();
    size_t name_end = begin;
    for (bool in_bracket = false; name_end < end; ++name_end) {
      if (text[name_end] == '[') in_bracket = true;
      if (text[name_end] == ']') in_bracket = false;
      if (!in_bracket && (text[name_end] == ':' || text[name_end] == '!')) break;
    }
    Value value = lookup(text.substr(begin, name_end - begin));
    size_t at = name_end;
    if (at < end && text[at] == '!') {
      if (at + 1 >= end) value_error("end of string while looking for conversion specifier");
      const char conversion = text[at + 1];
      if (conversion == 'r' || conversion == 'a')
        value = Value::string(&in_.meter(), MarkedString(repr(in_, value), has_input(value)));
      else if (conversion == 's')
        value = Value::string(&in_.meter(), to_text(in_, value));
      else
        value_error(std::string("Unknown conversion specifier ") + conversion);
      at += 2;
      if (at < end && text[at] != ':') value_error("expected ':' after conversion specifier");
    }
    MarkedString spec;
    if (at < end) spec = run(format.slice(at + 1, end), depth - 1);
    MarkedString shown = format_value(in_, value, spec);
    return markup_ && !value.is_markup() ? escape_text(in_.meter(), shown) : shown;
  }

  Value lookup(const std::string& name) {
    const size_t first_end = std::min(name.find_first_of(".["), name.size());
    const std::string first = name.substr(0, first_end);
    Value value;
    if (first.empty() || first.find_first_not_of("0123456789") == std::string::npos) {
      if (first.empty() ? numbered_ : automatic_ > 0)
        value_error("cannot switch between manual field specification and automatic field numbering");
      numbered_ = numbered_ || !first.empty();
      const size_t index = first.empty()      ? automatic_++
                           : first.size() > 9 ? arguments_.positional.size()
                                              : std::stoul(first);
      if (index >= arguments_.positional.size())
        fail("IndexError", "Replacement index " + std::to_string(index) + " out of range for positional args tuple");
      value = arguments_.positional[index];
    } else {
      for (const auto& [key, argument] : arguments_.named) {
        if (key == first) value = argument;
      }
      if (value.is_missing()) fail("KeyError", text_repr(first));
    }
    for (size_t at = first_end; at < name.size();) {
      const bool is_item = name[at] == '[';
      const size_t begin = at + 1;
      at = std::min(is_item ? name.find(']', begin) : name.find_first_of(".[", begin), name.size());
      if (is_item && at == name.size()) value_error("Missing ']' in format string");
      const std::string part = name.substr(begin, at - begin);
      if (part.empty()) value_error("Empty attribute in format string");
      if (is_item) ++at;
      const bool is_number = is_item && part.size() < 10 && part.find_first_not_of("0123456789") == std::string::npos;
      value = is_item ? in_.item(value, is_number ? Value::integer(std::stol(part)) : Value::string(&in_.meter(), part))
                      : in_.attribute(value, part);
    }
    return value;
  }

  Interpreter& in_;
  const Arguments& arguments_;
  bool markup_;
  size_t automatic_ = 0;
  bool numbered_ = false;
};

}  // namespace

Value percent_format(Interpreter& in, const Value& format, const Value& arguments) {
  PercentFormatter formatter(in, format, arguments);
  return Value::string(&in.meter(), formatter.run(), format.is_markup());
}

Value brace_format(Interpreter& in, const Value& format, const Arguments& arguments) {
  BraceFormatter formatter(in, arguments, format.is_markup());
  return Value::string(&in.meter(), formatter.run(format.as_string()), format.is_markup());
}

MarkedString format_value(Interpreter& in, const Value& value, const MarkedString& spec_text) {
  if (spec_text.empty()) return to_text(in, value);
  FieldSpec spec = parse_spec(spec_text);
  const bool is_number = value.is_number();
  if (!is_number && !value.is_string()) {
    type_error("unsupported format string passed to " + type_name(value) + ".__format__");
  }
  MarkedString shown;
  size_t prefix = 0;
  if (is_number) {
    constexpr std::string_view kIntegerTypes = "bdoxXneEfFgG%c";
    constexpr std::string_view kRealTypes = "eEfFgGn%";
    const char type = spec.number.type;
    const auto allowed = value.is(Kind::kFloat) ? kRealTypes : kIntegerTypes;
    if (type != 0 && allowed.find(type) == std::string_view::npos) {
      value_error(std::string("Unknown format code '") + type + "' for object of type '" + type_name(value) + "'");
    }
    const std::string_view ungrouped = spec.number.grouping == ',' ? "bcnoxX" : spec.number.grouping == '_' ? "cn" : "";
    if (type != 0 && ungrouped.find(type) != std::string_view::npos) {
      value_error(std::string("Cannot specify '") + spec.number.grouping + "' with '" + type + "'.");
    }
    if (type == 'c') {
      shown = MarkedString(character(value), false);
    } else {
      if (value.is_integral() && spec.number.precision >= 0 &&
          (type == 0 || kRealTypes.find(type) == std::string_view::npos)) {
        value_error("Precision not allowed in integer format specifier");
      }
      NumberFormat number = spec.number;
      if (type == 'n') number.type = value.is(Kind::kFloat) ? 'g' : 'd';
      shown = MarkedString(number_digits(value, number, prefix), false);
    }
  } else {
    if (spec.number.type != 0 && spec.number.type != 's') {
      value_error(std::string("Unknown format code '") + spec.number.type + "' for object of type '" +
                  type_name(value) + "'");
    }
    if (spec.align == '=' && !spec.number.zero_fill)
      value_error("'=' alignment not allowed in string format specifier");
    if (spec.align == '=') spec.align = '<';
    if (spec.number.plus || spec.number.space) value_error("Sign not allowed in string format specifier");
    if (spec.number.alternate) value_error("Alternate form (#) not allowed in string format specifier");
    if (spec.number.grouping != 0) value_error(std::string("Cannot specify '") + spec.number.grouping + "' with 's'.");
    shown = to_text(in, value);
    if (spec.number.precision >= 0)
      shown = shown.slice(0, char_offset(shown.text(), static_cast<size_t>(spec.number.precision)));
  }
  const int64_t fill = std::max<int64_t>(0, spec.width - static_cast<int64_t>(char_count(shown.text())));
  const char align = spec.align != 0 ? spec.align : is_number ? '>' : '<';
  const int64_t before = align == '<' ? 0 : align == '^' ? fill / 2 : fill;
  const bool fill_is_input = spec.fill.any_input();
  TextBuilder out(in.meter());
  const size_t split = align == '=' ? prefix : 0;
  out.append(shown, 0, split);
  out.repeat(spec.fill.text(), fill_is_input, before);
  out.append(shown, split, shown.size());
  out.repeat(spec.fill.text(), fill_is_input, fill - before);
  return out.take();
}

}  // namespace calandra::jinja
