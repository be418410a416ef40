// SoloAnswer: what one choice of a request must get, from the shadow of the hash model and the sampler alone: no cache,
// no batch, no drafts. One token after the other, by a loop that shares nothing with the engine but the sampler's rows.
#pragma once

#include <vector>

#include "backends/reference/reference.h"
#include "engine/request.h"
#include "engine/sampling_row.h"
#include "tests/hashsim/hash_shadow.h"

namespace calandra::hashsim {

// What all requests of one engine have in common.
struct SoloRules {
  HashModelConfig model;
  std::vector<int32_t> eos_token_ids;
  ThinkingTokens thinking;
  int64_t longest = 0;  // tokens of a sequence

  SamplingContext context() const { return {eos_token_ids, thinking, model.vocab_size}; }
};

// Rows of logits in host memory -> tokens.
class SoloSampler {
 public:
  const ops::SampledRow& sample(std::span<const float> logits, const ops::SamplingBatch& batch);

 private:
  ReferenceBackend backend_;
  Workspace workspace_;
  OneRank communicator_;
  ops::SamplingResult result_;
};

struct SoloAnswer {
  // images: of each token of the prompt, image_hash of its embedding row; 0: text.
  SoloAnswer(const SoloRules& rules, SoloSampler& sampler, const Request& request, std::span<const uint64_t> images,
             uint64_t seed, int32_t choice);

  HashShadow shadow;  // of prompt and answer
  Answer answer;      // without text, and without what is counted
  Sequence so_far;    // the prompt, and what the engine has told of the answer: advance()

  void advance(int32_t token);
  // What an MTP drafter must propose behind so_far when it sees entries from first_key on; ends where the sampler finds
  // no token.
  std::vector<int32_t> mtp_drafts(const SoloRules& rules, SoloSampler& sampler, int64_t k, int64_t first_key);
  // Prompt lookup, by brute force.
  std::vector<int32_t> ngram_drafts(int least, int most, int64_t k) const;

 private:
  void score_prompt(const SoloRules& rules, SoloSampler& sampler);
  void pool(Pooling pooling);
  void generate(const SoloRules& rules, SoloSampler& sampler, Sequence s);
};

// The first difference in words, or nothing; all floats bit by bit.
std::string difference(const ops::TokenLogprobs& got, const ops::TokenLogprobs& want);

}  // namespace calandra::hashsim
