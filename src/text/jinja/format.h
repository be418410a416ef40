// str() and repr() of values, and the building of text under a memory limit.
#pragma once

#include "text/jinja/value.h"

#include <utility>

namespace calandra::jinja {

class Interpreter;

// Text that may grow by more than its inputs (join, replace, repeat, padding): checked against the meter before it
// grows.
class TextBuilder {
 public:
  explicit TextBuilder(Meter& meter) : meter_(meter) {}
  ~TextBuilder() { meter_.give(charged_); }
  TextBuilder(const TextBuilder&) = delete;
  TextBuilder& operator=(const TextBuilder&) = delete;

  void append(std::string_view text, bool is_input) {
    grow(text.size());
    text_.append(text, is_input);
  }
  void append(const MarkedString& text) { append(text, 0, text.size()); }
  void append(const MarkedString& text, size_t begin, size_t end) {
    grow(end - begin);
    text_.append(text, begin, end);
  }
  void repeat(std::string_view text, bool is_input, int64_t count);
  void append_char(char32_t c, bool is_input);
  size_t size() const { return text_.size(); }
  MarkedString take() {
    meter_.give(std::exchange(charged_, 0));
    return std::move(text_);
  }

 private:
  void grow(size_t bytes) {
    meter_.take(bytes);
    charged_ += bytes;
    meter_.work(bytes);
  }

  Meter& meter_;
  MarkedString text_;
  size_t charged_ = 0;
};

MarkedString to_text(Interpreter& in, const Value& value);  // str(value)
std::string repr(Interpreter& in, const Value& value);
std::string plain_repr(const Value& value);  // without the contents of objects; for messages
bool has_input(const Value& value);          // whether any text inside was written by the user

std::string float_repr(double value);  // shortest, as Python prints it: "1e+16", "2.0"
std::string integer_text(const Value& integral);
std::string text_repr(std::string_view text);  // repr of a str

// HTML escaping (markupsafe). Markup is not escaped again.
Value escape(Interpreter& in, const Value& value);
MarkedString escape_text(Meter& meter, const MarkedString& text);

}  // namespace calandra::jinja
