#include "apps/api/openapi.h"

#include <algorithm>
#include <cctype>

#include "apps/api/api_routes.h"

namespace calandra::apps {
namespace {

json::value schema_ref(std::string_view name) { return {{"$ref", "#/components/schemas/" + std::string(name)}}; }

void write_out_refs(json::value& value) {
  if (json::array* list = value.if_array())
    for (json::value& one : *list) write_out_refs(one);
  json::object* object = value.if_object();
  if (object == nullptr) return;
  if (const json::value* ref = object->if_contains("$ref")) {
    value = schema_ref(std::string_view(ref->as_string()).substr(1));
    return;
  }
  for (auto& member : *object) write_out_refs(member.value());
}

json::value read_schema(std::string_view text) {
  json::value schema = parse_json(text, "a schema");
  write_out_refs(schema);
  return schema;
}

json::value or_null(json::value schema) {
  json::object& object = schema.as_object();
  if (object.empty()) return schema;
  json::value* type = object.if_contains("type");
  if (type == nullptr) return {{"anyOf", {schema, {{"type", "null"}}}}};
  if (type->is_string()) *type = json::array{json::value(*type)};
  type->as_array().push_back("null");
  if (json::value* values = object.if_contains("enum")) values->as_array().push_back(nullptr);
  return schema;
}

json::object body_schema(unsigned body) {
  json::object properties;
  json::array required;
  for (const ApiField& field : api_fields()) {
    if ((field.bodies & body) == 0) continue;
    const bool must = (field.required_by & body) != 0;
    json::value schema = read_schema(field.schema);
    properties[field.name] = must ? std::move(schema) : or_null(std::move(schema));
    if (must) required.push_back(json::string(field.name));
  }
  json::object schema{{"type", "object"}, {"properties", std::move(properties)}};
  if (!required.empty()) schema["required"] = std::move(required);
  return schema;
}

json::object content_of(std::string_view type, json::value schema) {
  json::object content;
  content[type] = {{"schema", std::move(schema)}};
  return content;
}

json::object operation_of(const ApiRoute& route) {
  json::object operation{{"summary", route.summary}};
  if (!route.query.empty()) operation["parameters"] = read_schema(route.query);
  if (const size_t open = route.path.find('{'); open != std::string_view::npos) {
    const std::string_view name = route.path.substr(open + 1, route.path.find('}') - open - 1);
    operation["parameters"] = json::array{
        {{"name", name}, {"in", "path"}, {"required", true}, {"schema", {{"type", "string"}, {"minLength", 1}}}}};
  }
  if (route.body != kNoBody)
    operation["requestBody"] = {{"required", true},
                                {"content", content_of("application/json", body_schema(route.body))}};
  json::object content = route.answer.empty() ? content_of("text/plain", {{"type", "string"}})
                                              : content_of("application/json", schema_ref(route.answer));
  if (route.streams) content["text/event-stream"] = json::object();  // OpenAPI 3.1 has no schema of events
  const char* error = route.path.starts_with("/v1/messages") ? "MessageError" : "Error";
  operation["responses"] = {
      {"200", {{"description", "as asked"}, {"content", std::move(content)}}},
      {"default", {{"description", "a fault"}, {"content", content_of("application/json", schema_ref(error))}}}};
  return operation;
}

}  // namespace

json::object openapi_document(const std::string& version, int64_t vocab_size, bool has_admin) {
  json::object paths;
  const auto add = [&](const ApiRoute& route) {
    std::string method(route.method);
    std::transform(method.begin(), method.end(), method.begin(), [](char c) { return std::tolower(c); });
    json::value& path = paths[route.path];
    if (path.is_null()) path = json::object();
    path.as_object()[method] = operation_of(route);
  };
  for (const ApiRoute& route : api_routes()) add(route);
  if (has_admin)
    for (const ApiRoute& route : admin_routes()) add(route);
  json::object schemas = read_schema(kOpenApiSchemas).as_object();
  if (!has_admin)
    for (const char* name : {"Done", "IsSleeping"}) schemas.erase(name);
  schemas["TokenId"] = {{"type", "integer"}, {"minimum", 0}, {"maximum", vocab_size - 1}};
  return {
      {"openapi", "3.1.0"},
      {"info", {{"title", "calandra"}, {"version", version}}},
      {"security", {json::object(), {{"key", json::array()}}}},  // keys are asked for with --api-key
      {"paths", std::move(paths)},
      {"components",
       {{"schemas", std::move(schemas)}, {"securitySchemes", {{"key", {{"type", "http"}, {"scheme", "bearer"}}}}}}}};
}

}  // namespace calandra::apps
