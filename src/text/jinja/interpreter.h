// Renders a syntax tree: evaluates expressions and runs statements under budgets.
#pragma once

#include "text/jinja/ast.h"
#include "text/jinja/format.h"
#include "text/jinja/objects.h"

#include <ctime>
#include <unordered_map>

namespace calandra::jinja {

using Context = std::unordered_map<std::string, Value>;

// The variables of one run of a function (the template, a macro, a block).
struct Frame : Heap, Collectable {
  Frame(int size, boost::intrusive_ptr<Frame> outside) : slots(static_cast<size_t>(size)), outer(std::move(outside)) {}
  void clear() override {
    slots.clear();
    outer.reset();
  }

  std::vector<Value> slots;
  boost::intrusive_ptr<Frame> outer;
  bool is_collected = false;  // something holds on to it
};

class Interpreter {
 public:
  Interpreter(const Tree& tree, Meter& meter, const Context& context, const std::tm& now);
  ~Interpreter();
  Interpreter(const Interpreter&) = delete;
  Interpreter& operator=(const Interpreter&) = delete;

  // The whole template. Throws Failure with the line where it can be known.
  MarkedString run();

  Meter& meter() { return meter_; }
  Value string(std::string text) { return Value::string(&meter_, std::move(text)); }
  Value string(MarkedString text, bool is_markup = false) { return Value::string(&meter_, std::move(text), is_markup); }
  bool autoescape() const { return autoescape_; }
  const std::tm& now() const { return now_; }
  uint32_t random();  // the same numbers in every rendering

  // jinja's object.name and object[key], with the sandbox's rules; undefined if there is no such thing.
  Value attribute(const Value& object, std::string_view name);
  Value item(const Value& object, const Value& key);
  Value call(const Value& callee, Arguments arguments);
  Value call_filter(const std::string& name, const Value& value, Arguments arguments);
  bool call_test(const std::string& name, const Value& value, Arguments arguments);

  // Keeps something that may be part of a circle of references until the end, when it is emptied.
  void collect_later(Heap* body, Collectable* contents);

  // Counts C++ recursion; refuses what would overflow the stack.
  class Nesting {
   public:
    explicit Nesting(Interpreter& in);
    ~Nesting() { --in_.nesting_; }
    Nesting(const Nesting&) = delete;
    Nesting& operator=(const Nesting&) = delete;

   private:
    Interpreter& in_;
  };

  // --- used by macros, loops and blocks ---
  enum class Flow { kNext, kBreak, kContinue };
  Value eval(const Expr* expr, Frame& frame);
  Flow execute(const std::vector<Stmt*>& body, Frame& frame, TextBuilder& out);
  void enter(const ScopeCode& scope, Frame& frame);
  void leave(const ScopeCode& scope, Frame& frame);
  void unpack(const Expr* target, const Value& value, Frame& frame);
  void capture(Frame& frame);  // a closure refers to the frame
  MarkedString run_macro(const Stmt* macro, const boost::intrusive_ptr<Frame>& outer, std::vector<Value> arguments);
  MarkedString run_block(const Stmt* block);
  MarkedString run_loop(const Stmt* loop, const Value& iterable, const boost::intrusive_ptr<Frame>& outer, int depth);
  const Stmt* find_block(std::string_view name) const;

 private:
  friend class Nesting;
  struct CallDepth;

  Value eval_inner(const Expr* expr, Frame& frame);
  Value eval_name(const Expr* expr, Frame& frame);
  Value eval_collection(const Expr* expr, Frame& frame);
  Value eval_compare(const Expr* expr, Frame& frame);
  Value eval_concat(const Expr* expr, Frame& frame);
  Value eval_item(const Expr* expr, Frame& frame);
  Value eval_call(const Expr* expr, Frame& frame, const Value& caller = Value());
  Value eval_filter(const Expr* expr, Frame& frame, const Value* input);
  Value eval_test(const Expr* expr, Frame& frame);
  Arguments eval_arguments(const Expr* expr, Frame& frame);
  Value apply_filters(const Expr* filters, Frame& frame, const Value& input);
  Value slice(const Value& object, const Expr* slice, Frame& frame);
  Value subscript(const Value& object, const Value& key, bool& found);

  Flow execute_one(const Stmt* stmt, Frame& frame, TextBuilder& out);
  void print(const Stmt* stmt, Frame& frame, TextBuilder& out);
  Flow branch(const Stmt* stmt, Frame& frame, TextBuilder& out);
  void assign(const Stmt* stmt, Frame& frame);
  Flow set_block(const Stmt* stmt, Frame& frame);
  Flow filter_block(const Stmt* stmt, Frame& frame, TextBuilder& out);
  void define_macro(const Stmt* stmt, Frame& frame);
  void export_target(const Expr* target, Frame& frame);
  void check_namespaces(const Expr* target, Frame& frame);
  Flow loop_items(const Stmt* stmt, const Value& iterable, Frame& frame, TextBuilder& out,
                  const boost::intrusive_ptr<Frame>& outer, int depth);

  Value& slot(const Slot& slot, Frame& frame);
  Value resolve(const std::string& name) const;
  void check_output(const TextBuilder& out) const;

  const Tree& tree_;
  Meter& meter_;
  const Context& context_;
  const std::tm now_;
  std::vector<std::pair<boost::intrusive_ptr<Heap>, Collectable*>> collected_;
  Context exported_;  // variables of the template's top level
  boost::intrusive_ptr<Frame> root_;
  bool autoescape_ = false;
  int nesting_ = 0;
  int calls_ = 0;
  uint32_t random_ = 0x9e3779b9;
};

}  // namespace calandra::jinja
