// What the sampler's host side (sampling.cc) and its kernel (sampling.cu) share.
#pragma once

#include <cuda_runtime_api.h>

#include <array>
#include <vector>

#include "ops/look_ahead.h"
#include "tensor/buffer.h"

namespace calandra::cuda {

constexpr int kMostTops = 64;  // likeliest tokens that the device reports
// Of a row: it stays in the shared memory of 8 blocks. The vocabularies of the models have 157,184 and 248,320.
constexpr int64_t kMostColumns = 8 * 40'000;

struct SamplingInput {
  ops::SamplingRow row;
  int32_t place;    // of the results
  int32_t changed;  // by masks, biases or penalties
  int32_t listed;   // first place of its logprob_ids
};

struct SamplingOutcome {
  uint64_t mass;      // of exp(logit - max)
  float max, chosen;  // logits
  int32_t token, greedy_id, status, rank, tops;
};

constexpr int kRowsAlong = 24;  // of a launch that brings them along

// Lists of the batch and of results, where the device reaches them.
struct SamplingArgs {
  const float* logits;
  int64_t stride;
  int V;
  const int32_t* token_ids;   // null: the column itself
  const SamplingInput* rows;  // null: `few` are they. A copy to the device takes 2 to 8 us (cuda_step_profile.md)
  const ops::TokenCount* counts;
  const ops::TokenBias* bias;
  const int32_t* ids;
  const uint32_t* grammar;
  const int32_t* moves;  // null: there are none
  int32_t* tokens;       // [rows] on the device, for who goes on there; null: nobody
  SamplingOutcome* outcomes;
  ops::TokenLogprob* tops;  // [rows, kMostTops], logits, in no order
  float* listed;            // logits
  SamplingInput few[kRowsAlong];
};

void launch_sampler(cudaStream_t stream, const SamplingArgs& args, int rows);

// One start of the sampler, on its way. Its memory is there from the start for rows with short lists, and grows with
// longer ones.
struct SamplingFlight {
  Buffer host_in, in;
  Buffer out;                     // host memory that the kernel writes
  cudaEvent_t sampled = nullptr;  // behind the kernel
  std::vector<size_t> on_device;  // rows
  // In `out`, of the rows that were started.
  const SamplingOutcome* outcomes = nullptr;
  const ops::TokenLogprob* tops = nullptr;
  const float* listed = nullptr;
};

struct SamplingMemory {
  std::array<SamplingFlight, ops::kSamplesAtOnce> flights;
  Buffer token_ids;  // of one at a time on the device, in the order of the stream
  std::vector<int32_t> held_token_ids;
};

}  // namespace calandra::cuda
