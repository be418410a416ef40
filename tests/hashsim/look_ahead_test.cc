// A step that was launched before the host knew that a choice had ended: it names the slot and pages that meanwhile
// belong to the choice's checkpoint, and its row is inactive, so nothing of them may change. The engine's own such
// steps are async_engine_test.cc's; here they are launched for it with drafts and their entries, after every step, on
// every new checkpoint.
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>

#include "tests/hashsim/planted_fault.h"

namespace calandra::hashsim {
namespace {

struct Late {
  bool active_rows = false, active_entries = false, folds = false;  // faults
  bool launching = false;
  CheckpointId next = 0;
  int64_t launched = 0;
};

// The row behind the checkpoint and drafts of its own, then the entry of the last token before it.
void launch(EngineSim& sim, Late& late, const Checkpoint& held) {
  ModelRunner& runner = sim.runner();
  const RunnerLimits& limits = runner.limits();
  const int64_t drafts = std::min(limits.pending_capacity, limits.max_num_batched_tokens - 1),
                end = held.P + 1 + drafts;
  Sequence s;
  s.tokens.resize(static_cast<size_t>(held.P + 1));
  if (end > limits.max_model_len || !runner.reserve(s, end)) return;
  ++late.launched;
  Sequence own = s;
  std::copy(held.pages.begin(), held.pages.end(), s.block_table.begin());
  s.source = s.slot = held.slot;
  s.computed = held.P;
  const std::vector<int32_t> more(static_cast<size_t>(drafts), 1);
  const ModelRunner::Part part{&s, 1, more};
  late.launching = true;
  const Tensor hidden = runner.forward({&part, 1});
  if (sim.world().rules.model.mtp_layers > 0 && held.P > 1) {
    const int32_t token = 2, row = 0;
    const ModelRunner::DraftPart entry{&s, held.P - 1, {&token, 1}};
    runner.draft({&entry, 1}, runner.keep_hidden(hidden, {&row, 1}), 0);
  }
  late.launching = false;
  if (late.folds) {
    int32_t& accepted = runner.slots().accepted().as<int32_t>()[held.slot];
    runner.slots().N().as<int32_t>()[held.slot] += accepted;
    accepted = 0;
  }
  runner.release(own);
}

// `late` is that of one seed; launched steps of all seeds are counted in `launched`.
SimOptions with_late_steps(Late faults, int64_t* launched = nullptr) {
  SimOptions options = only(By::kStates);
  options.ownership = true;
  auto late = std::make_shared<Late>(faults);
  options.before_forward = [late](EngineSim&, Batch& batch) {
    if (late->launching) ints(batch.active)[0] = late->active_rows;
  };
  options.before_draft = [late](EngineSim&, Batch& batch) {
    if (late->launching) ints(batch.active)[0] = late->active_entries;
  };
  options.after_step = [late, launched](EngineSim& sim) {
    PrefixCache* cache = sim.core().cache();
    if (cache == nullptr) return;
    const int64_t before = late->launched;
    for (; late->next < cache->stats().inserted; ++late->next)
      if (cache->contains(late->next) && cache->checkpoint(late->next).tier == Tier::kDevice)
        launch(sim, *late, cache->checkpoint(late->next));
    if (launched != nullptr) *launched += late->launched - before;
  };
  return options;
}

constexpr int kSeeds = 600;

TEST(LookAhead, InactiveRowsOfAnEndedChoiceChangeNothing) {
  int64_t launched = 0;
  EXPECT_EQ(seen([&] { return with_late_steps({}, &launched); }, kSeeds), 0);
  EXPECT_GT(launched, 1000);
}

TEST(LookAhead, SlotOverwrittenAfterAStop) {
  EXPECT_GT(seen([] { return with_late_steps({.active_rows = true}); }, kSeeds), 200);
}

TEST(LookAhead, PendingFoldedForAnInactiveRow) {
  EXPECT_GT(seen([] { return with_late_steps({.folds = true}); }, kSeeds), 20);
}

TEST(LookAhead, EntryWrittenForAnInactiveRow) {
  EXPECT_GT(seen([] { return with_late_steps({.active_entries = true}); }, kSeeds), 80);
}

}  // namespace
}  // namespace calandra::hashsim
