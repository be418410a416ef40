// The value of --speculative-config: vLLM's JSON object (vLLM 0.26, vllm/config/speculative.py), with two keys of ours.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"
#include "engine/draft_acceptance.h"

namespace calandra {

enum class DraftMethod { kMtp, kNgram };

struct SpeculativeConfig {
  static constexpr int kMostDrafts = kMostDraftPositions;
  static constexpr int kAutoDrafts = 4;         // the most with "num_speculative_tokens": "auto", or without it
  static constexpr int kMostLookupTokens = 64;  // of an n-gram

  // Drafts while so many sequences run, both ends included.
  struct BatchRange {
    int64_t first, last;
    int drafts;
  };

  DraftMethod method = DraftMethod::kMtp;
  int num_speculative_tokens = kAutoDrafts;  // 0: no speculation
  bool adaptive = true;                      // num_speculative_tokens is the most, each step takes what pays
  int prompt_lookup_min = 5;                 // tokens of the shortest and the longest n-gram
  int prompt_lookup_max = 5;
  std::vector<BatchRange> batch_ranges = {};  // ascending, disjoint; batches in none of them: num_speculative_tokens
  std::vector<std::string> notes = {};  // what was renamed or ignored, one sentence each: to be logged as warnings

  // The most drafts per sequence while `running` sequences run.
  int drafts_for(int64_t running) const;
};

// `model` is the target as the user named it. Keys:
//   method                       "mtp", vLLM's older "<family>_mtp" (a note), "ngram", "ngram_gpu" (a note); may be
//                                absent when "model" is the target ("mtp") or "ngram"
//   model                        only the target itself
//   num_speculative_tokens       0 ... 8, or "auto" (also the default): adaptive up to 4
//   adaptive                     ours; false: always num_speculative_tokens drafts
//   prompt_lookup_min, _max      1 ... 64, of "ngram" alone; one takes the value of the other, without both 5 (as vLLM)
//   disable_by_batch_size        no drafts while more sequences run than this
//   num_speculative_tokens_per_batch_size   [[first, last, drafts], ...]
// Keys that change nothing here are ignored with a note; those that would are refused, as unknown ones are. null is the
// same as absent. Throws UsageError naming flag and key.
SpeculativeConfig parse_speculative_config(const json::object& object, std::string_view model);

}  // namespace calandra
