// Going through values as Python's iter() does.
#pragma once

#include "text/jinja/objects.h"

namespace calandra::jinja {

bool is_iterable(const Value& value);
// Throws TypeError if the value cannot be iterated. Iterators are returned as they are, so they go on where they
// stopped.
boost::intrusive_ptr<IteratorBody> iterate(Interpreter& in, const Value& value);
// All items; each costs a step, and their room is checked.
std::vector<Value> collect(Interpreter& in, const Value& value);
// len(value); throws TypeError.
int64_t length_of(Interpreter& in, const Value& value);
bool has_length(const Value& value);
Value reversed(Interpreter& in, const Value& value);  // an iterator from the last to the first item
// The characters of a string as values.
std::vector<Value> characters(Interpreter& in, const Value& string);
// Iterators over what is at hand, and over what a function makes item by item.
Value iterator_over(Interpreter& in, std::vector<Value> items, const char* type_name = "generator");
Value generator(Interpreter& in, std::function<std::optional<Value>(Interpreter&)> next);

}  // namespace calandra::jinja
