// ModelRunner: the shapes of steps that are recorded (RecordedSteps), and those that are before any request comes.
#include <algorithm>

#include "engine/model_runner.h"

namespace calandra {
namespace {

constexpr int64_t kWarmRows = 64;       // more than the kernels of few rows take
constexpr int64_t kUsualTokens = 8192;  // of sequences whose steps are recorded at the start

}  // namespace

int64_t ModelRunner::most_sequences(const Backend& backend, const RunnerLimits& limits) {
  const int64_t most = limits.max_num_seqs, added = most / limits.recorded_sizes + 1;
  return backend.records() ? RecordedSteps::rounded(most + added, limits.recorded_sizes) : most;
}

void ModelRunner::round_up(Bounds& bounds) const {
  BatchSizes& sizes = bounds.sizes;
  bounds.max_seq_len = RecordedSteps::bound_of(bounds.max_seq_len, limits_.max_model_len);
  if (sizes.sequences > 1 && bounds.max_query_len > 1) {
    bounds.max_query_len = limits_.pending_capacity + 1;
    if (bounds.max_drafts > 0) bounds.max_drafts = limits_.pending_capacity;
  }
  // The rows that are added are those of added sequences.
  const int64_t rows = RecordedSteps::rounded(sizes.rows, limits_.recorded_sizes), added = rows - sizes.rows;
  const int64_t sequences = RecordedSteps::rounded(
      sizes.sequences + (added + bounds.max_query_len - 1) / bounds.max_query_len, limits_.recorded_sizes);
  if (rows > limits_.max_num_batched_tokens || sequences > most_sequences(backend_, limits_)) return;
  sizes.rows = rows;
  sizes.sequences = sizes.segments = sequences;
}

void ModelRunner::record_steps(double seconds, const Clock& clock) {
  if (!backend_.records()) return;
  const double end = clock() + seconds;
  const auto run_one = [&](const Bounds& bounds, int64_t pass) {
    const Step step = build({}, bounds);
    const Tensor result = pass == RecordedSteps::kForward ? run_forward(step, nullptr) : run_draft(step, pass, nullptr);
    std::byte first{};
    backend_.copy_bytes(&first, result.data(), 1);  // the device has run it
  };
  const int64_t prompt = std::min({kWarmRows, limits_.max_num_batched_tokens, limits_.max_model_len});
  run_one({.sizes = {.rows = prompt, .sequences = 1, .segments = 1}, .max_query_len = prompt, .max_seq_len = prompt},
          RecordedSteps::kForward);
  const auto run_twice = [&](int64_t sequences, int64_t rows_each, int64_t drafts, int64_t tokens, int64_t pass) {
    if (sequences * rows_each > limits_.max_num_batched_tokens) return;
    Bounds bounds;
    bounds.sizes.mtp = pass != RecordedSteps::kForward;
    bounds.sizes.rows = sequences * rows_each;
    bounds.sizes.sequences = bounds.sizes.segments = sequences;
    bounds.max_query_len = rows_each;
    bounds.max_seq_len = tokens;
    bounds.max_drafts = drafts;
    bounds.repeats = true;
    round_up(bounds);
    for (int time = 0; time < 2 && clock() < end && recorded_.recordings() < RecordedSteps::kMostAtStart; ++time)
      run_one(bounds, pass);
  };
  const int64_t most_drafts = limits_.pending_capacity;
  for (int64_t sequences = 1; sequences <= limits_.max_num_seqs; sequences *= 2)
    for (int64_t tokens = 1; tokens <= std::min(kUsualTokens, limits_.max_model_len);
         tokens = RecordedSteps::bound_of(tokens, limits_.max_model_len) + 1) {
      for (int64_t drafts = 0; drafts <= most_drafts; ++drafts)
        run_twice(sequences, 1 + drafts, drafts, tokens, RecordedSteps::kForward);
      if (model_.drafter() == nullptr || limits_.hidden_ring == 0) continue;
      for (int64_t rows = 1; rows <= most_drafts + 1; ++rows) run_twice(sequences, rows, 0, tokens, 0);
      for (int64_t pass = 1; pass < most_drafts; ++pass) run_twice(sequences, 1, 0, tokens, pass);
    }
}

}  // namespace calandra
