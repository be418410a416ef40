// Rows of `calandra render --jsonl`: one code path for the program and for the tests against recorded renderings.
#pragma once

#include "base/json.h"

#include <ctime>
#include <string_view>

namespace calandra {

// A row {"template", "context"} gives {"output"}; a row {"messages", "tools" or "tools_raw", "kwargs",
// "arguments_parsed"}, rendered with `chat_template`, gives {"text"}. Both may give {"error": {"class", "message"}}.
// Strings in kwargs whose name ends in _token (bos_token, …) are special tokens of the model.
json::object render_row(const json::object& row, std::string_view chat_template, const std::tm& now);

}  // namespace calandra
