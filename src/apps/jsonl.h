// Rows of JSON on standard input, a result line for each on standard output.
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"

namespace calandra::apps {

// A row that is no JSON object, or for which `answer` throws UsageError or LoadError, gives {"error": {"class",
// "message"}}. Returns the exit status 0.
int answer_rows(const std::function<json::object(const json::object& row)>& answer);

// Token ids "1, 2,3". Throws UsageError naming `what`.
std::vector<int32_t> parse_ids(std::string_view text, std::string_view what);

// All of standard input.
std::string read_standard_input();

}  // namespace calandra::apps
