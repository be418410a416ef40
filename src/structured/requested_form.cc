#include "structured/requested_form.h"

#include <fmt/format.h>

#include <utility>

#include "base/json_member.h"

namespace calandra {
namespace {

struct Refused {
  RequestError error;
};

[[noreturn]] void refuse(std::string_view param, std::string message) {
  throw Refused{{400, "invalid_request_error", std::string(param), std::move(message)}};
}

std::string text_of(const json::value& value, std::string_view param) {
  if (!value.is_string() || value.get_string().empty()) refuse(param, fmt::format("{} must be a string", param));
  return std::string(value.get_string());
}

// JSON, or JSON as text.
json::value json_of(const json::value& given, std::string_view param) {
  if (!given.is_string()) return given;
  boost::system::error_code failed;
  json::value parsed = json::parse(given.get_string(), failed, {}, {.max_depth = 128});
  if (failed) refuse(param, fmt::format("{} is no JSON", param));
  return parsed;
}

// A schema: an object, true or false.
OutputForm schema_form(const json::value& given, bool strict, std::string_view param) {
  const json::value schema = json_of(given, param);
  if (!schema.is_object() && !schema.is_bool()) refuse(param, fmt::format("{} must be a JSON schema", param));
  return OutputForm::json_schema(schema, strict);
}

OutputForm choice_form(const json::value& given, std::string_view param) {
  constexpr size_t kMost = 10'000;
  std::vector<std::string> texts;
  if (given.is_array() && given.get_array().size() > kMost)
    refuse(param, fmt::format("{} has more than {} texts", param, kMost));
  if (given.is_array())
    for (const json::value& text : given.get_array()) texts.push_back(text_of(text, param));
  if (texts.empty()) refuse(param, fmt::format("{} must be a list of strings", param));
  return OutputForm::choice(texts);
}

// vLLM's older form of a structural tag: texts that are free but for what stands behind a trigger.
json::value tag_of_structures(const json::object& given, std::string_view param) {
  const auto list = [&](std::string_view name) {
    const json::value* value = find_field(given, name);
    if (value == nullptr || !value->is_array() || value->get_array().empty())
      refuse(param, fmt::format("{} with structures needs lists of structures and of triggers", param));
    return value->get_array();
  };
  json::array tags;
  for (const json::value& one : list("structures")) {
    const json::object* structure = one.if_object();
    const auto member = [&](std::string_view name) {
      const json::value* value = structure == nullptr ? nullptr : find_field(*structure, name);
      if (value == nullptr) refuse(param, "each of structures needs begin, schema and end");
      return *value;
    };
    tags.push_back({{"type", "tag"},
                    {"begin", member("begin")},
                    {"content", {{"type", "json_schema"}, {"json_schema", json_of(member("schema"), "schema")}}},
                    {"end", member("end")}});
  }
  return {{"type", "structural_tag"},
          {"format", {{"type", "triggered_tags"}, {"triggers", list("triggers")}, {"tags", std::move(tags)}}}};
}

OutputForm tag_form(const json::value& given, std::string_view param) {
  const json::value tag = json_of(given, param);
  if (!tag.is_object()) refuse(param, fmt::format("{} must be an object", param));
  const json::object& object = tag.get_object();
  const bool older = find_field(object, "structures") != nullptr;
  if (older == (find_field(object, "format") != nullptr))
    refuse(param, fmt::format("{} of a structural tag needs either a format or structures and triggers", param));
  return OutputForm::structural_tag(older ? tag_of_structures(object, param) : tag);
}

std::optional<OutputForm> response_format(const json::object& body) {
  const json::value* given = find_field(body, "response_format");
  if (given == nullptr) return std::nullopt;
  const json::object* format = given->if_object();
  const json::value* type = format == nullptr ? nullptr : find_field(*format, "type");
  if (type == nullptr) refuse("response_format", "response_format must be an object with a type");
  if (*type == "text") return std::nullopt;
  if (*type == "json_object") return OutputForm{.kind = OutputForm::Kind::kJsonObject};
  if (*type == "structural_tag") return tag_form(*given, "response_format");
  if (*type != "json_schema")
    refuse("response_format", "the type of response_format is text, json_object, json_schema or structural_tag");
  const json::value* inner = find_field(*format, "json_schema");
  const json::value* schema =
      inner == nullptr || !inner->is_object() ? nullptr : find_field(inner->get_object(), "schema");
  if (schema == nullptr) refuse("response_format", "response_format needs json_schema with a schema");
  const json::value* strict = find_field(inner->get_object(), "strict");
  return schema_form(*schema, strict != nullptr && *strict == json::value(true), "response_format");
}

std::optional<OutputForm> read(const json::object& body) {
  std::optional<OutputForm> form = response_format(body);
  const auto take = [&](OutputForm next) {
    if (form) refuse("response_format", "only one of response_format, structured_outputs and guided_* can be set");
    form = std::move(next);
  };
  const auto read_group = [&](const json::object& group, std::string_view prefix) {
    const auto name = [&](std::string_view key) { return fmt::format("{}{}", prefix, key); };
    if (const json::value* value = find_field(group, name("json"))) take(schema_form(*value, false, name("json")));
    if (const json::value* value = find_field(group, name("regex")))
      take(OutputForm::regex(text_of(*value, name("regex"))));
    if (const json::value* value = find_field(group, name("choice"))) take(choice_form(*value, name("choice")));
    if (const json::value* value = find_field(group, name("grammar")))
      take({.kind = OutputForm::Kind::kEbnf, .text = text_of(*value, name("grammar"))});
  };
  read_group(body, "guided_");
  if (const json::value* value = find_field(body, "structured_outputs")) {
    const json::object* group = value->if_object();
    if (group == nullptr) refuse("structured_outputs", "structured_outputs must be an object");
    read_group(*group, "");
    if (const json::value* flag = find_field(*group, "json_object"); flag != nullptr && *flag == json::value(true))
      take({.kind = OutputForm::Kind::kJsonObject});
    if (const json::value* tag = find_field(*group, "structural_tag")) take(tag_form(*tag, "structural_tag"));
  }
  return form;
}

}  // namespace

std::variant<std::optional<OutputForm>, RequestError> requested_form(const json::object& body) {
  try {
    return read(body);
  } catch (Refused& refused) {
    return std::move(refused.error);
  }
}

}  // namespace calandra
