// Errors of templates. `kind` is the Python class that jinja2 would raise (TypeError, UndefinedError,
// TemplateSyntaxError, …); "TemplateError" is raise_exception, whose message reaches the client unchanged;
// "BudgetError" is ours.
#pragma once

#include <stdexcept>
#include <string>

namespace calandra::jinja {

class Failure : public std::runtime_error {
 public:
  Failure(std::string kind, const std::string& message, int line = 0)
      : std::runtime_error(message), kind_(std::move(kind)), line_(line) {}

  const std::string& kind() const { return kind_; }
  int line() const { return line_; }  // of the template, from 1; 0: not known
  void set_line(int line) {
    if (line_ == 0) line_ = line;
  }
  bool is_raised_by_template() const { return kind_ == "TemplateError"; }

 private:
  std::string kind_;
  int line_;
};

[[noreturn]] inline void fail(const char* kind, const std::string& message) { throw Failure(kind, message); }
[[noreturn]] inline void type_error(const std::string& message) { throw Failure("TypeError", message); }
[[noreturn]] inline void value_error(const std::string& message) { throw Failure("ValueError", message); }

}  // namespace calandra::jinja
