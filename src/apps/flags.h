// Flags with one value each, checked as they are read. A wrong value throws UsageError naming the flag. CLI11's own
// conversions are not used: its lists swallow the words that follow and split "[a,b]", its numbers take any base.
#pragma once

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "base/json.h"

namespace calandra::apps {

// Any text but the empty one.
CLI::Option* add_text(CLI::App* app, const char* name, std::string& to, const char* help);

// The same, once for each time that the flag is given.
CLI::Option* add_repeatable(CLI::App* app, const char* name, std::vector<std::string>& to, const char* help);

CLI::Option* add_choice(CLI::App* app, const char* name, std::string& to, std::vector<std::string> choices,
                        const char* help);

struct Range {
  double least, most;
  bool without_least = false;
};
CLI::Option* add_number(CLI::App* app, const char* name, std::optional<double>& to, Range range, const char* help);

// Numbers 0.8,0.6 and whole numbers 1,2,4.
CLI::Option* add_numbers(CLI::App* app, const char* name, std::vector<double>& to, Range range, const char* help);
CLI::Option* add_wholes(CLI::App* app, const char* name, std::vector<int64_t>& to, int64_t least, int64_t most,
                        const char* help);

// Token ids 1,2,3; repeatable.
CLI::Option* add_ids(CLI::App* app, const char* name, std::vector<int32_t>& to, const char* help);

CLI::Option* add_object(CLI::App* app, const char* name, json::object& to, const char* help);
// Set when it was given, also by an empty object.
CLI::Option* add_object(CLI::App* app, const char* name, std::optional<json::object>& to, const char* help);

// A whole number in decimal. Throws UsageError.
int64_t read_whole(const char* name, const std::string& text, int64_t least, int64_t most);

CLI::Option* add_whole(CLI::App* app, const char* name, std::optional<int64_t>& to, int64_t least, int64_t most,
                       const char* help);
// With a default, which the help shows.
CLI::Option* add_whole(CLI::App* app, const char* name, int64_t& to, int64_t least, int64_t most, const char* help);

// A whole number that may be written with a suffix, as vLLM's: k, m, g, t (decimal, also 25.6k) or K, M, G, T (binary).
CLI::Option* add_size(CLI::App* app, const char* name, std::optional<int64_t>& to, int64_t least, int64_t most,
                      const char* help);

// The same as add_whole, or `word`, which stands for 0.
CLI::Option* add_whole_or(CLI::App* app, const char* name, const char* word, std::optional<int64_t>& to, int64_t least,
                          int64_t most, const char* help);

CLI::Option* add_seed(CLI::App* app, std::optional<uint64_t>& to);

}  // namespace calandra::apps
