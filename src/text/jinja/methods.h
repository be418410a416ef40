// Attributes of Python's built-in types: methods of strings, lists, dicts, numbers.
#pragma once

#include "text/jinja/objects.h"

namespace calandra::jinja {

struct MethodEntry {
  std::string_view name;
  Value (*code)(Interpreter& in, const Value& self, Arguments arguments);  // null: the sandbox forbids it
};

// Null if the type of the value has no such method.
const MethodEntry* find_method(const Value& value, std::string_view name);
const MethodEntry* find_string_method(std::string_view name);

// Whether every Python object has this attribute ("__class__"); the sandbox forbids them all.
bool is_object_attribute(std::string_view name);

// Shared with the filters of the same names.
Value map_case(Interpreter& in, const Value& string, bool upper);
Value swap_case(Interpreter& in, const Value& string);
Value fold_case(Interpreter& in, const Value& string);
Value title_case(Interpreter& in, const Value& string);
Value capitalize(Interpreter& in, const Value& string);
Value strip(Interpreter& in, const Value& string, const Value& chars, bool left, bool right);
Value replace(Interpreter& in, const Value& string, const MarkedString& from, const MarkedString& to, int64_t count);
Value pad(Interpreter& in, const Value& string, int64_t width, const MarkedString& fill,
          int side);  // -1: text left, 0: centre, 1: right
std::vector<MarkedString> split_lines(const MarkedString& text, bool keep_ends);
bool is_cased_as(std::string_view text, bool upper);  // str.isupper, str.islower

}  // namespace calandra::jinja
