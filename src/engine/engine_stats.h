// EngineStats: what the engine counts, for metrics and the log. Plain numbers; vLLM's metric names beside them.
#pragma once

#include <array>
#include <cstdint>

#include "engine/draft_acceptance.h"
#include "engine/prefix_cache.h"

namespace calandra {

struct EngineStats {
  int64_t requests_running = 0, requests_waiting = 0;  // vllm:num_requests_running, _waiting (choices)
  int64_t pages_used = 0, pages = 0;                   // vllm:kv_cache_usage_perc; those of checkpoints count as free
  int64_t steps = 0;
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
};

}  // namespace calandra
