// Histogram: how many of the values seen lie between fixed bounds, as Prometheus counts them. Plain numbers of fixed
// size: adding a value neither allocates nor locks.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <span>

namespace calandra {

class Histogram {
 public:
  static constexpr size_t kMostBounds = 24;

  // `bounds` ascending, at most kMostBounds; they must stay.
  constexpr explicit Histogram(std::span<const double> bounds) : bounds_(bounds) {}

  void add(double value) {
    ++counts_[static_cast<size_t>(std::lower_bound(bounds_.begin(), bounds_.end(), value) - bounds_.begin())];
    sum_ += value;
  }

  std::span<const double> bounds() const { return bounds_; }
  // One more than the bounds: values up to each of them, but above the one before; then those above all. (Prometheus
  // writes the sums from the front.)
  std::span<const int64_t> counts() const { return std::span(counts_).first(bounds_.size() + 1); }
  int64_t count() const {
    int64_t all = 0;
    for (const int64_t n : counts()) all += n;
    return all;
  }
  double sum() const { return sum_; }

 private:
  std::span<const double> bounds_;
  std::array<int64_t, kMostBounds + 1> counts_ = {};
  double sum_ = 0;
};

}  // namespace calandra
