#include "apps/api/responses_request.h"

#include <fmt/format.h>

#include <algorithm>
#include <string_view>
#include <utility>

#include "apps/api/body_fields.h"
#include "base/log.h"

namespace calandra::apps {
namespace {

constexpr std::string_view kCustomInput = "input";  // the one argument of a custom tool

[[noreturn]] void refuse_type(std::string_view what, std::string_view type) {
  refuse_field("input", fmt::format("input may not have {} of the type {}", what, to_json(json::string(type))),
               "unsupported_parameter");
}

std::string type_of(const json::value& value, std::string_view usual) {
  if (!value.is_object()) refuse_field("input", "input must be a text or a list of objects", "invalid_type");
  const std::string type = string_field(value.get_object(), "type");
  return type.empty() ? std::string(usual) : type;
}

// The content of a message, or the output of a tool: a text or a list of parts.
json::value content_of(const json::object& item, std::string_view name) {
  const json::value* content = find_field(item, name);
  if (content == nullptr) return "";
  if (content->is_string()) return *content;
  json::array parts;
  for (const json::value& part : *array_field(item, name)) {
    const std::string type = type_of(part, "");
    const json::object& fields = part.get_object();
    if (type == "input_text" || type == "output_text" || type == "text") {
      parts.push_back({{"type", "text"}, {"text", string_field(fields, "text")}});
    } else if (type == "refusal") {
      parts.push_back({{"type", "text"}, {"text", string_field(fields, "refusal")}});
    } else if (type == "input_image") {
      const std::string url = string_field(fields, "image_url");
      if (url.empty()) refuse_field("input", "input has an input_image without image_url: there are no stored files");
      parts.push_back({{"type", "image_url"}, {"image_url", {{"url", url}}}});
    } else {
      refuse_type("parts", type);
    }
  }
  return parts;
}

std::string reasoning_of(const json::object& item) {
  std::string text;
  // A client that was shown both sends both; the summary is the poorer one.
  for (const std::string_view name : {"content", "summary"}) {
    const json::array* parts = array_field(item, name);
    if (parts == nullptr) continue;
    for (const json::value& part : *parts) {
      type_of(part, "");
      text += string_field(part.get_object(), "text");
    }
    if (!text.empty()) break;
  }
  return text;
}

// The assistant's message that the next item of its turn belongs to.
json::object& open_turn(json::array& messages, bool is_new) {
  if (is_new || messages.empty() || messages.back().get_object().at("role") != "assistant")
    messages.push_back({{"role", "assistant"}, {"content", ""}});
  return messages.back().get_object();
}

bool has_text(const json::object& message) {
  const json::value& content = message.at("content");
  return content.is_array() || !content.get_string().empty();
}

void add_call(const json::object& item, std::string arguments, json::array& to) {
  json::object& turn = open_turn(to, false);
  json::value& calls = turn["tool_calls"];
  if (!calls.is_array()) calls = json::array();
  calls.get_array().push_back({{"id", string_field(item, "call_id")},
                               {"type", "function"},
                               {"function", {{"name", string_field(item, "name")}, {"arguments", arguments}}}});
}

void add_message(const json::object& item, json::array& to) {
  const std::string role = string_field(item, "role");
  json::value content = content_of(item, "content");
  if (role == "assistant") {
    const json::object* last = to.empty() ? nullptr : &to.back().get_object();
    const bool is_open =
        last != nullptr && last->at("role") == "assistant" && !has_text(*last) && !last->contains("tool_calls");
    open_turn(to, !is_open)["content"] = std::move(content);
  } else if (role == "user" || role == "system" || role == "developer") {
    to.push_back({{"role", role}, {"content", std::move(content)}});
  } else {
    refuse_field("input", "input must have messages of the roles user, assistant, system and developer");
  }
}

void add_items(const json::array& items, json::array& to) {
  for (const json::value& value : items) {
    const std::string type = type_of(value, "message");
    const json::object& item = value.get_object();
    if (type == "message") {
      add_message(item, to);
    } else if (type == "reasoning") {
      std::string text = reasoning_of(item);
      if (!text.empty()) open_turn(to, true)["reasoning_content"] = std::move(text);
    } else if (type == "function_call") {
      add_call(item, string_field(item, "arguments"), to);
    } else if (type == "custom_tool_call") {
      add_call(item, to_json(json::object{{kCustomInput, string_field(item, "input")}}), to);
    } else if (type == "function_call_output" || type == "custom_tool_call_output") {
      to.push_back(
          {{"role", "tool"}, {"tool_call_id", string_field(item, "call_id")}, {"content", content_of(item, "output")}});
    } else if (type == "item_reference") {
      refuse_field("input", "input may not have references: send the items themselves, or previous_response_id",
                   "unsupported_parameter");
    } else {
      refuse_type("items", type);
    }
  }
}

// A tool whose input is a free text, as a function of one text.
json::object custom_function(const json::object& tool) {
  std::string description = string_field(tool, "description");
  const json::object* format = object_field(tool, "format");
  if (const std::string grammar = format == nullptr ? "" : string_field(*format, "definition"); !grammar.empty())
    description += fmt::format("\n\nThe input follows this {} grammar:\n{}", string_field(*format, "syntax"), grammar);
  return {{"name", string_field(tool, "name")},
          {"description", description},
          {"parameters",
           {{"type", "object"},
            {"properties", {{kCustomInput, {{"type", "string"}}}}},
            {"required", json::array{json::string(kCustomInput)}}}}};
}

json::array read_tools(const json::array& tools, std::vector<std::string>& custom) {
  json::array read;
  for (const json::value& value : tools) {
    if (!value.is_object()) refuse_field("tools", "tools must be a list of objects", "invalid_type");
    const json::object& tool = value.get_object();
    const std::string type = string_field(tool, "type");
    if (type != "function" && type != "custom") {
      warn_of_hosted_tools();
      continue;
    }
    if (string_field(tool, "name").empty()) refuse_field("tools", "tools must each have a name");
    json::object function;
    if (type == "custom") {
      custom.push_back(string_field(tool, "name"));
      function = custom_function(tool);
    } else {
      for (const std::string_view name : {"name", "description", "parameters", "strict"})
        if (const json::value* field = find_field(tool, name)) function[name] = *field;
    }
    read.push_back({{"type", "function"}, {"function", std::move(function)}});
  }
  return read;
}

json::value read_tool_choice(const json::value& choice) {
  if (!choice.is_object()) return choice;
  const json::object& fields = choice.get_object();
  const std::string type = string_field(fields, "type");
  if (type == "function" || type == "custom")
    return {{"type", "function"}, {"function", {{"name", string_field(fields, "name")}}}};
  refuse_field("tool_choice", "tool_choice must be none, auto, required or a function", "unsupported_parameter");
}

// What else a response is asked to show. Agents ask for encrypted reasoning, and go on without it.
void check_include(const json::object& body) {
  constexpr std::string_view kWithoutEffect[] = {"reasoning.encrypted_content",
                                                 "message.input_image.image_url",
                                                 "file_search_call.results",
                                                 "web_search_call.results",
                                                 "web_search_call.action.sources",
                                                 "code_interpreter_call.outputs",
                                                 "computer_call_output.output.image_url"};
  const json::array* names = array_field(body, "include");
  if (names == nullptr) return;
  for (const json::value& name : *names)
    if (!name.is_string() ||
        std::find(std::begin(kWithoutEffect), std::end(kWithoutEffect), name.get_string()) == std::end(kWithoutEffect))
      refuse_field("include", fmt::format("include may not have {}", to_json(name)), "unsupported_parameter");
}

void read_text(const json::object& text, json::object& chat) {
  string_field(text, "verbosity");  // templates have no word for it
  const json::object* format = object_field(text, "format");
  if (format == nullptr) return;
  json::object form = *format;
  if (string_field(form, "type") != "json_schema") {
    chat["response_format"] = std::move(form);
    return;
  }
  form.erase("type");
  chat["response_format"] = {{"type", "json_schema"}, {"json_schema", std::move(form)}};
}

// A server's own switch of thinking, where the body has none for the template.
void read_reasoning(const json::object& reasoning, json::object& chat) {
  const std::string effort = string_field(reasoning, "effort");
  if (effort.empty()) return;
  if (effort != "none") chat["reasoning_effort"] = effort;
  const json::object* given = object_field(chat, "chat_template_kwargs");
  json::object kwargs = given == nullptr ? json::object() : *given;
  kwargs.emplace("enable_thinking", effort != "none");
  chat["chat_template_kwargs"] = std::move(kwargs);
}

// What a response says again, with what it was where the body did not say it.
json::object echo_of(const json::object& body) {
  json::object echo{{"background", false},
                    {"instructions", nullptr},
                    {"max_output_tokens", nullptr},
                    {"max_tool_calls", nullptr},
                    {"metadata", json::object()},
                    {"parallel_tool_calls", true},
                    {"previous_response_id", nullptr},
                    {"prompt_cache_key", nullptr},
                    {"reasoning", {{"effort", nullptr}, {"summary", nullptr}}},
                    {"safety_identifier", nullptr},
                    {"service_tier", "default"},
                    {"store", true},
                    {"temperature", nullptr},
                    {"text", {{"format", {{"type", "text"}}}}},
                    {"tool_choice", "auto"},
                    {"tools", json::array()},
                    {"top_logprobs", 0},
                    {"top_p", nullptr},
                    {"truncation", "disabled"},
                    {"user", nullptr}};
  for (auto& [name, value] : echo)
    if (const json::value* given = find_field(body, name); given != nullptr && name != "service_tier") value = *given;
  return echo;
}

ResponsesChat read_body(const json::object& body, json::array earlier) {
  // Said in other words below, or of no meaning here.
  constexpr std::string_view kTaken[] = {"input",
                                         "instructions",
                                         "tools",
                                         "tool_choice",
                                         "text",
                                         "reasoning",
                                         "max_output_tokens",
                                         "include",
                                         "truncation",
                                         "background",
                                         "store",
                                         "max_tool_calls",
                                         "top_logprobs",
                                         "previous_response_id",
                                         "stream_options",
                                         "metadata",
                                         "client_metadata",
                                         "conversation",
                                         "prompt"};
  ResponsesChat read;
  json::object& chat = read.body;
  for (const auto& [name, value] : body)
    if (std::find(std::begin(kTaken), std::end(kTaken), name) == std::end(kTaken)) chat[name] = value;
  for (const std::string_view name : {"conversation", "prompt"})
    if (find_field(body, name) != nullptr)
      refuse_field(name, fmt::format("{} cannot be set: the server keeps none", name), "unsupported_parameter");
  if (integer_field(body, "n").value_or(1) != 1) refuse_field("n", "n must be 1");
  if (integer_field(body, "top_logprobs").value_or(0) != 0)
    refuse_field("top_logprobs", "top_logprobs cannot be set: a response has no logprobs", "unsupported_parameter");
  object_field(body, "metadata");
  for (const std::string_view name : {"user", "prompt_cache_key", "safety_identifier"}) string_field(body, name);
  integer_field(body, "max_tool_calls");
  check_include(body);

  const json::value* input = find_field(body, "input");
  if (input == nullptr) refuse_field("input", "input is missing", "missing_parameter");
  read.turns = std::move(earlier);
  if (input->is_string())
    read.turns.push_back({{"role", "user"}, {"content", *input}});
  else if (input->is_array())
    add_items(input->get_array(), read.turns);
  else
    wrong_type("input", "a string or a list of items");
  json::array messages;
  if (const std::string instructions = string_field(body, "instructions"); !instructions.empty())
    messages.push_back({{"role", "system"}, {"content", instructions}});
  messages.insert(messages.end(), read.turns.begin(), read.turns.end());
  if (messages.empty()) refuse_field("input", "input must not be empty", "missing_parameter");
  chat["messages"] = std::move(messages);

  if (const json::array* tools = array_field(body, "tools")) chat["tools"] = read_tools(*tools, read.custom_tools);
  if (const json::value* choice = find_field(body, "tool_choice")) chat["tool_choice"] = read_tool_choice(*choice);
  if (const json::object* text = object_field(body, "text")) read_text(*text, chat);
  if (const json::object* reasoning = object_field(body, "reasoning")) read_reasoning(*reasoning, chat);
  if (const auto most = integer_field(body, "max_output_tokens")) chat["max_completion_tokens"] = *most;
  const std::string truncation = string_field(body, "truncation");
  if (!truncation.empty() && truncation != "auto" && truncation != "disabled")
    refuse_field("truncation", "truncation must be auto or disabled");
  read.store = flag_field(body, "store", true);
  read.background = flag_field(body, "background", false);
  if (read.background && flag_field(body, "stream", false))
    refuse_field("background", "background cannot be set with stream", "unsupported_parameter");
  if (read.background && !read.store)
    refuse_field("background", "background needs store: there is no other way to the response",
                 "unsupported_parameter");
  read.echo = echo_of(body);
  return read;
}

}  // namespace

std::variant<ResponsesChat, RequestError> chat_of_responses(const json::object& body, json::array earlier) {
  try {
    return read_body(body, std::move(earlier));
  } catch (RefusedBody& refused) {
    return std::move(refused.error);
  }
}

std::variant<json::array, RequestError> messages_of_items(const json::array& items, json::array to) {
  try {
    add_items(items, to);
    return to;
  } catch (RefusedBody& refused) {
    return std::move(refused.error);
  }
}

RequestError in_words_of_responses(RequestError error) {
  constexpr std::pair<std::string_view, std::string_view> kNames[] = {{"messages", "input"},
                                                                      {"max_completion_tokens", "max_output_tokens"},
                                                                      {"max_tokens", "max_output_tokens"},
                                                                      {"response_format.json_schema", "text.format"},
                                                                      {"response_format", "text.format"},
                                                                      {"reasoning_effort", "reasoning.effort"}};
  for (const auto& [chat, own] : kNames) rename_param(error, chat, own);
  return error;
}

}  // namespace calandra::apps
