// The JSON of an argument that a model wrote as plain text, by the schema of its parameter.
#pragma once

#include <string>
#include <string_view>

#include "base/json.h"

namespace calandra {

// What a parameter's schema says of text: the first type that is not null (lower case; "string" when it names none),
// and whether null may stand for it.
struct ArgumentType {
  std::string name = "string";
  bool nullable = false;
  bool is_string() const;
};
// `schema` null: the tool has no such parameter.
ArgumentType argument_type(const json::value* schema);

// The JSON text of the value; a string when the text is no value of its type.
std::string argument_json(std::string_view text, const ArgumentType& type);

// A JSON string of the text, quotes included.
std::string json_string(std::string_view text);

}  // namespace calandra
