#include "text/render_rows.h"

#include "text/chat_template.h"

namespace calandra {
namespace {

json::object failed(const jinja::Failure& failure) {
  json::object error{{"class", failure.kind()}, {"message", failure.what()}};
  if (failure.line() > 0) error["line"] = failure.line();
  return {{"error", std::move(error)}};
}

json::object render_bare(const json::object& row, const std::tm& now) {
  if (!row.at("template").is_string()) jinja::value_error("\"template\" of the row must be a string");
  const jinja::Template compiled(row.at("template").get_string());
  std::vector<jinja::Variable> variables;
  if (const json::value* context = row.if_contains("context"); context != nullptr && context->is_object()) {
    for (const auto& [name, value] : context->get_object()) variables.push_back({std::string(name), value, true});
  }
  return {{"output", compiled.render(variables, now).text()}};
}

json::object render_chat(const json::object& row, std::string_view chat_template, const std::tm& now) {
  json::object kwargs, special_tokens;
  if (const json::value* given = row.if_contains("kwargs"); given != nullptr && given->is_object()) {
    for (const auto& [name, value] : given->get_object())
      (name.ends_with("_token") && value.is_string() ? special_tokens : kwargs)[name] = value;
  }
  if (!row.contains("messages")) jinja::value_error("the row needs \"template\" or \"messages\"");
  json::value messages = row.at("messages");
  const json::value* parsed = row.if_contains("arguments_parsed");
  if (parsed != nullptr && parsed->is_bool() && parsed->get_bool())
    messages = with_parsed_arguments(std::move(messages));
  json::value tools;
  for (const char* key : {"tools", "tools_raw"}) {
    if (const json::value* given = row.if_contains(key)) tools = *given;
  }
  const ChatTemplate compiled(chat_template, std::move(special_tokens));
  return {{"text", compiled.render(messages, tools, kwargs, now).text}};
}

}  // namespace

json::object render_row(const json::object& row, std::string_view chat_template, const std::tm& now) {
  try {
    return row.contains("template") ? render_bare(row, now) : render_chat(row, chat_template, now);
  } catch (const jinja::Failure& failure) {
    return failed(failure);
  } catch (const boost::system::system_error&) {
    return {
        {"error", json::object{{"class", "ValueError"}, {"message", "the row needs \"template\" or \"messages\""}}}};
  }
}

}  // namespace calandra
