// RecordedSteps: steps whose shapes come again are recorded (Backend::record) and then started in one call, so that the
// host does not start each of their kernels.
#pragma once

#include <algorithm>
#include <bit>
#include <compare>
#include <map>

#include "base/check.h"
#include "ops/backend.h"

namespace calandra {

class RecordedSteps {
 public:
  static constexpr int64_t kForward = -1;  // of Key::pass; passes of the drafter count from 0
  static constexpr int64_t kMostAtStart = 128;

  // All that arguments of a step's kernels depend on. The batch and the caches lie where they always lie.
  struct Key {
    int64_t pass, rows, sequences, max_query_len, max_seq_len, max_drafts;
    const void* input;  // hidden rows of a drafter's pass
    auto operator<=>(const Key&) const = default;
  };

  // The bound of a length that is the same for most steps of a sequence: it changes when the length doubles.
  static int64_t bound_of(int64_t max_seq_len, int64_t max_model_len) {
    const auto next = static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(max_seq_len)));
    return std::min(std::max(kLeastBound, next), std::max(max_seq_len, max_model_len));
  }

  // Rows and sequences of recorded steps are rounded up, so that batches that grow and shrink, and drafts that change
  // in number, make few shapes: there are `per_doubling` numbers from each power of two to the next, with 4 all up
  // to 8. 16 is one of them: at most so many rows have kernels of their own, whose bits must not change.
  static int64_t rounded(int64_t n, int64_t per_doubling) {
    if (n <= 1) return n;
    const auto below = static_cast<int64_t>(std::bit_floor(static_cast<uint64_t>(n - 1)));
    const int64_t unit = std::max<int64_t>(1, below / per_doubling);
    return (n + unit - 1) / unit * unit;
  }

  // work(), a Tensor in the workspace, which was reset. The first time for a key it runs as it is, the second time it
  // is recorded, and from then on the recording runs.
  template <class F>
  Tensor run(ExecContext& ctx, const Key& key, const F& work) {
    if (CALANDRA_STAMPS || !ctx.backend.records()) return work();  // stamps want every allocation
    const auto found = steps_.find(key);
    if (found == steps_.end()) {
      if (steps_.size() == kMost) return work();
      steps_.emplace(key, Step{});
      ++first_runs_;
      return work();
    }
    Step& step = found->second;
    if (step.recording == nullptr) {
      ++first_runs_;
      step.recording = ctx.backend.record(ctx, [&] { step.result = work(); });
      step.behind = ctx.workspace.place();
    }
    step.recording->run(ctx);
    ctx.workspace.go_to(step.behind);
    return step.result;
  }

  int64_t recordings() const {
    return std::count_if(steps_.begin(), steps_.end(),
                         [](const auto& step) { return step.second.recording != nullptr; });
  }
  // Of work that is recorded then or the next time: times that tell nothing of what comes.
  int64_t first_runs() const { return first_runs_; }

 private:
  static constexpr int64_t kLeastBound = 512;
  static constexpr size_t kMost = 256;  // further shapes are never recorded; what one takes was not measured

  struct Step {
    std::unique_ptr<Backend::Recording> recording;  // null: it ran once
    Tensor result;
    Workspace::Place behind{};
  };
  std::map<Key, Step> steps_;
  int64_t first_runs_ = 0;
};

}  // namespace calandra
