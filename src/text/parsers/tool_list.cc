#include "text/parsers/tool_list.h"

#include "base/json_member.h"

namespace calandra {

std::optional<Tool> read_tool(const json::value& entry) {
  const json::value* inner = entry.is_object() ? find_field(entry.get_object(), "function") : nullptr;
  if (inner == nullptr || !inner->is_object()) return std::nullopt;
  const json::object& function = inner->get_object();
  const json::value* name = find_field(function, "name");
  if (name == nullptr || !name->is_string() || name->get_string().empty()) return std::nullopt;
  const json::value* type = find_field(entry.get_object(), "type");
  const json::value* description = find_field(function, "description");
  const json::value* parameters = find_field(function, "parameters");
  if (type != nullptr && *type != "function") return std::nullopt;
  if ((description != nullptr && !description->is_string()) || (parameters != nullptr && !parameters->is_object()))
    return std::nullopt;
  const json::value* strict = find_field(function, "strict");
  return Tool{name->get_string(), parameters, strict != nullptr && *strict == json::value(true)};
}

std::optional<Tool> find_tool(const json::array& tools, std::string_view name) {
  for (const json::value& entry : tools)
    if (const std::optional<Tool> tool = read_tool(entry); tool && tool->name == name) return tool;
  return std::nullopt;
}

}  // namespace calandra
