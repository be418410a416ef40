#include "structured/requested_form.h"

#include <fmt/format.h>

#include <algorithm>
#include <initializer_list>
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

// A key that is passed over is one that the client believes to be kept.
void refuse_unknown(const json::object& object, std::string_view param, std::initializer_list<std::string_view> known) {
  for (const auto& member : object) {
    const std::string_view key = member.key();
    if (!member.value().is_null() && std::find(known.begin(), known.end(), key) == known.end())
      refuse(fmt::format("{}.{}", param, key),
             fmt::format("{} has no {}, but {}", param, to_json(json::string(key)), fmt::join(known, ", ")));
  }
}

// False without it.
bool flag_of(const json::object& object, std::string_view key, std::string_view param) {
  const json::value* value = find_field(object, key);
  if (value != nullptr && !value->is_bool())
    refuse(fmt::format("{}.{}", param, key), fmt::format("{} must be true or false", key));
  return value != nullptr && value->get_bool();
}

std::string text_of(const json::value& value, std::string_view param) {
  if (!value.is_string() || value.get_string().empty())
    refuse(param, fmt::format("{} must be a string that is not empty", param));
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
    for (const json::value& text : given.get_array()) {
      if (!text.is_string() || text.get_string().empty())
        refuse(param, fmt::format("each of {} must be a string that is not empty", param));
      texts.emplace_back(text.get_string());
    }
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
  const std::string_view name = "response_format";
  if (*type == "text" || *type == "json_object") {
    refuse_unknown(*format, name, {"type"});
    if (*type == "text") return std::nullopt;
    return OutputForm{.kind = OutputForm::Kind::kJsonObject};
  }
  if (*type == "structural_tag") {
    refuse_unknown(*format, name, {"type", "format", "structures", "triggers"});
    return tag_form(*given, name);
  }
  if (*type != "json_schema")
    refuse(name, "the type of response_format is text, json_object, json_schema or structural_tag");
  refuse_unknown(*format, name, {"type", "json_schema"});
  const json::value* inner = find_field(*format, "json_schema");
  if (inner == nullptr || !inner->is_object())
    refuse(name, "response_format needs json_schema, an object with a schema");
  refuse_unknown(inner->get_object(), "response_format.json_schema", {"name", "description", "schema", "strict"});
  const json::value* schema = find_field(inner->get_object(), "schema");
  if (schema == nullptr) refuse(name, "response_format needs json_schema with a schema");
  return schema_form(*schema, flag_of(inner->get_object(), "strict", "response_format.json_schema"), name);
}

std::optional<OutputForm> read(const json::object& body) {
  std::optional<OutputForm> form = response_format(body);
  const auto take = [&](OutputForm next, std::string field) {
    if (form) refuse(field, fmt::format("{} cannot be set beside {}: an answer has one form", field, form->field));
    form = std::move(next);
    form->field = std::move(field);
  };
  // `prefix`: of the keys; `path`: what the group is called in front of them.
  const auto read_group = [&](const json::object& group, std::string_view prefix, std::string_view path) {
    const auto with = [&](std::string_view key, const auto& each) {
      const json::value* value = find_field(group, fmt::format("{}{}", prefix, key));
      if (value != nullptr) each(*value, fmt::format("{}{}{}", path, prefix, key));
    };
    with("json",
         [&](const json::value& value, const std::string& name) { take(schema_form(value, false, name), name); });
    with("regex", [&](const json::value& value, const std::string& name) {
      take(OutputForm::regex(text_of(value, name)), name);
    });
    with("choice", [&](const json::value& value, const std::string& name) { take(choice_form(value, name), name); });
    with("grammar", [&](const json::value& value, const std::string& name) {
      take({.kind = OutputForm::Kind::kEbnf, .text = text_of(value, name)}, name);
    });
    with("whitespace_pattern", [&](const json::value&, const std::string& name) {
      refuse(name, fmt::format("{} is not supported: JSON may have up to {} blanks where it needs none, or one behind "
                               "each comma and colon with structured_outputs.disable_any_whitespace",
                               name, kMostBlanks));
    });
  };
  read_group(body, "guided_", "");
  if (const json::value* value = find_field(body, "structured_outputs")) {
    const std::string_view name = "structured_outputs";
    const json::object* group = value->if_object();
    if (group == nullptr) refuse(name, "structured_outputs must be an object");
    read_group(*group, "", "structured_outputs.");
    refuse_unknown(*group, name,
                   {"json", "regex", "choice", "grammar", "json_object", "structural_tag", "disable_any_whitespace"});
    if (flag_of(*group, "json_object", name))
      take({.kind = OutputForm::Kind::kJsonObject}, "structured_outputs.json_object");
    if (const json::value* tag = find_field(*group, "structural_tag"))
      take(tag_form(*tag, "structured_outputs.structural_tag"), "structured_outputs.structural_tag");
    if (flag_of(*group, "disable_any_whitespace", name)) {
      if (!form || (form->kind != OutputForm::Kind::kJsonObject && form->kind != OutputForm::Kind::kJsonSchema))
        refuse("structured_outputs.disable_any_whitespace",
               "structured_outputs.disable_any_whitespace needs a form that is all JSON: json, json_object or the same "
               "by response_format");
      form->compact = true;
    }
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
