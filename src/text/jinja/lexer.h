// Template text to tokens, with jinja's white space rules (trim_blocks and lstrip_blocks on, one trailing newline
// dropped).
#pragma once

#include "text/jinja/value.h"

#include <string>
#include <string_view>
#include <vector>

namespace calandra::jinja {

enum class TokenKind : uint8_t {
  kText,  // outside of tags
  kPrintBegin,
  kPrintEnd,
  kBlockBegin,
  kBlockEnd,
  kName,
  kString,
  kInteger,
  kFloat,
  kOperator,
  kEnd,
};

struct Token {
  TokenKind kind = TokenKind::kEnd;
  int line = 1;
  std::string text;  // text, name, operator or unescaped string
  Value value;       // of numbers

  bool is_operator(std::string_view symbol) const { return kind == TokenKind::kOperator && text == symbol; }
  bool is_name(std::string_view name) const { return kind == TokenKind::kName && text == name; }
};

// Throws Failure("TemplateSyntaxError").
std::vector<Token> tokenize(std::string_view source);

}  // namespace calandra::jinja
