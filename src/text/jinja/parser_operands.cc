// Operands: names, literals, tuples, assignment targets, and what follows them: subscripts, calls, filters, tests.
#include "text/jinja/filters.h"
#include "text/jinja/parser.h"

namespace calandra::jinja {
namespace {

bool is_constant_name(const std::string& name) {
  return name == "true" || name == "True" || name == "false" || name == "False" || name == "none" || name == "None";
}

}  // namespace

Expr* ExpressionParser::primary(bool with_namespace) {
  const Token& token = current();
  switch (token.kind) {
    case TokenKind::kName: {
      advance();
      Expr* node = make(ExprKind::kName, token.line);
      node->name = token.text;
      if (is_constant_name(token.text)) {
        node->kind = ExprKind::kConst;
        node->value = token.text[0] == 'n' || token.text[0] == 'N' ? Value::none()
                                                                   : Value::boolean((token.text[0] | 0x20) == 't');
      } else if (with_namespace && skip_operator(".")) {
        node->kind = ExprKind::kNamespaceRef;
        node->value = Value::string(nullptr, expect(TokenKind::kName).text);
      }
      return node;
    }
    case TokenKind::kString: {
      Expr* node = make(ExprKind::kConst, token.line);
      std::string text;
      while (current().kind == TokenKind::kString) text += advance().text;
      node->value = Value::string(nullptr, std::move(text));
      return node;
    }
    case TokenKind::kInteger:
    case TokenKind::kFloat: {
      advance();
      Expr* node = make(ExprKind::kConst, token.line);
      node->value = token.value;
      return node;
    }
    default:
      break;
  }
  if (skip_operator("(")) {
    Expr* node = tuple(true, {}, true);
    expect_operator(")");
    return node;
  }
  if (token.is_operator("[")) return list();
  if (token.is_operator("{")) return dict();
  syntax_error("unexpected '" + described(token) + "'");
}

bool ExpressionParser::is_tuple_end(std::string_view end_name) const {
  const Token& token = current();
  return token.kind == TokenKind::kPrintEnd || token.kind == TokenKind::kBlockEnd || token.is_operator(")") ||
         (!end_name.empty() && token.is_name(end_name));
}

Expr* ExpressionParser::tuple(bool with_condition, std::string_view end_name, bool in_parentheses) {
  const int line = current().line;
  std::vector<Expr*> items;
  bool is_tuple = false;
  while (true) {
    if (!items.empty()) expect_operator(",");
    if (is_tuple_end(end_name)) break;
    items.push_back(expression(with_condition));
    if (!current().is_operator(",")) break;
    is_tuple = true;
  }
  if (!is_tuple && !items.empty()) return items[0];
  if (!is_tuple && !in_parentheses) syntax_error("Expected an expression, got '" + described(current()) + "'");
  Expr* node = make(ExprKind::kTuple, line);
  node->items = std::move(items);
  return finish(node);
}

Expr* ExpressionParser::target_tuple(bool with_namespace, std::string_view end_name) {
  const Nesting nesting(*this);
  const int line = current().line;
  std::vector<Expr*> items;
  bool is_tuple = false;
  while (true) {
    if (!items.empty()) expect_operator(",");
    if (is_tuple_end(end_name)) break;
    items.push_back(primary(with_namespace));
    if (!current().is_operator(",")) break;
    is_tuple = true;
  }
  if (!is_tuple && !items.empty()) return items[0];
  if (!is_tuple) syntax_error("Expected an expression, got '" + described(current()) + "'");
  Expr* node = make(ExprKind::kTuple, line);
  node->items = std::move(items);
  return finish(node);
}

Expr* ExpressionParser::assign_target(bool with_namespace, std::string_view end_name) {
  Expr* target = target_tuple(with_namespace, end_name);
  std::vector<const Expr*> open = {target};
  while (!open.empty()) {
    const Expr* part = open.back();
    open.pop_back();
    if (part->kind == ExprKind::kTuple) {
      open.insert(open.end(), part->items.begin(), part->items.end());
    } else if (part->kind != ExprKind::kName && part->kind != ExprKind::kNamespaceRef) {
      syntax_error(std::string("can't assign to '") + (part->kind == ExprKind::kConst ? "const" : "expression") + "'");
    }
  }
  return target;
}

Expr* ExpressionParser::name_target() {
  const Token& token = expect(TokenKind::kName);
  if (is_constant_name(token.text)) syntax_error("can't assign to 'name'");
  Expr* node = make(ExprKind::kName, token.line);
  node->name = token.text;
  return node;
}

Expr* ExpressionParser::list() {
  Expr* node = make(ExprKind::kList, advance().line);
  while (!current().is_operator("]")) {
    if (!node->items.empty()) expect_operator(",");
    if (current().is_operator("]")) break;
    node->items.push_back(expression());
  }
  expect_operator("]");
  return finish(node);
}

Expr* ExpressionParser::dict() {
  Expr* node = make(ExprKind::kDict, advance().line);
  while (!current().is_operator("}")) {
    if (!node->items.empty()) expect_operator(",");
    if (current().is_operator("}")) break;
    node->items.push_back(expression());
    expect_operator(":");
    node->items.push_back(expression());
  }
  expect_operator("}");
  return finish(node);
}

Expr* ExpressionParser::postfix(Expr* expr) {
  while (true) {
    if (current().is_operator(".") || current().is_operator("[")) {
      expr = subscript(expr);
    } else if (current().is_operator("(")) {
      Expr* call = make(ExprKind::kCall, current().line);
      call->a = expr;
      call_arguments(call);
      expr = finish(call);
    } else {
      return expr;
    }
  }
}

Expr* ExpressionParser::filters_and_tests(Expr* expr) {
  while (true) {
    if (current().is_operator("|")) {
      expr = filters(expr, false);
    } else if (current().is_name("is")) {
      expr = test(expr);
    } else if (current().is_operator("(")) {
      Expr* call = make(ExprKind::kCall, current().line);
      call->a = expr;
      call_arguments(call);
      expr = finish(call);
    } else {
      return expr;
    }
  }
}

Expr* ExpressionParser::subscript(Expr* expr) {
  const Token& open = advance();
  if (open.text == ".") {
    const Token& name = advance();
    if (name.kind == TokenKind::kName) {
      Expr* node = make(ExprKind::kAttribute, name.line);
      node->a = expr;
      node->name = name.text;
      return finish(node);
    }
    if (name.kind != TokenKind::kInteger) syntax_error("expected name or number", name.line);
    Expr* node = make(ExprKind::kItem, name.line);
    node->a = expr;
    node->b = make(ExprKind::kConst, name.line);
    node->b->value = name.value;
    return finish(node);
  }
  std::vector<Expr*> parts;
  while (!current().is_operator("]")) {
    if (!parts.empty()) expect_operator(",");
    parts.push_back(subscribed());
  }
  expect_operator("]");
  Expr* node = make(ExprKind::kItem, open.line);
  node->a = expr;
  if (parts.size() == 1) {
    node->b = parts[0];
  } else {
    node->b = make(ExprKind::kTuple, open.line);
    node->b->items = std::move(parts);
    finish(node->b);
  }
  return finish(node);
}

// An index or a slice a:b:c, in which every part may be missing.
Expr* ExpressionParser::subscribed() {
  const int line = current().line;
  Expr* start = nullptr;
  if (!current().is_operator(":")) {
    start = expression();
    if (!current().is_operator(":")) return start;
  }
  advance();
  Expr* slice = make(ExprKind::kSlice, line);
  slice->a = start;
  const auto ends = [&] { return current().is_operator("]") || current().is_operator(","); };
  if (!current().is_operator(":") && !ends()) slice->b = expression();
  if (skip_operator(":") && !ends()) slice->c = expression();
  return finish(slice);
}

void ExpressionParser::call_arguments(Expr* call) {
  const int line = current().line;
  expect_operator("(");
  const auto ensure = [&](bool holds) {
    if (!holds) syntax_error("invalid syntax for function call expression", line);
  };
  bool needs_comma = false;
  while (!current().is_operator(")")) {
    if (needs_comma) {
      expect_operator(",");
      if (current().is_operator(")")) break;
    }
    if (skip_operator("*")) {
      ensure(call->more_items == nullptr && call->more_named == nullptr);
      call->more_items = expression();
    } else if (skip_operator("**")) {
      ensure(call->more_named == nullptr);
      call->more_named = expression();
    } else if (current().kind == TokenKind::kName && look().is_operator("=")) {
      ensure(call->more_named == nullptr);
      const std::string name = advance().text;
      advance();
      for (const auto& [other, value] : call->named) {
        if (other == name) throw Failure("SyntaxError", "keyword argument repeated: " + name, line);
      }
      call->named.emplace_back(name, expression());
    } else {
      ensure(call->more_items == nullptr && call->more_named == nullptr && call->named.empty());
      call->items.push_back(expression());
    }
    needs_comma = true;
  }
  expect_operator(")");
}

Expr* ExpressionParser::filters(Expr* expr, bool starts_inline) {
  while (current().is_operator("|") || starts_inline) {
    if (!starts_inline) advance();
    starts_inline = false;
    const Token& token = expect(TokenKind::kName);
    Expr* node = make(ExprKind::kFilter, token.line);
    node->a = expr;
    node->name = token.text;
    while (skip_operator(".")) node->name += "." + expect(TokenKind::kName).text;
    if (current().is_operator("(")) call_arguments(node);
    node->filter = find_filter(node->name);
    if (node->filter == nullptr && soft_ == 0) {
      throw Failure("TemplateAssertionError", "No filter named '" + node->name + "'.", token.line);
    }
    expr = finish(node);
  }
  return expr;
}

Expr* ExpressionParser::test(Expr* expr) {
  const int line = advance().line;  // is
  const bool negated = skip_name("not");
  Expr* node = make(ExprKind::kTest, line);
  node->a = expr;
  node->name = expect(TokenKind::kName).text;
  while (skip_operator(".")) node->name += "." + expect(TokenKind::kName).text;
  const Token& next = current();
  if (next.is_operator("(")) {
    call_arguments(node);
  } else if ((next.kind == TokenKind::kName || next.kind == TokenKind::kString || next.kind == TokenKind::kInteger ||
              next.kind == TokenKind::kFloat || next.is_operator("[") || next.is_operator("{")) &&
             !next.is_name("else") && !next.is_name("or") && !next.is_name("and")) {
    if (next.is_name("is")) syntax_error("You cannot chain multiple tests with is");
    node->items.push_back(postfix(primary(false)));
  }
  node->test = find_test(node->name);
  if (node->test == nullptr && soft_ == 0)
    throw Failure("TemplateAssertionError", "No test named '" + node->name + "'.", line);
  finish(node);
  if (!negated) return node;
  Expr* negation = make(ExprKind::kNot, line);
  negation->a = node;
  return finish(negation);
}

}  // namespace calandra::jinja
