// Operators on values: Python's numbers (with integers of any size), concatenation, repetition, membership.
#pragma once

#include "text/jinja/value.h"

namespace calandra::jinja {

class Interpreter;

enum class BinaryOp : uint8_t { kAdd, kSub, kMul, kDiv, kFloorDiv, kMod, kPow };

Value binary(Interpreter& in, BinaryOp op, const Value& a, const Value& b);
Value negate(Interpreter& in, const Value& value);
Value plus(const Value& value);
bool contains(Interpreter& in, const Value& container, const Value& item);  // item in container

double to_real(const Value& number);                     // float(number); throws OverflowError
Value integer_from_real(Interpreter& in, double value);  // int(value), truncating; throws for inf and nan
// The integer that an index or count argument gives; throws TypeError for what is no integer. Big ones saturate.
int64_t to_index(const Value& value, const char* what);

}  // namespace calandra::jinja
