// Equality, order, membership, hashes and truth as Python defines them for the types of templates.
#pragma once

#include "text/jinja/value.h"

namespace calandra::jinja {

bool equal(const Value& a, const Value& b);
// a < b, a <= b, a > b, a >= b for op "<", "<=", ">", ">="; throws TypeError if the types have no order.
bool ordered(const Value& a, const std::string& op, const Value& b);
inline bool less(const Value& a, const Value& b) { return ordered(a, "<", b); }
size_t hash_of(const Value& value);  // throws TypeError for lists and dicts
bool truth(const Value& value);

// Throws UndefinedError (or SecurityError) with jinja's message.
[[noreturn]] void undefined_error(const Value& undefined);
inline void require_defined(const Value& value) {
  if (value.is_undefined()) undefined_error(value);
}

std::string type_name(const Value& value);       // "str"
std::string described_type(const Value& value);  // "str object", as jinja names it in messages

}  // namespace calandra::jinja
