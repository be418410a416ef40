// Token stream, tree building, and operators from `if … else` down to unary signs.
#include "text/jinja/parser.h"

#include <algorithm>
#include <set>

namespace calandra::jinja {
namespace {

constexpr int kMaxNesting = 150;    // of brackets and blocks in the source
constexpr int kMaxTreeDepth = 400;  // of operators, filters, attributes one on the other

// Filters that need the context are not computed by the compiler.
bool is_evaluated_late(const Expr& expr) {
  static const std::set<std::string_view> kLate = {"map", "select", "reject", "selectattr", "rejectattr", "random"};
  return expr.kind == ExprKind::kFilter && (kLate.contains(expr.name) || expr.a == nullptr);
}

}  // namespace

ParserState::Nesting::Nesting(ParserState& parser) : parser_(parser) {
  if (parser.nesting_ >= kMaxNesting) parser.syntax_error("the template is nested too deep");
  ++parser.nesting_;
}

bool ParserState::skip_operator(std::string_view symbol) {
  if (!current().is_operator(symbol)) return false;
  advance();
  return true;
}

bool ParserState::skip_name(std::string_view name) {
  if (!current().is_name(name)) return false;
  advance();
  return true;
}

std::string ParserState::described(const Token& token) {
  switch (token.kind) {
    case TokenKind::kText:
      return "template data";
    case TokenKind::kPrintBegin:
      return "begin of print statement";
    case TokenKind::kPrintEnd:
      return "end of print statement";
    case TokenKind::kBlockBegin:
      return "begin of statement block";
    case TokenKind::kBlockEnd:
      return "end of statement block";
    case TokenKind::kString:
      return "string";
    case TokenKind::kInteger:
      return "integer";
    case TokenKind::kFloat:
      return "float";
    case TokenKind::kEnd:
      return "end of template";
    default:
      return token.text;
  }
}

void ParserState::syntax_error(const std::string& message, int line) const {
  throw Failure("TemplateSyntaxError", message, line > 0 ? line : current().line);
}

void ParserState::expect_operator(std::string_view symbol) {
  if (skip_operator(symbol)) return;
  if (current().kind == TokenKind::kEnd)
    syntax_error("unexpected end of template, expected '" + std::string(symbol) + "'.");
  syntax_error("expected token '" + std::string(symbol) + "', got '" + described(current()) + "'");
}

const Token& ParserState::expect(TokenKind kind) {
  if (current().kind == kind) return advance();
  Token wanted;
  wanted.kind = kind;
  const std::string name = kind == TokenKind::kName ? "name" : described(wanted);
  if (current().kind == TokenKind::kEnd) syntax_error("unexpected end of template, expected '" + name + "'.");
  syntax_error("expected token '" + name + "', got '" + described(current()) + "'");
}

Expr* ParserState::make(ExprKind kind, int line) {
  Expr& expr = tree_->exprs.emplace_back();
  expr.kind = kind;
  expr.line = line;
  return &expr;
}

Expr* ParserState::finish(Expr* expr) const {
  int depth = 0;
  bool is_constant = expr->kind != ExprKind::kCall && !is_evaluated_late(*expr);
  const auto add = [&](const Expr* part) {
    if (part == nullptr) return;
    depth = std::max(depth, part->depth);
    is_constant = is_constant && (part->is_constant || part->kind == ExprKind::kConst);
  };
  add(expr->a);
  add(expr->b);
  add(expr->c);
  add(expr->more_items);
  add(expr->more_named);
  for (const Expr* item : expr->items) add(item);
  for (const auto& [name, value] : expr->named) add(value);
  expr->depth = depth + 1;
  expr->is_constant = is_constant;
  if (expr->depth > kMaxTreeDepth) syntax_error("an expression is too deep");
  return expr;
}

Expr* ExpressionParser::expression(bool with_condition) {
  const Nesting nesting(*this);
  return with_condition ? condition() : disjunction();
}

Expr* ExpressionParser::condition() {
  Expr* value = disjunction();
  while (current().is_name("if")) {
    Expr* node = make(ExprKind::kCondition, advance().line);
    soft(true);
    node->a = disjunction();
    node->b = value;
    if (skip_name("else")) {
      const Nesting nesting(*this);
      node->c = condition();
    }
    soft(false);
    value = finish(node);
  }
  return value;
}

Expr* ExpressionParser::disjunction() {
  Expr* left = conjunction();
  while (current().is_name("or")) {
    Expr* node = make(ExprKind::kOr, advance().line);
    node->a = left;
    node->b = conjunction();
    left = finish(node);
  }
  return left;
}

Expr* ExpressionParser::conjunction() {
  Expr* left = negation();
  while (current().is_name("and")) {
    Expr* node = make(ExprKind::kAnd, advance().line);
    node->a = left;
    node->b = negation();
    left = finish(node);
  }
  return left;
}

Expr* ExpressionParser::negation() {
  if (!current().is_name("not")) return comparison();
  const Nesting nesting(*this);
  Expr* node = make(ExprKind::kNot, advance().line);
  node->a = negation();
  return finish(node);
}

Expr* ExpressionParser::comparison() {
  static const std::set<std::string_view> kOperators = {"==", "!=", "<", "<=", ">", ">="};
  const int line = current().line;
  Expr* first = sum();
  Expr* node = nullptr;
  while (true) {
    std::string symbol;
    if (current().kind == TokenKind::kOperator && kOperators.contains(current().text)) {
      symbol = advance().text;
    } else if (skip_name("in")) {
      symbol = "in";
    } else if (current().is_name("not") && look().is_name("in")) {
      advance();
      advance();
      symbol = "not in";
    } else {
      return node == nullptr ? first : finish(node);
    }
    if (node == nullptr) {
      node = make(ExprKind::kCompare, line);
      node->a = first;
    }
    node->operators.push_back(symbol);
    node->items.push_back(sum());
  }
}

Expr* ExpressionParser::binary(BinaryOp op, Expr* a, Expr* b, int line) {
  Expr* node = make(ExprKind::kBinary, line);
  node->op = op;
  node->a = a;
  node->b = b;
  return finish(node);
}

Expr* ExpressionParser::sum() {
  Expr* left = concatenation();
  while (current().is_operator("+") || current().is_operator("-")) {
    const Token& sign = advance();
    left = binary(sign.text == "+" ? BinaryOp::kAdd : BinaryOp::kSub, left, concatenation(), sign.line);
  }
  return left;
}

Expr* ExpressionParser::concatenation() {
  Expr* first = product();
  if (!current().is_operator("~")) return first;
  Expr* node = make(ExprKind::kConcat, current().line);
  node->items.push_back(first);
  while (skip_operator("~")) node->items.push_back(product());
  return finish(node);
}

Expr* ExpressionParser::product() {
  Expr* left = power();
  while (true) {
    const Token& token = current();
    BinaryOp op;
    if (token.is_operator("*"))
      op = BinaryOp::kMul;
    else if (token.is_operator("/"))
      op = BinaryOp::kDiv;
    else if (token.is_operator("//"))
      op = BinaryOp::kFloorDiv;
    else if (token.is_operator("%"))
      op = BinaryOp::kMod;
    else
      return left;
    const int line = advance().line;
    left = binary(op, left, power(), line);
  }
}

// QUIRK: groups from the left, unlike Python: 2 ** 3 ** 2 is 64.
// QUIRK: jinja2 writes a computed constant into Python code without parentheses, so (-2) ** x there is -(2 ** x).
Expr* ExpressionParser::power() {
  Expr* left = unary(true);
  while (current().is_operator("**")) {
    const int line = advance().line;
    const bool is_constant = left->is_constant;
    left = binary(BinaryOp::kPow, left, unary(true), line);
    left->negates_power = is_constant && !left->is_constant;
  }
  return left;
}

Expr* ExpressionParser::unary(bool with_filters) {
  Expr* node = nullptr;
  if (current().is_operator("-") || current().is_operator("+")) {
    const Nesting nesting(*this);
    const Token& sign = advance();
    node = make(sign.text == "-" ? ExprKind::kNegate : ExprKind::kPlus, sign.line);
    node->a = unary(false);
    finish(node);
  } else {
    node = primary(false);
  }
  node = postfix(node);
  return with_filters ? filters_and_tests(node) : node;
}

}  // namespace calandra::jinja
