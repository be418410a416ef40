// The `tojson` filter as transformers defines it: json.dumps(value, ensure_ascii, indent, separators, sort_keys).
#pragma once

#include "text/jinja/value.h"

namespace calandra::jinja {

class Interpreter;

struct JsonStyle {
  bool ensure_ascii = false;
  bool sort_keys = false;
  std::optional<std::string> indent;  // one level; not given: everything on one line
  std::optional<std::string> item_separator, key_separator;
};

// Throws TypeError for values that JSON has no form for.
std::string json_text(Interpreter& in, const Value& value, const JsonStyle& style);

}  // namespace calandra::jinja
