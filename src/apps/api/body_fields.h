// Fields of a JSON body, read or refused.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "base/error.h"
#include "base/json_member.h"

namespace calandra::apps {

// A body's fault on its way to the reader of the body, which makes it a value.
struct RefusedBody {
  RequestError error;
};

[[noreturn]] void refuse_field(std::string_view param, std::string message, std::string code = "invalid_value");
// "{param} must be {rule}"
[[noreturn]] void wrong_type(std::string_view param, std::string_view rule);

// Absent: nothing, or the usual value. Another type is refused.
bool flag_field(const json::object& body, std::string_view name, bool usual);
std::optional<int64_t> integer_field(const json::object& body, std::string_view name);
std::string string_field(const json::object& body, std::string_view name);
const json::object* object_field(const json::object& body, std::string_view name);
const json::array* array_field(const json::object& body, std::string_view name);

// The fault of a field, or of one inside of it, told to those who know it by another name.
void rename_param(RequestError& error, std::string_view from, std::string_view to);

// Agents list what their usual server could do by itself, and work without it.
void warn_of_hosted_tools();

}  // namespace calandra::apps
