// A progress bar on standard error, for long work. Draws only on a terminal, at most ten times a second.
#pragma once

#include <chrono>
#include <cstdint>
#include <mutex>
#include <string>

namespace calandra {

class ProgressBar {
 public:
  // `unit` is "B" (shown as MB, GB) or a word ("tokens").
  ProgressBar(std::string title, int64_t total, std::string unit);
  ~ProgressBar();  // clears the line
  ProgressBar(const ProgressBar&) = delete;
  ProgressBar& operator=(const ProgressBar&) = delete;

  // Thread-safe. `done` counts from the start; `total` may be corrected.
  void update(int64_t done);
  void update(int64_t done, int64_t total);

 private:
  void draw(std::chrono::steady_clock::time_point now);

  const std::string title_, unit_;
  const bool on_terminal_;
  const std::chrono::steady_clock::time_point start_;
  std::mutex mutex_;
  int64_t total_;
  int64_t done_ = 0;
  std::chrono::steady_clock::time_point drawn_;
  bool visible_ = false;
};

// "1.50 GB", "340 MB", "12 kB" (decimal units).
std::string format_bytes(double bytes);
// "1,234,567"
std::string format_count(int64_t n);

}  // namespace calandra
