// A stretch of prompt text with its origin.
#pragma once

#include <string>

namespace calandra {

struct TextPiece {
  std::string text;
  bool is_input = false;  // came from a request: special tokens are never recognised in it
};

}  // namespace calandra
