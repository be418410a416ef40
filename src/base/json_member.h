// A member of a JSON object that may be left out, and whole numbers.
#pragma once

#include <cmath>
#include <optional>
#include <string_view>

#include "base/json.h"

namespace calandra {

// Null counts as absent: then null.
inline const json::value* find_field(const json::object& object, std::string_view name) {
  const json::value* value = object.if_contains(name);
  return value == nullptr || value->is_null() ? nullptr : value;
}

// Also one that is written as 3.0: it is an integer for JSON Schema, and for clients whose language has one kind of
// numbers. Nothing for other values and beyond 64 bits.
inline std::optional<int64_t> whole_number(const json::value& value) {
  constexpr double kExact = 0x1p53;  // from here on, what was written may have been another number
  if (value.is_int64()) return value.get_int64();
  if (!value.is_double() || std::trunc(value.get_double()) != value.get_double()) return std::nullopt;
  if (std::abs(value.get_double()) >= kExact) return std::nullopt;
  return static_cast<int64_t>(value.get_double());
}

}  // namespace calandra
