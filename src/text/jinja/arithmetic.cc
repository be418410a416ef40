#include "text/jinja/arithmetic.h"

#include "text/jinja/compare.h"
#include "text/jinja/format.h"
#include "text/jinja/interpreter.h"
#include "text/jinja/iterate.h"
#include "text/jinja/objects.h"
#include "text/jinja/printf_format.h"

#include <cmath>
#include <limits>

namespace calandra::jinja {
namespace {

namespace mp = boost::multiprecision;

constexpr const char* kSymbols[] = {"+", "-", "*", "/", "//", "%", "** or pow()"};
constexpr size_t kMaxIntegerBits = size_t{1} << 17;

[[noreturn]] void unsupported(BinaryOp op, const Value& a, const Value& b) {
  type_error(std::string("unsupported operand type(s) for ") + kSymbols[static_cast<int>(op)] + ": '" + type_name(a) +
             "' and '" + type_name(b) + "'");
}

size_t bits(const BigInt& value) { return value == 0 ? 1 : mp::msb(mp::abs(value)) + 1; }

// |a| / |b| rounded once to the nearest double (ties to even): 65 bits of quotient and a sticky bit, then one rounding.
double divide_exactly(const BigInt& a, const BigInt& b) {
  if (a == 0) return b < 0 ? -0.0 : 0.0;
  const bool negative = (a < 0) != (b < 0);
  BigInt numerator = mp::abs(a), denominator = mp::abs(b);
  const int shift = 65 - (static_cast<int>(bits(numerator)) - static_cast<int>(bits(denominator)));
  if (shift >= 0)
    numerator <<= shift;
  else
    denominator <<= -shift;
  BigInt quotient, rest;
  mp::divide_qr(numerator, denominator, quotient, rest);
  int exponent = -shift;
  bool sticky = rest != 0;
  while (bits(quotient) > 64) {
    sticky = sticky || (quotient & 1) != 0;
    quotient >>= 1;
    ++exponent;
  }
  uint64_t mantissa = static_cast<uint64_t>(quotient);
  if (sticky) mantissa |= 1;
  const double result = std::ldexp(static_cast<double>(mantissa), exponent);
  if (std::isinf(result)) fail("OverflowError", "integer division result too large for a float");
  return negative ? -result : result;
}

BigInt floor_divide(const BigInt& a, const BigInt& b, BigInt& rest) {
  BigInt quotient;
  mp::divide_qr(a, b, quotient, rest);
  if (rest != 0 && (rest < 0) != (b < 0)) {
    quotient -= 1;
    rest += b;
  }
  return quotient;
}

Value integer_power(Interpreter& in, const Value& a, const Value& b) {
  const BigInt base = a.as_big();
  if (b.is(Kind::kBig) || b.as_int() < 0) {
    if (base == 0 && b.as_big() < 0) fail("ZeroDivisionError", "0.0 cannot be raised to a negative power");
    if (b.as_big() < 0) return Value::real(std::pow(to_real(a), to_real(b)));
    if (base == 0 || base == 1) return Value::integer(base == 1 ? 1 : 0);
    if (base == -1) return Value::integer((b.as_big() & 1) != 0 ? -1 : 1);
    throw Failure("BudgetError", "an integer is too large");
  }
  const auto exponent = static_cast<uint64_t>(b.as_int());
  const bool is_small = base == 0 || base == 1 || base == -1;
  if (!is_small && exponent > kMaxIntegerBits / bits(base)) throw Failure("BudgetError", "an integer is too large");
  if (is_small)
    return base == -1 ? Value::integer(exponent % 2 == 1 ? -1 : 1) : Value::integer(base == 1 || exponent == 0 ? 1 : 0);
  in.meter().work(bits(base) * exponent);
  return Value::big(&in.meter(), mp::pow(base, static_cast<unsigned>(exponent)));
}

Value big_arithmetic(Interpreter& in, BinaryOp op, const Value& a, const Value& b) {
  const BigInt x = a.as_big(), y = b.as_big();
  if (bits(x) + bits(y) > kMaxIntegerBits) throw Failure("BudgetError", "an integer is too large");
  in.meter().work((bits(x) / 8 + 1) * (bits(y) / 64 + 1));
  switch (op) {
    case BinaryOp::kAdd:
      return Value::big(&in.meter(), x + y);
    case BinaryOp::kSub:
      return Value::big(&in.meter(), x - y);
    case BinaryOp::kMul:
      return Value::big(&in.meter(), x * y);
    default:
      break;
  }
  if (y == 0) {
    fail("ZeroDivisionError", op == BinaryOp::kDiv   ? "division by zero"
                              : op == BinaryOp::kMod ? "integer modulo by zero"
                                                     : "integer division or modulo by zero");
  }
  if (op == BinaryOp::kDiv) return Value::real(divide_exactly(x, y));
  BigInt rest;
  const BigInt quotient = floor_divide(x, y, rest);
  return Value::big(&in.meter(), op == BinaryOp::kMod ? rest : quotient);
}

Value integer_arithmetic(Interpreter& in, BinaryOp op, const Value& a, const Value& b) {
  if (op == BinaryOp::kPow) return integer_power(in, a, b);
  if (!a.is(Kind::kBig) && !b.is(Kind::kBig)) {
    const int64_t x = a.as_int(), y = b.as_int();
    int64_t result = 0;
    if (op == BinaryOp::kAdd && !__builtin_add_overflow(x, y, &result)) return Value::integer(result);
    if (op == BinaryOp::kSub && !__builtin_sub_overflow(x, y, &result)) return Value::integer(result);
    if (op == BinaryOp::kMul && !__builtin_mul_overflow(x, y, &result)) return Value::integer(result);
  }
  return big_arithmetic(in, op, a, b);
}

Value real_arithmetic(BinaryOp op, double a, double b) {
  switch (op) {
    case BinaryOp::kAdd:
      return Value::real(a + b);
    case BinaryOp::kSub:
      return Value::real(a - b);
    case BinaryOp::kMul:
      return Value::real(a * b);
    case BinaryOp::kPow: {
      if (a == 0 && b < 0) fail("ZeroDivisionError", "0.0 cannot be raised to a negative power");
      if (a < 0 && std::isfinite(a) && std::isfinite(b) && b != std::floor(b))
        value_error("complex numbers are not supported");
      const double power = std::pow(a, b);
      if (std::isinf(power) && std::isfinite(a) && std::isfinite(b))
        fail("OverflowError", "(34, 'Numerical result out of range')");
      return Value::real(power);
    }
    default:
      break;
  }
  if (b == 0)
    fail("ZeroDivisionError", op == BinaryOp::kDiv   ? "float division by zero"
                              : op == BinaryOp::kMod ? "float modulo"
                                                     : "float floor division by zero");
  if (op == BinaryOp::kDiv) return Value::real(a / b);
  double rest = std::fmod(a, b);
  double quotient = (a - rest) / b;
  if (rest != 0) {
    if ((b < 0) != (rest < 0)) {
      rest += b;
      quotient -= 1;
    }
  } else {
    rest = std::copysign(0.0, b);
  }
  if (op == BinaryOp::kMod) return Value::real(rest);
  if (quotient == 0) return Value::real(std::copysign(0.0, a / b));
  const double floor = std::floor(quotient);
  return Value::real(quotient - floor > 0.5 ? floor + 1 : floor);
}

Value repeat(Interpreter& in, const Value& sequence, const Value& count) {
  const int64_t times = std::max<int64_t>(0, to_index(count, "a repetition count"));
  if (sequence.is_string()) {
    TextBuilder out(in.meter());
    const MarkedString& text = sequence.as_string();
    if (!text.any_input()) {
      out.repeat(text.text(), false, times);
    } else {
      for (int64_t i = 0; i < times && !text.empty(); ++i) out.append(text);
    }
    return Value::string(&in.meter(), out.take(), sequence.is_markup());
  }
  const auto& items = sequence.items();
  if (items.empty()) return sequence;
  if (times > (int64_t{1} << 32)) throw Failure("BudgetError", "the template needs too much memory");
  const size_t total = items.size() * static_cast<size_t>(times);
  in.meter().check(total * sizeof(Value));
  in.meter().step(static_cast<int64_t>(total));
  std::vector<Value> all;
  all.reserve(total);
  for (int64_t i = 0; i < times; ++i) all.insert(all.end(), items.begin(), items.end());
  return Value::sequence(sequence.kind(), &in.meter(), std::move(all));
}

Value concatenate(Interpreter& in, const Value& a, const Value& b) {
  const bool is_text = a.is_string() && b.is_string();
  if (!is_text && !(a.kind() == b.kind() && (a.is(Kind::kList) || a.is(Kind::kTuple)))) {
    if (a.is_string()) type_error("can only concatenate str (not \"" + type_name(b) + "\") to str");
    if (a.is(Kind::kList) || a.is(Kind::kTuple)) {
      type_error("can only concatenate " + type_name(a) + " (not \"" + type_name(b) + "\") to " + type_name(a));
    }
    unsupported(BinaryOp::kAdd, a, b);
  }
  if (is_text) {
    const bool is_markup = a.is_markup() || b.is_markup();
    TextBuilder out(in.meter());
    out.append(is_markup ? escape(in, a).as_string() : a.as_string());
    out.append(is_markup ? escape(in, b).as_string() : b.as_string());
    return Value::string(&in.meter(), out.take(), is_markup);
  }
  const size_t total = a.items().size() + b.items().size();
  in.meter().check(total * sizeof(Value));
  in.meter().work(total * sizeof(Value));
  std::vector<Value> all = a.items();
  all.insert(all.end(), b.items().begin(), b.items().end());
  return Value::sequence(a.kind(), &in.meter(), std::move(all));
}

bool is_repeatable(const Value& value) { return value.is_string() || value.is(Kind::kList) || value.is(Kind::kTuple); }

}  // namespace

double to_real(const Value& number) {
  if (number.is(Kind::kFloat)) return number.as_real();
  if (!number.is(Kind::kBig)) return static_cast<double>(number.as_int());
  if (bits(number.as_big()) > 1024) fail("OverflowError", "int too large to convert to float");
  return divide_exactly(number.as_big(), 1);
}

Value integer_from_real(Interpreter& in, double value) {
  if (std::isnan(value)) value_error("cannot convert float NaN to integer");
  if (std::isinf(value)) fail("OverflowError", "cannot convert float infinity to integer");
  return Value::big(&in.meter(), BigInt(std::trunc(value)));
}

int64_t to_index(const Value& value, const char* what) {
  require_defined(value);
  if (value.is(Kind::kBig))
    return value.as_big() < 0 ? std::numeric_limits<int64_t>::min() : std::numeric_limits<int64_t>::max();
  if (!value.is_integral()) type_error(std::string(what) + " must be an integer, not '" + type_name(value) + "'");
  return value.as_int();
}

Value binary(Interpreter& in, BinaryOp op, const Value& a, const Value& b) {
  if (op == BinaryOp::kMod && a.is_string()) return percent_format(in, a, b);
  require_defined(a);
  require_defined(b);
  if (a.is_number() && b.is_number()) {
    if (a.is_integral() && b.is_integral()) return integer_arithmetic(in, op, a, b);
    return real_arithmetic(op, to_real(a), to_real(b));
  }
  if (op == BinaryOp::kAdd) return concatenate(in, a, b);
  if (op == BinaryOp::kMul) {
    if (is_repeatable(a) && b.is_integral()) return repeat(in, a, b);
    if (is_repeatable(b) && a.is_integral()) return repeat(in, b, a);
    if (is_repeatable(a) || is_repeatable(b)) {
      type_error("can't multiply sequence by non-int of type '" + type_name(is_repeatable(a) ? b : a) + "'");
    }
  }
  if (op == BinaryOp::kSub && (a.is(Kind::kDictView) || b.is(Kind::kDictView))) {
    fail("UnsupportedError", "differences of dict views (sets) are not supported");
  }
  unsupported(op, a, b);
}

Value negate(Interpreter& in, const Value& value) {
  require_defined(value);
  if (value.is(Kind::kFloat)) return Value::real(-value.as_real());
  if (value.is_integral()) return Value::big(&in.meter(), -value.as_big());
  type_error("bad operand type for unary -: '" + type_name(value) + "'");
}

Value plus(const Value& value) {
  require_defined(value);
  if (value.is_bool()) return Value::integer(value.as_int());
  if (value.is_number()) return value;
  type_error("bad operand type for unary +: '" + type_name(value) + "'");
}

bool contains(Interpreter& in, const Value& container, const Value& item) {
  switch (container.kind()) {
    case Kind::kString:
      if (!item.is_string()) type_error("'in <string>' requires string as left operand, not " + type_name(item));
      in.meter().work(container.as_string().size());
      return container.text().find(item.text()) != std::string::npos;
    case Kind::kDict:
      return container.as_dict().find(item) != nullptr;
    case Kind::kDictView:
      if (container.as_view().what == ViewBody::kKeys) return container.as_view().dict.as_dict().find(item) != nullptr;
      break;
    case Kind::kRange: {
      if (!item.is_number()) return false;
      if (item.is(Kind::kBig) || (item.is(Kind::kFloat) && item.as_real() != std::floor(item.as_real()))) return false;
      const RangeBody& range = container.as_range();
      const int64_t number =
          item.is(Kind::kFloat) ? static_cast<int64_t>(std::clamp(item.as_real(), -9e18, 9e18)) : item.as_int();
      const BigInt distance = BigInt(number) - range.start;
      if (distance % range.step != 0) return false;
      const BigInt index = distance / range.step;
      return index >= 0 && index < range.size();
    }
    default:
      break;
  }
  if (!is_iterable(container)) type_error("argument of type '" + type_name(container) + "' is not iterable");
  const auto iterator = iterate(in, container);
  while (const auto candidate = iterator->next(in)) {
    in.meter().step();
    if (candidate->is_string()) in.meter().work(candidate->as_string().size());
    if (equal(*candidate, item)) return true;
  }
  return false;
}

}  // namespace calandra::jinja
