#include "text/jinja/scope.h"

#include <algorithm>
#include <functional>
#include <set>
#include <tuple>
#include <utility>

namespace calandra::jinja {
namespace {

// A function of the compiled template: the root, a macro or caller, a block, a recursive loop. It owns the slots of its
// frames. Scopes of equal level share the slot of a name, as they share a Python variable in jinja2.
struct Function {
  Function* outer = nullptr;
  std::map<std::pair<int, std::string>, int> slots;

  int slot(int level, const std::string& name) {
    return slots.emplace(std::pair(level, name), static_cast<int>(slots.size())).first->second;
  }
};

struct Variable {
  Function* function = nullptr;
  int slot = -1;
  bool operator<(const Variable& other) const {
    return std::tie(function, slot) < std::tie(other.function, other.slot);
  }
};

struct Load {
  enum Action { kParameter, kResolve, kAlias, kUnset } action = kUnset;
  std::string name;
  Variable from;
};

struct Symbols {
  Symbols* parent = nullptr;
  int level = 0;
  Function* function = nullptr;
  std::map<std::string, Variable> refs;
  std::map<Variable, Load> loads;
  std::set<std::string> stores;

  const Variable* find(const std::string& name) const {
    for (const Symbols* at = this; at != nullptr; at = at->parent) {
      if (const auto found = at->refs.find(name); found != at->refs.end()) return &found->second;
    }
    return nullptr;
  }

  Variable define(const std::string& name, Load load) {
    const Variable variable{function, function->slot(level, name)};
    refs[name] = variable;
    loads[variable] = std::move(load);
    return variable;
  }

  void load(const std::string& name) {
    if (find(name) == nullptr) define(name, {Load::kResolve, name, {}});
  }

  void store(const std::string& name) {
    stores.insert(name);
    if (refs.contains(name)) return;
    const Variable* outer = parent == nullptr ? nullptr : parent->find(name);
    if (outer != nullptr)
      define(name, {Load::kAlias, {}, *outer});
    else
      define(name, {Load::kUnset, {}, {}});
  }

  Variable parameter(const std::string& name) {
    stores.insert(name);
    return define(name, {Load::kParameter, {}, {}});
  }

  // After branches: what only some of them store has, in the others, the value from outside.
  void merge(const std::vector<Symbols>& branches) {
    std::map<std::string, size_t> counts;
    for (const Symbols& branch : branches) {
      for (const std::string& name : branch.stores) {
        if (!stores.contains(name)) ++counts[name];
      }
    }
    for (const Symbols& branch : branches) {
      for (const auto& [name, variable] : branch.refs) refs[name] = variable;
      for (const auto& [variable, load] : branch.loads) loads[variable] = load;
      stores.insert(branch.stores.begin(), branch.stores.end());
    }
    for (const auto& [name, count] : counts) {
      if (count == branches.size()) continue;
      const Variable target = *find(name);
      const Variable* outer = parent == nullptr ? nullptr : parent->find(name);
      loads[target] = outer != nullptr ? Load{Load::kAlias, {}, *outer} : Load{Load::kResolve, name, {}};
    }
  }
};

// Calls `visit` for every name that an expression reads.
void for_each_name(const Expr* expr, const std::function<void(const Expr*)>& visit) {
  if (expr == nullptr) return;
  if (expr->kind == ExprKind::kName || expr->kind == ExprKind::kNamespaceRef) visit(expr);
  for_each_name(expr->a, visit);
  for_each_name(expr->b, visit);
  for_each_name(expr->c, visit);
  for_each_name(expr->more_items, visit);
  for_each_name(expr->more_named, visit);
  for (const Expr* item : expr->items) for_each_name(item, visit);
  for (const auto& [name, value] : expr->named) for_each_name(value, visit);
}

class Resolver {
 public:
  explicit Resolver(Tree& tree) : tree_(tree) {}

  void run() {
    Function root;
    Symbols symbols;
    symbols.function = &root;
    for (const Stmt* stmt : tree_.body) analyze(symbols, stmt);
    tree_.scope = code(symbols);
    toplevel_ = true;
    resolve(tree_.body, symbols);
    toplevel_ = false;
    tree_.frame_size = static_cast<int>(root.slots.size());
    for (auto& [name, block] : tree_.blocks) {
      Function function;
      Symbols inside;
      inside.function = &function;
      for (const Stmt* stmt : block->bodies[0]) analyze(inside, stmt);
      block->scope = code(inside);
      resolve(block->bodies[0], inside);
      block->frame_size = static_cast<int>(function.slots.size());
    }
  }

 private:
  // --- what a scope's own statements load and store ---

  void analyze_reads(Symbols& symbols, const Expr* expr) {
    for_each_name(expr, [&](const Expr* name) { symbols.load(name->name); });
  }

  void analyze_target(Symbols& symbols, const Expr* target, bool as_parameter) {
    if (target->kind == ExprKind::kName) {
      if (as_parameter)
        symbols.parameter(target->name);
      else
        symbols.store(target->name);
    } else if (target->kind == ExprKind::kNamespaceRef) {
      symbols.load(target->name);
    }
    for (const Expr* item : target->items) analyze_target(symbols, item, as_parameter);
  }

  void analyze_all(Symbols& symbols, const std::vector<Stmt*>& body) {
    for (const Stmt* stmt : body) analyze(symbols, stmt);
  }

  void analyze(Symbols& symbols, const Stmt* stmt) {
    if (++work_ > kMaxWork) throw Failure("BudgetError", "the template has too many branches", stmt->line);
    switch (stmt->kind) {
      case StmtKind::kOutput:
      case StmtKind::kWith:
        for (const Expr* expr : stmt->exprs) analyze_reads(symbols, expr);
        break;
      case StmtKind::kFor:
      case StmtKind::kCallBlock:
        analyze_reads(symbols, stmt->expr);
        break;
      case StmtKind::kIf:
        analyze_branches(symbols, stmt);
        break;
      case StmtKind::kSet:
        analyze_reads(symbols, stmt->expr);
        analyze_target(symbols, stmt->target, false);
        break;
      case StmtKind::kSetBlock:
        analyze_target(symbols, stmt->target, false);
        break;
      case StmtKind::kMacro:
        symbols.store(stmt->name);
        break;
      case StmtKind::kFilterBlock:
        analyze_reads(symbols, stmt->expr);
        break;
      case StmtKind::kAutoescape:
        analyze_reads(symbols, stmt->expr);
        analyze_all(symbols, stmt->bodies[0]);
        break;
      default:
        break;
    }
  }

  // The test, then three branches: the body; the elifs, each with branches of its own; the else.
  void analyze_branches(Symbols& symbols, const Stmt* stmt) {
    analyze_reads(symbols, stmt->exprs[0]);
    std::vector<Symbols> branches(3, symbols);
    work_ += static_cast<int64_t>(3 * symbols.refs.size());
    analyze_all(branches[0], stmt->bodies[0]);
    for (size_t i = 1; i < stmt->exprs.size(); ++i) {
      analyze_reads(branches[1], stmt->exprs[i]);
      std::vector<Symbols> inner(3, branches[1]);
      work_ += static_cast<int64_t>(3 * branches[1].refs.size());
      analyze_all(inner[0], stmt->bodies[i]);
      branches[1].merge(inner);
    }
    if (stmt->bodies.size() > stmt->exprs.size()) analyze_all(branches[2], stmt->bodies.back());
    symbols.merge(branches);
  }

  // --- names to slots ---

  Slot slot_of(const Variable& variable, const Function* from) const {
    Slot slot{0, variable.slot};
    for (const Function* at = from; at != variable.function; at = at->outer) ++slot.hops;
    return slot;
  }

  ScopeCode code(const Symbols& symbols) const {
    ScopeCode code;
    for (const auto& [variable, load] : symbols.loads) {
      code.slots.push_back(variable.slot);
      switch (load.action) {
        case Load::kParameter:
          break;
        case Load::kResolve:
          code.entries.push_back({ScopeEntry::kResolve, variable.slot, load.name, {}});
          break;
        case Load::kAlias:
          code.entries.push_back({ScopeEntry::kAlias, variable.slot, {}, slot_of(load.from, symbols.function)});
          break;
        case Load::kUnset:
          code.entries.push_back({ScopeEntry::kUnset, variable.slot, {}, {}});
          break;
      }
    }
    return code;
  }

  void resolve_names(const Expr* expr, Symbols& symbols) {
    for_each_name(expr, [&](const Expr* name) {
      const Variable* variable = symbols.find(name->name);
      if (variable == nullptr)
        throw Failure("TemplateAssertionError", "the name '" + name->name + "' cannot be used here", name->line);
      const_cast<Expr*>(name)->slot = slot_of(*variable, symbols.function);
    });
  }

  static Symbols inner(Symbols& symbols, Function* function = nullptr) {
    Symbols scope;
    scope.parent = &symbols;
    scope.level = symbols.level + 1;
    scope.function = function == nullptr ? symbols.function : function;
    return scope;
  }

  void resolve(const std::vector<Stmt*>& body, Symbols& symbols) {
    for (Stmt* stmt : body) resolve(stmt, symbols);
  }

  // Bodies with a scope of their own are never the top level.
  void resolve_inner(const std::vector<Stmt*>& body, Symbols& symbols) {
    const bool toplevel = std::exchange(toplevel_, false);
    resolve(body, symbols);
    toplevel_ = toplevel;
  }

  void resolve(Stmt* stmt, Symbols& symbols) {
    stmt->is_toplevel = toplevel_;
    switch (stmt->kind) {
      case StmtKind::kOutput:
        for (const Expr* expr : stmt->exprs) resolve_names(expr, symbols);
        break;
      case StmtKind::kIf:
        for (const Expr* test : stmt->exprs) resolve_names(test, symbols);
        for (const auto& branch : stmt->bodies) resolve(branch, symbols);
        break;
      case StmtKind::kSet:
        resolve_names(stmt->expr, symbols);
        resolve_names(stmt->target, symbols);
        break;
      case StmtKind::kFor:
        resolve_for(stmt, symbols);
        break;
      case StmtKind::kMacro: {
        stmt->slot = slot_of(*symbols.find(stmt->name), symbols.function).index;
        resolve_function(stmt, symbols);
        break;
      }
      case StmtKind::kCallBlock:
        resolve_names(stmt->expr, symbols);
        resolve_function(stmt, symbols);
        break;
      case StmtKind::kGeneration:
        resolve_function(stmt, symbols);
        break;
      case StmtKind::kSetBlock:
      case StmtKind::kFilterBlock: {
        Symbols scope = inner(symbols);
        analyze_reads(scope, stmt->expr);
        analyze_all(scope, stmt->bodies[0]);
        stmt->scope = code(scope);
        resolve_inner(stmt->bodies[0], scope);
        resolve_names(stmt->expr, scope);
        if (stmt->target != nullptr) resolve_names(stmt->target, symbols);
        break;
      }
      case StmtKind::kWith: {
        Symbols scope = inner(symbols);
        for (const Expr* target : stmt->targets) analyze_target(scope, target, true);
        analyze_all(scope, stmt->bodies[0]);
        stmt->scope = code(scope);
        for (const Expr* value : stmt->exprs) resolve_names(value, symbols);
        for (const Expr* target : stmt->targets) resolve_names(target, scope);
        resolve_inner(stmt->bodies[0], scope);
        break;
      }
      case StmtKind::kScopedBlock: {
        Symbols scope = inner(symbols);
        analyze_all(scope, stmt->bodies[0]);
        stmt->scope = code(scope);
        resolve_inner(stmt->bodies[0], scope);
        break;
      }
      case StmtKind::kAutoescape:
        resolve_names(stmt->expr, symbols);
        resolve(stmt->bodies[0], symbols);
        break;
      default:
        break;
    }
  }

  void resolve_for(Stmt* stmt, Symbols& symbols) {
    refuse_loop_target(stmt, stmt->target);
    for (const auto& body : stmt->bodies) refuse_loop_targets(stmt, body);
    Function own;
    own.outer = symbols.function;
    Function* function = stmt->recursive ? &own : symbols.function;
    resolve_names(stmt->expr, symbols);

    stmt->uses_loop = stmt->recursive || reads(stmt->bodies[0], "loop");
    Symbols loop = inner(symbols, function);
    if (stmt->uses_loop) stmt->slot = loop.parameter("loop").slot;
    analyze_target(loop, stmt->target, true);
    analyze_all(loop, stmt->bodies[0]);
    stmt->scope = code(loop);

    if (stmt->test != nullptr) {
      // The test is a generator function of jinja2; the loop body runs between its steps, so its variables have other
      // slots.
      Symbols test = inner(symbols, function);
      test.level += 1'000'000;
      analyze_target(test, stmt->target, true);
      analyze_reads(test, stmt->test);
      stmt->test_scope = code(test);
      resolve_names(stmt->test, test);
      for_each_name(stmt->target,
                    [&](const Expr* name) { stmt->parameter_slots.push_back(test.find(name->name)->slot); });
    }
    resolve_names(stmt->target, loop);
    resolve_inner(stmt->bodies[0], loop);
    if (!stmt->bodies[1].empty()) {
      Symbols otherwise = inner(symbols, function);
      analyze_all(otherwise, stmt->bodies[1]);
      stmt->else_scope = code(otherwise);
      resolve_inner(stmt->bodies[1], otherwise);
    }
    if (stmt->recursive) stmt->frame_size = static_cast<int>(own.slots.size());
  }

  void refuse_loop_target(const Stmt* loop, const Expr* target) const {
    for_each_name(target, [&](const Expr* name) {
      if (name->kind == ExprKind::kName && name->name == "loop") {
        throw Failure("TemplateSyntaxError", "Can't assign to special loop variable in for-loop", loop->line);
      }
    });
  }

  void refuse_loop_targets(const Stmt* loop, const std::vector<Stmt*>& body) const {
    for (const Stmt* stmt : body) {
      if (stmt->target != nullptr && stmt->kind != StmtKind::kMacro) refuse_loop_target(loop, stmt->target);
      for (const auto& inner_body : stmt->bodies) refuse_loop_targets(loop, inner_body);
    }
  }

  void resolve_function(Stmt* stmt, Symbols& symbols) {
    Function function;
    function.outer = symbols.function;
    Symbols scope = inner(symbols, &function);
    const auto is_parameter = [&](std::string_view name) {
      return std::any_of(stmt->targets.begin(), stmt->targets.end(),
                         [&](const Expr* parameter) { return parameter->name == name; });
    };
    for (const Expr* parameter : stmt->targets) stmt->parameter_slots.push_back(scope.parameter(parameter->name).slot);
    if (reads(stmt->bodies[0], "caller")) {
      stmt->uses_caller = true;
      stmt->explicit_caller = is_parameter("caller");
      if (!stmt->explicit_caller) {
        stmt->parameter_slots.push_back(scope.parameter("caller").slot);
      } else {
        const auto at =
            std::find_if(stmt->targets.begin(), stmt->targets.end(), [](const Expr* p) { return p->name == "caller"; });
        if (static_cast<size_t>(stmt->targets.end() - at) > stmt->defaults.size()) {
          throw Failure("TemplateAssertionError",
                        "the special \"caller\" argument must be omitted or be given a default.", stmt->line);
        }
      }
    }
    if (reads(stmt->bodies[0], "kwargs") && !is_parameter("kwargs")) {
      stmt->uses_kwargs = true;
      stmt->parameter_slots.push_back(scope.parameter("kwargs").slot);
    }
    if (reads(stmt->bodies[0], "varargs") && !is_parameter("varargs")) {
      stmt->uses_varargs = true;
      stmt->parameter_slots.push_back(scope.parameter("varargs").slot);
    }
    for (const Expr* value : stmt->defaults) analyze_reads(scope, value);
    analyze_all(scope, stmt->bodies[0]);
    stmt->scope = code(scope);
    for (const Expr* value : stmt->defaults) resolve_names(value, scope);
    resolve_inner(stmt->bodies[0], scope);
    stmt->frame_size = static_cast<int>(function.slots.size());
  }

  // Whether a body reads `name` before it assigns it, in the order of the text (jinja2's find_undeclared).
  bool reads(const std::vector<Stmt*>& body, const std::string& name) {
    bool assigned = false;
    return reads(body, name, assigned);
  }

  bool reads(const Expr* expr, const std::string& name) {
    bool found = false;
    for_each_name(expr, [&](const Expr* other) { found = found || other->name == name; });
    return found;
  }

  bool reads(const std::vector<Stmt*>& body, const std::string& name, bool& assigned) {
    for (const Stmt* stmt : body) {
      if (++work_ > kMaxWork)
        throw Failure("BudgetError", "the template has too many scopes inside each other", stmt->line);
      if (assigned) return false;
      if (stmt->kind == StmtKind::kBlock || stmt->kind == StmtKind::kLoader) continue;
      if (reads(stmt->expr, name) || reads(stmt->test, name)) return true;
      for (const Expr* expr : stmt->exprs) {
        if (reads(expr, name)) return true;
      }
      for (const Expr* value : stmt->defaults) {
        if (reads(value, name)) return true;
      }
      const auto assigns = [&](const Expr* target) { return target != nullptr && reads(target, name); };
      if (stmt->kind != StmtKind::kMacro && assigns(stmt->target)) assigned = true;
      for (const Expr* target : stmt->targets) assigned = assigned || assigns(target);
      for (const auto& inner_body : stmt->bodies) {
        if (reads(inner_body, name, assigned)) return true;
      }
    }
    return false;
  }

  static constexpr int64_t kMaxWork = 20'000'000;

  Tree& tree_;
  bool toplevel_ = false;
  int64_t work_ = 0;
};

}  // namespace

void resolve_scopes(Tree& tree) { Resolver(tree).run(); }

}  // namespace calandra::jinja
