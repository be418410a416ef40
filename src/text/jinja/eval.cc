// Expressions.
#include "text/jinja/arithmetic.h"
#include "text/jinja/compare.h"
#include "text/jinja/filters.h"
#include "text/jinja/interpreter.h"
#include "text/jinja/iterate.h"

namespace calandra::jinja {

Value& Interpreter::slot(const Slot& slot, Frame& frame) {
  Frame* at = &frame;
  for (int i = 0; i < slot.hops; ++i) at = at->outer.get();
  return at->slots[static_cast<size_t>(slot.index)];
}

Value Interpreter::eval(const Expr* expr, Frame& frame) {
  meter_.step();
  switch (expr->kind) {
    case ExprKind::kConst:
      return expr->value;
    case ExprKind::kName:
      return eval_name(expr, frame);
    default:
      break;
  }
  const Nesting nesting(*this);
  try {
    return eval_inner(expr, frame);
  } catch (Failure& failure) {
    failure.set_line(expr->line);
    throw;
  }
}

Value Interpreter::eval_name(const Expr* expr, Frame& frame) {
  const Value& value = slot(expr->slot, frame);
  if (!value.is_missing()) return value;
  UndefinedBody body;
  body.name = Value::string(nullptr, expr->name);
  return Value::undefined(&meter_, std::move(body));
}

Value Interpreter::eval_inner(const Expr* expr, Frame& frame) {
  switch (expr->kind) {
    case ExprKind::kConst:
    case ExprKind::kName:
      return eval(expr, frame);
    case ExprKind::kTuple:
    case ExprKind::kList:
    case ExprKind::kDict:
      return eval_collection(expr, frame);
    case ExprKind::kCondition: {
      if (truth(eval(expr->a, frame))) return eval(expr->b, frame);
      if (expr->c != nullptr) return eval(expr->c, frame);
      UndefinedBody body;
      body.hint = "the inline if-expression on line " + std::to_string(expr->line) +
                  " evaluated to false and no else section was defined.";
      return Value::undefined(&meter_, std::move(body));
    }
    case ExprKind::kAnd: {
      Value left = eval(expr->a, frame);
      return truth(left) ? eval(expr->b, frame) : left;
    }
    case ExprKind::kOr: {
      Value left = eval(expr->a, frame);
      return truth(left) ? left : eval(expr->b, frame);
    }
    case ExprKind::kNot:
      return Value::boolean(!truth(eval(expr->a, frame)));
    case ExprKind::kCompare:
      return eval_compare(expr, frame);
    case ExprKind::kBinary: {
      const Value left = eval(expr->a, frame);
      const Value right = eval(expr->b, frame);
      if (expr->negates_power && left.is_number() && less(left, Value::integer(0))) {
        return negate(*this, binary(*this, expr->op, negate(*this, left), right));
      }
      return binary(*this, expr->op, left, right);
    }
    case ExprKind::kConcat:
      return eval_concat(expr, frame);
    case ExprKind::kNegate:
      return negate(*this, eval(expr->a, frame));
    case ExprKind::kPlus:
      return plus(eval(expr->a, frame));
    case ExprKind::kAttribute:
      return attribute(eval(expr->a, frame), expr->name);
    case ExprKind::kItem:
      return eval_item(expr, frame);
    case ExprKind::kCall:
      return eval_call(expr, frame);
    case ExprKind::kFilter:
      return eval_filter(expr, frame, nullptr);
    case ExprKind::kTest:
      return eval_test(expr, frame);
    case ExprKind::kNamespaceRef:
    case ExprKind::kSlice:
      break;
  }
  type_error("slices cannot be values");
}

Value Interpreter::eval_item(const Expr* expr, Frame& frame) {
  const Value object = eval(expr->a, frame);
  if (expr->b->kind == ExprKind::kSlice) return slice(object, expr->b, frame);
  return item(object, eval(expr->b, frame));
}

Value Interpreter::eval_collection(const Expr* expr, Frame& frame) {
  if (expr->kind == ExprKind::kDict) {
    boost::intrusive_ptr<DictBody> dict(new DictBody());
    for (size_t i = 0; i < expr->items.size(); i += 2) {
      const Value key = eval(expr->items[i], frame);
      dict->set(key, eval(expr->items[i + 1], frame));
    }
    return make_dict(&meter_, std::move(dict));
  }
  std::vector<Value> items;
  items.reserve(expr->items.size());
  for (const Expr* item : expr->items) items.push_back(eval(item, frame));
  return Value::sequence(expr->kind == ExprKind::kTuple ? Kind::kTuple : Kind::kList, &meter_, std::move(items));
}

Value Interpreter::eval_compare(const Expr* expr, Frame& frame) {
  Value left = eval(expr->a, frame);
  for (size_t i = 0; i < expr->operators.size(); ++i) {
    Value right = eval(expr->items[i], frame);
    const std::string& op = expr->operators[i];
    if (left.is_string() && right.is_string()) meter_.work(std::min(left.text().size(), right.text().size()));
    bool holds = false;
    if (op == "==")
      holds = equal(left, right);
    else if (op == "!=")
      holds = !equal(left, right);
    else if (op == "in")
      holds = contains(*this, right, left);
    else if (op == "not in")
      holds = !contains(*this, right, left);
    else
      holds = ordered(left, op, right);
    if (!holds) return Value::boolean(false);
    left = std::move(right);
  }
  return Value::boolean(true);
}

Value Interpreter::eval_concat(const Expr* expr, Frame& frame) {
  std::vector<Value> parts;
  bool is_markup = false;
  for (const Expr* item : expr->items) {
    parts.push_back(eval(item, frame));
    is_markup = is_markup || (autoescape_ && parts.back().is_markup());
  }
  TextBuilder out(meter_);
  for (const Value& part : parts) out.append(is_markup ? escape(*this, part).as_string() : to_text(*this, part));
  return string(out.take(), is_markup);
}

Arguments Interpreter::eval_arguments(const Expr* expr, Frame& frame) {
  Arguments arguments;
  for (const Expr* item : expr->items) arguments.positional.push_back(eval(item, frame));
  for (const auto& [name, value] : expr->named) arguments.named.emplace_back(name, eval(value, frame));
  if (expr->more_items != nullptr) {
    for (Value& value : collect(*this, eval(expr->more_items, frame))) arguments.positional.push_back(std::move(value));
  }
  if (expr->more_named != nullptr) {
    const Value more = eval(expr->more_named, frame);
    require_defined(more);
    if (!more.is(Kind::kDict)) type_error("argument after ** must be a mapping, not " + type_name(more));
    for (const auto& [key, value] : more.as_dict().entries) {
      if (!key.is_string()) type_error("keywords must be strings");
      for (const auto& [name, other] : arguments.named) {
        if (name == key.text()) type_error("got multiple values for keyword argument '" + name + "'");
      }
      arguments.named.emplace_back(key.text(), value);
    }
  }
  return arguments;
}

Value Interpreter::eval_call(const Expr* expr, Frame& frame, const Value& caller) {
  const Value callee = eval(expr->a, frame);
  Arguments arguments = eval_arguments(expr, frame);
  if (!caller.is_missing()) arguments.named.emplace_back("caller", caller);
  return call(callee, std::move(arguments));
}

Value Interpreter::call(const Value& callee, Arguments arguments) {
  const Nesting nesting(*this);
  meter_.step();
  require_defined(callee);
  if (!callee.is(Kind::kObject)) type_error("'" + type_name(callee) + "' object is not callable");
  return callee.as_object().call(*this, std::move(arguments));
}

// `input` stands for the value of a filter block's or set block's innermost filter.
Value Interpreter::eval_filter(const Expr* expr, Frame& frame, const Value* input) {
  const Value value =
      expr->a != nullptr ? (input != nullptr ? apply_filters(expr->a, frame, *input) : eval(expr->a, frame)) : *input;
  Arguments arguments = eval_arguments(expr, frame);
  if (expr->filter == nullptr) fail("TemplateRuntimeError", "No filter named '" + expr->name + "' found.");
  return expr->filter->code(*this, value, std::move(arguments));
}

Value Interpreter::apply_filters(const Expr* filters, Frame& frame, const Value& input) {
  const Nesting nesting(*this);
  return eval_filter(filters, frame, &input);
}

Value Interpreter::eval_test(const Expr* expr, Frame& frame) {
  const Value value = eval(expr->a, frame);
  Arguments arguments = eval_arguments(expr, frame);
  if (expr->test == nullptr) fail("TemplateRuntimeError", "No test named '" + expr->name + "' found.");
  return Value::boolean(expr->test->code(*this, value, std::move(arguments)));
}

Value Interpreter::call_filter(const std::string& name, const Value& value, Arguments arguments) {
  const FilterEntry* filter = find_filter(name);
  if (filter == nullptr) fail("TemplateRuntimeError", "No filter named '" + name + "'.");
  const Nesting nesting(*this);
  return filter->code(*this, value, std::move(arguments));
}

bool Interpreter::call_test(const std::string& name, const Value& value, Arguments arguments) {
  const TestEntry* test = find_test(name);
  if (test == nullptr) fail("TemplateRuntimeError", "No test named '" + name + "'.");
  const Nesting nesting(*this);
  return test->code(*this, value, std::move(arguments));
}

}  // namespace calandra::jinja
