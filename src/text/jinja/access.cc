// jinja's object.name and object[key] in a sandbox: Python's attributes first or items first, then the other; what is
// private or changes a value is "unsafe": undefined, and an error as soon as it is used.
#include "text/jinja/arithmetic.h"
#include "text/jinja/compare.h"
#include "text/jinja/interpreter.h"
#include "text/jinja/iterate.h"
#include "text/jinja/methods.h"
#include "text/jinja/unicode.h"

#include <algorithm>

namespace calandra::jinja {
namespace {

Value missing_attribute(Meter& meter, const Value& object, const Value& name) {
  UndefinedBody body;
  body.owner_type = described_type(object);
  body.name = name;
  return Value::undefined(&meter, std::move(body));
}

Value unsafe_attribute(Meter& meter, const Value& object, std::string_view name) {
  UndefinedBody body;
  body.hint = "access to attribute '" + std::string(name) + "' of '" + type_name(object) + "' object is unsafe.";
  body.is_unsafe = true;
  return Value::undefined(&meter, std::move(body));
}

// Python's getattr; nothing if there is no such attribute.
std::optional<Value> python_attribute(Interpreter& in, const Value& object, std::string_view name) {
  if (object.is(Kind::kObject)) {
    if (auto value = object.as_object().attribute(in, name))
      return name.starts_with("_") ? unsafe_attribute(in.meter(), object, name) : *value;
  }
  if (is_object_attribute(name)) return unsafe_attribute(in.meter(), object, name);
  if ((object.is(Kind::kTuple) || object.is(Kind::kList)) && static_cast<const ListBody*>(object.body())->is_group) {
    if (name == "grouper") return object.items()[0];
    if (name == "list") return object.items()[1];
  }
  if (object.is_integral()) {
    if (name == "real" || name == "numerator") return plus(object);
    if (name == "imag") return Value::integer(0);
    if (name == "denominator") return Value::integer(1);
  }
  if (object.is(Kind::kFloat)) {
    if (name == "real") return object;
    if (name == "imag") return Value::real(0);
  }
  if (object.is(Kind::kRange)) {
    const RangeBody& range = object.as_range();
    if (name == "start") return Value::integer(range.start);
    if (name == "stop") return Value::integer(range.stop);
    if (name == "step") return Value::integer(range.step);
  }
  const MethodEntry* method = find_method(object, name);
  if (method == nullptr) return std::nullopt;
  if (method->code == nullptr) return unsafe_attribute(in.meter(), object, name);
  const auto code = method->code;
  return make_function(&in.meter(), "<built-in method " + std::string(name) + " of " + type_name(object) + " object>",
                       [code, object](Interpreter& interpreter, Arguments arguments) {
                         return code(interpreter, object, std::move(arguments));
                       });
}

// The index of an integer key, counted from the end if negative; -1 if out of range.
int64_t position(const Value& key, int64_t size) {
  int64_t index = to_index(key, "an index");
  if (index < 0 && index >= -size) index += size;
  return index < 0 || index >= size ? -1 : index;
}

}  // namespace

// Python's object[key]: a LookupError or TypeError shows as found = false.
Value Interpreter::subscript(const Value& object, const Value& key, bool& found) {
  found = false;
  switch (object.kind()) {
    case Kind::kDict: {
      if (key.is_string()) meter_.work(key.text().size());
      const bool hashable = !key.is(Kind::kList) && !key.is(Kind::kDict);
      const Value* value = hashable ? object.as_dict().find(key) : nullptr;
      found = value != nullptr;
      return found ? *value : Value();
    }
    case Kind::kList:
    case Kind::kTuple:
    case Kind::kString:
    case Kind::kRange: {
      if (!key.is_integral()) return Value();
      const int64_t index = position(key, length_of(*this, object));
      if (index < 0) return Value();
      found = true;
      if (object.is(Kind::kRange)) return Value::integer(object.as_range().at(index));
      if (!object.is_string()) return object.items()[static_cast<size_t>(index)];
      const MarkedString& text = object.as_string();
      const size_t begin = char_offset(text.text(), static_cast<size_t>(index));
      size_t end = begin;
      next_char(text.text(), end);
      return string(text.slice(begin, end), object.is_markup());
    }
    default:
      return Value();
  }
}

Value Interpreter::attribute(const Value& object, std::string_view name) {
  if (object.is_undefined() && is_object_attribute(name)) return unsafe_attribute(meter_, object, name);
  require_defined(object);
  if (auto value = python_attribute(*this, object, name)) return *value;
  bool found = false;
  if (object.is(Kind::kDict)) {
    if (const Value* value = object.as_dict().find(name)) return *value;
  }
  const Value key = string(std::string(name));
  Value value = subscript(object, key, found);
  return found ? value : missing_attribute(meter_, object, key);
}

Value Interpreter::item(const Value& object, const Value& key) {
  require_defined(object);
  bool found = false;
  Value value = subscript(object, key, found);
  if (found) return value;
  if (key.is_string()) {
    if (auto attribute = python_attribute(*this, object, key.text())) return *attribute;
  }
  return missing_attribute(meter_, object, key);
}

// The sandbox reads object[a:b:c] directly: errors are Python's.
Value Interpreter::slice(const Value& object, const Expr* expr, Frame& frame) {
  const auto part = [&](const Expr* bound) { return bound == nullptr ? Value::none() : eval(bound, frame); };
  const Value start = part(expr->a), stop = part(expr->b), step = part(expr->c);
  require_defined(object);
  if (!object.is_string() && !object.is(Kind::kList) && !object.is(Kind::kTuple) && !object.is(Kind::kRange)) {
    type_error("'" + type_name(object) + "' object is not subscriptable");
  }
  for (const Value& bound : {start, stop, step}) {
    require_defined(bound);
    if (!bound.is_none() && !bound.is_integral())
      type_error("slice indices must be integers or None or have an __index__ method");
  }
  const int64_t size = length_of(*this, object);
  const int64_t by =
      step.is_none() ? 1 : std::clamp<int64_t>(to_index(step, "a slice step"), -(int64_t{1} << 62), int64_t{1} << 62);
  if (by == 0) value_error("slice step cannot be zero");
  const int64_t low = by < 0 ? -1 : 0, high = by < 0 ? size - 1 : size;
  const auto bounded = [&](const Value& bound, int64_t fallback) {
    if (bound.is_none()) return fallback;
    const int64_t index = to_index(bound, "a slice bound");
    return std::clamp(index < 0 ? std::max(index + size, int64_t{-1}) : index, low, high);
  };
  const auto clipped = [&](int64_t index) { return std::clamp(index, low, high); };
  const int64_t from = clipped(bounded(start, by < 0 ? high : low));
  const int64_t to = clipped(bounded(stop, by < 0 ? low : high));
  const int64_t count =
      by > 0 ? (to > from ? (to - from - 1) / by + 1 : 0) : (from > to ? (from - to - 1) / -by + 1 : 0);

  if (object.is(Kind::kRange)) {
    auto* range = new RangeBody();
    const RangeBody& whole = object.as_range();
    range->start = whole.start + from * whole.step;
    range->step = count > 0 ? whole.step * by : whole.step;
    range->stop = whole.start + to * whole.step;
    return Value::heap(Kind::kRange, &meter_, range);
  }
  if (object.is_string()) {
    const MarkedString& text = object.as_string();
    meter_.work(text.size());
    if (by == 1) {
      if (count == 0) return string(MarkedString(), object.is_markup());
      const size_t begin = char_offset(text.text(), static_cast<size_t>(from));
      const size_t end = begin + char_offset(std::string_view(text.text()).substr(begin), static_cast<size_t>(count));
      return string(text.slice(begin, end), object.is_markup());
    }
    meter_.step(size);
    meter_.check(static_cast<size_t>(size) * sizeof(size_t));
    std::vector<size_t> offsets;
    for (size_t at = 0; at < text.size(); next_char(text.text(), at)) offsets.push_back(at);
    offsets.push_back(text.size());
    TextBuilder out(meter_);
    for (int64_t i = 0; i < count; ++i) {
      const auto index = static_cast<size_t>(from + i * by);
      out.append(text, offsets[index], offsets[index + 1]);
    }
    return string(out.take(), object.is_markup());
  }
  meter_.check(static_cast<size_t>(count) * sizeof(Value));
  meter_.step(count / 8);
  std::vector<Value> items;
  items.reserve(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) items.push_back(object.items()[static_cast<size_t>(from + i * by)]);
  return Value::sequence(object.kind(), &meter_, std::move(items));
}

}  // namespace calandra::jinja
