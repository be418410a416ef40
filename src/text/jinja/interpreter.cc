#include "text/jinja/interpreter.h"

#include "text/jinja/compare.h"
#include "text/jinja/filters.h"
#include "text/jinja/macro.h"

namespace calandra::jinja {
namespace {

constexpr int kMaxNesting = 1500;  // about 2 KB of stack each in a build with sanitizers
constexpr size_t kFrameBytes = 96;

}  // namespace

// A call of a template's own function; the budget is jinja's answer to macros that call themselves for ever.
struct Interpreter::CallDepth {
  explicit CallDepth(Interpreter& in) : in_(in) {
    if (in.calls_ >= in.meter_.budgets().call_depth) throw Failure("RecursionError", "macros call each other too deep");
    ++in.calls_;
  }
  ~CallDepth() { --in_.calls_; }
  CallDepth(const CallDepth&) = delete;
  CallDepth& operator=(const CallDepth&) = delete;

  Interpreter& in_;
};

Interpreter::Nesting::Nesting(Interpreter& in) : in_(in) {
  if (in.nesting_ >= kMaxNesting) throw Failure("RecursionError", "the template nests too deep");
  ++in.nesting_;
}

Interpreter::Interpreter(const Tree& tree, Meter& meter, const Context& context, const std::tm& now)
    : tree_(tree), meter_(meter), context_(context), now_(now) {}

Interpreter::~Interpreter() {
  // First everything is emptied, while all of it is still alive; then it goes, one by one, whatever referred to what.
  exported_.clear();
  for (auto& [body, contents] : collected_) contents->clear();
}

MarkedString Interpreter::run() {
  root_.reset(new Frame(tree_.frame_size, nullptr));
  capture(*root_);
  TextBuilder out(meter_);
  enter(tree_.scope, *root_);
  execute(tree_.body, *root_, out);
  check_output(out);
  return out.take();
}

void Interpreter::collect_later(Heap* body, Collectable* contents) { collected_.emplace_back(body, contents); }

void Interpreter::capture(Frame& frame) {
  if (frame.is_collected) return;
  frame.is_collected = true;
  collect_later(&frame, &frame);
}

uint32_t Interpreter::random() {
  random_ ^= random_ << 13;
  random_ ^= random_ >> 17;
  random_ ^= random_ << 5;
  return random_;
}

const Stmt* Interpreter::find_block(std::string_view name) const {
  const auto found = tree_.blocks.find(std::string(name));
  return found == tree_.blocks.end() ? nullptr : found->second;
}

// `arguments`: one value per parameter slot, missing where a default or nothing applies.
MarkedString Interpreter::run_macro(const Stmt* macro, const boost::intrusive_ptr<Frame>& outer,
                                    std::vector<Value> arguments) {
  const CallDepth depth(*this);
  const Nesting nesting(*this);
  const boost::intrusive_ptr<Frame> frame(new Frame(macro->frame_size, outer));
  frame->charge(&meter_, frame->slots.size() * sizeof(Value) + kFrameBytes);
  arguments.resize(macro->parameter_slots.size());
  for (size_t i = 0; i < arguments.size(); ++i)
    frame->slots[static_cast<size_t>(macro->parameter_slots[i])] = std::move(arguments[i]);
  enter(macro->scope, *frame);
  const size_t first_default = macro->targets.size() - macro->defaults.size();
  for (size_t i = 0; i < macro->targets.size(); ++i) {
    Value& parameter = frame->slots[static_cast<size_t>(macro->parameter_slots[i])];
    if (!parameter.is_missing()) continue;
    if (i >= first_default) {
      parameter = eval(macro->defaults[i - first_default], *frame);
    } else {
      UndefinedBody body;
      body.hint = "parameter '" + macro->targets[i]->name + "' was not provided";
      parameter = Value::undefined(&meter_, std::move(body));
    }
  }
  TextBuilder out(meter_);
  execute(macro->bodies[0], *frame, out);
  return out.take();
}

MarkedString Interpreter::run_block(const Stmt* block) {
  const CallDepth depth(*this);
  const Nesting nesting(*this);
  const boost::intrusive_ptr<Frame> frame(new Frame(block->frame_size, nullptr));
  frame->charge(&meter_, frame->slots.size() * sizeof(Value) + kFrameBytes);
  capture(*frame);
  TextBuilder out(meter_);
  enter(block->scope, *frame);
  execute(block->bodies[0], *frame, out);
  return out.take();
}

// A recursive loop is a function: each run of it has a frame of its own.
MarkedString Interpreter::run_loop(const Stmt* loop, const Value& iterable, const boost::intrusive_ptr<Frame>& outer,
                                   int loop_depth) {
  const CallDepth depth(*this);
  const Nesting nesting(*this);
  const boost::intrusive_ptr<Frame> frame(new Frame(loop->frame_size, outer));
  frame->charge(&meter_, frame->slots.size() * sizeof(Value) + kFrameBytes);
  capture(*frame);
  TextBuilder out(meter_);
  loop_items(loop, iterable, *frame, out, outer, loop_depth);
  return out.take();
}

}  // namespace calandra::jinja
