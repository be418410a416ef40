#include "text/jinja/compare.h"

#include "text/jinja/format.h"
#include "text/jinja/objects.h"

#include <algorithm>
#include <cmath>
#include <compare>

namespace calandra::jinja {
namespace {

// Exact: an integer against a float is compared without rounding the integer.
std::partial_ordering compare_numbers(const Value& a, const Value& b) {
  if (a.is(Kind::kFloat) && b.is(Kind::kFloat)) return a.as_real() <=> b.as_real();
  if (a.is(Kind::kFloat)) {
    const auto reverse = compare_numbers(b, a);
    if (reverse == std::partial_ordering::less) return std::partial_ordering::greater;
    if (reverse == std::partial_ordering::greater) return std::partial_ordering::less;
    return reverse;
  }
  if (!b.is(Kind::kFloat)) {
    if (!a.is(Kind::kBig) && !b.is(Kind::kBig)) return a.as_int() <=> b.as_int();
    const int sign = a.as_big().compare(b.as_big());
    return sign <=> 0;
  }
  const double real = b.as_real();
  if (std::isnan(real)) return std::partial_ordering::unordered;
  if (std::isinf(real)) return 0.0 <=> real;
  const double floor = std::floor(real);
  const int sign = a.as_big().compare(BigInt(floor));
  if (sign != 0) return sign <=> 0;
  return floor < real ? std::partial_ordering::less : std::partial_ordering::equivalent;
}

// Comparing costs steps as soon as a value is big; the meter is that of the rendering the value belongs to.
void charge(const Value& value, size_t units) {
  if (value.body() != nullptr && value.body()->meter != nullptr) value.body()->meter->step(static_cast<int64_t>(units));
}

bool equal_dicts(const DictBody& a, const DictBody& b) {
  if (a.entries.size() != b.entries.size()) return false;
  for (const auto& [key, value] : a.entries) {
    const Value* other = b.find(key);
    if (other == nullptr || !equal(value, *other)) return false;
  }
  return true;
}

bool equal_ranges(const RangeBody& a, const RangeBody& b) {
  if (a.size() != b.size() || a.size() == 0) return a.size() == b.size();
  return a.start == b.start && (a.size() == 1 || a.step == b.step);
}

template <class T>
bool decide(const T& a, const std::string& op, const T& b) {
  if (op == "<") return a < b;
  if (op == "<=") return a <= b;
  if (op == ">") return a > b;
  return a >= b;
}

bool ordered_items(const std::vector<Value>& a, const std::string& op, const std::vector<Value>& b) {
  for (size_t i = 0; i < std::min(a.size(), b.size()); ++i) {
    if (!equal(a[i], b[i])) return ordered(a[i], op, b[i]);
  }
  return decide(a.size(), op, b.size());
}

}  // namespace

bool equal(const Value& a, const Value& b) {
  if (a.is_number() && b.is_number()) return compare_numbers(a, b) == std::partial_ordering::equivalent;
  if (a.kind() != b.kind()) return false;
  switch (a.kind()) {
    case Kind::kMissing:
    case Kind::kUndefined:
    case Kind::kNone:
      return true;
    case Kind::kString:
    case Kind::kBytes:
      charge(a, std::min(a.text().size(), b.text().size()) / 128);
      return a.same_body(b) || a.text() == b.text();
    case Kind::kList:
    case Kind::kTuple:
      charge(a, std::min(a.items().size(), b.items().size()));
      return a.same_body(b) ||
             std::equal(a.items().begin(), a.items().end(), b.items().begin(), b.items().end(), equal);
    case Kind::kDict:
      charge(a, a.as_dict().entries.size());
      return a.same_body(b) || equal_dicts(a.as_dict(), b.as_dict());
    case Kind::kRange:
      return equal_ranges(a.as_range(), b.as_range());
    case Kind::kDictView: {
      // Views of keys and items compare as sets; values by identity, and each call makes another view.
      if (a.same_body(b)) return true;
      const ViewBody& x = a.as_view();
      const ViewBody& y = b.as_view();
      if (x.what != y.what || x.what == ViewBody::kValues) return false;
      if (x.what == ViewBody::kItems) return equal(x.dict, y.dict);
      const auto& keys = x.dict.as_dict().entries;
      return keys.size() == y.dict.as_dict().entries.size() &&
             std::all_of(keys.begin(), keys.end(),
                         [&](const auto& entry) { return y.dict.as_dict().find(entry.first) != nullptr; });
    }
    default:
      return a.same_body(b);
  }
}

bool ordered(const Value& a, const std::string& op, const Value& b) {
  require_defined(a);
  require_defined(b);
  if (a.is_number() && b.is_number()) {
    const auto order = compare_numbers(a, b);
    if (op == "<") return order < 0;
    if (op == "<=") return order <= 0;
    if (op == ">") return order > 0;
    return order >= 0;
  }
  if (a.kind() == b.kind()) {
    charge(a, a.is_string() ? std::min(a.text().size(), b.text().size()) / 128 : 1);
    if (a.is_string() || a.is(Kind::kBytes)) return decide(a.text(), op, b.text());  // UTF-8 sorts as code points do
    if (a.is(Kind::kList) || a.is(Kind::kTuple)) return ordered_items(a.items(), op, b.items());
  }
  type_error("'" + op + "' not supported between instances of '" + type_name(a) + "' and '" + type_name(b) + "'");
}

size_t hash_of(const Value& value) {
  switch (value.kind()) {
    case Kind::kBool:
    case Kind::kInt:
      return std::hash<int64_t>()(value.as_int());
    case Kind::kBig:
      return std::hash<std::string>()(value.as_big().str());
    case Kind::kFloat: {
      const double real = value.as_real();
      if (std::isfinite(real) && real == std::floor(real)) {
        if (std::fabs(real) < 9e18) return std::hash<int64_t>()(static_cast<int64_t>(real));
        return hash_of(Value::big(nullptr, BigInt(real)));
      }
      return std::hash<double>()(real);
    }
    case Kind::kString:
    case Kind::kBytes:
      return std::hash<std::string>()(value.text());
    case Kind::kTuple: {
      charge(value, value.items().size());
      size_t hash = 0x9e3779b97f4a7c15;
      for (const Value& item : value.items()) hash = (hash ^ hash_of(item)) * 0x100000001b3;
      return hash;
    }
    case Kind::kList:
    case Kind::kDict:
      type_error("unhashable type: '" + type_name(value) + "'");
    case Kind::kDictView:
      if (value.as_view().what != ViewBody::kValues) type_error("unhashable type: '" + type_name(value) + "'");
      return std::hash<const void*>()(value.body());
    case Kind::kRange:
      return std::hash<int64_t>()(value.as_range().size());
    case Kind::kIterator:
    case Kind::kObject:
      return std::hash<const void*>()(value.body());
    default:
      return static_cast<size_t>(value.kind());
  }
}

bool truth(const Value& value) {
  switch (value.kind()) {
    case Kind::kMissing:
    case Kind::kUndefined:
    case Kind::kNone:
      return false;
    case Kind::kBool:
    case Kind::kInt:
      return value.as_int() != 0;
    case Kind::kFloat:
      return value.as_real() != 0;
    case Kind::kString:
    case Kind::kBytes:
      return !value.text().empty();
    case Kind::kList:
    case Kind::kTuple:
      return !value.items().empty();
    case Kind::kDict:
      return !value.as_dict().entries.empty();
    case Kind::kRange:
      return value.as_range().size() != 0;
    case Kind::kDictView:
      return !value.as_view().dict.as_dict().entries.empty();
    default:
      return true;
  }
}

void undefined_error(const Value& undefined) {
  const UndefinedBody* body = undefined.as_undefined();
  if (body == nullptr) fail("UndefinedError", "a value is undefined");
  const char* kind = body->is_unsafe ? "SecurityError" : "UndefinedError";
  if (!body->hint.empty()) fail(kind, body->hint);
  if (body->owner_type.empty()) fail(kind, "'" + body->name.text() + "' is undefined");
  if (!body->name.is_string()) fail(kind, body->owner_type + " has no element " + plain_repr(body->name));
  fail(kind, "'" + body->owner_type + "' has no attribute " + plain_repr(body->name));
}

std::string type_name(const Value& value) {
  switch (value.kind()) {
    case Kind::kMissing:
    case Kind::kUndefined:
      return "Undefined";
    case Kind::kNone:
      return "NoneType";
    case Kind::kBool:
      return "bool";
    case Kind::kInt:
    case Kind::kBig:
      return "int";
    case Kind::kFloat:
      return "float";
    case Kind::kString:
      return value.is_markup() ? "Markup" : "str";
    case Kind::kBytes:
      return "bytes";
    case Kind::kList:
      return "list";
    case Kind::kTuple:
      return "tuple";
    case Kind::kDict:
      return "dict";
    case Kind::kRange:
      return "range";
    case Kind::kDictView: {
      const auto what = value.as_view().what;
      return what == ViewBody::kKeys ? "dict_keys" : what == ViewBody::kValues ? "dict_values" : "dict_items";
    }
    case Kind::kIterator:
      return value.as_iterator().type_name();
    case Kind::kObject:
      return value.as_object().type_name();
  }
  return "object";
}

std::string described_type(const Value& value) { return value.is_none() ? "None" : type_name(value) + " object"; }

}  // namespace calandra::jinja
