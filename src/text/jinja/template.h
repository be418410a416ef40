// A compiled Jinja template: jinja2 3.1 in the environment of Hugging Face chat templates (immutable sandbox,
// trim_blocks, lstrip_blocks, loop controls, `{% generation %}`, tojson without escaping, raise_exception,
// strftime_now).
#pragma once

#include "base/json.h"
#include "text/jinja/budget.h"
#include "text/jinja/marked_string.h"

#include <ctime>
#include <memory>
#include <string>
#include <string_view>

namespace calandra::jinja {

struct Tree;

// A variable for a rendering. Strings inside of an input value count as written by the user.
struct Variable {
  std::string name;
  json::value value;
  bool is_input = true;
};

class Template {
 public:
  // Throws Failure (TemplateSyntaxError, TemplateAssertionError, …) with the line. At most 1 MiB of text.
  explicit Template(std::string_view source);
  ~Template();
  Template(Template&&) noexcept;
  Template& operator=(Template&&) noexcept;

  // May run on several threads at once. Throws Failure; a later variable hides an earlier one of the same name.
  MarkedString render(const std::vector<Variable>& variables, const std::tm& now, const Budgets& budgets = {}) const;

 private:
  std::unique_ptr<Tree> tree_;
};

}  // namespace calandra::jinja
