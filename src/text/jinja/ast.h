// The syntax tree. Nodes belong to the tree's arena, so that destroying deep trees does not recurse.
#pragma once

#include "text/jinja/arithmetic.h"
#include "text/jinja/value.h"

#include <deque>
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace calandra::jinja {

struct FilterEntry;
struct TestEntry;

// Where a variable lives: `hops` functions outwards from the one that runs, then a slot of its frame.
struct Slot {
  int hops = 0;
  int index = -1;
};

enum class ExprKind : uint8_t {
  kConst,
  kName,
  kNamespaceRef,  // target `ns.attribute`
  kTuple,
  kList,
  kDict,  // items: key, value, key, value, …
  kCondition,
  kAnd,
  kOr,
  kNot,
  kCompare,
  kBinary,
  kConcat,
  kNegate,
  kPlus,
  kAttribute,
  kItem,
  kSlice,
  kCall,
  kFilter,
  kTest,
};

struct Expr {
  ExprKind kind = ExprKind::kConst;
  BinaryOp op = BinaryOp::kAdd;
  int line = 0;
  int depth = 1;
  bool is_constant = false;    // jinja2 replaces it by its value when it compiles
  bool negates_power = false;  // see power() in the parser
  std::string name;            // variable, attribute, filter or test
  Value value;                 // of a constant
  Slot slot;                   // of a name
  Expr* a =
      nullptr;  // operands; for kCondition: test, then, else; for kSlice: start, stop, step; for calls: what is called
  Expr* b = nullptr;
  Expr* c = nullptr;
  std::vector<Expr*> items;            // elements, or positional arguments
  std::vector<std::string> operators;  // of kCompare, between a and items
  std::vector<std::pair<std::string, Expr*>> named;
  Expr* more_items = nullptr;  // *args
  Expr* more_named = nullptr;  // **kwargs
  const FilterEntry* filter = nullptr;
  const TestEntry* test = nullptr;
};

// What happens to the variables of a scope when it is entered; on leaving, all of them become unset.
struct ScopeEntry {
  enum Action { kResolve, kAlias, kUnset } action = kUnset;
  int slot = -1;
  std::string name;  // kResolve: looked up in the context
  Slot from;         // kAlias
};
struct ScopeCode {
  std::vector<ScopeEntry> entries;
  std::vector<int> slots;  // all slots that the scope loads, parameters included
};

enum class StmtKind : uint8_t {
  kOutput,
  kFor,
  kIf,
  kSet,
  kSetBlock,
  kMacro,
  kCallBlock,
  kFilterBlock,
  kWith,
  kAutoescape,
  kScopedBlock,  // body with its own variables (autoescape)
  kBlock,
  kGeneration,
  kBreak,
  kContinue,
  kLoader,  // include, import, from, extends: need other templates
};

struct Stmt {
  StmtKind kind = StmtKind::kOutput;
  int line = 0;
  std::string name;            // of a macro or block
  std::vector<Expr*> exprs;    // kOutput: parts; kIf: tests (one per branch with a test); kWith: values
  std::vector<Expr*> targets;  // kWith; macro parameters
  Expr* target = nullptr;
  Expr* expr = nullptr;                    // iterable, assigned value, call, filter chain
  Expr* test = nullptr;                    // `for … if test`
  std::vector<std::vector<Stmt*>> bodies;  // kIf: one per test, then else; kFor: body, else; others: body
  std::vector<Expr*> defaults;             // of the last macro parameters
  bool recursive = false, uses_loop = false, scoped = false;
  bool is_toplevel = false;  // assigns variables that blocks and macros look up in the context
  // Macro bodies: the special variables that are used and not parameters.
  bool uses_caller = false, uses_kwargs = false, uses_varargs = false, explicit_caller = false;
  int slot = -1;                     // kMacro: of its name; kFor with loop: of `loop`
  std::vector<int> parameter_slots;  // macro parameters, then caller, kwargs, varargs as used
  int frame_size = 0;                // slots of the function that the body is (macros, blocks, recursive loops)
  ScopeCode scope, else_scope, test_scope;
};

struct Tree {
  std::vector<Stmt*> body;
  ScopeCode scope;
  int frame_size = 0;
  std::map<std::string, Stmt*> blocks;

  std::deque<Expr> exprs;
  std::deque<Stmt> stmts;
};

}  // namespace calandra::jinja
