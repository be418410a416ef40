// The parts of sample_row: logits are processed, candidates filtered, one drawn, logprobs read.
#pragma once

#include <algorithm>
#include <limits>
#include <span>

#include "base/noise.h"
#include "ops/sampling.h"

namespace calandra::reference {

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

using Candidate = ops::SamplingScratch::Candidate;

// Columns of the logits and the token ids that they stand for.
struct Vocabulary {
  int64_t V;
  std::span<const int32_t> token_ids;  // ascending; empty: id = column

  int32_t id(int64_t column) const { return token_ids.empty() ? static_cast<int32_t>(column) : token_ids[column]; }
  int64_t column(int32_t id) const {  // -1: no column
    if (token_ids.empty()) return id >= 0 && id < V ? id : -1;
    const auto found = std::lower_bound(token_ids.begin(), token_ids.end(), id);
    return found != token_ids.end() && *found == id ? found - token_ids.begin() : -1;
  }
};

struct RowMaximum {
  float value;     // -inf when nothing is above it
  int64_t column;  // the lowest one
  bool finite;     // no NaN, no +inf
};
RowMaximum row_maximum(const float* l, int64_t V);

// z of the logits: 0 for the largest, so that f32 is finest where it matters.
struct Scale {
  float max, temperature;
  float operator()(float l) const { return (l - max) / temperature; }
};

// PERF: rows are walked in blocks of a fixed size, which GCC vectorises at -O2.
constexpr int64_t kBlock = 256;
// z of the columns [begin, begin + kBlock), -inf beyond V.
inline void scale_block(const float* l, int64_t begin, int64_t V, Scale scale, float* z) {
  if (begin + kBlock <= V) {
    for (int64_t i = 0; i < kBlock; ++i) z[i] = scale(l[begin + i]);
  } else {
    for (int64_t i = 0; i < kBlock; ++i) z[i] = begin + i < V ? scale(l[begin + i]) : kMinusInfinity;
  }
}

// True if a mask, bias or penalty changes the row.
bool changes_logits(const ops::SamplingRow& row);
// The logits with the grammar mask only: `l` is a copy.
void mask_by_grammar(const float* logits, const ops::SamplingBatch& batch, const ops::SamplingRow& row,
                     const Vocabulary& vocabulary, std::vector<float>& l);
// The logits after masks, bias and penalties, in the order of the contract: `l` is a copy.
void process_logits(const float* logits, const ops::SamplingBatch& batch, const ops::SamplingRow& row,
                    const Vocabulary& vocabulary, std::vector<float>& l);

bool has_filter(const ops::SamplingRow& row, int64_t V);
// min_p, top_k, top_p -> scratch.kept, in no order. Without a filter: everything above -inf.
void filter(const float* l, const Vocabulary& vocabulary, const ops::SamplingRow& row, Scale scale,
            ops::SamplingScratch& scratch);

// argmax of z + noise. `first` is the id with z = 0.
int32_t draw(const float* l, const Vocabulary& vocabulary, const NoiseKey& key, Scale scale, int32_t first);
int32_t draw(std::span<const Candidate> kept, const NoiseKey& key, int32_t first);

// log of a sum of exp_mass.
double log_of_mass(uint64_t mass);

// Logprobs (or, in the modes that say so, logits) of the final row `l`; `token` is the one whose logprob is wanted.
void read_logprobs(const float* l, const Vocabulary& vocabulary, const ops::SamplingBatch& batch,
                   const ops::SamplingRow& row, int32_t token, ops::SamplingScratch& scratch, ops::TokenLogprobs& out);

}  // namespace calandra::reference
