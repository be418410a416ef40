// Callable parts of a template: macros and callers, loops that call themselves, blocks through `self`.
#pragma once

#include "text/jinja/interpreter.h"

namespace calandra::jinja {

struct MacroBody : ObjectBody {
  MacroBody(const Stmt* macro, boost::intrusive_ptr<Frame> outside) : stmt(macro), outer(std::move(outside)) {}
  std::string type_name() const override { return "Macro"; }
  std::string repr(Interpreter& in) override;
  std::optional<Value> attribute(Interpreter& in, std::string_view name) override;
  bool is_callable() const override { return true; }
  Value call(Interpreter& in, Arguments arguments) override;

  const Stmt* stmt;
  boost::intrusive_ptr<Frame> outer;
};

// `loop` inside of a loop; also the iterator that drives it.
struct LoopBody : ObjectBody, Collectable {
  std::string type_name() const override { return "LoopContext"; }
  std::string repr(Interpreter& in) override;
  std::optional<Value> attribute(Interpreter& in, std::string_view name) override;
  bool is_callable() const override { return true; }
  Value call(Interpreter& in, Arguments arguments) override;
  bool is_iterable() const override { return true; }
  std::optional<Value> next(Interpreter& in) override;  // (item, loop), as Python's iterator gives it
  std::optional<int64_t> length(Interpreter& in) override;
  void clear() override;

  std::optional<Value> step(Interpreter& in);  // the next item
  const std::optional<Value>& peek(Interpreter& in);
  Value cycle(const Arguments& arguments) const;
  Value changed(Interpreter& in, Arguments arguments);

  const Stmt* recursive = nullptr;  // the loop, if it can be called
  boost::intrusive_ptr<Frame> outer;
  int depth0 = 0;
  Value iterable;
  boost::intrusive_ptr<IteratorBody> iterator;
  int64_t index0 = -1;
  std::optional<int64_t> known_length;
  std::optional<Value> before, current, after;
  bool at_end = false;  // the iterator has nothing more
  Value last_changed;
  bool is_collected = false;
};

struct SelfBody : ObjectBody {
  std::string type_name() const override { return "TemplateReference"; }
  std::string repr(Interpreter&) override { return "<TemplateReference None>"; }
  std::optional<Value> attribute(Interpreter& in, std::string_view name) override;
};

}  // namespace calandra::jinja
