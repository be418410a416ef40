// Sequence: one request's tokens, progress, pages and slot. Values only; the runner moves them along.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/sampling_params.h"
#include "engine/token_counts.h"

namespace calandra {

struct Sequence {
  std::vector<int32_t> tokens;  // prompt, then what was sampled
  int64_t prompt_size = 0;
  SamplingParams params;
  uint64_t seed = 0;   // of the request, drawn when it gave none
  int32_t choice = 0;  // index of this choice among all of the request

  int64_t computed = 0;              // P: tokens run and kept
  std::vector<int32_t> block_table;  // pages
  int32_t slot = -1;                 // recurrent state; -1 before the first step
  TokenCounts counts;                // up to date only while penalties are in use
  bool finished = false;

  int64_t size() const { return static_cast<int64_t>(tokens.size()); }
  int64_t outputs() const { return size() - prompt_size; }
};

}  // namespace calandra
