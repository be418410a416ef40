// Python's two ways to format: "…%s…" % values, and "…{}…".format(values) with its format specifications.
#pragma once

#include "text/jinja/objects.h"

namespace calandra::jinja {

class Interpreter;

Value percent_format(Interpreter& in, const Value& format, const Value& arguments);
Value brace_format(Interpreter& in, const Value& format, const Arguments& arguments);
// format(value, spec), the mini language behind the colon of a replacement field.
MarkedString format_value(Interpreter& in, const Value& value, const MarkedString& spec);

struct NumberFormat {
  bool plus = false, space = false, alternate = false, zero_fill = false;
  char grouping = 0;   // ',' or '_'
  int precision = -1;  // -1: not given
  char type = 0;
};
// The digits of a number with its sign in front ("-12", "+0x1f"); `prefix` is set to the length of sign and base
// prefix.
std::string number_digits(const Value& number, const NumberFormat& format, size_t& prefix);

}  // namespace calandra::jinja
