// Text that comes in from outside: files, pipes and standard input.
#pragma once

#include <string>

#include "base/json.h"

namespace calandra::apps {

inline constexpr size_t kLongestText = size_t{64} << 20;

// The whole of a file or pipe; "-" is standard input. Throws LoadError with the system's reason, or when there are more
// than `max_bytes`.
std::string read_text(const std::string& file, size_t max_bytes = kLongestText);

// The same as JSON.
json::value read_json(const std::string& file);

// The next line of standard input, without its end; false behind the last one. Throws LoadError.
bool read_line(std::string& line);

}  // namespace calandra::apps
