// Template text to a syntax tree: jinja2's grammar with loop controls and `{% generation %}`.
#pragma once

#include "text/jinja/ast.h"
#include "text/jinja/lexer.h"

#include <initializer_list>
#include <memory>

namespace calandra::jinja {

// Throws Failure (TemplateSyntaxError, TemplateAssertionError, SyntaxError) with the line.
std::unique_ptr<Tree> parse(std::string_view source);

// The two halves of the parser share the token stream, the arena and the limit of nesting.
class ParserState {
 public:
  explicit ParserState(std::string_view source) : tokens_(tokenize(source)), tree_(std::make_unique<Tree>()) {}

 protected:
  const Token& current() const { return tokens_[at_]; }
  const Token& look() const { return tokens_[std::min(at_ + 1, tokens_.size() - 1)]; }
  const Token& advance() { return tokens_[at_ + 1 < tokens_.size() ? at_++ : at_]; }
  bool skip_operator(std::string_view symbol);
  bool skip_name(std::string_view name);
  void expect_operator(std::string_view symbol);
  const Token& expect(TokenKind kind);
  static std::string described(const Token& token);
  [[noreturn]] void syntax_error(const std::string& message, int line = 0) const;

  Expr* make(ExprKind kind, int line);
  // Records operands' depth; refuses trees that are too deep to walk.
  Expr* finish(Expr* expr) const;

  class Nesting {
   public:
    explicit Nesting(ParserState& parser);
    ~Nesting() { --parser_.nesting_; }
    Nesting(const Nesting&) = delete;
    Nesting& operator=(const Nesting&) = delete;

   private:
    ParserState& parser_;
  };

  std::vector<Token> tokens_;
  size_t at_ = 0;
  int nesting_ = 0;
  std::unique_ptr<Tree> tree_;
};

class ExpressionParser : public ParserState {
 public:
  using ParserState::ParserState;

 protected:
  Expr* expression(bool with_condition = true);
  // Comma-separated expressions: one alone is itself, otherwise a tuple. `end_name` is a name that ends it.
  Expr* tuple(bool with_condition, std::string_view end_name = {}, bool in_parentheses = false);
  Expr* assign_target(bool with_namespace, std::string_view end_name = {});
  Expr* name_target();
  Expr* filters(Expr* first, bool starts_inline);  // `| name(args) | …`; starts_inline: the first without its bar
  void soft(bool on) { soft_ += on ? 1 : -1; }

  int soft_ = 0;  // inside of branches (above 0) unknown filters are errors only when reached

 private:
  Expr* condition();
  Expr* disjunction();
  Expr* conjunction();
  Expr* negation();
  Expr* comparison();
  Expr* sum();
  Expr* concatenation();
  Expr* product();
  Expr* power();
  Expr* unary(bool with_filters);
  Expr* primary(bool with_namespace);
  Expr* postfix(Expr* expr);
  Expr* filters_and_tests(Expr* expr);
  Expr* subscript(Expr* expr);
  Expr* subscribed();
  Expr* list();
  Expr* dict();
  Expr* test(Expr* expr);
  Expr* binary(BinaryOp op, Expr* a, Expr* b, int line);
  void call_arguments(Expr* call);
  Expr* target_tuple(bool with_namespace, std::string_view end_name);
  bool is_tuple_end(std::string_view end_name) const;
};

}  // namespace calandra::jinja
