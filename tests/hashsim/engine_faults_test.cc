// Planted faults: each does to the engine's batches, slots, pages or counts what a bug would do, and the simulation
// must report it; with only the one check named beside it where a fault can hide from all others. Those of steps that
// are launched too early: look_ahead_test.cc.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cstring>
#include <memory>
#include <set>

#include "tests/hashsim/hash_layout.h"
#include "tests/hashsim/planted_fault.h"

namespace calandra::hashsim {
namespace {

// A prompt of `size` tokens in pages of 16, MTP with 3 drafts, everything roomy. With n = 4 its choices fork; else a
// second request begins where the first one's prompt ends.
SimOptions shared_prefix(int64_t size, bool forks, By by) {
  SimOptions options = only(by);
  options.world = [=](SimWorld& world) {
    HashModelConfig model;
    model.agreement = 0.5;
    model.seed = world.rules.model.seed;
    model.step_cost.weight_bytes = 1;
    world.rules.model = model;
    world.limits = {.max_num_seqs = 8,
                    .max_num_batched_tokens = 128,
                    .max_model_len = 100,
                    .num_state_slots = 40,
                    .pending_capacity = 3,
                    .max_cuts = 4,
                    .hidden_ring = 128};
    world.options = {};
    world.options.seed = 1;
    world.options.checkpoint_bytes = int64_t{1} << 30;
    world.options.speculative.emplace().num_speculative_tokens = 3;
    world.options.speculative->adaptive = false;
    world.rules.eos_token_ids = {};
    world.rules.thinking = {};
    world.rules.longest = 100;
    world.long_ring = true;
    world.fault_steps = 0;
    world.requests.clear();
    Draw draw(world.rules.model.seed);
    std::vector<SimToken> tokens;
    for (int64_t i = 0; i < size; ++i) tokens.push_back({static_cast<int32_t>(draw.in(0, 63))});
    for (int request = 0; request < (forks ? 1 : 3); ++request) {
      SimRequest& to = world.requests.emplace_back();
      set_prompt(to, tokens, false, *world.pictures);
      if (!forks) {  // the first one leaves a checkpoint at `size`, the others go on differently and later run together
        to.request.checkpoint_hints = {size};
        for (int i = 0; i < 3; ++i) {
          to.tokens.push_back({static_cast<int32_t>(draw.in(0, 63))});
          to.images.push_back(0);
          to.request.prompt_token_ids.push_back(to.tokens.back().id);
        }
        to.arrival = request == 0 ? 0 : 30;
      }
      to.request.params.n = forks ? 4 : 1;
      to.request.params.max_tokens = 16;
      to.request.params.seed = draw.word();
      to.told.resize(static_cast<size_t>(to.request.params.n));
      for (int32_t i = 0; i < to.request.params.n; ++i)
        to.solo.push_back(std::make_unique<SoloAnswer>(world.rules, world.sampler, to.request, to.images,
                                                       *to.request.params.seed, i));
    }
  };
  return options;
}

// No planted fault, no report: whatever is seen below is the fault.
TEST(EngineFaults, WithoutAFaultNothingIsReported) {
  EXPECT_EQ(seen([] { return only(By::kAll); }), 0);
}

// What a slot held before a step, and all that a running choice needs to find it again.
struct Before {
  std::vector<std::byte> bytes;
  int64_t computed = 0;
};

const SlotPool::CopyBytes kCopy = [](void* to, const void* from, size_t bytes) { std::memcpy(to, from, bytes); };

TEST(EngineFaults, StaleStateSlot) {
  // The step's states are lost; counts and hidden rows are the new ones.
  for (const By by : {By::kTokens, By::kStates})
    EXPECT_GT(seen([&] {
                SimOptions options = only(by);
                auto before = std::make_shared<std::map<const Choice*, Before>>();
                options.before_forward = [before](EngineSim& sim, Batch&) {
                  before->clear();
                  for (const Choice* choice : sim.core().scheduler().running()) {
                    Before& b = (*before)[choice];
                    b.bytes.resize(static_cast<size_t>(sim.runner().slots().bytes_per_slot()));
                    sim.runner().slots().copy_out(choice->sequence.slot, b.bytes.data(), kCopy);
                    b.computed = choice->sequence.computed;
                  }
                };
                options.after_step = [before](EngineSim& sim) {
                  SlotPool& slots = sim.runner().slots();
                  for (const Choice* choice : sim.core().scheduler().running()) {
                    const Sequence& s = choice->sequence;
                    const auto found = before->find(choice);
                    if (found == before->end() || found->second.computed >= s.computed || s.source != s.slot) continue;
                    const int32_t N = ints(slots.N())[s.slot], accepted = ints(slots.accepted())[s.slot];
                    const Tensor hidden = slots.hidden()[s.slot];
                    const std::vector<float> rows(hidden.as<float>(), hidden.as<float>() + hidden.numel());
                    slots.copy_in(s.slot, found->second.bytes.data(), kCopy);
                    ints(slots.N())[s.slot] = N;
                    ints(slots.accepted())[s.slot] = accepted;
                    std::copy(rows.begin(), rows.end(), hidden.as<float>());
                  }
                  before->clear();
                };
                return options;
              }),
              100);
}

TEST(EngineFaults, OffByOneAcceptedCount) {
  for (const By by : {By::kTokens, By::kStates})
    EXPECT_GT(seen([&] {
                SimOptions options = only(by);
                options.after_step = [](EngineSim& sim) {
                  for (const Choice* choice : sim.core().scheduler().running()) {
                    const Sequence& s = choice->sequence;
                    if (s.source == s.slot && s.accepted > 0)
                      ints(sim.runner().slots().accepted())[s.slot] = s.accepted - 1;
                  }
                };
                return options;
              }),
              30);
}

// After a hit the drafter goes on behind the hit: earlier entries are there and are not seen.
TEST(EngineFaults, MtpEntriesNotContinuedAfterAHit) {
  EXPECT_GT(seen([] {
              SimOptions options = only(By::kDrafts);
              // An adaptive number of drafts may give entries up.
              options.world = [](SimWorld& world) {
                if (world.options.speculative) world.options.speculative->adaptive = false;
              };
              options.before_forward = [](EngineSim& sim, Batch&) {
                for (Choice* choice : sim.core().scheduler().running()) {
                  Sequence& s = choice->sequence;
                  if (choice->source && s.computed > 0) s.mtp_begin = s.mtp_end = s.computed;
                }
              };
              return options;
            }),
            15);
}

// The same, and the engine believes that the entry at the hit had been written.
TEST(EngineFaults, MtpEntryMissingAfterAHit) {
  for (const By by : {By::kDrafts, By::kStates})
    EXPECT_GT(seen([&] {
                SimOptions options = only(by);
                options.before_forward = [](EngineSim& sim, Batch&) {
                  for (Choice* choice : sim.core().scheduler().running()) {
                    Sequence& s = choice->sequence;
                    if (choice->source && s.computed > 0 && s.mtp_end == s.computed) ++s.mtp_end;
                  }
                };
                return options;
              }),
              10);
}

TEST(EngineFaults, WrongSalt) {
  EXPECT_GT(seen([] {
              SimOptions options = only(By::kTokens);
              options.submit = [](Request& request) { request.cache_salt.clear(); };
              return options;
            }),
            5);
}

// Another image under the key of the first.
TEST(EngineFaults, WrongPictureKey) {
  EXPECT_GT(seen(
                [] {
                  SimOptions options = only(By::kTokens);
                  options.world = [](SimWorld& world) {
                    for (SimRequest& request : world.requests)
                      for (PictureRows& picture : request.request.pictures) {
                        EncoderInput input = *picture.input;
                        input.content_hash = {};
                        picture.input = std::make_shared<EncoderInput>(std::move(input));
                      }
                  };
                  return options;
                },
                400),
            3);
}

TEST(EngineFaults, PageFreedEarly) {
  // Somebody else got it and wrote it.
  for (const By by : {By::kTokens, By::kStates})
    EXPECT_GT(seen([&] {
                SimOptions options = only(by);
                options.after_step = [](EngineSim& sim) {
                  for (const Choice* choice : sim.core().scheduler().running()) {
                    const Sequence& s = choice->sequence;
                    if (s.computed > 8 && s.computed % 7 == 0)
                      scribble_page(sim.world().rules.model, sim.runner().pages(), s.block_table.front(), s.computed);
                  }
                };
                return options;
              }),
              60);
  EXPECT_GT(seen([] {
              SimOptions options;
              options.tokens = options.drafts = options.states = false;
              auto taken = std::make_shared<std::set<const Choice*>>();
              options.after_step = [taken](EngineSim& sim) {
                for (Choice* choice : sim.core().scheduler().running()) {
                  std::vector<int32_t>& table = choice->sequence.block_table;
                  if (taken->contains(choice) || table.size() < 2) continue;
                  taken->insert(choice);
                  table.pop_back();  // nobody owns it any more
                }
              };
              return options;
            }),
            100);
}

// The sampler that takes its noise from the row of the batch.
class RowNoise final : public ReferenceBackend {
 public:
  void sample(ExecContext& ctx, const Tensor& logits, const ops::SamplingBatch& batch,
              ops::SamplingResult& out) override {
    ops::SamplingBatch changed = batch;
    for (size_t i = 0; i < changed.rows.size(); ++i) changed.rows[i].choice = static_cast<int32_t>(i);
    ReferenceBackend::sample(ctx, logits, changed, out);
  }
};

TEST(EngineFaults, NoiseKeyedByBatchRow) {
  RowNoise backend;
  EXPECT_GT(seen([&] {
              SimOptions options = only(By::kTokens);
              options.backend = &backend;
              return options;
            }),
            50);
}

TEST(EngineFaults, StaleAcceptedCountInARecycledSlot) {
  for (const By by : {By::kTokens, By::kStates})
    EXPECT_GT(seen([&] {
                SimOptions options = only(by);
                auto seen_before = std::make_shared<std::set<const Choice*>>();
                options.after_step = [seen_before](EngineSim& sim) {
                  std::set<const Choice*> now;
                  for (const Choice* choice : sim.core().scheduler().running()) {
                    const Sequence& s = choice->sequence;
                    now.insert(choice);
                    if (!seen_before->contains(choice) && s.source == s.slot && s.accepted == 0 &&
                        sim.runner().slots().pending_capacity() > 0)
                      ints(sim.runner().slots().accepted())[s.slot] = 1;
                  }
                  *seen_before = std::move(now);
                };
                return options;
              }),
              80);
}

// Whoever goes on from a slot that others hold too, a fork or a hit, writes it as well.
TEST(EngineFaults, SourceSlotWrittenInPlace) {
  for (const By by : {By::kTokens, By::kStates})
    EXPECT_GT(seen([&] {
                SimOptions options = only(by);
                auto written = std::make_shared<std::vector<std::pair<int32_t, int32_t>>>();
                options.before_forward = [written](EngineSim&, Batch& batch) {
                  written->clear();
                  for (int64_t i = 0; i < batch.segments(); ++i)
                    if (const int32_t src = ints(batch.state_src)[i], dst = ints(batch.state_dst)[i];
                        src >= 0 && src != dst)
                      written->push_back({src, dst});
                };
                options.after_step = [written](EngineSim& sim) {
                  SlotPool& slots = sim.runner().slots();
                  std::vector<std::byte> bytes(static_cast<size_t>(slots.bytes_per_slot()));
                  for (const auto& [src, dst] : *written) {
                    if (!slots.taken(src) || !slots.taken(dst)) continue;
                    slots.copy_out(dst, bytes.data(), kCopy);
                    slots.copy_in(src, bytes.data(), kCopy);
                  }
                  written->clear();
                };
                return options;
              }),
              20);
}

// The same by one of four forks, in the step in which all of them read it.
TEST(EngineFaults, SourceSlotWrittenInPlaceByOneFork) {
  EXPECT_GT(seen(
                [] {
                  SimOptions options = shared_prefix(37, true, By::kTokens);
                  auto own = std::make_shared<std::pair<int32_t, int32_t>>(-1, -1);
                  options.before_forward = [own](EngineSim& sim, Batch& batch) {
                    if (batch.segments() != 4 || ints(batch.state_src)[0] != ints(batch.state_src)[3]) return;
                    *own = {ints(batch.state_src)[0], ints(batch.state_dst)[0]};
                    ints(batch.state_dst)[0] = own->first;
                    sim.runner().slots().add_reference(own->first);  // it outlives the step, so that the fork is right
                  };
                  options.after_step = [own](EngineSim& sim) {
                    if (own->first < 0) return;
                    SlotPool& slots = sim.runner().slots();
                    std::vector<std::byte> bytes(static_cast<size_t>(slots.bytes_per_slot()));
                    slots.copy_out(own->first, bytes.data(), kCopy);
                    if (slots.taken(own->second)) slots.copy_in(own->second, bytes.data(), kCopy);
                    slots.release(own->first);
                    *own = {-1, -1};
                  };
                  return options;
                },
                20),
            15);
}

// A choice that stops claims that the entries of its accepted drafts were written from true rows. Drafts show it where
// another one goes on from there, which is rare.
TEST(EngineFaults, ProvisionalMtpEntryLeftAtAFinish) {
  for (const By by : {By::kStates, By::kDrafts})
    EXPECT_GT(seen(
                  [by] {
                    SimOptions options = only(by);
                    options.on_token = [](EngineSim& sim, const TokenEvent& event) {
                      if (!event.finished || event.token < 0) return;
                      Choice* choice = sim.find(event.request, event.choice);
                      if (choice != nullptr)
                        choice->sequence.mtp_end = std::max(choice->sequence.mtp_end, choice->sequence.size() - 1);
                    };
                    return options;
                  },
                  by == By::kStates ? 400 : 1600),
              10);
}

// The drafter stores the pair (row of the last shared token, next token) at the place of the shared token: the layout
// without the shift by one.
void write_last_shared_entry(EngineSim& sim, const Sequence& s, int64_t P) {
  if (s.mtp_end <= P || P < 2) return;
  const int64_t page_tokens = sim.runner().limits().block_size;
  const HashModelConfig& model = sim.world().rules.model;
  for (int64_t layer = 0; layer < model.mtp_layers; ++layer) {
    PageWords words(sim.runner().pages().layer(mtp_layer(model, layer)));
    const uint64_t key = words.key(s.block_table[P / page_tokens], P % page_tokens);
    words.put(s.block_table[(P - 1) / page_tokens], (P - 1) % page_tokens, key);
  }
}

TEST(EngineFaults, MtpEntryOfTheLastSharedTokenWrittenInPlace) {
  for (const int64_t size : {16, 32, 37, 48})
    for (const bool forks : {false, true}) {
      SCOPED_TRACE(fmt::format("{} tokens, {}", size, forks ? "n = 4" : "hit"));
      EXPECT_EQ(seen([&] { return shared_prefix(size, forks, By::kAll); }, 20), 0);
      for (const By by : {By::kDrafts, By::kStates})
        EXPECT_GT(seen(
                      [&] {
                        SimOptions options = shared_prefix(size, forks, by);
                        auto done = std::make_shared<std::set<const Choice*>>();
                        options.after_step = [=](EngineSim& sim) {
                          for (const Choice* choice : sim.core().scheduler().running()) {
                            const Sequence& s = choice->sequence;
                            const bool shares = forks ? s.outputs() > 0 : choice->answer.cached_tokens == size;
                            if (!shares || s.mtp_end <= size || !done->insert(choice).second) continue;
                            write_last_shared_entry(sim, s, size);
                          }
                        };
                        return options;
                      },
                      20),
                  15);
    }
}

// A choice that forks goes on writing the page that it had in common with the others.
TEST(EngineFaults, PartialPageNotCopiedByAFork) {
  for (const By by : {By::kTokens, By::kStates})
    EXPECT_GT(seen(
                  [&] {
                    SimOptions options = shared_prefix(37, true, by);
                    auto done = std::make_shared<bool>(false);
                    options.after_step = [done](EngineSim& sim) {
                      const auto running = sim.core().scheduler().running();
                      if (*done || running.size() < 4 || running[0]->sequence.outputs() != 1) return;
                      *done = true;
                      PagePool& pages = sim.runner().pages();
                      for (size_t i = 1; i < running.size(); ++i) {
                        int32_t& page = running[i]->sequence.block_table[2];
                        pages.add_reference(running[0]->sequence.block_table[2]);
                        pages.release(std::exchange(page, running[0]->sequence.block_table[2]));
                      }
                    };
                    return options;
                  },
                  20),
              15);
}

}  // namespace
}  // namespace calandra::hashsim
