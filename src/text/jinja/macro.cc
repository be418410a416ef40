#include "text/jinja/macro.h"

#include "text/jinja/compare.h"
#include "text/jinja/iterate.h"

#include <fmt/format.h>

namespace calandra::jinja {
namespace {

Value hinted(Interpreter& in, std::string hint) {
  UndefinedBody body;
  body.hint = std::move(hint);
  return Value::undefined(&in.meter(), std::move(body));
}

Value names_of(Interpreter& in, const Stmt* macro) {
  std::vector<Value> names;
  for (const Expr* parameter : macro->targets) names.push_back(in.string(parameter->name));
  return Value::tuple(&in.meter(), std::move(names));
}

}  // namespace

std::string MacroBody::repr(Interpreter&) {
  return stmt->kind == StmtKind::kMacro ? "<Macro '" + stmt->name + "'>" : "<Macro anonymous>";
}

std::optional<Value> MacroBody::attribute(Interpreter& in, std::string_view name) {
  if (name == "name") return stmt->kind == StmtKind::kMacro ? in.string(stmt->name) : Value::none();
  if (name == "arguments") return names_of(in, stmt);
  if (name == "catch_kwargs") return Value::boolean(stmt->uses_kwargs);
  if (name == "catch_varargs") return Value::boolean(stmt->uses_varargs);
  if (name == "caller") return Value::boolean(stmt->uses_caller);
  if (name == "explicit_caller") return Value::boolean(stmt->explicit_caller);
  return std::nullopt;
}

Value MacroBody::call(Interpreter& in, Arguments arguments) {
  const std::string name = stmt->kind == StmtKind::kMacro ? "'" + stmt->name + "'" : "None";
  const size_t count = stmt->targets.size();
  std::vector<Value> values;
  for (size_t i = 0; i < std::min(count, arguments.positional.size()); ++i) values.push_back(arguments.positional[i]);
  bool found_caller = values.size() == count && stmt->explicit_caller;
  for (size_t i = values.size(); i < count; ++i) {
    values.push_back(arguments.take(stmt->targets[i]->name));
    found_caller = found_caller || stmt->targets[i]->name == "caller";
  }
  if (stmt->uses_caller && !found_caller) {
    Value caller = arguments.take("caller");
    if (caller.is_missing() || caller.is_none()) caller = hinted(in, "No caller defined");
    values.push_back(std::move(caller));
  }
  if (stmt->uses_kwargs) {
    boost::intrusive_ptr<DictBody> dict(new DictBody());
    for (const auto& [key, value] : arguments.named) dict->set(in.string(key), value);
    values.push_back(make_dict(&in.meter(), std::move(dict)));
  } else if (!arguments.named.empty()) {
    for (const auto& [key, value] : arguments.named) {
      if (key == "caller")
        type_error("macro " + name +
                   " was invoked with two values for the special caller argument. This is most likely a bug.");
    }
    type_error("macro " + name + " takes no keyword argument '" + arguments.named[0].first + "'");
  }
  if (stmt->uses_varargs) {
    const auto begin =
        arguments.positional.begin() + static_cast<std::ptrdiff_t>(std::min(count, arguments.positional.size()));
    values.push_back(Value::tuple(&in.meter(), std::vector<Value>(begin, arguments.positional.end())));
  } else if (arguments.positional.size() > count) {
    type_error("macro " + name + " takes not more than " + std::to_string(count) + " argument(s)");
  }
  return in.string(in.run_macro(stmt, outer, std::move(values)), in.autoescape());
}

std::string LoopBody::repr(Interpreter& in) { return fmt::format("<LoopContext {}/{}>", index0 + 1, *length(in)); }

std::optional<Value> LoopBody::step(Interpreter& in) {
  std::optional<Value> item;
  if (after)
    item = std::exchange(after, std::nullopt);
  else if (!at_end)
    item = iterator->next(in);
  if (!item) {
    at_end = true;
    return std::nullopt;
  }
  ++index0;
  before = std::move(current);
  current = item;
  return item;
}

const std::optional<Value>& LoopBody::peek(Interpreter& in) {
  if (!after && !at_end) {
    after = iterator->next(in);
    at_end = !after.has_value();
  }
  return after;
}

std::optional<int64_t> LoopBody::length(Interpreter& in) {
  if (known_length) return known_length;
  if (has_length(iterable)) {
    known_length = length_of(in, iterable);
  } else {
    const Value rest = Value::list(
        &in.meter(), at_end ? std::vector<Value>() : collect(in, Value::shared(Kind::kIterator, iterator.get())));
    iterator = iterate(in, rest);
    known_length = static_cast<int64_t>(rest.items().size()) + index0 + 1 + (after ? 1 : 0);
  }
  return known_length;
}

std::optional<Value> LoopBody::next(Interpreter& in) {
  auto item = step(in);
  if (!item) return std::nullopt;
  return Value::tuple(&in.meter(), {*item, Value::shared(Kind::kObject, this)});
}

std::optional<Value> LoopBody::attribute(Interpreter& in, std::string_view name) {
  if (name == "index") return Value::integer(index0 + 1);
  if (name == "index0") return Value::integer(index0);
  if (name == "length") return Value::integer(*length(in));
  if (name == "revindex") return Value::integer(*length(in) - index0);
  if (name == "revindex0") return Value::integer(*length(in) - index0 - 1);
  if (name == "first") return Value::boolean(index0 == 0);
  if (name == "last") return Value::boolean(!peek(in).has_value());
  if (name == "depth") return Value::integer(depth0 + 1);
  if (name == "depth0") return Value::integer(depth0);
  if (name == "previtem")
    return index0 == 0 ? hinted(in, "there is no previous item")
                       : before.value_or(hinted(in, "there is no previous item"));
  if (name == "nextitem") return peek(in) ? *peek(in) : hinted(in, "there is no next item");
  if (name == "cycle" || name == "changed") {
    const boost::intrusive_ptr<LoopBody> self(this);
    const bool is_cycle = name == "cycle";
    return make_function(&in.meter(), "<bound method LoopContext." + std::string(name) + ">",
                         [self, is_cycle](Interpreter& interpreter, Arguments arguments) {
                           return is_cycle ? self->cycle(arguments) : self->changed(interpreter, std::move(arguments));
                         });
  }
  return std::nullopt;
}

Value LoopBody::cycle(const Arguments& arguments) const {
  if (!arguments.named.empty())
    type_error("LoopContext.cycle() got an unexpected keyword argument '" + arguments.named[0].first + "'");
  if (arguments.positional.empty()) type_error("no items for cycling given");
  return arguments.positional[static_cast<size_t>(index0) % arguments.positional.size()];
}

Value LoopBody::changed(Interpreter& in, Arguments arguments) {
  if (!arguments.named.empty())
    type_error("LoopContext.changed() got an unexpected keyword argument '" + arguments.named[0].first + "'");
  const Value given = Value::tuple(&in.meter(), std::move(arguments.positional));
  if (!last_changed.is_missing() && equal(last_changed, given)) return Value::boolean(false);
  if (!is_collected) {
    is_collected = true;
    in.collect_later(this, this);
  }
  last_changed = given;
  return Value::boolean(true);
}

void LoopBody::clear() {
  last_changed = Value();
  before = current = after = std::nullopt;
  iterable = Value();
  iterator.reset();
  outer.reset();
}

Value LoopBody::call(Interpreter& in, Arguments arguments) {
  if (recursive == nullptr) type_error("The loop must have the 'recursive' marker to be called recursively.");
  if (arguments.positional.size() != 1 || !arguments.named.empty())
    type_error("LoopContext.__call__() takes one argument");
  return in.string(in.run_loop(recursive, arguments.positional[0], outer, depth0 + 1));
}

std::optional<Value> SelfBody::attribute(Interpreter& in, std::string_view name) {
  const Stmt* block = in.find_block(name);
  if (block == nullptr) return std::nullopt;
  return make_function(&in.meter(), "<BlockReference '" + std::string(name) + "'>",
                       [block](Interpreter& interpreter, Arguments arguments) {
                         if (!arguments.positional.empty() || !arguments.named.empty())
                           type_error("BlockReference.__call__() takes no arguments");
                         return interpreter.string(interpreter.run_block(block));
                       });
}

}  // namespace calandra::jinja
