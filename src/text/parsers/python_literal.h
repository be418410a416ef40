// Values as Python writes them, which models put where JSON belongs: 'single quotes', True, None, (1, 2), trailing
// commas.
#pragma once

#include <optional>
#include <string_view>

#include "base/json.h"

namespace calandra {

// One literal: a string, number, True, False, None, or a list, tuple or dict of them; tuples become arrays. Nothing
// when the text is none, or is nested deeper than 64.
std::optional<json::value> parse_python_literal(std::string_view text);

}  // namespace calandra
