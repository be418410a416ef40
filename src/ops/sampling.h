// The sampler as an op: rows of logits -> one token each, and what a user may ask about the choice.
//   R sampling rows   N logit rows   V vocabulary (columns of the logits)
//
// For a row with logits l, in this order (vLLM's):
//   grammar    l = -inf where the mask has no bit. From here on: "raw"
//   allowed    l = -inf outside the allowed ids, if there are any
//   forbidden  l = -inf: bad words whose beginning was matched, stop ids before min_tokens
//   bias       l += bias
//   counts     of every token that occurred: l = l > 0 ? l / repetition : l * repetition
//              then, if it is among the outputs: l -= frequency * count, l -= presence
//   greedy     temperature < 1e-5: the token is argmax l. "processed" for greedy rows ends here
//   z = (l - max l) / temperature
//   min_p      keep z >= log(min_p)
//   top_k      keep what is not below the k-th largest, ties stay. 0, -1 or >= V: off
//   top_p      in order of z, ties to the lower id: keep while the probability of all before is below top_p
//   token      argmax of z + gumbel(noise of the token id)
//
// All in f32, ties to the lowest id. Probabilities for top_p are the integers of exp_mass, so that their sums are exact
// in every order. A draft that is verified counts as an output of the rows behind it: the caller says so in `counts`
// and `forbidden`. Noise belongs to the token id: no other row and no filter changes it.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "ops/exec_context.h"
#include "tensor/tensor.h"

namespace calandra::ops {

// Elements [begin, end) of one of the batch's lists.
struct ListRange {
  int32_t begin = 0, end = 0;
  constexpr bool empty() const { return begin == end; }
  int32_t size() const { return end - begin; }
};

struct TokenCount {
  int32_t id;
  int32_t outputs;  // times among the outputs; 0: in the prompt only
};

struct TokenBias {
  int32_t id;
  float bias;
};

// vLLM's logprobs_mode.
enum class LogprobsMode : uint8_t { kRawLogprobs, kRawLogits, kProcessedLogprobs, kProcessedLogits };

constexpr int32_t kNoLogprobs = -2;
constexpr int32_t kAllLogprobs = -1;
constexpr float kGreedyBelow = 1e-5f;

struct SamplingRow {
  int32_t logit_row = 0;  // several rows may share one
  float temperature = 1;
  int32_t top_k = 0;
  float top_p = 1;
  float min_p = 0;
  float repetition_penalty = 1;
  float frequency_penalty = 0;
  float presence_penalty = 0;

  uint64_t seed = 0;
  int32_t token_index = 0;  // place of the sampled token in its sequence
  int32_t moved_by = -1;    // >= 0: that element of SamplingBatch::moves behind it
  int32_t choice = 0;

  ListRange counts;     // of SamplingBatch::counts; every id at most once
  ListRange bias;       // of SamplingBatch::bias; every id at most once
  ListRange allowed;    // of SamplingBatch::ids; empty: all
  ListRange forbidden;  // of SamplingBatch::ids
  // First word of the mask in SamplingBatch::grammar, one bit per token id (bit id % 32 of word id / 32); -1: none.
  int32_t grammar = -1;

  int32_t num_logprobs = kNoLogprobs;  // 0: only of the token itself
  LogprobsMode logprobs_mode = LogprobsMode::kRawLogprobs;
  int32_t scored_id = -1;     // >= 0: the logprob is that of this token, not of the sampled one (prompt logprobs)
  ListRange logprob_ids;      // of SamplingBatch::ids: further tokens whose logprobs are wanted
  bool distribution = false;  // report the kept tokens with their probabilities (research)
};

// One step's rows with their lists. Ids outside the vocabulary name no logit and are ignored.
struct SamplingBatch {
  std::vector<SamplingRow> rows;
  std::vector<TokenCount> counts;
  std::vector<TokenBias> bias;
  std::vector<int32_t> ids;
  std::vector<uint32_t> grammar;
  // [V] ascending: token id of each column, for a draft vocabulary. Empty: the column itself.
  std::span<const int32_t> token_ids;
  Tensor moves;  // [M] i32 on the device, for start_sample: places that the host does not know yet (ops/look_ahead.h)

  // Empty again; memory is kept.
  void clear();
};

enum class RowStatus : uint8_t {
  kOk,
  kNotFinite,  // NaN or +infinity among the logits: token is -1 and nothing else is reported
  kAllMasked,  // no token is left: token is -1
};

struct TokenLogprob {
  int32_t id;
  float logprob;  // may be minus infinity
};

struct TokenLogprobs {
  float logprob = 0;                 // of the token, or of scored_id
  int32_t rank = 0;                  // tokens that are at least as likely
  std::vector<TokenLogprob> top;     // num_logprobs likeliest, ties: lower id first
  std::vector<TokenLogprob> listed;  // logprob_ids, in their order
};

struct SampledRow {
  int32_t token = -1;
  int32_t greedy_id = -1;  // argmax before the temperature
  RowStatus status = RowStatus::kOk;
  TokenLogprobs logprobs;
  std::vector<int32_t> distribution_ids;  // ascending, those whose probability is above 0
  std::vector<double> distribution_probs;
};

// Memory of one thread that samples.
struct SamplingScratch {
  struct Candidate {
    float z;
    int32_t id;
  };
  std::vector<float> logits;
  std::vector<Candidate> kept;  // what the filters left
  std::vector<Candidate> edge;
  std::vector<TokenLogprob> heap;
};

// Reuse one object: after the first steps nothing is allocated for rows that ask for no logprobs.
struct SamplingResult {
  std::vector<SampledRow> rows;          // one per sampling row
  std::vector<SamplingScratch> scratch;  // one per thread
};

//   logits [N, V] f32, rows may be strided
void sample(ExecContext& ctx, const Tensor& logits, const SamplingBatch& batch, SamplingResult& result);

}  // namespace calandra::ops
