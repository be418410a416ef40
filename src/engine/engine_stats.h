// EngineStats: what the engine counts and measures, for metrics and the log. Plain numbers; vLLM's metric names beside
// them.
#pragma once

#include <array>
#include <cstdint>
#include <type_traits>

#include "engine/draft_acceptance.h"
#include "engine/histogram.h"
#include "engine/prefix_cache.h"

namespace calandra {

// vLLM's buckets. Seconds from a request's arrival to its first token; between a choice's tokens; of whole requests.
inline constexpr double kFirstTokenBounds[] = {0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1,  0.25,  0.5,   0.75,
                                               1.0,   2.5,   5.0,  7.5,  10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0};
inline constexpr double kTokenBounds[] = {0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2,  0.3,  0.4, 0.5,
                                          0.75, 1.0,   2.5,  5.0,   7.5, 10.0, 20.0, 40.0, 80.0};
inline constexpr double kRequestBounds[] = {0.3,  0.5,  0.8,  1.0,  1.5,   2.0,   2.5,   5.0,   10.0,   15.0,  20.0,
                                            30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0};
inline constexpr double kStepTokenBounds[] = {1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384};
// vLLM ends these at max_model_len.
inline constexpr double kLengthBounds[] = {1,    2,    5,     10,    20,    50,     100,    200,    500,    1000,
                                           2000, 5000, 10000, 20000, 50000, 100000, 200000, 500000, 1000000};

// Where time goes, in seconds, and how long requests are. Those of whole requests: one value for each choice that came
// to its end by a stop or by its length.
struct EngineTimes {
  Histogram time_to_first_token{kFirstTokenBounds};
  Histogram inter_token_latency{kTokenBounds};     // between steps that gave a choice tokens, however many
  Histogram time_per_output_token{kTokenBounds};   // mean of a choice: its decode time over the tokens after the first
  Histogram e2e_request_latency{kRequestBounds};   // from arrival to the last token
  Histogram request_queue_time{kRequestBounds};    // from arrival to the first step
  Histogram request_prefill_time{kRequestBounds};  // from there to the first token
  Histogram request_decode_time{kRequestBounds};   // from there to the last
  Histogram request_inference_time{kRequestBounds};  // both
  Histogram request_prompt_tokens{kLengthBounds};
  Histogram request_generation_tokens{kLengthBounds};
  Histogram iteration_tokens{kStepTokenBounds};  // of a step: prompt tokens run, and tokens given
};

struct EngineStats {
  int64_t requests_running = 0, requests_waiting = 0;  // vllm:num_requests_running, _waiting (choices)
  int64_t pages_used = 0, pages = 0;                   // vllm:kv_cache_usage_perc; those of checkpoints count as free
  int64_t slots_used = 0, slots = 0;                   // those of checkpoints count as used
  int64_t steps = 0, steps_ahead = 0;  // the latter: launched before the tokens of the one before were there
  int64_t prompt_tokens = 0;      // vllm:prompt_tokens_total: of requests whose prompt was read, cached ones included
  int64_t prompt_rows = 0;        // known tokens that were run: prompts, and what preemption made run again
  int64_t generation_tokens = 0;  // vllm:generation_tokens_total
  int64_t finished_stop = 0, finished_length = 0, finished_abort = 0, finished_error = 0;  // vllm:request_success_total
  int64_t preemptions = 0;                                                                 // vllm:num_preemptions_total
  int64_t checkpoints_skipped = 0, waits_for_prefix = 0;
  // vllm:spec_decode_num_drafts (runs of drafts), _num_draft_tokens, _num_accepted_tokens, _per_pos
  int64_t drafts = 0, draft_tokens = 0, accepted_tokens = 0;
  std::array<int64_t, kMostDraftPositions> drafted_per_position = {}, accepted_per_position = {};
  PrefixCacheStats prefix;                                           // vllm:prefix_cache_queries, _hits
  int64_t encoder_queries = 0, encoder_hits = 0, encoder_bytes = 0;  // vllm:mm_cache_queries, _hits
  int64_t checkpoint_bytes = 0, host_checkpoint_bytes = 0, checkpoints = 0;
  EngineTimes times;  // vllm:<name>_seconds, vllm:request_*_tokens, vllm:iteration_tokens_total
};
static_assert(std::is_trivially_copyable_v<EngineStats>);  // copied in every step

}  // namespace calandra
