// A member of a JSON object that may be left out.
#pragma once

#include <string_view>

#include "base/json.h"

namespace calandra {

// Null counts as absent: then null.
inline const json::value* find_field(const json::object& object, std::string_view name) {
  const json::value* value = object.if_contains(name);
  return value == nullptr || value->is_null() ? nullptr : value;
}

}  // namespace calandra
