#include "base/progress.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>

namespace calandra {

std::string format_bytes(double bytes) {
  if (bytes >= 1e12) return fmt::format("{:.2f} TB", bytes / 1e12);
  if (bytes >= 1e9) return fmt::format("{:.2f} GB", bytes / 1e9);
  if (bytes >= 1e6) return fmt::format("{:.1f} MB", bytes / 1e6);
  if (bytes >= 1e3) return fmt::format("{:.1f} kB", bytes / 1e3);
  return fmt::format("{:.0f} B", bytes);
}

std::string format_count(int64_t n) {
  std::string digits = std::to_string(n < 0 ? -n : n);
  for (int at = static_cast<int>(digits.size()) - 3; at > 0; at -= 3) digits.insert(at, 1, ',');
  return n < 0 ? "-" + digits : digits;
}

ProgressBar::ProgressBar(std::string title, int64_t total, std::string unit)
    : title_(std::move(title)),
      unit_(std::move(unit)),
      on_terminal_(isatty(STDERR_FILENO) != 0),
      start_(std::chrono::steady_clock::now()),
      total_(total),
      drawn_(start_) {}

ProgressBar::~ProgressBar() {
  if (visible_) std::fputs("\r\x1b[K", stderr);
}

void ProgressBar::update(int64_t done) { update(done, total_); }

void ProgressBar::update(int64_t done, int64_t total) {
  if (!on_terminal_) return;
  const std::lock_guard lock(mutex_);
  done_ = done;
  total_ = total;
  const auto now = std::chrono::steady_clock::now();
  if (now - drawn_ < std::chrono::milliseconds(100)) return;
  drawn_ = now;
  draw(now);
}

void ProgressBar::draw(std::chrono::steady_clock::time_point now) {
  const double seconds = std::max(1e-3, std::chrono::duration<double>(now - start_).count());
  const double share = total_ > 0 ? std::clamp(static_cast<double>(done_) / static_cast<double>(total_), 0.0, 1.0) : 0;
  const double rate = static_cast<double>(done_) / seconds;
  const auto amount = [&](double n) {
    return unit_ == "B" ? format_bytes(n) : format_count(static_cast<int64_t>(n)) + " " + unit_;
  };
  constexpr int kWidth = 24;
  const int filled = static_cast<int>(share * kWidth);
  std::string line = fmt::format("\r{} [{}{}] {:3.0f} %  {} of {}  {}/s", title_, std::string(filled, '#'),
                                 std::string(kWidth - filled, '.'), 100 * share, amount(static_cast<double>(done_)),
                                 amount(static_cast<double>(total_)), amount(rate));
  if (rate > 0 && total_ > done_) line += fmt::format("  {:.0f} s left", static_cast<double>(total_ - done_) / rate);
  line += "\x1b[K";
  std::fputs(line.c_str(), stderr);
  std::fflush(stderr);
  visible_ = true;
}

}  // namespace calandra
