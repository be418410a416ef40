// What a chat's tools, tool_choice and parallel_tool_calls ask of its answers.
#pragma once

#include <optional>
#include <variant>

#include "base/error.h"
#include "structured/tool_form.h"

namespace calandra::apps {

struct ToolChoice {
  bool named = false;              // of one function: its answer ends with "stop"
  bool required = false;           // its answer has a call
  std::optional<OutputForm> form;  // absent: calls are the model's affair
};

// `format`: how the model writes calls; `thoughts`: the answer begins with some. The tools of the body have been
// checked to be functions with names.
std::variant<ToolChoice, RequestError> read_tool_choice(const json::object& body, ToolFormat format, bool thoughts);

}  // namespace calandra::apps
