#include "apps/api/tool_choice.h"

#include <algorithm>
#include <string>

#include "apps/api/body_fields.h"
#include "text/parsers/tool_list.h"

namespace calandra::apps {
namespace {

const json::object* find_object(const json::object& object, std::string_view key) {
  const json::value* value = find_field(object, key);
  return value == nullptr ? nullptr : value->if_object();
}

RequestError wrong(std::string message) { return {400, "invalid_value", "tool_choice", std::move(message)}; }

std::string_view name_of(const json::value& entry) {
  const std::optional<Tool> tool = read_tool(entry);
  return tool ? tool->name : std::string_view();
}

bool is_strict(const json::value& entry) { return read_tool(entry).value().strict; }

}  // namespace

std::variant<ToolChoice, RequestError> read_tool_choice(const json::object& body, ToolFormat format, bool thoughts) {
  ToolChoice result;
  const json::value* listed = find_field(body, "tools");
  json::array tools = listed == nullptr ? json::array() : listed->as_array();
  const json::value* choice = find_field(body, "tool_choice");
  if (choice != nullptr && *choice == "none") return result;
  bool required = choice != nullptr && *choice == "required", chosen = false;
  json::array names;  // objects with a function's name
  if (choice != nullptr && choice->is_object()) {
    const json::object& object = choice->get_object();
    const json::value* type = find_field(object, "type");
    if (type != nullptr && *type == "function") {
      result.named = required = true;
      names.push_back(*choice);
    } else if (const json::object* allowed = find_object(object, "allowed_tools");
               type != nullptr && *type == "allowed_tools" && allowed != nullptr) {
      const json::value* mode = find_field(*allowed, "mode");
      if (mode == nullptr || (*mode != "auto" && *mode != "required"))
        return wrong("tool_choice.allowed_tools.mode must be auto or required");
      required = *mode == "required";
      const json::value* list = find_field(*allowed, "tools");
      if (list == nullptr || !list->is_array() || list->get_array().empty())
        return wrong("tool_choice.allowed_tools.tools must be a list of functions");
      names = list->get_array();
    } else {
      return wrong("tool_choice must be none, auto, required, a function or allowed_tools");
    }
    chosen = true;
    json::array kept;
    for (const json::value& one : names) {
      const std::string_view name = name_of(one);
      const auto tool =
          std::find_if(tools.begin(), tools.end(), [&](const json::value& t) { return name_of(t) == name; });
      if (name.empty() || tool == tools.end()) return wrong("tool_choice must name functions of tools");
      kept.push_back(*tool);
    }
    tools = std::move(kept);
  } else if (choice != nullptr && !required && *choice != "auto") {
    return wrong("tool_choice must be none, auto, required, a function or allowed_tools");
  }
  if (required && tools.empty()) return wrong("tool_choice needs tools");
  if (!required && !chosen && std::none_of(tools.begin(), tools.end(), is_strict)) return result;
  if (format == ToolFormat::kNone) {
    if (!required && !chosen) return result;
    return wrong("tool_choice needs a model whose template writes calls as qwen3_coder or hermes do");
  }
  const json::value* parallel = find_field(body, "parallel_tool_calls");
  const bool one = result.named || (parallel != nullptr && *parallel == json::value(false));
  auto form = tool_form(
      tools, {.format = format, .required = required, .thoughts = thoughts, .one_call = one, .all_strict = required});
  if (auto* error = std::get_if<RequestError>(&form)) return std::move(*error);
  result.required = required;
  result.form = std::get<OutputForm>(std::move(form));
  return result;
}

}  // namespace calandra::apps
