#include "engine/repetition.h"

#include <algorithm>

namespace calandra {

bool repetition_detected(const SamplingParams::RepetitionDetection& detection, std::span<const int32_t> outputs) {
  for (int64_t size = std::max(1, detection.min_pattern_size); size <= detection.max_pattern_size; ++size) {
    const int64_t window = size * detection.min_count;
    if (window > std::ssize(outputs)) break;
    const auto end = outputs.end();
    if (std::equal(end - window + size, end, end - window)) return true;  // each equals the one a pattern earlier
  }
  return false;
}

}  // namespace calandra
