#include "text/jinja/parser.h"
#include "text/jinja/scope.h"
#include "text/jinja/unicode.h"

#include <algorithm>

namespace calandra::jinja {
namespace {

using Names = std::initializer_list<std::string_view>;

class Parser : public ExpressionParser {
 public:
  using ExpressionParser::ExpressionParser;

  std::unique_ptr<Tree> run() {
    tree_->body = statements({});
    return std::move(tree_);
  }

 private:
  Stmt* make_stmt(StmtKind kind, int line) {
    Stmt& stmt = tree_->stmts.emplace_back();
    stmt.kind = kind;
    stmt.line = line;
    return &stmt;
  }

  bool at_name_of(Names names) const {
    return current().kind == TokenKind::kName && std::find(names.begin(), names.end(), current().text) != names.end();
  }

  // Statements up to a tag whose name is in `ends` (which becomes the current token), or the end of the template.
  std::vector<Stmt*> statements(Names ends) {
    const Nesting nesting(*this);
    std::vector<Stmt*> body;
    Stmt* output = nullptr;
    const auto print = [&](Expr* expr) {
      if (output == nullptr) body.push_back(output = make_stmt(StmtKind::kOutput, expr->line));
      output->exprs.push_back(expr);
    };
    while (current().kind != TokenKind::kEnd) {
      const Token& token = advance();
      if (token.kind == TokenKind::kText) {
        Expr* text = make(ExprKind::kConst, token.line);
        text->value = Value::string(nullptr, MarkedString(token.text, false), true);
        print(text);
      } else if (token.kind == TokenKind::kPrintBegin) {
        print(tuple(true));
        expect(TokenKind::kPrintEnd);
      } else {  // the lexer gives nothing else outside of tags than the begin of a block
        output = nullptr;
        if (at_name_of(ends)) return body;
        open_tags_.push_back(ends);
        if (Stmt* stmt = statement()) body.push_back(stmt);
        open_tags_.pop_back();
        expect(TokenKind::kBlockEnd);
      }
    }
    if (ends.size() > 0) {
      std::string wanted;
      for (const std::string_view end : ends) wanted += (wanted.empty() ? "'" : " or '") + std::string(end) + "'";
      syntax_error("Unexpected end of template. Jinja was looking for the following tags: " + wanted + ".");
    }
    return body;
  }

  // The body of a tag: its end, then statements. The name of the ending tag stays the current token.
  std::vector<Stmt*> body(Names ends) {
    skip_operator(":");
    expect(TokenKind::kBlockEnd);
    return statements(ends);
  }
  // A body with variables of its own: unknown filters in it are errors at once, even inside of a branch.
  std::vector<Stmt*> inner_body(Names ends) {
    const int soft = std::exchange(soft_, 0);
    auto result = body(ends);
    soft_ = soft;
    return result;
  }
  std::vector<Stmt*> whole_body(std::string_view end) {
    auto result = inner_body({end});
    advance();
    return result;
  }

  Stmt* statement() {
    const Token& token = current();
    if (token.kind != TokenKind::kName) syntax_error("tag name expected");
    const std::string& tag = token.text;
    if (tag == "for") return for_loop();
    if (tag == "if") return if_branches();
    if (tag == "set") return set();
    if (tag == "macro") return macro();
    if (tag == "call") return call_block();
    if (tag == "filter") return filter_block();
    if (tag == "with") return with();
    if (tag == "autoescape") return autoescape();
    if (tag == "block") return block();
    if (tag == "print") return print();
    if (tag == "generation") return generation();
    if (tag == "break" || tag == "continue") return loop_control();
    if (tag == "include" || tag == "import" || tag == "from" || tag == "extends") return loader();
    std::string message = "Encountered unknown tag '" + tag + "'.";
    if (open_tags_.back().size() > 0)
      message += " Jinja was looking for the following tags: '" + std::string(*open_tags_.back().begin()) + "'.";
    syntax_error(message);
  }

  Stmt* for_loop() {
    Stmt* stmt = make_stmt(StmtKind::kFor, advance().line);
    stmt->target = assign_target(false, "in");
    if (!skip_name("in")) syntax_error("expected token 'in', got '" + described(current()) + "'");
    stmt->expr = tuple(false, "recursive");
    if (skip_name("if")) stmt->test = expression();
    stmt->recursive = skip_name("recursive");
    ++loops_;
    stmt->bodies.push_back(inner_body({"endfor", "else"}));
    --loops_;
    stmt->bodies.emplace_back();
    if (advance().text == "else") stmt->bodies.back() = whole_body("endfor");
    return stmt;
  }

  Stmt* if_branches() {
    Stmt* stmt = make_stmt(StmtKind::kIf, current().line);
    soft(true);
    do {
      advance();  // if, elif
      stmt->exprs.push_back(tuple(false));
      stmt->bodies.push_back(body({"elif", "else", "endif"}));
    } while (current().is_name("elif"));
    if (advance().text == "else") {
      stmt->bodies.push_back(body({"endif"}));
      advance();
    }
    soft(false);
    return stmt;
  }

  Stmt* set() {
    Stmt* stmt = make_stmt(StmtKind::kSet, advance().line);
    stmt->target = assign_target(true);
    if (skip_operator("=")) {
      stmt->expr = tuple(true);
      return stmt;
    }
    stmt->kind = StmtKind::kSetBlock;
    if (current().is_operator("|")) stmt->expr = filters(nullptr, false);
    stmt->bodies.push_back(whole_body("endset"));
    return stmt;
  }

  void signature(Stmt* stmt) {
    expect_operator("(");
    while (!current().is_operator(")")) {
      if (!stmt->targets.empty()) expect_operator(",");
      stmt->targets.push_back(name_target());
      if (skip_operator("="))
        stmt->defaults.push_back(expression());
      else if (!stmt->defaults.empty())
        syntax_error("non-default argument follows default argument");
    }
    expect_operator(")");
    for (const Expr* parameter : stmt->targets) {
      const auto same = [&](const Expr* other) { return other->name == parameter->name; };
      if (std::count_if(stmt->targets.begin(), stmt->targets.end(), same) > 1) {
        throw Failure("SyntaxError", "duplicate argument '" + parameter->name + "' in function definition", stmt->line);
      }
    }
  }

  std::vector<Stmt*> function_body(std::string_view end) {
    const int loops = std::exchange(loops_, 0);  // break does not reach out of a function
    auto result = whole_body(end);
    loops_ = loops;
    return result;
  }

  Stmt* macro() {
    Stmt* stmt = make_stmt(StmtKind::kMacro, advance().line);
    stmt->target = name_target();
    stmt->name = stmt->target->name;
    signature(stmt);
    stmt->bodies.push_back(function_body("endmacro"));
    return stmt;
  }

  Stmt* call_block() {
    Stmt* stmt = make_stmt(StmtKind::kCallBlock, advance().line);
    if (current().is_operator("(")) signature(stmt);
    stmt->expr = expression();
    if (stmt->expr->kind != ExprKind::kCall) syntax_error("expected call", stmt->line);
    stmt->bodies.push_back(function_body("endcall"));
    return stmt;
  }

  Stmt* generation() {
    Stmt* stmt = make_stmt(StmtKind::kGeneration, advance().line);
    stmt->bodies.push_back(function_body("endgeneration"));
    return stmt;
  }

  Stmt* filter_block() {
    Stmt* stmt = make_stmt(StmtKind::kFilterBlock, advance().line);
    stmt->expr = filters(nullptr, true);
    stmt->bodies.push_back(whole_body("endfilter"));
    return stmt;
  }

  Stmt* with() {
    Stmt* stmt = make_stmt(StmtKind::kWith, advance().line);
    while (current().kind != TokenKind::kBlockEnd) {
      if (!stmt->targets.empty()) expect_operator(",");
      stmt->targets.push_back(assign_target(false));
      expect_operator("=");
      stmt->exprs.push_back(expression());
    }
    stmt->bodies.push_back(whole_body("endwith"));
    return stmt;
  }

  Stmt* autoescape() {
    Stmt* stmt = make_stmt(StmtKind::kAutoescape, advance().line);
    stmt->expr = expression();
    stmt->bodies.push_back(whole_body("endautoescape"));
    Stmt* scope = make_stmt(StmtKind::kScopedBlock, stmt->line);
    scope->bodies.push_back({stmt});
    return scope;
  }

  Stmt* block() {
    Stmt* stmt = make_stmt(StmtKind::kBlock, advance().line);
    stmt->name = expect(TokenKind::kName).text;
    stmt->scoped = skip_name("scoped");
    const bool required = skip_name("required");
    if (current().is_operator("-"))
      syntax_error(
          "Block names in Jinja have to be valid Python identifiers and may not contain hyphens, use an underscore "
          "instead.");
    stmt->bodies.push_back(function_body("endblock"));
    if (required) syntax_error("Required blocks can only contain comments or whitespace", stmt->line);
    skip_name(stmt->name);
    if (!tree_->blocks.emplace(stmt->name, stmt).second) {
      throw Failure("TemplateAssertionError", "block '" + stmt->name + "' defined twice", stmt->line);
    }
    return stmt;
  }

  Stmt* print() {
    Stmt* stmt = make_stmt(StmtKind::kOutput, advance().line);
    while (current().kind != TokenKind::kBlockEnd) {
      if (!stmt->exprs.empty()) expect_operator(",");
      stmt->exprs.push_back(expression());
    }
    return stmt;
  }

  Stmt* loop_control() {
    const Token& token = advance();
    if (loops_ == 0) throw Failure("SyntaxError", "'" + token.text + "' outside loop", token.line);
    return make_stmt(token.text == "break" ? StmtKind::kBreak : StmtKind::kContinue, token.line);
  }

  // Parsed no further than needed: these tags need other templates, and there are none.
  Stmt* loader() {
    Stmt* stmt = make_stmt(StmtKind::kLoader, current().line);
    stmt->name = advance().text;
    expression();
    while (current().kind != TokenKind::kBlockEnd && current().kind != TokenKind::kEnd) advance();
    return stmt;
  }

  std::vector<Names> open_tags_;
  int loops_ = 0;
};

}  // namespace

std::unique_ptr<Tree> parse(std::string_view source) {
  Parser parser(source);
  auto tree = parser.run();
  resolve_scopes(*tree);
  return tree;
}

}  // namespace calandra::jinja
