// map, select, reject and their attribute forms: lazy, as in jinja2.
#include "text/jinja/compare.h"
#include "text/jinja/filters.h"
#include "text/jinja/interpreter.h"
#include "text/jinja/iterate.h"

namespace calandra::jinja {
namespace {

// Nothing happens before the first item is asked for, and nothing at all for what is false (undefined, none, empty).
Value lazily(Interpreter& interpreter, const Value& value,
             std::function<std::function<std::optional<Value>(Interpreter&, Value)>(Interpreter&)> prepare) {
  struct State {
    boost::intrusive_ptr<IteratorBody> source;
    std::function<std::optional<Value>(Interpreter&, Value)> change;
  };
  const auto state = std::make_shared<State>();
  return generator(interpreter, [value, prepare, state](Interpreter& in) -> std::optional<Value> {
    if (!state->source) {
      if (!truth(value)) return std::nullopt;
      state->change = prepare(in);
      state->source = iterate(in, value);
    }
    while (auto item = state->source->next(in)) {
      in.meter().step();
      if (auto changed = state->change(in, std::move(*item))) return changed;
    }
    return std::nullopt;
  });
}

std::string name_argument(const Value& name) {
  require_defined(name);
  if (!name.is_string()) type_error("the name of a filter or test must be a string, not " + type_name(name));
  return name.text();
}

Value map(Interpreter& in, const Value& value, Arguments arguments) {
  return lazily(in, value, [arguments](Interpreter&) -> std::function<std::optional<Value>(Interpreter&, Value)> {
    Arguments rest = arguments;
    if (rest.positional.empty()) {
      const Value attribute = rest.take("attribute");
      if (attribute.is_missing()) fail("FilterArgumentError", "map requires a filter argument");
      const Value fallback = rest.take("default");
      if (!rest.named.empty()) fail("FilterArgumentError", "Unexpected keyword argument '" + rest.named[0].first + "'");
      return [attribute, fallback](Interpreter& in, const Value& item) {
        return attribute_path(in, item, attribute, fallback);
      };
    }
    const std::string name = name_argument(rest.positional[0]);
    rest.positional.erase(rest.positional.begin());
    return [name, rest](Interpreter& in, const Value& item) { return in.call_filter(name, item, rest); };
  });
}

Value choose(Interpreter& in, const Value& value, const Arguments& arguments, bool wanted, bool by_attribute) {
  return lazily(in, value, [=](Interpreter&) -> std::function<std::optional<Value>(Interpreter&, Value)> {
    Arguments rest = arguments;
    const auto pop = [&] {
      Value front = rest.positional[0];
      rest.positional.erase(rest.positional.begin());
      return front;
    };
    if (by_attribute && rest.positional.empty()) fail("FilterArgumentError", "Missing parameter for attribute name");
    const Value attribute = by_attribute ? pop() : Value::none();
    const std::string test = rest.positional.empty() ? std::string() : name_argument(pop());
    return [=](Interpreter& in, Value item) -> std::optional<Value> {
      const Value subject = attribute_path(in, item, attribute, Value());
      const bool holds = test.empty() ? truth(subject) : in.call_test(test, subject, rest);
      return holds == wanted ? std::optional(std::move(item)) : std::nullopt;
    };
  });
}

Value select(Interpreter& in, const Value& value, Arguments a) { return choose(in, value, a, true, false); }
Value reject(Interpreter& in, const Value& value, Arguments a) { return choose(in, value, a, false, false); }
Value select_attribute(Interpreter& in, const Value& value, Arguments a) { return choose(in, value, a, true, true); }
Value reject_attribute(Interpreter& in, const Value& value, Arguments a) { return choose(in, value, a, false, true); }

}  // namespace

FilterGroup selection_filters() {
  return {{"map", map},
          {"select", select},
          {"reject", reject},
          {"selectattr", select_attribute},
          {"rejectattr", reject_attribute}};
}

}  // namespace calandra::jinja
