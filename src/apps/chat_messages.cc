#include "apps/chat_messages.h"

#include <fmt/format.h>

#include <optional>
#include <string>
#include <string_view>

namespace calandra::apps {
namespace {

RequestError wrong(std::string message, const char* code = "invalid_type") {
  return {400, code, "messages", "messages " + std::move(message)};
}

const json::value* find(const json::object& object, std::string_view name) {
  const json::value* value = object.if_contains(name);
  return value == nullptr || value->is_null() ? nullptr : value;
}

// The text of a message, or what is wrong with it.
std::variant<std::string, RequestError> text_of(const json::object& message) {
  const json::value* content = find(message, "content");
  if (content == nullptr) return std::string();
  if (content->is_string()) return std::string(content->get_string());
  if (!content->is_array()) return wrong("must have a text or a list of parts as content");
  std::string text;
  for (const json::value& part : content->get_array()) {
    const json::value* type = part.is_object() ? find(part.get_object(), "type") : nullptr;
    if (type == nullptr || !type->is_string()) return wrong("must have parts with a type as content");
    if (*type != "text" && *type != "input_text" && *type != "output_text")
      return wrong("may have parts of the type text only: pictures are not supported here", "unsupported_parameter");
    const json::value* words = find(part.get_object(), "text");
    if (words == nullptr || !words->is_string()) return wrong("have a part without text");
    text += words->get_string();
  }
  return text;
}

// Arguments of calls that are no JSON object, made one: templates go through their members.
void make_arguments_objects(json::array& calls) {
  for (json::value& call : calls) {
    json::value* function = call.is_object() ? call.get_object().if_contains("function") : nullptr;
    json::value* arguments =
        function != nullptr && function->is_object() ? function->get_object().if_contains("arguments") : nullptr;
    if (arguments == nullptr || arguments->is_object()) continue;
    json::object read;
    if (arguments->is_string() && !arguments->get_string().empty()) {
      try {
        json::value parsed = parse_json(arguments->get_string(), "arguments");
        if (parsed.is_object()) continue;  // as it is written
      } catch (const LoadError&) {         // a model wrote it: the next turn goes on with it
      }
      read["arguments"] = json::value(*arguments);
    }
    *arguments = std::move(read);
  }
}

bool is_role(std::string_view role) { return role == "user" || role == "assistant" || role == "tool"; }

}  // namespace

std::variant<json::array, RequestError> chat_messages(const json::array& messages) {
  json::array read;
  std::optional<std::string> system;
  for (const json::value& value : messages) {
    const json::object* given = value.if_object();
    if (given == nullptr) return wrong("must be a list of objects");
    const json::value* role = find(*given, "role");
    if (role == nullptr || !role->is_string()) return wrong("must each have a role");
    auto text = text_of(*given);
    if (auto* error = std::get_if<RequestError>(&text)) return std::move(*error);
    const std::string& content = std::get<std::string>(text);
    if (*role == "system" || *role == "developer") {
      system = system && !content.empty() ? *system + "\n\n" + content : system.value_or(content);
      continue;
    }
    if (!is_role(role->get_string()))
      return wrong("may have the roles system, developer, user, assistant and tool", "invalid_value");
    json::object message = *given;
    message["content"] = content;
    if (const json::value* calls = find(message, "tool_calls"); calls != nullptr && !calls->is_array())
      return wrong("must have a list as tool_calls");
    if (find(message, "tool_calls") == nullptr)
      message.erase("tool_calls");
    else
      make_arguments_objects(message["tool_calls"].get_array());
    if (const json::value* reasoning = find(message, "reasoning");
        reasoning != nullptr && !message.contains("reasoning_content"))
      message["reasoning_content"] = json::value(*reasoning);
    read.push_back(std::move(message));
  }
  if (system) read.insert(read.begin(), json::object{{"role", "system"}, {"content", *system}});
  return read;
}

}  // namespace calandra::apps
