// OutputForm: the form that a request asks its answer to have.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"

namespace calandra {

// Blanks in a row that JSON may have where it needs none: nested texts may be indented, and a model that writes nothing
// but blanks is led on.
inline constexpr int kMostBlanks = 32;

struct OutputForm {
  enum class Kind { kJsonObject, kJsonSchema, kRegex, kEbnf, kStructuralTag };
  Kind kind = Kind::kJsonObject;
  std::string text = {};  // schema as JSON, expression, grammar (root rule "root"), or structural tag as JSON
  bool strict = false;    // of a schema: objects have no properties but the named ones
  bool compact = false;   // of JSON: on one line, a space behind each comma and colon and none elsewhere
  std::string field = "response_format";  // of the request, which errors name
  std::vector<std::string> tools = {};    // of tool_form: names of the tools, in the order of its tags

  static OutputForm json_schema(const json::value& schema, bool strict);
  // xgrammar's; the schemas in it are kept as those of json_schema, and have no more blanks.
  static OutputForm structural_tag(json::value tag);
  // The whole answer matches it; "." is any character but a newline.
  static OutputForm regex(std::string_view expression);
  // One of the texts.
  static OutputForm choice(const std::vector<std::string>& texts);
};

// Empty, or why this is refused before it is compiled: it would take unbounded time or memory, or not be kept in full.
std::string refusal_of(const OutputForm& form);

}  // namespace calandra
