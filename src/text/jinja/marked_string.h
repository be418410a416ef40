// UTF-8 text that remembers which parts were written by the user ("input") and which by the template.
#pragma once

#include "text/text_piece.h"

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace calandra::jinja {

class MarkedString {
 public:
  MarkedString() = default;
  MarkedString(std::string text, bool is_input) : text_(std::move(text)), first_(is_input) {}

  const std::string& text() const { return text_; }
  size_t size() const { return text_.size(); }
  bool empty() const { return text_.empty(); }

  bool input_at(size_t offset) const;
  bool any_input() const { return !text_.empty() && (first_ || !flips_.empty()); }

  void append(std::string_view text, bool is_input);
  void append(const MarkedString& other) { append(other, 0, other.size()); }
  void append(const MarkedString& other, size_t begin, size_t end);
  MarkedString slice(size_t begin, size_t end) const;

  std::vector<TextPiece> pieces() const;
  size_t bytes() const { return text_.capacity() + flips_.capacity() * sizeof(size_t); }

 private:
  std::string text_;
  bool first_ = false;         // mark of the text before the first flip
  std::vector<size_t> flips_;  // offsets, strictly rising, in (0, size): the mark changes there
};

}  // namespace calandra::jinja
