#include "text/jinja/methods.h"

#include "text/jinja/arguments.h"
#include "text/jinja/arithmetic.h"
#include "text/jinja/compare.h"
#include "text/jinja/format.h"
#include "text/jinja/interpreter.h"
#include "text/jinja/iterate.h"

#include <algorithm>
#include <cmath>

namespace calandra::jinja {
namespace {

Value dict_view(Interpreter& in, const Value& self, ViewBody::What what, const Arguments& arguments) {
  if (!arguments.positional.empty() || !arguments.named.empty()) type_error("this method of dict takes no arguments");
  auto* view = new ViewBody();
  view->what = what;
  view->dict = self;
  return Value::heap(Kind::kDictView, &in.meter(), view);
}

Value dict_get(Interpreter&, const Value& self, Arguments arguments) {
  const auto bound = bind("get", {"", ""}, 1, std::move(arguments));
  const Value* value = self.as_dict().find(bound[0]);
  if (value != nullptr) return *value;
  return bound[1].is_missing() ? Value::none() : bound[1];
}

Value dict_fromkeys(Interpreter& in, const Value&, Arguments arguments) {
  const auto bound = bind("fromkeys", {"", ""}, 1, std::move(arguments));
  boost::intrusive_ptr<DictBody> dict(new DictBody());
  for (const Value& key : collect(in, bound[0])) dict->set(key, bound[1].is_missing() ? Value::none() : bound[1]);
  return make_dict(&in.meter(), std::move(dict));
}

Value copy(Interpreter&, const Value& self, Arguments arguments) {
  bind("copy", {}, 0, std::move(arguments));
  return self;  // values do not change, so the copy may be the original
}

Value list_index(Interpreter& in, const Value& self, Arguments arguments) {
  const auto bound = bind("index", {"", "", ""}, 1, std::move(arguments));
  const auto size = static_cast<int64_t>(self.items().size());
  const auto clamp = [&](const Value& value, int64_t fallback) {
    const int64_t index = integer_or(value, fallback, "slice indices");
    return std::clamp<int64_t>(index < 0 ? index + size : index, 0, size);
  };
  for (int64_t i = clamp(bound[1], 0), end = clamp(bound[2], size); i < end; ++i) {
    in.meter().step();
    if (equal(self.items()[static_cast<size_t>(i)], bound[0])) return Value::integer(i);
  }
  value_error(repr(in, bound[0]) + " is not in " + type_name(self));
}

Value list_count(Interpreter& in, const Value& self, Arguments arguments) {
  const auto bound = bind("count", {""}, 1, std::move(arguments));
  in.meter().step(static_cast<int64_t>(self.items().size()));
  return Value::integer(std::count_if(self.items().begin(), self.items().end(),
                                      [&](const Value& item) { return equal(item, bound[0]); }));
}

Value range_index(Interpreter& in, const Value& self, Arguments arguments, bool count) {
  const auto bound = bind(count ? "count" : "index", {""}, 1, std::move(arguments));
  const bool found = contains(in, self, bound[0]);
  if (count) return Value::integer(found ? 1 : 0);
  if (!found) value_error(repr(in, bound[0]) + " is not in range");
  return Value::integer((static_cast<int64_t>(to_real(bound[0])) - self.as_range().start) / self.as_range().step);
}

Value bit_length(Interpreter&, const Value& self, Arguments arguments) {
  bind("bit_length", {}, 0, std::move(arguments));
  const BigInt value = boost::multiprecision::abs(self.as_big());
  return Value::integer(value == 0 ? 0 : static_cast<int64_t>(boost::multiprecision::msb(value)) + 1);
}

Value bit_count(Interpreter&, const Value& self, Arguments arguments) {
  bind("bit_count", {}, 0, std::move(arguments));
  int64_t count = 0;
  for (BigInt value = boost::multiprecision::abs(self.as_big()); value != 0; value &= value - 1) ++count;
  return Value::integer(count);
}

Value is_integer(Interpreter&, const Value& self, Arguments arguments) {
  bind("is_integer", {}, 0, std::move(arguments));
  return Value::boolean(std::isfinite(self.as_real()) && self.as_real() == std::floor(self.as_real()));
}

Value conjugate(Interpreter&, const Value& self, Arguments arguments) {
  bind("conjugate", {}, 0, std::move(arguments));
  return plus(self);
}

constexpr MethodEntry kDict[] = {
    {"get", dict_get},
    {"items", [](Interpreter& in, const Value& self, Arguments a) { return dict_view(in, self, ViewBody::kItems, a); }},
    {"keys", [](Interpreter& in, const Value& self, Arguments a) { return dict_view(in, self, ViewBody::kKeys, a); }},
    {"values",
     [](Interpreter& in, const Value& self, Arguments a) { return dict_view(in, self, ViewBody::kValues, a); }},
    {"copy", copy},
    {"fromkeys", dict_fromkeys},
    {"clear", nullptr},
    {"pop", nullptr},
    {"popitem", nullptr},
    {"setdefault", nullptr},
    {"update", nullptr},
};
constexpr MethodEntry kList[] = {
    {"index", list_index}, {"count", list_count}, {"copy", copy},       {"append", nullptr},
    {"clear", nullptr},    {"pop", nullptr},      {"reverse", nullptr}, {"insert", nullptr},
    {"sort", nullptr},     {"extend", nullptr},   {"remove", nullptr},
};
constexpr MethodEntry kTuple[] = {{"index", list_index}, {"count", list_count}};
constexpr MethodEntry kRange[] = {
    {"index",
     [](Interpreter& in, const Value& self, Arguments a) { return range_index(in, self, std::move(a), false); }},
    {"count",
     [](Interpreter& in, const Value& self, Arguments a) { return range_index(in, self, std::move(a), true); }},
};
constexpr MethodEntry kInt[] = {{"bit_length", bit_length}, {"bit_count", bit_count}, {"conjugate", conjugate}};
constexpr MethodEntry kFloat[] = {{"is_integer", is_integer}, {"conjugate", conjugate}};

template <size_t N>
const MethodEntry* search(const MethodEntry (&entries)[N], std::string_view name) {
  const auto found = std::find_if(entries, entries + N, [&](const MethodEntry& entry) { return entry.name == name; });
  return found == entries + N ? nullptr : found;
}

}  // namespace

const MethodEntry* find_method(const Value& value, std::string_view name) {
  switch (value.kind()) {
    case Kind::kString:
      return find_string_method(name);
    case Kind::kDict:
      return search(kDict, name);
    case Kind::kList:
      return search(kList, name);
    case Kind::kTuple:
      return search(kTuple, name);
    case Kind::kRange:
      return search(kRange, name);
    case Kind::kBool:
    case Kind::kInt:
    case Kind::kBig:
      return search(kInt, name);
    case Kind::kFloat:
      return search(kFloat, name);
    default:
      return nullptr;
  }
}

bool is_object_attribute(std::string_view name) {
  if (!name.starts_with("__") || !name.ends_with("__")) return false;
  constexpr std::string_view kNames[] = {
      "__class__",   "__delattr__",  "__dir__",           "__doc__",          "__eq__",
      "__format__",  "__ge__",       "__getattribute__",  "__getstate__",     "__gt__",
      "__hash__",    "__init__",     "__init_subclass__", "__le__",           "__lt__",
      "__ne__",      "__new__",      "__reduce__",        "__reduce_ex__",    "__repr__",
      "__setattr__", "__sizeof__",   "__str__",           "__subclasshook__", "__getitem__",
      "__len__",     "__contains__", "__iter__",          "__globals__",      "__add__",
      "__mul__"};
  return std::find(std::begin(kNames), std::end(kNames), name) != std::end(kNames);
}

}  // namespace calandra::jinja
