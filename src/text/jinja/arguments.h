// Arguments of built-in functions, bound to their parameters as Python does.
#pragma once

#include "text/jinja/objects.h"

#include <initializer_list>

namespace calandra::jinja {

// One value per parameter, missing where not given. Parameters named "" take no keyword. Throws TypeError.
std::vector<Value> bind(const char* function, std::initializer_list<std::string_view> parameters, size_t required,
                        Arguments arguments);

int64_t integer_or(const Value& value, int64_t fallback, const char* what);
bool truth_or(const Value& value, bool fallback);

}  // namespace calandra::jinja
