// Sequence: the tokens of one choice, its progress, pages and slots. Values only; the runner moves them along.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <vector>

#include "engine/grammar.h"
#include "engine/logits_processor.h"
#include "engine/sampling_params.h"
#include "engine/token_counts.h"
#include "tensor/tensor.h"

namespace calandra {

// Tokens of a prompt that stand for an image or a part of a video: their embeddings come from the vision tower.
struct ImageSpan {
  int64_t begin = 0;  // first token index
  Tensor embeds;      // [tokens, D] on the device, in the model's type; whoever made the sequence owns the memory
};

struct Sequence {
  std::vector<int32_t> tokens;  // prompt, then what was sampled
  int64_t prompt_size = 0;
  SamplingParams params;
  uint64_t seed = 0;   // of the request, drawn when it gave none
  int32_t choice = 0;  // index of this choice among all of the request

  std::vector<std::shared_ptr<const LogitsProcessor>> processors;  // applied after what `params` ask for
  std::shared_ptr<Grammar> grammar;  // of this choice alone, it has accepted the outputs; null: none

  std::vector<ImageSpan> images;                  // ascending
  std::vector<std::array<int32_t, 3>> positions;  // rotary (temporal, height, width) of the prompt; empty: the index
  int32_t position_delta = 0;                     // rotary position of a later token minus its index

  int64_t computed = 0;              // P: tokens run and kept
  std::vector<int32_t> block_table;  // pages
  int32_t source = -1;               // slot that holds the state at `computed`; -1: no token was run
  int32_t slot = -1;                 // slot that the next step writes; the same as `source` while decoding
  int32_t accepted = 0;              // pending tokens of `source` that count
  int32_t lane = -1;                 // place in the ring of hidden rows
  // MTP entries [mtp_begin, mtp_end) are written from true hidden rows; the ring holds the rows of tokens
  // [ring_begin, computed).
  int64_t mtp_begin = 1, mtp_end = 1, ring_begin = 0;
  TokenCounts counts;      // up to date only while penalties are in use
  ThinkingTrack thinking;  // up to date only with a thinking_token_budget
  bool finished = false;

  int64_t size() const { return static_cast<int64_t>(tokens.size()); }
  int64_t outputs() const { return size() - prompt_size; }
  int32_t position(int64_t index, int axis) const {
    return index < static_cast<int64_t>(positions.size()) ? positions[index][axis]
                                                          : static_cast<int32_t>(index) + position_delta;
  }
};

}  // namespace calandra
