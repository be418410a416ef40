#include "text/jinja/json_text.h"

#include "text/jinja/compare.h"
#include "text/jinja/format.h"
#include "text/jinja/interpreter.h"
#include "text/jinja/objects.h"
#include "text/jinja/unicode.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

namespace calandra::jinja {
namespace {

class Writer {
 public:
  Writer(Interpreter& in, const JsonStyle& style)
      : in_(in),
        style_(style),
        comma_(style.item_separator.value_or(style.indent ? "," : ", ")),
        colon_(style.key_separator.value_or(": ")) {}

  std::string take() { return std::move(out_); }

  void write(const Value& value, size_t level) {
    in_.meter().step();
    in_.meter().check(out_.size());
    switch (value.kind()) {
      case Kind::kNone:
        out_ += "null";
        break;
      case Kind::kBool:
        out_ += value.as_bool() ? "true" : "false";
        break;
      case Kind::kInt:
      case Kind::kBig:
        out_ += integer_text(value);
        break;
      case Kind::kFloat:
        out_ += real(value.as_real());
        break;
      case Kind::kString:
        write_string(value.text());
        break;
      case Kind::kList:
      case Kind::kTuple:
        write_list(value.items(), level);
        break;
      case Kind::kDict:
        write_dict(value.as_dict(), level);
        break;
      default:
        type_error("Object of type " + type_name(value) + " is not JSON serializable");
    }
  }

 private:
  static std::string real(double value) {
    if (std::isnan(value)) return "NaN";
    if (std::isinf(value)) return value > 0 ? "Infinity" : "-Infinity";
    return float_repr(value);
  }

  void line(size_t level) {
    if (!style_.indent) return;
    in_.meter().check(out_.size() + level * style_.indent->size());
    in_.meter().work(level * style_.indent->size());
    out_ += '\n';
    for (size_t i = 0; i < level; ++i) out_ += *style_.indent;
  }

  void write_list(const std::vector<Value>& items, size_t level) {
    if (items.empty()) {
      out_ += "[]";
      return;
    }
    out_ += '[';
    for (size_t i = 0; i < items.size(); ++i) {
      if (i > 0) out_ += comma_;
      line(level + 1);
      write(items[i], level + 1);
    }
    line(level);
    out_ += ']';
  }

  void write_dict(const DictBody& dict, size_t level) {
    if (dict.entries.empty()) {
      out_ += "{}";
      return;
    }
    auto entries = dict.entries;
    if (style_.sort_keys) {
      std::stable_sort(entries.begin(), entries.end(),
                       [](const auto& a, const auto& b) { return less(a.first, b.first); });
    }
    out_ += '{';
    for (size_t i = 0; i < entries.size(); ++i) {
      if (i > 0) out_ += comma_;
      line(level + 1);
      write_key(entries[i].first);
      out_ += colon_;
      write(entries[i].second, level + 1);
    }
    line(level);
    out_ += '}';
  }

  void write_key(const Value& key) {
    switch (key.kind()) {
      case Kind::kString:
        return write_string(key.text());
      case Kind::kNone:
        return write_string("null");
      case Kind::kBool:
        return write_string(key.as_bool() ? "true" : "false");
      case Kind::kInt:
      case Kind::kBig:
        return write_string(integer_text(key));
      case Kind::kFloat:
        return write_string(real(key.as_real()));
      default:
        type_error("keys must be str, int, float, bool or None, not " + type_name(key));
    }
  }

  void write_string(std::string_view text) {
    in_.meter().work(text.size());
    out_ += '"';
    for (size_t at = 0; at < text.size();) {
      const size_t begin = at;
      const char32_t c = next_char(text, at);
      const auto code = static_cast<uint32_t>(c);
      if (c == U'"' || c == U'\\')
        (out_ += '\\') += static_cast<char>(c);
      else if (c == U'\n')
        out_ += "\\n";
      else if (c == U'\r')
        out_ += "\\r";
      else if (c == U'\t')
        out_ += "\\t";
      else if (c == U'\b')
        out_ += "\\b";
      else if (c == U'\f')
        out_ += "\\f";
      else if (code < 0x20)
        out_ += fmt::format("\\u{:04x}", code);
      else if (!style_.ensure_ascii || code < 0x80)
        out_ += text.substr(begin, at - begin);
      else if (code < 0x10000)
        out_ += fmt::format("\\u{:04x}", code);
      else
        out_ +=
            fmt::format("\\u{:04x}\\u{:04x}", 0xd800 + ((code - 0x10000) >> 10), 0xdc00 + ((code - 0x10000) & 0x3ff));
    }
    out_ += '"';
  }

  Interpreter& in_;
  const JsonStyle& style_;
  std::string comma_, colon_;
  std::string out_;
};

}  // namespace

std::string json_text(Interpreter& in, const Value& value, const JsonStyle& style) {
  Writer writer(in, style);
  writer.write(value, 0);
  return writer.take();
}

}  // namespace calandra::jinja
