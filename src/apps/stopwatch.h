// Stopwatch: seconds from one lap to the next.
#pragma once

#include <chrono>
#include <utility>

namespace calandra::apps {

class Stopwatch {
 public:
  // Since the start or the last lap.
  double lap() {
    const auto now = std::chrono::steady_clock::now();
    return std::chrono::duration<double>(now - std::exchange(begin_, now)).count();
  }

 private:
  std::chrono::steady_clock::time_point begin_ = std::chrono::steady_clock::now();
};

}  // namespace calandra::apps
