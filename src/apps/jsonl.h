// Rows of JSON on standard input, a result line for each on standard output.
#pragma once

#include <functional>
#include <string_view>
#include <vector>

#include "base/json.h"

namespace calandra::apps {

// A row that is no JSON object, or for which `answer` throws UsageError or LoadError, gives {"error": {"class",
// "message"}}. Returns the exit status 0. Throws LoadError when standard input cannot be read.
int answer_rows(const std::function<json::object(const json::object& row)>& answer);

// Token ids "1, 2,3" or "[1, 2,3]", at least one. Throws UsageError naming `what`.
std::vector<int32_t> parse_ids(std::string_view text, std::string_view what);

}  // namespace calandra::apps
