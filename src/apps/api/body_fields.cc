#include "apps/api/body_fields.h"

#include <fmt/format.h>

#include "base/log.h"

namespace calandra::apps {
void refuse_field(std::string_view param, std::string message, std::string code) {
  throw RefusedBody{{400, std::move(code), std::string(param), std::move(message)}};
}

void wrong_type(std::string_view param, std::string_view rule) {
  refuse_field(param, fmt::format("{} must be {}", param, rule), "invalid_type");
}

void rename_param(RequestError& error, std::string_view from, std::string_view to) {
  if (error.param != from && !error.param.starts_with(fmt::format("{}.", from))) return;
  error.param.replace(0, from.size(), to);
  if (error.message.starts_with(from)) error.message.replace(0, from.size(), to);
}

void warn_of_hosted_tools() {
  log_warning_once("tools that are no functions have no effect: the server calls none itself");
}

bool flag_field(const json::object& body, std::string_view name, bool usual) {
  const json::value* value = find_field(body, name);
  if (value == nullptr) return usual;
  if (!value->is_bool()) wrong_type(name, "true or false");
  return value->get_bool();
}

std::optional<int64_t> integer_field(const json::object& body, std::string_view name) {
  const json::value* value = find_field(body, name);
  if (value == nullptr) return std::nullopt;
  const std::optional<int64_t> number = whole_number(*value);
  if (!number) wrong_type(name, "an integer");
  return number;
}

std::string string_field(const json::object& body, std::string_view name) {
  const json::value* value = find_field(body, name);
  if (value == nullptr) return {};
  if (!value->is_string()) wrong_type(name, "a string");
  return std::string(value->get_string());
}

const json::object* object_field(const json::object& body, std::string_view name) {
  const json::value* value = find_field(body, name);
  if (value == nullptr) return nullptr;
  if (!value->is_object()) wrong_type(name, "an object");
  return &value->get_object();
}

const json::array* array_field(const json::object& body, std::string_view name) {
  const json::value* value = find_field(body, name);
  if (value == nullptr) return nullptr;
  if (!value->is_array()) wrong_type(name, "a list");
  return &value->get_array();
}

}  // namespace calandra::apps
