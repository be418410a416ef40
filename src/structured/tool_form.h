// The form of answers that call tools: a structural tag of xgrammar, made from the tool list in the model's own format.
#pragma once

#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "base/error.h"
#include "base/json.h"
#include "structured/output_form.h"
#include "text/parsers/answer_parser.h"

namespace calandra {

struct ToolForm {
  ToolFormat format = ToolFormat::kQwen3Coder;
  bool required = true;    // the answer is calls and nothing else, at least one; false: text with calls in it, or none
  bool thoughts = false;   // it comes behind thoughts, where models begin with empty lines
  bool one_call = false;   // no call behind the first
  bool all_strict = true;  // false: only tools that say "strict": true have their arguments constrained
};

// What is said of a tool whose schema cannot be kept.
std::string refusal_of_calls(std::string_view tool, std::string_view why);

// `tools`: OpenAI's list, of which read_tool takes every entry. What it allows the parser of the
// format reads back as calls of these tools whose arguments are valid by their schemas; schemas of which that cannot be
// promised are errors. It allows less than they do: arguments come in the order of the schema, no unnamed ones.
std::variant<OutputForm, RequestError> tool_form(const json::array& tools, const ToolForm& wanted);

// The tags of such a form, one for each of its tools.
json::array tags_of_tools(const OutputForm& form);

}  // namespace calandra
