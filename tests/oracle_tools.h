// What the whole-model oracle tests share: recorded taps, differences, states, greedy continuations.
#pragma once

#include <gtest/gtest.h>

#include <map>
#include <string>
#include <vector>

#include "tests/model_under_test.h"

namespace calandra::testing {

// Everything a model taps, by name ("embedding", "layers.3", "layers.3.gate"), as f32; a constant once; `order` has the
// names as they were computed.
class Recorder : public Taps {
 public:
  void tap(int layer, const char* name, const Tensor& t) override;
  void constant(int layer, const char* name, const Tensor& t) override;
  // Place of a name in the order of computation; -1 when it was not tapped.
  int64_t place(const std::string& name) const;
  std::map<std::string, std::vector<float>> tensors;
  std::map<std::string, std::vector<int64_t>> shapes;
  std::vector<std::string> order;
};

// A tensor of the oracle beside ours.
struct TapPair {
  std::string name;
  double place;  // in the order of computation
  std::vector<float> got, want;
  double bound;  // largest allowed difference
};
// Fails with the first that differs in the order of computation: what comes after it differs for that reason alone.
::testing::AssertionResult all_near(std::vector<TapPair> pairs);

double max_abs(const std::vector<float>& x);
// Infinity when the sizes differ or a difference is NaN.
double max_abs_difference(const std::vector<float>& a, const std::vector<float>& b);
double rms_difference(const std::vector<float>& a, const std::vector<float>& b);

// A slotted tensor of the sequence by name: "recurrent" as stored, "conv" as [C, W - 1]; empty when the layer has none.
std::vector<float> state_of(ModelRunner& runner, const Sequence& sequence, int layer, const std::string& name);

// `count` greedy tokens of every prompt, all of them requests of one engine; in hostile builds with pages for the
// longest alone, so that they run in turns.
std::vector<std::vector<int32_t>> greedy(ModelUnderTest& model, const std::vector<std::vector<int32_t>>& prompts,
                                         int64_t count);

// Lowest id of the greatest value.
int32_t argmax(const float* row, int64_t n);

// Logits of every row of a result of the runner, [T * V].
std::vector<float> all_logits(ModelRunner& runner, const Tensor& hidden);

// Teacher-forced first MTP pass over a sequence that has run, with `hidden` [T * D] of all its tokens in the model's
// type, entry e fed with next[e - 1]; results [T, D] as f32 and logits [T, V].
struct MtpPass {
  std::vector<float> hidden, logits;
};
MtpPass mtp_pass(ModelRunner& runner, Sequence& sequence, const std::vector<float>& hidden,
                 const std::vector<int32_t>& next, int64_t step, int64_t chunk, Taps* taps = nullptr);

// `count` chained greedy drafts behind the last token, the first of them given; pages must reach so far.
struct Drafts {
  std::vector<int32_t> tokens;
  std::vector<float> logits, hidden;  // of every step, the first from `first`
};
Drafts chained_drafts(ModelRunner& runner, Sequence& sequence, const MtpPass& first, int64_t count, bool cycle_layers);

// Runs the model over the whole sequence; the hidden rows after the final norm as f32, and the logits if asked for.
std::vector<float> target_hidden(ModelRunner& runner, Sequence& sequence, int64_t chunk,
                                 std::vector<float>* logits = nullptr);

}  // namespace calandra::testing
