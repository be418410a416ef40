// The tests of jinja2: `value is name(arguments)`.
#include "text/jinja/arguments.h"
#include "text/jinja/arithmetic.h"
#include "text/jinja/compare.h"
#include "text/jinja/filters.h"
#include "text/jinja/format.h"
#include "text/jinja/interpreter.h"
#include "text/jinja/iterate.h"
#include "text/jinja/methods.h"

#include <algorithm>

namespace calandra::jinja {
namespace {

Value only(const char* name, Arguments arguments) { return bind(name, {"other"}, 1, std::move(arguments))[0]; }

bool divides(Interpreter& in, const Value& value, const Value& by, int64_t rest) {
  return equal(binary(in, BinaryOp::kMod, value, by), Value::integer(rest));
}

bool is_text_cased(Interpreter& in, const Value& value, bool upper) {
  return is_cased_as(to_text(in, value).text(), upper);
}

// Python's `is`: values without identity of their own count as the same object when a small constant would be.
bool is_same(const Value& a, const Value& b) {
  if (a.kind() != b.kind()) return false;
  switch (a.kind()) {
    case Kind::kNone:
    case Kind::kBool:
    case Kind::kInt:
      return equal(a, b);
    case Kind::kString:
      return a.same_body(b) || a.text() == b.text();
    case Kind::kTuple:
      return a.same_body(b) || (a.items().empty() && b.items().empty());
    case Kind::kFloat:
      return equal(a, b);
    default:
      return a.same_body(b) && a.body() != nullptr;
  }
}

bool is_sequence(Interpreter& in, const Value& value) {
  if (value.is(Kind::kDictView) || value.is(Kind::kObject) || !has_length(value)) return false;
  length_of(in, value);
  return true;
}

#define WITHOUT(name, expression)                                                 \
  {                                                                               \
    name, []([[maybe_unused]] Interpreter& in, const Value& value, Arguments a) { \
      return bind(name, {}, 0, std::move(a)), (expression);                       \
    }                                                                             \
  }
#define WITH_ONE(name, expression)                                                \
  {                                                                               \
    name, []([[maybe_unused]] Interpreter& in, const Value& value, Arguments a) { \
      const Value other = only(name, std::move(a));                               \
      return expression;                                                          \
    }                                                                             \
  }

constexpr TestEntry kTests[] = {
    WITHOUT("odd", divides(in, value, Value::integer(2), 1)),
    WITHOUT("even", divides(in, value, Value::integer(2), 0)),
    {"divisibleby",
     [](Interpreter& in, const Value& value, Arguments a) {
       return divides(in, value, bind("divisibleby", {"num"}, 1, std::move(a))[0], 0);
     }},
    WITHOUT("defined", !value.is_undefined()),
    WITHOUT("undefined", value.is_undefined()),
    WITHOUT("filter", value.is_string() && find_filter(value.text()) != nullptr),
    WITHOUT("test", value.is_string() && find_test(value.text()) != nullptr),
    WITHOUT("none", value.is_none()),
    WITHOUT("boolean", value.is_bool()),
    WITHOUT("true", value.is_bool() && value.as_bool()),
    WITHOUT("false", value.is_bool() && !value.as_bool()),
    WITHOUT("integer", value.is_integral() && !value.is_bool()),
    WITHOUT("float", value.is(Kind::kFloat)),
    WITHOUT("lower", is_text_cased(in, value, false)),
    WITHOUT("upper", is_text_cased(in, value, true)),
    WITHOUT("string", value.is_string()),
    WITHOUT("mapping", value.is(Kind::kDict)),
    WITHOUT("number", value.is_number()),
    WITHOUT("sequence", is_sequence(in, value)),
    WITHOUT("iterable", is_iterable(value)),
    WITHOUT("callable", value.is_undefined() || (value.is(Kind::kObject) && value.as_object().is_callable())),
    WITHOUT("escaped", value.is_markup()),
    {"sameas", [](Interpreter&, const Value& value,
                  Arguments a) { return is_same(value, bind("sameas", {"other"}, 1, std::move(a))[0]); }},
    {"in", [](Interpreter& in, const Value& value,
              Arguments a) { return contains(in, bind("in", {"seq"}, 1, std::move(a))[0], value); }},
    WITH_ONE("==", equal(value, other)),
    WITH_ONE("eq", equal(value, other)),
    WITH_ONE("equalto", equal(value, other)),
    WITH_ONE("!=", !equal(value, other)),
    WITH_ONE("ne", !equal(value, other)),
    WITH_ONE(">", ordered(value, ">", other)),
    WITH_ONE("gt", ordered(value, ">", other)),
    WITH_ONE("greaterthan", ordered(value, ">", other)),
    WITH_ONE(">=", ordered(value, ">=", other)),
    WITH_ONE("ge", ordered(value, ">=", other)),
    WITH_ONE("<", ordered(value, "<", other)),
    WITH_ONE("lt", ordered(value, "<", other)),
    WITH_ONE("lessthan", ordered(value, "<", other)),
    WITH_ONE("<=", ordered(value, "<=", other)),
    WITH_ONE("le", ordered(value, "<=", other)),
};

#undef WITHOUT
#undef WITH_ONE

}  // namespace

const TestEntry* find_test(std::string_view name) {
  const auto found =
      std::find_if(std::begin(kTests), std::end(kTests), [&](const TestEntry& entry) { return entry.name == name; });
  return found == std::end(kTests) ? nullptr : found;
}

}  // namespace calandra::jinja
