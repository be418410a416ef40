#include "text/jinja/arithmetic.h"
#include "text/jinja/format.h"
#include "text/jinja/printf_format.h"

#include <algorithm>
#include <charconv>
#include <cmath>

namespace calandra::jinja {
namespace {

constexpr int kMaxPrecision = 2000;

std::string group_digits(const std::string& digits, char separator, size_t every) {
  const size_t whole = std::min(digits.find_first_of(".e"), digits.size());
  std::string out;
  for (size_t i = 0; i < whole; ++i) {
    if (i > 0 && (whole - i) % every == 0) out += separator;
    out += digits[i];
  }
  return out + digits.substr(whole);
}

std::string integer_digits(BigInt value, char type) {
  if (type == 'd' || type == 'i' || type == 'u' || type == 'n' || type == 0)
    return integer_text(Value::big(nullptr, value));
  const unsigned base_bits = type == 'b' ? 1 : type == 'o' ? 3 : 4;
  std::string digits;
  do {
    digits += "0123456789abcdef"[static_cast<unsigned>(value & ((1u << base_bits) - 1))];
    value >>= base_bits;
  } while (value != 0);
  std::reverse(digits.begin(), digits.end());
  return digits;
}

std::string chars_of(double value, std::chars_format format, int precision) {
  std::string buffer(static_cast<size_t>(precision) + 400, '\0');
  const auto end = std::to_chars(buffer.data(), buffer.data() + buffer.size(), value, format, precision).ptr;
  buffer.resize(static_cast<size_t>(end - buffer.data()));
  return buffer;
}

std::string real_digits(double value, const NumberFormat& format) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return "inf";
  if (format.precision > kMaxPrecision) value_error("precision too big");
  switch (format.type) {
    case 0: {
      if (format.precision < 0) return float_repr(value);
      std::string digits = chars_of(value, std::chars_format::general, std::max(1, format.precision));
      // Unlike 'g': at least one digit stands behind the point, and the exponent form begins one digit earlier.
      const std::string scientific = chars_of(value, std::chars_format::scientific, std::max(1, format.precision) - 1);
      const int exponent = std::stoi(scientific.substr(scientific.find('e') + 1));
      if (digits.find_first_of(".e") == std::string::npos) {
        if (exponent < std::max(1, format.precision) - 1) return digits + ".0";
        digits = scientific;
        const size_t e = digits.find('e');
        std::string mantissa = digits.substr(0, e);
        if (mantissa.find('.') != std::string::npos) mantissa.erase(mantissa.find_last_not_of('0') + 1);
        if (!mantissa.empty() && mantissa.back() == '.') mantissa.pop_back();
        return mantissa + digits.substr(e);
      }
      return digits;
    }
    case 'e':
    case 'E':
      return chars_of(value, std::chars_format::scientific, format.precision < 0 ? 6 : format.precision);
    case 'f':
    case 'F':
      return chars_of(value, std::chars_format::fixed, format.precision < 0 ? 6 : format.precision);
    case '%':
      return chars_of(value * 100, std::chars_format::fixed, format.precision < 0 ? 6 : format.precision) + "%";
    default:
      return chars_of(value, std::chars_format::general, format.precision < 0 ? 6 : std::max(1, format.precision));
  }
}

}  // namespace

std::string number_digits(const Value& number, const NumberFormat& format, size_t& prefix) {
  const bool is_real_type = format.type != 0 && std::string_view("eEfFgG%").find(format.type) != std::string_view::npos;
  const bool is_real = number.is(Kind::kFloat) || is_real_type;
  bool negative = false;
  std::string digits, base;
  if (is_real) {
    const double value = to_real(number);
    negative = std::signbit(value) && !std::isnan(value);
    digits = real_digits(std::fabs(value), format);
  } else {
    const BigInt value = number.as_big();
    negative = value < 0;
    digits = integer_digits(boost::multiprecision::abs(value), format.type == 'X' ? 'x' : format.type);
    if (format.alternate && format.type == 'x') base = "0x";
    if (format.alternate && format.type == 'X') base = "0X";
    if (format.alternate && format.type == 'o') base = "0o";
    if (format.alternate && format.type == 'b') base = "0b";
  }
  if (format.type == 'X' || format.type == 'E' || format.type == 'F' || format.type == 'G') {
    std::transform(digits.begin(), digits.end(), digits.begin(),
                   [](char c) { return c >= 'a' && c <= 'z' ? static_cast<char>(c - 32) : c; });
  }
  if (format.grouping != 0) {
    const bool is_power_of_two = format.type == 'x' || format.type == 'X' || format.type == 'o' || format.type == 'b';
    digits = group_digits(digits, format.grouping, is_power_of_two ? 4 : 3);
  }
  const std::string sign = negative ? "-" : format.plus ? "+" : format.space ? " " : "";
  prefix = sign.size() + base.size();
  return sign + base + digits;
}

}  // namespace calandra::jinja
