#include "text/jinja/marked_string.h"

#include <algorithm>

namespace calandra::jinja {

bool MarkedString::input_at(size_t offset) const {
  const auto flips_before = std::upper_bound(flips_.begin(), flips_.end(), offset) - flips_.begin();
  return first_ != (flips_before % 2 == 1);
}

void MarkedString::append(std::string_view text, bool is_input) {
  if (text.empty()) return;
  if (text_.empty()) {
    first_ = is_input;
  } else if ((first_ != (flips_.size() % 2 == 1)) != is_input) {
    flips_.push_back(text_.size());
  }
  text_ += text;
}

void MarkedString::append(const MarkedString& other, size_t begin, size_t end) {
  const std::string_view text = other.text_;
  if (other.flips_.empty()) return append(text.substr(begin, end - begin), other.first_);
  bool mark = other.input_at(begin);
  auto flip = std::upper_bound(other.flips_.begin(), other.flips_.end(), begin);
  while (begin < end) {
    const size_t stop = flip == other.flips_.end() ? end : std::min(end, *flip++);
    append(text.substr(begin, stop - begin), mark);
    begin = stop;
    mark = !mark;
  }
}

MarkedString MarkedString::slice(size_t begin, size_t end) const {
  MarkedString part;
  part.append(*this, begin, end);
  return part;
}

std::vector<TextPiece> MarkedString::pieces() const {
  std::vector<TextPiece> pieces;
  bool mark = first_;
  size_t begin = 0;
  for (size_t i = 0; i <= flips_.size() && begin < text_.size(); ++i) {
    const size_t end = i < flips_.size() ? flips_[i] : text_.size();
    pieces.push_back({text_.substr(begin, end - begin), mark});
    begin = end;
    mark = !mark;
  }
  return pieces;
}

}  // namespace calandra::jinja
