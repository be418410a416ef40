#include "structured/tool_form.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/json_member.h"
#include "structured/schema_spelling.h"
#include "text/parsers/argument_types.h"
#include "text/parsers/tool_list.h"

namespace calandra {
namespace {

struct Refused {
  std::string why;
};

json::string text_of(std::string_view text) { return json::string(text); }

json::object literal(std::string_view text) { return {{"type", "const_string"}, {"value", text_of(text)}}; }

json::object pattern(std::string_view expression) { return {{"type", "regex"}, {"pattern", text_of(expression)}}; }

json::object one_of(json::array elements) { return {{"type", "or"}, {"elements", std::move(elements)}}; }

json::object tag(std::string_view begin, json::value content, std::string_view end) {
  return {{"type", "tag"}, {"begin", text_of(begin)}, {"content", std::move(content)}, {"end", text_of(end)}};
}

json::object json_value(json::value schema) { return {{"type", "json_schema"}, {"json_schema", std::move(schema)}}; }

// Of a free text in a call as XML: what would end or nest it.
json::object free_text() {
  return {{"type", "any_text"},
          {"excludes", json::array{"</parameter>", "<parameter=", "</function>", "</tool_call>"}}};
}

// The same schema with numbers that have no exponents, which might be beyond a double: xgrammar writes none within
// bounds.
json::value narrowed(json::value schema) {
  if (json::array* items = schema.if_array())
    for (json::value& item : *items) item = narrowed(std::move(item));
  json::object* object = schema.if_object();
  if (object == nullptr) return schema;
  for (auto& member : *object)
    if (member.key() != "enum" && member.key() != "const" && member.key() != "default")
      member.value() = narrowed(std::move(member.value()));
  const json::value* type = object->if_contains("type");
  if (type == nullptr || *type != "number") return schema;
  constexpr int64_t kMost = 999'999'999'999'999;
  if (!object->contains("minimum") && !object->contains("exclusiveMinimum")) (*object)["minimum"] = -kMost;
  if (!object->contains("maximum") && !object->contains("exclusiveMaximum")) (*object)["maximum"] = kMost;
  return schema;
}

// Builds the arguments of one tool as <parameter=…> elements, such that the parser makes the values of them that the
// schema means. The parser takes one newline from both ends of a value; the tags here have exactly these.
class XmlArguments {
 public:
  explicit XmlArguments(const json::object& parameters) : parameters_(parameters) {}

  json::value content() const {
    for (const char* keyword : {"anyOf", "oneOf", "allOf", "$ref", "minProperties", "maxProperties"})
      if (parameters_.contains(keyword)) throw Refused{fmt::format("{} of all parameters is not supported", keyword)};
    std::vector<std::string> required;
    if (const json::value* names = find_field(parameters_, "required"); names != nullptr && names->is_array())
      for (const json::value& name : names->get_array())
        if (name.is_string()) required.emplace_back(name.get_string());
    json::array elements;
    const json::value* given = find_field(parameters_, "properties");
    json::object properties = given != nullptr && given->is_object() ? given->get_object() : json::object();
    for (const std::string& name : required)
      if (!properties.contains(name)) properties[name] = json::object();
    for (const auto& [key, schema] : properties) {
      const std::string_view name = key;
      if (name.empty() || name.find_first_of("<>\n") != std::string_view::npos)
        throw Refused{fmt::format("a parameter cannot have the name {}", to_json(text_of(name)))};
      json::object element = tag(fmt::format("<parameter={}>\n", name), value_of(schema), "\n</parameter>\n");
      const bool must = std::find(required.begin(), required.end(), name) != required.end();
      elements.push_back(must ? std::move(element)
                              : json::object{{"type", "optional"}, {"content", std::move(element)}});
    }
    if (elements.empty()) return literal("");
    return json::object{{"type", "sequence"}, {"elements", std::move(elements)}};
  }

 private:
  json::value value_of(const json::value& schema) const {
    if (!schema.is_object()) return free_text();
    const json::object& object = schema.get_object();
    for (const char* keyword : {"$ref", "allOf", "oneOf"})
      if (object.contains(keyword)) throw Refused{fmt::format("{} of a parameter is not supported", keyword)};
    const ArgumentType type = argument_type(&schema);
    if (object.contains("enum") || object.contains("const")) return listed(object, type);
    json::value value = of_type(chosen(object, type), type);
    if (type.nullable && !type.is_string()) return one_of({literal("null"), std::move(value)});
    return value;
  }

  // The values that the parser reads as what they are.
  static json::value listed(const json::object& schema, const ArgumentType& type) {
    json::array given;
    if (const json::value* values = schema.if_contains("enum")) {
      if (!values->is_array()) throw Refused{"enum must be a list"};
      given = values->get_array();
    } else {
      given.push_back(schema.at("const"));
    }
    json::array texts;
    for (const json::value& value : given) {
      const std::string text = value.is_string() ? std::string(value.get_string()) : to_json(value);
      boost::system::error_code failed;
      const json::value read = json::parse(argument_json(text, type), failed);
      if (!failed && read == value && text.find('<') == std::string::npos) texts.push_back(literal(text));
    }
    if (texts.empty()) throw Refused{"no value of an enum can be written in a call"};
    return one_of(std::move(texts));
  }

  // Of several types, the one that the parser reads: the first that is not null.
  static json::object chosen(const json::object& schema, const ArgumentType& type) {
    const json::value* options = schema.if_contains("anyOf");
    if (options == nullptr || !options->is_array() || schema.contains("type")) return schema;
    for (const json::value& option : options->get_array()) {
      if (!option.is_object()) continue;
      if (argument_type(&option).name == type.name && option.get_object().contains("type")) return option.get_object();
    }
    throw Refused{"anyOf of a parameter needs options with a type"};
  }

  json::value of_type(json::object schema, const ArgumentType& type) const {
    if (type.is_string()) return string_of(schema);
    schema["type"] = text_of(type.name);
    for (const char* definitions : {"$defs", "definitions"})
      if (const json::value* all = parameters_.if_contains(definitions)) schema[definitions] = *all;
    // Numbers without bounds are short enough to be finite and exact for whoever reads them.
    constexpr const char* kBounds[] = {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"};
    const bool bounded =
        std::any_of(std::begin(kBounds), std::end(kBounds), [&](const char* key) { return schema.contains(key); });
    if (type.name == "integer" && !bounded) return pattern("-?(0|[1-9][0-9]{0,14})");
    if (type.name == "number" && !bounded) return pattern("-?(0|[1-9][0-9]{0,14})([.][0-9]{1,15})?");
    return json_value(narrowed(std::move(schema)));
  }

  static json::value string_of(const json::object& schema) {
    if (const json::value* expression = find_field(schema, "pattern");
        expression != nullptr && expression->is_string()) {
      if (schema.contains("minLength") || schema.contains("maxLength"))
        throw Refused{"a pattern together with minLength or maxLength is not supported"};
      return pattern(OutputForm::regex(expression->get_string()).text);
    }
    const json::value* least = find_field(schema, "minLength");
    const json::value* most = find_field(schema, "maxLength");
    if (least == nullptr && most == nullptr) return free_text();
    const auto number = [](const json::value* value, int64_t otherwise) {
      if (value == nullptr) return otherwise;
      if (!value->is_int64()) throw Refused{"minLength and maxLength must be whole numbers"};
      return value->get_int64();
    };
    return pattern(fmt::format("{}{{{},{}}}", kAnyXmlText, number(least, 0), number(most, kMostText)));
  }

  const json::object& parameters_;
};

json::object tag_of(const Tool& tool, ToolFormat format, bool strict) {
  const std::string name(tool.name);
  json::object parameters;
  if (tool.parameters != nullptr) parameters = tool.parameters->get_object();
  if (!parameters.contains("type")) parameters["type"] = "object";
  if (parameters.at("type") != "object") throw Refused{"parameters must have the type object"};
  // Arguments of no schema are left out.
  if (strict && !parameters.contains("properties")) {
    parameters["properties"] = json::object();
    parameters["additionalProperties"] = false;
  }
  if (strict) {
    const std::string why = refusal_of(OutputForm::json_schema(parameters, true));
    if (!why.empty()) throw Refused{why};
  }
  if (format == ToolFormat::kHermes) {
    const std::string begin = fmt::format("<tool_call>\n{{\"name\": {}, \"arguments\": ", to_json(text_of(name)));
    return tag(
        begin,
        json_value(strict ? narrowed(parameters) : json::value{{"type", "object"}, {"additionalProperties", true}}),
        "}\n</tool_call>");
  }
  if (name.find_first_of("{}<>\"' \t\r\n") != std::string::npos)
    throw Refused{fmt::format("a tool cannot have the name {}", to_json(text_of(name)))};
  const json::object any = {{"type", "any_text"}, {"excludes", json::array{"</tool_call>"}}};
  return tag(fmt::format("<tool_call>\n<function={}>\n", name),
             strict ? XmlArguments(parameters).content() : json::value(any), "</function>\n</tool_call>");
}

}  // namespace

std::string refusal_of_calls(std::string_view tool, std::string_view why) {
  return fmt::format("calls of the tool {} cannot be constrained: {}", to_json(text_of(tool)), why);
}

json::array tags_of_tools(const OutputForm& form) {
  const json::value tag = parse_json(form.text, "the form of calls");
  const json::object& format = tag.at("format").as_object();
  const json::value* calls = format.if_contains("tags");
  return calls == nullptr ? format.at("elements").at(1).at("tags").as_array() : calls->as_array();
}

std::variant<OutputForm, RequestError> tool_form(const json::array& tools, const ToolForm& wanted) {
  json::array tags;
  std::vector<std::string> names;
  for (const json::value& entry : tools) {
    const Tool tool = read_tool(entry).value();
    names.emplace_back(tool.name);
    try {
      tags.push_back(tag_of(tool, wanted.format, wanted.all_strict || tool.strict));
    } catch (const Refused& refused) {
      return RequestError{400, "invalid_request_error", "tools", refusal_of_calls(tool.name, refused.why)};
    }
  }
  json::object format;
  if (wanted.required) {
    json::object calls{{"type", "tags_with_separator"},
                       {"tags", std::move(tags)},
                       {"separator", "\n"},
                       {"at_least_one", true},
                       {"stop_after_first", wanted.one_call}};
    json::object begin = wanted.thoughts ? pattern("\\n{0,2}") : literal("");
    format = {{"type", "sequence"}, {"elements", json::array{std::move(begin), std::move(calls)}}};
  } else {
    format = {{"type", "triggered_tags"},
              {"triggers", json::array{"<tool_call>"}},
              {"tags", std::move(tags)},
              {"at_least_one", false},
              {"stop_after_first", wanted.one_call}};
  }
  OutputForm form = OutputForm::structural_tag({{"type", "structural_tag"}, {"format", std::move(format)}});
  form.field = "tools";
  form.tools = std::move(names);
  return form;
}

}  // namespace calandra
