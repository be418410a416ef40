// Which fields of a body are known, and what becomes of the others.
#pragma once

#include <mutex>
#include <string>
#include <vector>

#include "base/json.h"

namespace calandra::apps {

// Throws RefusedBody for a field that would change the answer and cannot be honoured.
void refuse_unsupported(const json::object& body);

// Warns of each unknown field once. Any thread may call it.
class UnknownFields {
 public:
  void warn(const json::object& body);

 private:
  std::mutex mutex_;
  std::vector<std::string> warned_;
};

}  // namespace calandra::apps
