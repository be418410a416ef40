// Filters about single values: numbers, defaults, attributes.
#include "text/jinja/arguments.h"
#include "text/jinja/arithmetic.h"
#include "text/jinja/compare.h"
#include "text/jinja/filters.h"
#include "text/jinja/format.h"
#include "text/jinja/interpreter.h"
#include "text/jinja/iterate.h"
#include "text/jinja/unicode.h"

#include <algorithm>
#include <charconv>
#include <cmath>

namespace calandra::jinja {
namespace {

constexpr size_t kMaxNumberLength = 4300;  // of digits that int() reads

// Number text as int() and float() read it: white space around goes, digits of all scripts become ASCII, single
// underscores between digits go. Nothing if it cannot be a number.
std::optional<std::string> plain_number(const std::string& text) {
  std::string plain;
  for (size_t at = 0; at < text.size();) {
    const char32_t c = next_char(text, at);
    if (is_space(c))
      plain += ' ';
    else if (c < 0x80)
      plain += static_cast<char>(c);
    else if (is_decimal(c))
      plain += static_cast<char>('0' + decimal_value(c));
    else
      return std::nullopt;
  }
  const size_t begin = plain.find_first_not_of(' ');
  if (begin == std::string::npos) return std::nullopt;
  plain = plain.substr(begin, plain.find_last_not_of(' ') + 1 - begin);
  const auto is_alnum = [&](size_t i) {
    return i < plain.size() && std::isalnum(static_cast<unsigned char>(plain[i])) != 0;
  };
  std::string out;
  for (size_t i = 0; i < plain.size(); ++i) {
    if (plain[i] != '_')
      out += plain[i];
    else if (i == 0 || !is_alnum(i - 1) || !is_alnum(i + 1))
      return std::nullopt;
  }
  return out;
}

std::optional<Value> parse_integer(Interpreter& in, const std::string& text, int64_t base) {
  if (base != 0 && (base < 2 || base > 36)) return std::nullopt;
  const auto plain = plain_number(text);
  if (!plain || plain->size() > kMaxNumberLength) return std::nullopt;
  std::string_view digits = *plain;
  const bool negative = digits.starts_with('-');
  if (negative || digits.starts_with('+')) digits.remove_prefix(1);
  const auto prefixed = [&](char mark, int64_t prefix_base) {
    if ((base != 0 && base != prefix_base) || digits.size() < 3 || digits[0] != '0' || (digits[1] | 0x20) != mark)
      return false;
    digits.remove_prefix(2);
    base = prefix_base;
    return true;
  };
  if (!prefixed('x', 16) && !prefixed('o', 8) && !prefixed('b', 2) && base == 0) {
    if (digits.size() > 1 && digits[0] == '0' && digits.find_first_not_of('0') != std::string_view::npos)
      return std::nullopt;
    base = 10;
  }
  if (digits.empty()) return std::nullopt;
  BigInt value = 0;
  for (const char c : digits) {
    const int digit = c >= '0' && c <= '9'                     ? c - '0'
                      : (c | 0x20) >= 'a' && (c | 0x20) <= 'z' ? (c | 0x20) - 'a' + 10
                                                               : 99;
    if (digit >= base) return std::nullopt;
    value = value * base + digit;
  }
  in.meter().work(digits.size() * digits.size() / 8);
  return Value::big(&in.meter(), negative ? BigInt(-value) : value);
}

std::optional<double> parse_real(const std::string& text) {
  const auto plain = plain_number(text);
  if (!plain) return std::nullopt;
  std::string_view digits = *plain;
  if (digits.starts_with('+'))
    digits.remove_prefix(1);
  else if (digits.starts_with('-') && digits.substr(1).starts_with('-'))
    return std::nullopt;
  const std::string_view bare = digits.starts_with('-') ? digits.substr(1) : digits;
  if (bare.empty() || bare.starts_with('+') || bare.starts_with('-')) return std::nullopt;
  double value = 0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value);
  if (end != digits.data() + digits.size() || error == std::errc::invalid_argument ||
      bare.find('(') != std::string_view::npos)
    return std::nullopt;
  if (error == std::errc::result_out_of_range) value = std::strtod(std::string(digits).c_str(), nullptr);
  return value;
}

// float(value): nothing for what raises TypeError or ValueError.
std::optional<double> real_of(const Value& value) {
  require_defined(value);
  if (value.is_number()) return to_real(value);
  return value.is_string() ? parse_real(value.text()) : std::nullopt;
}

Value absolute(Interpreter& in, const Value& value, Arguments a) {
  bind("abs", {}, 0, std::move(a));
  if (value.is(Kind::kFloat)) return Value::real(std::fabs(value.as_real()));
  if (value.is_integral()) return Value::big(&in.meter(), boost::multiprecision::abs(value.as_big()));
  type_error("bad operand type for abs(): '" + type_name(value) + "'");
}

Value integer(Interpreter& in, const Value& value, Arguments a) {
  const auto bound = bind("int", {"default", "base"}, 0, std::move(a));
  const Value fallback = bound[0].is_missing() ? Value::integer(0) : bound[0];
  require_defined(value);
  if (value.is_integral()) return plus(value);
  if (value.is(Kind::kFloat)) {
    if (std::isnan(value.as_real())) return fallback;
    return integer_from_real(in, value.as_real());
  }
  if (!value.is_string()) return fallback;
  if (auto parsed = parse_integer(in, value.text(), integer_or(bound[1], 10, "base"))) return *parsed;
  // QUIRK: "42.23"|int is 42.
  const auto real = parse_real(value.text());
  return real && std::isfinite(*real) ? integer_from_real(in, *real) : fallback;
}

Value real(Interpreter&, const Value& value, Arguments a) {
  const auto bound = bind("float", {"default"}, 0, std::move(a));
  const auto parsed = real_of(value);
  if (parsed) return Value::real(*parsed);
  return bound[0].is_missing() ? Value::real(0) : bound[0];
}

Value default_value(Interpreter& in, const Value& value, Arguments a) {
  const auto bound = bind("default", {"default_value", "boolean"}, 0, std::move(a));
  const bool replaces = value.is_undefined() || (truth_or(bound[1], false) && !truth(value));
  if (!replaces) return value;
  return bound[0].is_missing() ? in.string("") : bound[0];
}

Value items(Interpreter& in, const Value& value, Arguments a) {
  bind("items", {}, 0, std::move(a));
  return generator(
      in,
      [value, source = boost::intrusive_ptr<IteratorBody>()](Interpreter& interpreter) mutable -> std::optional<Value> {
        if (value.is_undefined()) return std::nullopt;
        if (!value.is(Kind::kDict)) type_error("Can only get item pairs from a mapping.");
        if (!source) {
          auto* view = new ViewBody();
          const Value holder = Value::heap(Kind::kDictView, &interpreter.meter(), view);
          view->what = ViewBody::kItems;
          view->dict = value;
          source = iterate(interpreter, holder);
        }
        return source->next(interpreter);
      });
}

Value attribute(Interpreter& in, const Value& value, Arguments a) {
  const auto bound = bind("attr", {"name"}, 1, std::move(a));
  require_defined(value);
  if (!bound[0].is_string()) type_error("attribute name must be string, not '" + type_name(bound[0]) + "'");
  // Attributes only, no items: the entries of a dict are hidden by an empty dict, which has the same methods.
  if (value.is(Kind::kDict)) {
    const Value empty = make_dict(&in.meter(), boost::intrusive_ptr<DictBody>(new DictBody()));
    const bool is_method = !in.attribute(empty, bound[0].text()).is_undefined();
    if (is_method) return in.attribute(value, bound[0].text());
    UndefinedBody body;
    body.owner_type = described_type(value);
    body.name = bound[0];
    return Value::undefined(&in.meter(), std::move(body));
  }
  return in.attribute(value, bound[0].text());
}

// --- round ---

// To a multiple of 10^digits, ties to even.
BigInt round_integer(const BigInt& value, int64_t digits, bool has_fraction) {
  const BigInt unit = boost::multiprecision::pow(BigInt(10), static_cast<unsigned>(digits));
  BigInt quotient, rest;
  boost::multiprecision::divide_qr(value, unit, quotient, rest);  // value ≥ 0
  const BigInt twice = rest * 2;
  const bool up = twice > unit || (twice == unit && (has_fraction || (quotient & 1) != 0));
  return (up ? BigInt(quotient + 1) : quotient) * unit;
}

double round_real(double value, int64_t precision) {
  if (!std::isfinite(value) || precision > 323) return value;
  if (precision >= 0) {
    char buffer[700];
    const auto end =
        std::to_chars(buffer, buffer + sizeof buffer, value, std::chars_format::fixed, static_cast<int>(precision)).ptr;
    double rounded = 0;
    std::from_chars(buffer, end, rounded);
    return rounded;
  }
  if (precision < -308) return std::copysign(0.0, value);
  const double whole = std::floor(std::fabs(value));
  const BigInt rounded = round_integer(BigInt(whole), -precision, whole != std::fabs(value));
  return std::copysign(to_real(Value::big(nullptr, rounded)), value);
}

Value round(Interpreter& in, const Value& value, Arguments a) {
  const auto bound = bind("round", {"precision", "method"}, 0, std::move(a));
  const std::string method = bound[1].is_missing() ? "common" : bound[1].is_string() ? bound[1].text() : "";
  if (method != "common" && method != "ceil" && method != "floor")
    fail("FilterArgumentError", "method must be common, ceil or floor");
  if (method == "common") {
    if (!value.is_number()) type_error("type " + type_name(value) + " doesn't define __round__ method");
    const bool to_integer = bound[0].is_none();
    const int64_t precision = to_integer ? 0 : integer_or(bound[0], 0, "precision");
    if (value.is(Kind::kFloat)) {
      const double rounded = round_real(value.as_real(), precision);
      return to_integer ? integer_from_real(in, rounded) : Value::real(rounded);
    }
    if (precision >= 0) return plus(value);
    const BigInt whole = value.as_big();
    if (precision < -5000) return Value::integer(0);
    const BigInt rounded = round_integer(boost::multiprecision::abs(whole), -precision, false);
    return Value::big(&in.meter(), whole < 0 ? BigInt(-rounded) : rounded);
  }
  const Value scale =
      binary(in, BinaryOp::kPow, Value::integer(10), bound[0].is_missing() ? Value::integer(0) : bound[0]);
  const Value scaled = binary(in, BinaryOp::kMul, value, scale);
  if (!scaled.is_number()) type_error("must be real number, not " + type_name(scaled));
  Value whole = scaled;
  if (scaled.is(Kind::kFloat))
    whole = integer_from_real(in, method == "ceil" ? std::ceil(scaled.as_real()) : std::floor(scaled.as_real()));
  return binary(in, BinaryOp::kDiv, whole, scale);
}

// --- pprint ---

// A copy in which dicts are sorted by their keys.
Value sorted_dicts(Interpreter& in, const Value& value) {
  if (value.is(Kind::kList) || value.is(Kind::kTuple)) {
    std::vector<Value> items;
    for (const Value& item : value.items()) items.push_back(sorted_dicts(in, item));
    return Value::sequence(value.kind(), &in.meter(), std::move(items));
  }
  if (!value.is(Kind::kDict)) return value;
  auto entries = value.as_dict().entries;
  std::stable_sort(entries.begin(), entries.end(), [](const auto& a, const auto& b) {
    const bool comparable =
        (a.first.is_string() && b.first.is_string()) || (a.first.is_number() && b.first.is_number());
    return comparable ? less(a.first, b.first) : type_name(a.first) < type_name(b.first);
  });
  const boost::intrusive_ptr<DictBody> dict(new DictBody());
  for (const auto& [key, item] : entries) dict->set(key, sorted_dicts(in, item));
  return make_dict(&in.meter(), dict);
}

Value pretty(Interpreter& in, const Value& value, Arguments a) {
  constexpr size_t kLine = 80;
  bind("pprint", {}, 0, std::move(a));
  const std::string text = repr(in, sorted_dicts(in, value));
  const bool breaks = value.is_string() || value.is(Kind::kList) || value.is(Kind::kTuple) || value.is(Kind::kDict);
  if (breaks && char_count(text) > kLine)
    fail("UnsupportedError", "pprint: values longer than a line are not supported");
  return in.string(MarkedString(text, has_input(value)));
}

}  // namespace

FilterGroup value_filters() {
  return {{"abs", absolute}, {"int", integer},    {"float", real},  {"default", default_value}, {"d", default_value},
          {"items", items},  {"attr", attribute}, {"round", round}, {"pprint", pretty}};
}

}  // namespace calandra::jinja
