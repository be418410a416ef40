// Standard output: results. The first write that fails ends the verb.
#pragma once

#include <fmt/format.h>

#include <stdexcept>
#include <string_view>

#include "base/json.h"

namespace calandra::apps {

// Results did not arrive. `reason` is the system's errno.
class OutputError : public std::runtime_error {
 public:
  explicit OutputError(int reason);
  const int reason;
};

// The first two throw OutputError.
void write_output(std::string_view text);
void flush_output();
// Ends the process while threads of it run that nobody can wait for.
[[noreturn]] void leave(int status);

template <class... Args>
void put(fmt::format_string<Args...> format, Args&&... args) {
  write_output(fmt::format(format, std::forward<Args>(args)...));
}
// JSON in printable ASCII: what clients chose must not steer a terminal or whoever reads a log.
std::string ascii_json(const json::value& value);

// A line of JSON that arrives before the next one is computed.
void print_json(const json::value& value);

}  // namespace calandra::apps
