#include "engine/draft_time.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"

namespace calandra {
namespace {

constexpr int kPointsPerOctave = 8;
constexpr double kMostWeight = 15;      // a new observation counts for 1/16 at least
constexpr double kFade = 0.998;         // of a weight, with every observation anywhere
constexpr double kLeastWeight = 0.05;   // below it a point is forgotten: after some 2500 steps without it
constexpr double kSurprise = 0.1;       // of log_ratio: more is a hiccup of the machine ...
constexpr int kLightSurprises = 2;      // ... until so many came in a row where little is known,
constexpr int kHeavySurprises = 4;      // ... or so many elsewhere
constexpr double kSureWeight = 8;       // what changes at a point known so well changes everywhere,
constexpr double kShared = 0.7;         // by so much: contexts grew, or the machine is slower for a while
constexpr int kOften = 4;               // observations that outweigh a hiccup among them
constexpr double kMostScatter = 0.7;    // that one observation counts with
constexpr double kScatterShare = 0.02;  // of a new one
constexpr double kNear = 0.25;          // octaves within which a point speaks for its neighbours

}  // namespace

HardwareSpeed first_guess(const Device& device) {
  return device.kind == DeviceKind::kCpu ? HardwareSpeed{20e9, 100e9} : HardwareSpeed{3e12, 300e12};
}

double roofline_seconds(const StepCost& cost, const HardwareSpeed& speed, const StepShape& s) {
  if (s.rows == 0) return 0;
  const auto rows = static_cast<double>(s.rows), logit_rows = static_cast<double>(s.logit_rows);
  const double weight_bytes = cost.weight_bytes_of(s.rows);
  const double weight_flops = rows * cost.flops_per_row + logit_rows * cost.flops_per_logit_row;
  const double cache_bytes =
      static_cast<double>(s.sequences) * cost.state_bytes + static_cast<double>(s.keys) * cost.kv_bytes_per_key;
  const double cache_flops = static_cast<double>(s.row_keys) * cost.flops_per_row_and_key;
  return std::max(weight_bytes / speed.bytes_per_second, weight_flops / speed.flops_per_second) +
         std::max(cache_bytes / speed.bytes_per_second, cache_flops / speed.flops_per_second);
}

double TimeCorrection::log_factor(double octave) const {
  if (known_count_ == 0) return 0;
  const auto end = known_.begin() + known_count_;
  const auto above = std::partition_point(known_.begin(), end, [&](int16_t i) { return points_[i].octave < octave; });
  if (above == end) return points_[above[-1]].log_ratio;
  const Point& to = points_[*above];
  if (above == known_.begin()) return to.log_ratio;
  const Point& from = points_[above[-1]];
  return from.log_ratio + (to.log_ratio - from.log_ratio) * (octave - from.octave) / (to.octave - from.octave);
}

double TimeCorrection::factor(int64_t rows) const { return std::exp(log_factor(std::log2(static_cast<double>(rows)))); }

bool TimeCorrection::guesses(int64_t rows) const {
  const double octave = std::log2(static_cast<double>(rows));
  return std::none_of(known_.begin(), known_.begin() + known_count_, [&](int16_t i) {
    return points_[i].seen >= kOften && std::abs(points_[i].octave - octave) <= kNear;
  });
}

bool TimeCorrection::reaches(int64_t rows) const {
  return known_count_ > 0 && std::log2(static_cast<double>(rows)) <= points_[known_[known_count_ - 1]].octave + 1;
}

double TimeCorrection::doubt(int64_t rows) const {
  const double octave = std::log2(static_cast<double>(rows));
  double weight = 1;
  for (int i = 0; i < known_count_; ++i) {
    const Point& point = points_[known_[i]];
    if (std::abs(point.octave - octave) <= kNear) weight = std::max(weight, point.weight);
  }
  return scatter_ / std::sqrt(weight);
}

void TimeCorrection::observe(int64_t rows, double roofline_seconds, double measured_seconds) {
  if (!(roofline_seconds > 0) || !(measured_seconds > 0) || !std::isfinite(measured_seconds)) return;
  CHECK_LE(1, rows);
  const auto forgotten = [&](int16_t i) {
    points_[i].weight *= kFade;
    if (points_[i].weight >= kLeastWeight) return false;
    points_[i] = {};
    return true;
  };
  known_count_ =
      static_cast<int>(std::remove_if(known_.begin(), known_.begin() + known_count_, forgotten) - known_.begin());
  const double octave = std::log2(static_cast<double>(rows)), log_ratio = std::log(measured_seconds / roofline_seconds);
  const auto index = static_cast<int16_t>(std::min<int64_t>(kPoints - 1, std::lround(kPointsPerOctave * octave)));
  Point& point = points_[index];
  const bool first = known_count_ == 0;
  if (point.weight == 0) {
    // From its neighbours, counting as one observation.
    point = {1, octave, first ? log_ratio : log_factor(octave), 0};
    const auto end = known_.begin() + known_count_++;
    const auto at = std::lower_bound(known_.begin(), end, index);
    std::copy_backward(at, end, end + 1);
    *at = index;
  }
  if (!first) {
    if (point.seen >= kOften)
      scatter_ += (std::min(std::abs(log_ratio - point.log_ratio), kMostScatter) - scatter_) * kScatterShare;
    learn(point, octave, log_ratio);
  }
  ++point.seen;
}

void TimeCorrection::learn(Point& point, double octave, double log_ratio) {
  double change = log_ratio - point.log_ratio;
  const int direction = change > 0 ? 1 : -1;
  point.surprises =
      std::abs(change) <= kSurprise ? 0 : direction * std::max(0, direction * point.surprises) + direction;
  if (std::abs(point.surprises) >= (point.weight < kSureWeight / 2 ? kLightSurprises : kHeavySurprises)) {
    // Known so well, it was the whole machine that changed.
    if (point.weight >= kSureWeight) move_others(point, change);
    point = {1, octave, log_ratio, 0, point.seen};
    return;
  }
  change = std::clamp(change, -kSurprise, kSurprise) / (point.weight + 1);
  if (point.weight >= kSureWeight) move_others(point, kShared * change);
  point.log_ratio += change;
  point.octave += (octave - point.octave) / (point.weight + 1);
  point.weight = std::min(kMostWeight, point.weight + 1);
}

void TimeCorrection::move_others(const Point& point, double change) {
  for (int i = 0; i < known_count_; ++i)
    if (Point& other = points_[known_[i]]; &other != &point) other.log_ratio += change;
}

}  // namespace calandra
