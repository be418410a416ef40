#include "apps/api/messages_request.h"

#include <fmt/format.h>

#include <algorithm>
#include <string>
#include <string_view>

#include "apps/api/body_fields.h"

namespace calandra::apps {
namespace {

// A line of it changes with every request of some agents, and would end every common beginning of two prompts.
constexpr std::string_view kBilling = "x-anthropic-billing-header";

std::string without_billing(std::string_view text) {
  std::string kept;
  while (!text.empty()) {
    const size_t size = std::min(text.find('\n'), text.size() - 1) + 1;
    if (!text.starts_with(kBilling)) kept += text.substr(0, size);
    text.remove_prefix(size);
  }
  return kept;
}

std::string_view type_of(const json::value& block) {
  const json::value* type = block.is_object() ? find_field(block.get_object(), "type") : nullptr;
  if (type == nullptr || !type->is_string())
    refuse_field("messages", "messages must have blocks with a type as content", "invalid_type");
  return type->get_string();
}

// As a part of a chat's content.
json::object image_part(const json::object& block) {
  const json::object* source = object_field(block, "source");
  const std::string kind = source == nullptr ? "" : string_field(*source, "type");
  std::string url;
  if (kind == "base64")
    url = fmt::format("data:{};base64,{}", string_field(*source, "media_type"), string_field(*source, "data"));
  else if (kind == "url")
    url = string_field(*source, "url");
  else
    refuse_field("messages", "messages have an image whose source is neither base64 nor url");
  return {{"type", "image_url"}, {"image_url", {{"url", url}}}};
}

json::object text_part(const json::object& block) { return {{"type", "text"}, {"text", string_field(block, "text")}}; }

// The text and the pictures of a block's content.
json::value parts_of(const json::object& block) {
  const json::value* content = find_field(block, "content");
  if (content == nullptr) return "";
  if (content->is_string()) return *content;
  json::array parts;
  for (const json::value& part : *array_field(block, "content")) {
    const std::string_view type = type_of(part);
    if (type == "text")
      parts.push_back(text_part(part.get_object()));
    else if (type == "image")
      parts.push_back(image_part(part.get_object()));
    else
      refuse_field("messages", fmt::format("messages may not have blocks of the type {} in a tool_result",
                                           to_json(json::string(type))));
  }
  return parts;
}

// Results of tools come first: they answer the turn before.
void add_user(const json::array& blocks, json::array& to) {
  json::array parts;
  for (const json::value& block : blocks) {
    const std::string_view type = type_of(block);
    const json::object& fields = block.get_object();
    if (type == "tool_result")
      to.push_back(
          {{"role", "tool"}, {"tool_call_id", string_field(fields, "tool_use_id")}, {"content", parts_of(fields)}});
    else if (type == "text")
      parts.push_back(text_part(fields));
    else if (type == "image")
      parts.push_back(image_part(fields));
    else
      refuse_field("messages",
                   fmt::format("messages of a user may not have blocks of the type {}", to_json(json::string(type))),
                   "unsupported_parameter");
  }
  if (!parts.empty() || blocks.empty()) to.push_back({{"role", "user"}, {"content", std::move(parts)}});
}

void add_assistant(const json::array& blocks, json::array& to) {
  std::string text, thinking;
  json::array calls;
  for (const json::value& block : blocks) {
    const std::string_view type = type_of(block);
    const json::object& fields = block.get_object();
    if (type == "text") {
      text += string_field(fields, "text");
    } else if (type == "thinking") {
      thinking += string_field(fields, "thinking");
    } else if (type == "tool_use") {
      const json::value* input = find_field(fields, "input");
      calls.push_back(
          {{"id", string_field(fields, "id")},
           {"type", "function"},
           {"function",
            {{"name", string_field(fields, "name")}, {"arguments", input == nullptr ? "{}" : to_json(*input)}}}});
    } else if (type != "redacted_thinking") {  // which nobody here can read
      refuse_field(
          "messages",
          fmt::format("messages of an assistant may not have blocks of the type {}", to_json(json::string(type))),
          "unsupported_parameter");
    }
  }
  json::object message{{"role", "assistant"}, {"content", text}};
  if (!thinking.empty()) message["reasoning_content"] = thinking;
  if (!calls.empty()) message["tool_calls"] = std::move(calls);
  to.push_back(std::move(message));
}

json::array read_messages(const json::object& body) {
  json::array read;
  if (const json::value* system = find_field(body, "system")) {
    std::string text;
    if (system->is_string()) {
      text = without_billing(system->get_string());
    } else {
      if (!system->is_array()) wrong_type("system", "a string or a list of blocks");
      for (const json::value& block : system->get_array()) {
        if (type_of(block) != "text") refuse_field("system", "system may have blocks of the type text only");
        const std::string one = without_billing(string_field(block.get_object(), "text"));
        if (!one.empty()) text += (text.empty() ? "" : "\n") + one;
      }
    }
    if (!text.empty()) read.push_back({{"role", "system"}, {"content", text}});
  }
  const json::array* messages = array_field(body, "messages");
  if (messages == nullptr || messages->empty())
    refuse_field("messages", "messages must be a list of at least one message", "missing_parameter");
  for (const json::value& message : *messages) {
    if (!message.is_object()) refuse_field("messages", "messages must be objects", "invalid_type");
    const json::object& fields = message.get_object();
    const std::string role = string_field(fields, "role");
    if (role != "user" && role != "assistant" && role != "system")
      refuse_field("messages", "messages must have the role user or assistant");
    const json::value* content = find_field(fields, "content");
    if (content == nullptr) refuse_field("messages", "messages must each have a content", "missing_parameter");
    if (content->is_string() || role == "system")
      read.push_back({{"role", role}, {"content", parts_of(fields)}});
    else if (role == "user")
      add_user(*array_field(fields, "content"), read);
    else
      add_assistant(*array_field(fields, "content"), read);
  }
  return read;
}

json::array read_tools(const json::array& tools) {
  json::array read;
  for (const json::value& tool : tools) {
    const json::object* schema = tool.is_object() ? object_field(tool.get_object(), "input_schema") : nullptr;
    if (schema == nullptr && tool.is_object() && find_field(tool.get_object(), "type") != nullptr &&
        string_field(tool.get_object(), "type") != "custom") {
      warn_of_hosted_tools();
      continue;
    }
    if (schema == nullptr) refuse_field("tools", "tools must each have a name and an input_schema");
    json::object function{{"name", string_field(tool.get_object(), "name")}};
    if (const json::value* description = find_field(tool.get_object(), "description"))
      function["description"] = *description;
    function["parameters"] = *schema;
    if (flag_field(tool.get_object(), "strict", false)) function["strict"] = true;
    read.push_back({{"type", "function"}, {"function", std::move(function)}});
  }
  return read;
}

void read_tool_choice(const json::object& choice, json::object& chat) {
  const std::string type = string_field(choice, "type"), name = string_field(choice, "name");
  if (type == "auto" || type == "none")
    chat["tool_choice"] = type;
  else if (type == "any")
    chat["tool_choice"] = "required";
  else if (type == "tool")
    chat["tool_choice"] = {{"type", "function"}, {"function", {{"name", name}}}};
  else
    refuse_field("tool_choice", "tool_choice must have the type auto, any, tool or none");
  if (flag_field(choice, "disable_parallel_tool_use", false)) chat["parallel_tool_calls"] = false;
}

// A switch of the template, where the body does not set it there itself.
void set_thinking(json::object& chat, bool on) {
  const json::object* given = object_field(chat, "chat_template_kwargs");
  json::object kwargs = given == nullptr ? json::object() : *given;
  kwargs.emplace("enable_thinking", on);
  chat["chat_template_kwargs"] = std::move(kwargs);
}

void read_thinking(const json::object& thinking, json::object& chat) {
  const std::string type = string_field(thinking, "type");
  if (type != "enabled" && type != "disabled" && type != "adaptive")
    refuse_field("thinking", "thinking must have the type enabled, adaptive or disabled");
  set_thinking(chat, type != "disabled");
  const auto budget = integer_field(thinking, "budget_tokens");
  if (budget && *budget < 1) refuse_field("thinking", "thinking must have a positive budget_tokens");
  if (budget && type == "enabled") chat["thinking_token_budget"] = *budget;
  const std::string display = string_field(thinking, "display");
  if (!display.empty() && display != "summarized" && display != "omitted")
    refuse_field("thinking", "thinking must have the display summarized or omitted");
  if (display == "omitted") chat["include_reasoning"] = false;
}

void read_output_config(const json::object& config, json::object& chat) {
  if (const json::value* effort = find_field(config, "effort")) {
    if (!effort->is_string())
      refuse_field("output_config", "the effort of output_config must be a string", "invalid_type");
    chat["reasoning_effort"] = *effort;
  }
  if (find_field(config, "task_budget") != nullptr)
    refuse_field("output_config", "output_config may not have a task_budget", "unsupported_parameter");
  const json::object* format = object_field(config, "format");
  if (format == nullptr) return;
  const json::value* schema = find_field(*format, "schema");
  if (string_field(*format, "type") != "json_schema" || schema == nullptr)
    refuse_field("output_config", "output_config must have a format of the type json_schema with a schema");
  if (!schema->is_object() && !schema->is_bool())
    refuse_field("output_config", "the schema of output_config must be a JSON schema");
  json::object inner = *format;
  inner.erase("type");
  inner["strict"] = true;
  chat["response_format"] = {{"type", "json_schema"}, {"json_schema", std::move(inner)}};
}

// Agents ask for all thoughts to be kept, which changes nothing.
void check_context_management(const json::object& management) {
  const json::array* edits = array_field(management, "edits");
  if (edits == nullptr) return;
  for (const json::value& edit : *edits) {
    const json::object* fields = edit.if_object();
    const json::value* keep = fields == nullptr ? nullptr : find_field(*fields, "keep");
    if (keep == nullptr || *keep != "all" || !string_field(*fields, "type").starts_with("clear_thinking_"))
      refuse_field("context_management", "context_management may not have edits: conversations are not shortened",
                   "unsupported_parameter");
  }
}

json::object read_body(const json::object& body, bool counting) {
  // Said in other words below, or of no meaning here.
  constexpr std::string_view kTaken[] = {
      "system",   "messages",      "tools", "tool_choice",   "stop_sequences",    "thinking",
      "metadata", "output_config", "betas", "cache_control", "context_management"};
  json::object chat;
  for (const auto& [name, value] : body)
    if (std::find(std::begin(kTaken), std::end(kTaken), name) == std::end(kTaken)) chat[name] = value;
  const auto most = integer_field(body, "max_tokens");
  if (!most && !counting) refuse_field("max_tokens", "max_tokens is missing", "missing_parameter");
  if (most && *most < 1) refuse_field("max_tokens", "max_tokens must be at least 1");
  if (integer_field(body, "n").value_or(1) != 1) refuse_field("n", "n must be 1");
  chat["messages"] = read_messages(body);
  // The answer goes on with what the client has begun.
  if (const json::object& last = chat["messages"].get_array().back().get_object();
      last.at("role") == "assistant" && !last.contains("tool_calls"))
    chat["continue_final_message"] = true;
  if (const json::array* tools = array_field(body, "tools")) chat["tools"] = read_tools(*tools);
  if (const json::object* choice = object_field(body, "tool_choice")) read_tool_choice(*choice, chat);
  if (const json::value* stop = find_field(body, "stop_sequences")) chat["stop"] = *stop;
  if (const json::object* config = object_field(body, "output_config")) read_output_config(*config, chat);
  if (const json::object* management = object_field(body, "context_management")) check_context_management(*management);
  if (const json::object* thinking = object_field(body, "thinking")) read_thinking(*thinking, chat);
  return chat;
}

}  // namespace

std::variant<json::object, RequestError> chat_of_messages(const json::object& body, bool counting) {
  try {
    return read_body(body, counting);
  } catch (RefusedBody& refused) {
    return std::move(refused.error);
  }
}

}  // namespace calandra::apps
