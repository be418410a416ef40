#include "text/jinja/format.h"

#include "text/jinja/compare.h"
#include "text/jinja/interpreter.h"
#include "text/jinja/objects.h"
#include "text/jinja/unicode.h"

#include <fmt/format.h>

#include <charconv>
#include <cmath>

namespace calandra::jinja {
namespace {

constexpr size_t kMaxIntegerDigits = 4300;  // Python refuses to print longer ones

class Printer {
 public:
  explicit Printer(Interpreter* in) : in_(in) {}

  std::string take() { return std::move(out_); }

  void print(const Value& value) {
    if (in_ != nullptr) {
      in_->meter().step();
      in_->meter().check(out_.size());
    }
    switch (value.kind()) {
      case Kind::kMissing:
      case Kind::kUndefined:
        out_ += "Undefined";
        break;
      case Kind::kNone:
        out_ += "None";
        break;
      case Kind::kBool:
        out_ += value.as_bool() ? "True" : "False";
        break;
      case Kind::kInt:
      case Kind::kBig:
        out_ += integer_text(value);
        break;
      case Kind::kFloat:
        out_ += float_repr(value.as_real());
        break;
      case Kind::kString:
        out_ += value.is_markup() ? "Markup(" + text_repr(value.text()) + ")" : text_repr(value.text());
        break;
      case Kind::kBytes:
        print_bytes(value.text());
        break;
      case Kind::kList:
        print_items(value.items(), "[", "]");
        break;
      case Kind::kTuple:
        print_items(value.items(), "(", value.items().size() == 1 ? ",)" : ")");
        break;
      case Kind::kDict:
        print_dict(value.as_dict());
        break;
      case Kind::kRange:
        print_range(value.as_range());
        break;
      case Kind::kDictView:
        print_view(value);
        break;
      case Kind::kIterator:
        out_ += std::string("<") + value.as_iterator().type_name() + " object>";
        break;
      case Kind::kObject:
        out_ += in_ != nullptr ? value.as_object().repr(*in_) : "<" + type_name(value) + ">";
        break;
    }
  }

 private:
  void print_items(const std::vector<Value>& items, const char* open, const char* close) {
    out_ += open;
    for (size_t i = 0; i < items.size(); ++i) {
      if (i > 0) out_ += ", ";
      print(items[i]);
    }
    out_ += close;
  }

  void print_dict(const DictBody& dict) {
    out_ += "{";
    for (const auto& [key, value] : dict.entries) {
      if (&key != &dict.entries.front().first) out_ += ", ";
      print(key);
      out_ += ": ";
      print(value);
    }
    out_ += "}";
  }

  void print_range(const RangeBody& range) {
    out_ += range.step == 1 ? fmt::format("range({}, {})", range.start, range.stop)
                            : fmt::format("range({}, {}, {})", range.start, range.stop, range.step);
  }

  void print_view(const Value& view) {
    out_ += type_name(view) + "(";
    std::vector<Value> items;
    for (const auto& [key, value] : view.as_view().dict.as_dict().entries) {
      const auto what = view.as_view().what;
      items.push_back(what == ViewBody::kKeys     ? key
                      : what == ViewBody::kValues ? value
                                                  : Value::tuple(nullptr, {key, value}));
    }
    print_items(items, "[", "]");
    out_ += ")";
  }

  void print_bytes(const std::string& bytes) {
    const char quote = bytes.find('\'') != std::string::npos && bytes.find('"') == std::string::npos ? '"' : '\'';
    out_ += 'b';
    out_ += quote;
    for (const char byte : bytes) {
      const auto code = static_cast<unsigned char>(byte);
      if (byte == quote || byte == '\\') {
        out_ += '\\';
        out_ += byte;
      } else if (byte == '\n' || byte == '\t' || byte == '\r') {
        out_ += byte == '\n' ? "\\n" : byte == '\t' ? "\\t" : "\\r";
      } else if (code < 0x20 || code >= 0x7f) {
        out_ += fmt::format("\\x{:02x}", code);
      } else {
        out_ += byte;
      }
    }
    out_ += quote;
  }

  Interpreter* in_;
  std::string out_;
};

}  // namespace

void TextBuilder::repeat(std::string_view text, bool is_input, int64_t count) {
  if (count <= 0 || text.empty()) return;
  if (static_cast<uint64_t>(count) > (uint64_t{1} << 40))
    throw Failure("BudgetError", "the template needs too much memory");
  grow(text.size() * static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) text_.append(text, is_input);
}

void TextBuilder::append_char(char32_t c, bool is_input) {
  std::string bytes;
  calandra::jinja::append_char(bytes, c);
  append(bytes, is_input);
}

std::string float_repr(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value > 0 ? "inf" : "-inf";
  char buffer[64];
  const auto end = std::to_chars(buffer, buffer + sizeof buffer, value, std::chars_format::scientific).ptr;
  const std::string_view shortest(buffer, static_cast<size_t>(end - buffer));
  const size_t e = shortest.find('e');
  int exponent = 0;
  std::from_chars(shortest.data() + e + (shortest[e + 1] == '+' ? 2 : 1), end, exponent);
  if (exponent < -4 || exponent >= 16) return std::string(shortest);  // to_chars and Python write exponents alike
  std::string fixed(buffer, std::to_chars(buffer, buffer + sizeof buffer, value, std::chars_format::fixed).ptr);
  if (fixed.find('.') == std::string::npos) fixed += ".0";
  return fixed;
}

std::string integer_text(const Value& integral) {
  if (!integral.is(Kind::kBig)) return std::to_string(integral.as_int());
  std::string digits = integral.as_big().str();
  if (digits.size() > kMaxIntegerDigits) value_error("Exceeds the limit (4300 digits) for integer string conversion");
  return digits;
}

std::string text_repr(std::string_view text) {
  const char quote = text.find('\'') != std::string_view::npos && text.find('"') == std::string_view::npos ? '"' : '\'';
  std::string out(1, quote);
  for (size_t at = 0; at < text.size();) {
    const size_t begin = at;
    const char32_t c = next_char(text, at);
    if (c == static_cast<char32_t>(quote) || c == U'\\') {
      out += '\\';
      out += static_cast<char>(c);
    } else if (c == U'\n' || c == U'\t' || c == U'\r') {
      out += c == U'\n' ? "\\n" : c == U'\t' ? "\\t" : "\\r";
    } else if (is_printable(c)) {
      out += text.substr(begin, at - begin);
    } else {
      const auto code = static_cast<uint32_t>(c);
      out += code < 0x100     ? fmt::format("\\x{:02x}", code)
             : code < 0x10000 ? fmt::format("\\u{:04x}", code)
                              : fmt::format("\\U{:08x}", code);
    }
  }
  return out + quote;
}

std::string repr(Interpreter& in, const Value& value) {
  const Interpreter::Nesting nesting(in);
  Printer printer(&in);
  printer.print(value);
  std::string text = printer.take();
  in.meter().work(text.size());
  return text;
}

std::string plain_repr(const Value& value) {
  Printer printer(nullptr);
  printer.print(value);
  return printer.take();
}

bool has_input(const Value& value) {
  switch (value.kind()) {
    case Kind::kString:
    case Kind::kBytes:
      return value.as_string().any_input();
    case Kind::kList:
    case Kind::kTuple:
      for (const Value& item : value.items()) {
        if (has_input(item)) return true;
      }
      return false;
    case Kind::kDict:
      for (const auto& [key, item] : value.as_dict().entries) {
        if (has_input(key) || has_input(item)) return true;
      }
      return false;
    case Kind::kDictView:
      return has_input(value.as_view().dict);
    case Kind::kObject:
      if (const auto* space = value.object_as<NamespaceBody>()) {
        // Not looked into: namespaces may refer to themselves. Their text is a debugging aid; it counts as input.
        return !space->attributes.entries.empty();
      }
      return false;
    default:
      return false;
  }
}

MarkedString to_text(Interpreter& in, const Value& value) {
  if (value.is_string()) return value.as_string();
  if (value.is_undefined() || value.is_missing()) return MarkedString();
  return MarkedString(repr(in, value), has_input(value));
}

MarkedString escape_text(Meter& meter, const MarkedString& text) {
  TextBuilder out(meter);
  size_t begin = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text.text()[i];
    const char* entity = c == '&'    ? "&amp;"
                         : c == '<'  ? "&lt;"
                         : c == '>'  ? "&gt;"
                         : c == '\'' ? "&#39;"
                         : c == '"'  ? "&#34;"
                                     : nullptr;
    if (entity == nullptr) continue;
    out.append(text, begin, i);
    out.append(entity, text.input_at(i));
    begin = i + 1;
  }
  out.append(text, begin, text.size());
  return out.take();
}

Value escape(Interpreter& in, const Value& value) {
  if (value.is_markup()) return value;
  return Value::string(&in.meter(), escape_text(in.meter(), to_text(in, value)), true);
}

}  // namespace calandra::jinja
