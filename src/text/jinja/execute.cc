// Statements.
#include "text/jinja/compare.h"
#include "text/jinja/interpreter.h"
#include "text/jinja/iterate.h"
#include "text/jinja/macro.h"

namespace calandra::jinja {

namespace {

// What call blocks and filter blocks give is written as it is, not converted.
void append_text(TextBuilder& out, const Value& value) {
  if (!value.is_string()) type_error("sequence item 0: expected str instance, " + type_name(value) + " found");
  out.append(value.as_string());
}

}  // namespace

void Interpreter::enter(const ScopeCode& scope, Frame& frame) {
  for (const ScopeEntry& entry : scope.entries) {
    Value& target = frame.slots[static_cast<size_t>(entry.slot)];
    switch (entry.action) {
      case ScopeEntry::kResolve:
        target = resolve(entry.name);
        break;
      case ScopeEntry::kAlias:
        target = slot(entry.from, frame);
        break;
      case ScopeEntry::kUnset:
        target = Value();
        break;
    }
  }
}

void Interpreter::leave(const ScopeCode& scope, Frame& frame) {
  for (const int index : scope.slots) frame.slots[static_cast<size_t>(index)] = Value();
}

Value Interpreter::resolve(const std::string& name) const {
  if (name == "self") return Value::heap(Kind::kObject, nullptr, new SelfBody());
  if (const auto found = exported_.find(name); found != exported_.end()) return found->second;
  if (const auto found = context_.find(name); found != context_.end()) return found->second;
  return Value();
}

Interpreter::Flow Interpreter::execute(const std::vector<Stmt*>& body, Frame& frame, TextBuilder& out) {
  const Nesting nesting(*this);
  for (const Stmt* stmt : body) {
    meter_.step();
    Flow flow = Flow::kNext;
    try {
      flow = execute_one(stmt, frame, out);
    } catch (Failure& failure) {
      failure.set_line(stmt->line);
      throw;
    }
    if (flow != Flow::kNext) return flow;
  }
  return Flow::kNext;
}

Interpreter::Flow Interpreter::execute_one(const Stmt* stmt, Frame& frame, TextBuilder& out) {
  switch (stmt->kind) {
    case StmtKind::kOutput:
      print(stmt, frame, out);
      break;
    case StmtKind::kIf:
      return branch(stmt, frame, out);
    case StmtKind::kSet:
      assign(stmt, frame);
      break;
    case StmtKind::kSetBlock:
      return set_block(stmt, frame);
    case StmtKind::kFilterBlock:
      return filter_block(stmt, frame, out);
    case StmtKind::kMacro:
      define_macro(stmt, frame);
      break;
    case StmtKind::kFor: {
      const Value iterable = eval(stmt->expr, frame);
      if (!stmt->recursive) return loop_items(stmt, iterable, frame, out, nullptr, 0);
      capture(frame);
      out.append(run_loop(stmt, iterable, &frame, 0));
      break;
    }
    case StmtKind::kCallBlock: {
      capture(frame);
      const Value caller = Value::heap(Kind::kObject, &meter_, new MacroBody(stmt, &frame));
      append_text(out, eval_call(stmt->expr, frame, caller));
      break;
    }
    case StmtKind::kGeneration: {
      capture(frame);
      out.append(run_macro(stmt, &frame, {}));
      break;
    }
    case StmtKind::kWith: {
      std::vector<Value> values;
      for (const Expr* value : stmt->exprs) values.push_back(eval(value, frame));
      enter(stmt->scope, frame);
      for (size_t i = 0; i < values.size(); ++i) unpack(stmt->targets[i], values[i], frame);
      const Flow flow = execute(stmt->bodies[0], frame, out);
      leave(stmt->scope, frame);
      return flow;
    }
    case StmtKind::kScopedBlock: {
      enter(stmt->scope, frame);
      const Flow flow = execute(stmt->bodies[0], frame, out);
      leave(stmt->scope, frame);
      return flow;
    }
    case StmtKind::kAutoescape: {
      const bool before = std::exchange(autoescape_, truth(eval(stmt->expr, frame)));
      const Flow flow = execute(stmt->bodies[0], frame, out);
      autoescape_ = before;
      return flow;
    }
    case StmtKind::kBlock:
      out.append(run_block(stmt));
      break;
    case StmtKind::kBreak:
      return Flow::kBreak;
    case StmtKind::kContinue:
      return Flow::kContinue;
    case StmtKind::kLoader:
      type_error("no loader for this environment specified ('" + stmt->name + "' needs another template)");
  }
  check_output(out);
  return Flow::kNext;
}

void Interpreter::check_output(const TextBuilder& out) const {
  if (out.size() > meter_.budgets().output_bytes) throw Failure("BudgetError", "the template's output is too long");
}

void Interpreter::print(const Stmt* stmt, Frame& frame, TextBuilder& out) {
  for (const Expr* expr : stmt->exprs) {
    const Value value = eval(expr, frame);
    out.append(autoescape_ ? escape(*this, value).as_string() : to_text(*this, value));
  }
}

Interpreter::Flow Interpreter::branch(const Stmt* stmt, Frame& frame, TextBuilder& out) {
  for (size_t i = 0; i < stmt->exprs.size(); ++i) {
    if (truth(eval(stmt->exprs[i], frame))) return execute(stmt->bodies[i], frame, out);
  }
  if (stmt->bodies.size() > stmt->exprs.size()) return execute(stmt->bodies.back(), frame, out);
  return Flow::kNext;
}

void Interpreter::check_namespaces(const Expr* target, Frame& frame) {
  if (target->kind == ExprKind::kNamespaceRef) {
    if (slot(target->slot, frame).object_as<NamespaceBody>() == nullptr) {
      fail("TemplateRuntimeError", "cannot assign attribute on non-namespace object");
    }
  }
  for (const Expr* item : target->items) check_namespaces(item, frame);
}

void Interpreter::assign(const Stmt* stmt, Frame& frame) {
  check_namespaces(stmt->target, frame);
  unpack(stmt->target, eval(stmt->expr, frame), frame);
  if (stmt->is_toplevel) export_target(stmt->target, frame);
}

// Assigns a value to a name, or its items to the names of a tuple.
void Interpreter::unpack(const Expr* target, const Value& value, Frame& frame) {
  if (target->kind == ExprKind::kName) {
    slot(target->slot, frame) = value;
    return;
  }
  if (target->kind == ExprKind::kNamespaceRef) {
    slot(target->slot, frame).object_as<NamespaceBody>()->set(meter_, target->value, value);
    return;
  }
  if (!is_iterable(value)) type_error("cannot unpack non-iterable " + type_name(value) + " object");
  const size_t wanted = target->items.size();
  const auto iterator = iterate(*this, value);
  std::vector<Value> items;
  while (items.size() < wanted) {
    auto item = iterator->next(*this);
    if (!item)
      value_error("not enough values to unpack (expected " + std::to_string(wanted) + ", got " +
                  std::to_string(items.size()) + ")");
    items.push_back(std::move(*item));
  }
  if (iterator->next(*this)) value_error("too many values to unpack (expected " + std::to_string(wanted) + ")");
  for (size_t i = 0; i < wanted; ++i) unpack(target->items[i], items[i], frame);
}

void Interpreter::export_target(const Expr* target, Frame& frame) {
  if (target->kind == ExprKind::kName) exported_[target->name] = slot(target->slot, frame);
  for (const Expr* item : target->items) export_target(item, frame);
}

Interpreter::Flow Interpreter::set_block(const Stmt* stmt, Frame& frame) {
  TextBuilder text(meter_);
  enter(stmt->scope, frame);
  const Flow flow = execute(stmt->bodies[0], frame, text);
  if (flow == Flow::kNext) {
    Value value = string(text.take(), autoescape_);
    if (stmt->expr != nullptr) value = apply_filters(stmt->expr, frame, value);
    if (autoescape_ && value.is_string()) value = string(value.as_string(), true);
    check_namespaces(stmt->target, frame);
    unpack(stmt->target, value, frame);
    if (stmt->is_toplevel) export_target(stmt->target, frame);
  }
  leave(stmt->scope, frame);
  return flow;
}

Interpreter::Flow Interpreter::filter_block(const Stmt* stmt, Frame& frame, TextBuilder& out) {
  TextBuilder text(meter_);
  enter(stmt->scope, frame);
  const Flow flow = execute(stmt->bodies[0], frame, text);
  if (flow == Flow::kNext) {
    append_text(out, apply_filters(stmt->expr, frame, string(text.take(), autoescape_)));
  }
  leave(stmt->scope, frame);
  return flow;
}

void Interpreter::define_macro(const Stmt* stmt, Frame& frame) {
  capture(frame);
  const Value macro = Value::heap(Kind::kObject, &meter_, new MacroBody(stmt, &frame));
  frame.slots[static_cast<size_t>(stmt->slot)] = macro;
  if (stmt->is_toplevel) exported_[stmt->name] = macro;
}

Interpreter::Flow Interpreter::loop_items(const Stmt* stmt, const Value& iterable, Frame& frame, TextBuilder& out,
                                          const boost::intrusive_ptr<Frame>& outer, int depth) {
  Value items = iterable;
  if (stmt->test != nullptr) {
    capture(frame);
    const auto source = iterate(*this, iterable);
    boost::intrusive_ptr<Frame> kept(&frame);
    items = generator(*this, [stmt, source, kept](Interpreter& in) -> std::optional<Value> {
      while (auto item = source->next(in)) {
        in.meter().step();
        in.enter(stmt->test_scope, *kept);
        // The names of the target, as the test sees them; what is unpacked goes on as a tuple.
        const std::function<Value(const Expr*, const Value&, size_t&)> bind = [&](const Expr* target,
                                                                                  const Value& value, size_t& at) {
          if (target->kind == ExprKind::kName) {
            return kept->slots[static_cast<size_t>(stmt->parameter_slots[at++])] = value;
          }
          std::vector<Value> parts = collect(in, value);
          if (parts.size() != target->items.size()) {
            value_error((parts.size() < target->items.size() ? "not enough" : "too many") +
                        std::string(" values to unpack"));
          }
          for (size_t i = 0; i < parts.size(); ++i) parts[i] = bind(target->items[i], parts[i], at);
          return Value::tuple(&in.meter(), std::move(parts));
        };
        size_t at = 0;
        const Value bound = bind(stmt->target, *item, at);
        if (truth(in.eval(stmt->test, *kept))) return bound;
      }
      return std::nullopt;
    });
  }
  boost::intrusive_ptr<LoopBody> loop(new LoopBody());
  loop->iterable = items;
  loop->iterator = iterate(*this, items);
  loop->depth0 = depth;
  if (stmt->recursive) {
    loop->recursive = stmt;
    loop->outer = outer;
  }
  const Value loop_value = Value::heap(Kind::kObject, &meter_, loop.get());
  bool completed =
      false;  // QUIRK: "else" runs unless one pass reached the end of the body, so also after a `break` in the first
  Flow flow = Flow::kNext;
  while (auto item = loop->step(*this)) {
    meter_.step();
    unpack(stmt->target, *item, frame);
    if (stmt->uses_loop) frame.slots[static_cast<size_t>(stmt->slot)] = loop_value;
    enter(stmt->scope, frame);
    flow = execute(stmt->bodies[0], frame, out);
    if (flow == Flow::kBreak) break;
    if (flow == Flow::kNext) completed = true;
  }
  leave(stmt->scope, frame);
  if (completed || stmt->bodies[1].empty()) return Flow::kNext;
  enter(stmt->else_scope, frame);
  flow = execute(stmt->bodies[1], frame, out);
  leave(stmt->else_scope, frame);
  return flow;
}

}  // namespace calandra::jinja
