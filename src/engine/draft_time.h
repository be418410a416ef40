// How long steps take: a roofline from StepCost, refined by measured durations. Whoever runs the steps has the clock;
// here are only numbers, so that choices can be replayed.
#pragma once

#include <array>
#include <cstdint>

#include "models/causal_lm.h"

namespace calandra {

struct HardwareSpeed {
  double bytes_per_second = 0;  // read from memory
  double flops_per_second = 0;
};

// Before anything was measured: some cores of a processor, or a Hopper GPU. What counts is how many rows share one read
// of the weights before arithmetic takes longer, since a first measurement of one row corrects both alike.
HardwareSpeed first_guess(const Device& device);

// What one pass runs.
struct StepShape {
  int64_t rows = 0;
  int64_t sequences = 0;  // whose recurrent state is read and written
  int64_t logit_rows = 0;
  int64_t keys = 0;      // read: the context lengths of all sequences
  int64_t row_keys = 0;  // seen: the sum over all rows

  // `count` rows of a sequence that see about `context` keys each.
  void add(int64_t count, int64_t context, int64_t logits) {
    rows += count;
    ++sequences;
    logit_rows += logits;
    keys += context;
    row_keys += count * context;
  }
};

// Seconds: products with weights are bound by memory or by arithmetic, and so are, after them, caches and states.
double roofline_seconds(const StepCost& cost, const HardwareSpeed& speed, const StepShape& shape);

// measured / roofline as a function of the number of rows. Its logarithm is kept at eighths of octaves, each an
// exponentially weighted mean; in between it is interpolated, beyond it stays. So the bandwidth and the arithmetic that
// a machine really reaches, and what launches cost, are learned where they matter.
class TimeCorrection {
 public:
  void observe(int64_t rows, double roofline_seconds, double measured_seconds);
  double factor(int64_t rows) const;  // 1 before the first observation
  // Not measured often for about so many rows: the factor is a guess.
  bool guesses(int64_t rows) const;
  // Half as many rows at least were measured.
  bool reaches(int64_t rows) const;
  // Standard error of ln factor(rows), of how far measurements lie from what was known and how many there were.
  double doubt(int64_t rows) const;

 private:
  static constexpr int kPoints = 160;  // the last one: 2^19.9 rows and more

  struct Point {
    double weight = 0;     // observations, the older ones counting less; 0: nothing known
    double octave = 0;     // mean log2(rows)
    double log_ratio = 0;  // mean
    int surprises = 0;     // in a row, negative ones downwards
    int seen = 0;          // observations since nothing was known
  };
  double log_factor(double octave) const;
  void learn(Point& point, double octave, double log_ratio);
  void move_others(const Point& point, double change);  // the log_ratio of all known ones but `point`

  std::array<Point, kPoints> points_;
  std::array<int16_t, kPoints> known_;  // those of which something is known, ascending
  int known_count_ = 0;
  double scatter_ = 0;
};

}  // namespace calandra
