// repetition_detection: ends an answer that repeats itself.
#pragma once

#include <cstdint>
#include <span>

#include "engine/sampling_params.h"

namespace calandra {

// The outputs end with min_count copies of a pattern of an allowed size. vLLM's check_sequence_repetition.
bool repetition_detected(const SamplingParams::RepetitionDetection& detection, std::span<const int32_t> outputs);

}  // namespace calandra
