// OpenAI's list of tools: [{"type": "function", "function": {"name", "parameters", "strict"}}, …].
#pragma once

#include <optional>
#include <string_view>

#include "base/json.h"

namespace calandra {

// A view of an entry.
struct Tool {
  std::string_view name;                    // never empty
  const json::value* parameters = nullptr;  // their schema, an object; null: it says none
  bool strict = false;
};

// Nothing: it is no function with a name, its type is another, its description is no text, or its parameters are no
// object.
std::optional<Tool> read_tool(const json::value& entry);
// The first tool of the list with this name.
std::optional<Tool> find_tool(const json::array& tools, std::string_view name);

}  // namespace calandra
