// ModelRunner's steps with drafts, with states written inside prompts, and its rows for the drafter, against the
// shadow.
#include <gtest/gtest.h>

#include <algorithm>
#include <deque>
#include <random>

#include "backends/reference/reference.h"
#include "engine/model_runner.h"
#include "tests/deferred_backend.h"
#include "tests/hashsim/hash_model.h"
#include "tests/hashsim/hash_shadow.h"

namespace calandra::hashsim {
namespace {

constexpr int64_t kMostDrafts = 4;

// A sequence whose continuation is known.
struct Known {
  HashShadow shadow;
  std::vector<int32_t> tokens;  // prompt and what follows, as the model must choose it
  Sequence sequence;
};

class Steps {
 public:
  Steps(uint64_t seed, int64_t block_size, int64_t ring)
      : random_(seed),
        model_([&] {
          HashModelConfig config;
          config.seed = seed;
          return config;
        }()),
        runner_(model_, backend_,
                {.max_num_seqs = 6,
                 .max_num_batched_tokens = 128,
                 .max_model_len = 160,
                 .block_size = block_size,
                 .pending_capacity = kMostDrafts,
                 .max_cuts = 3,
                 .hidden_ring = ring}),
        ring_(ring) {
    for (int i = 0; i < 3; ++i) {
      Known& known = sequences_.emplace_back(HashShadow(model_.config()), std::vector<int32_t>{}, Sequence{});
      const int64_t prompt = draw(2, 60);
      for (int64_t t = 0; t < prompt + 60; ++t) {
        known.tokens.push_back(t < prompt ? static_cast<int32_t>(draw(0, 63)) : known.shadow.greedy(t - 1));
        known.shadow.append(known.tokens.back());
      }
      known.sequence.tokens.assign(known.tokens.begin(), known.tokens.begin() + prompt);
      known.sequence.prompt_size = prompt;
      EXPECT_TRUE(runner_.reserve(known.sequence, 160));
      EXPECT_TRUE(runner_.reserve(checkpoints_.emplace_back(), 0));
    }
  }

  // Every prompt, in chunks, with a state kept inside of one of them; then from that state once more.
  void prefill() {
    for (size_t i = 0; i < sequences_.size(); ++i) {
      Known& known = sequences_[i];
      Sequence& s = known.sequence;
      int64_t kept = 0;
      while (s.computed < s.prompt_size) {
        const int64_t rows = draw(1, s.prompt_size - s.computed);
        const ModelRunner::Cut cut{s.computed + draw(1, std::max<int64_t>(1, rows - 1)), checkpoints_[i].slot};
        const bool cuts = kept == 0 && rows > 1;
        if (cuts) kept = cut.end;
        runner_.forward(std::vector{ModelRunner::Part{&s, rows, {}, {&cut, cuts ? size_t{1} : 0}}});
        expect_right(known);
        expect_hidden(known);
      }
      if (kept == 0) continue;
      ASSERT_EQ(slot_difference(known.shadow, runner_.slots(), checkpoints_[i].slot, kept), "");
      s.source = std::exchange(checkpoints_[i].slot, -1);
      s.computed = kept;
      runner_.load_hidden(s);
      EXPECT_EQ(s.ring_begin, kept - 1);
      expect_hidden(known);
      runner_.forward(std::vector{ModelRunner::Part{&s, s.prompt_size - kept}});
      EXPECT_EQ(s.source, s.slot);
      expect_right(known);
      expect_hidden(known);
      ++resumed;
    }
    for (Known& known : sequences_) known.sequence.tokens.push_back(known.tokens[known.sequence.size()]);
  }

  // One token of each sequence with drafts, of which some first ones are right.
  void decode() {
    std::vector<std::vector<int32_t>> drafts;
    std::vector<int64_t> right;
    std::vector<ModelRunner::Part> parts;
    for (Known& known : sequences_) {
      const int64_t size = known.sequence.size(), count = draw(0, kMostDrafts);
      right.push_back(draw(0, count));
      std::vector<int32_t>& mine = drafts.emplace_back();
      for (int64_t j = 0; j < count; ++j)
        mine.push_back(j < right.back() ? known.tokens[size + j] : (known.tokens[size + j] + 1) % 64);
    }
    for (size_t i = 0; i < sequences_.size(); ++i) parts.push_back({&sequences_[i].sequence, 1, drafts[i]});
    const Tensor hidden = runner_.forward(parts);
    int32_t row = 0;
    for (size_t i = 0; i < sequences_.size(); ++i) {
      Known& known = sequences_[i];
      Sequence& s = known.sequence;
      for (int64_t j = 0; j <= right[i]; ++j) {
        const int32_t at = row + static_cast<int32_t>(j);
        const Tensor logits = runner_.logits(hidden, {&at, 1});
        const std::span<const float> values(logits.as<float>(), static_cast<size_t>(logits.size(1)));
        ASSERT_EQ(HashShadow::choose_greedy(values, 0), known.tokens[s.size() + j]);
      }
      row += 1 + static_cast<int32_t>(drafts[i].size());
      runner_.accept(s, static_cast<int32_t>(right[i]));
      for (int64_t j = 0; j <= right[i]; ++j) s.tokens.push_back(known.tokens[s.size()]);
      ASSERT_EQ(s.computed, s.size() - 1);
      accepted += right[i];
    }
    for (Known& known : sequences_) {
      expect_right(known);
      expect_hidden(known);
    }
  }

  // Another sequence takes the rows of the ring over.
  void copy_ring() {
    for (size_t i = 0; i < sequences_.size(); ++i) {
      Sequence& to = checkpoints_[i];
      to.computed = sequences_[i].sequence.computed;
      runner_.copy_ring(sequences_[i].sequence, to);
      expect_rows(sequences_[i].shadow, to);
    }
  }

  bool room() const {
    return std::all_of(sequences_.begin(), sequences_.end(), [](const Known& known) {
      return known.sequence.size() + kMostDrafts + 1 < static_cast<int64_t>(known.tokens.size());
    });
  }
  const std::vector<std::string>& violations() const { return model_.violations(); }

  int resumed = 0;
  int64_t accepted = 0, rows_compared = 0;

 private:
  int64_t draw(int64_t least, int64_t most) {
    return least + static_cast<int64_t>(random_() % static_cast<uint64_t>(most - least + 1));
  }
  void expect_right(const Known& known) {
    const Sequence& s = known.sequence;
    ASSERT_EQ(slot_difference(known.shadow, runner_.slots(), s.source, s.computed), "");
    ASSERT_EQ(page_difference(known.shadow, runner_.pages(), s.block_table, 0, s.computed), "");
  }
  // The ring's rows, and with them those of the last step that the ring is too short for.
  void expect_hidden(const Known& known) { expect_rows(known.shadow, known.sequence); }
  void expect_rows(const HashShadow& shadow, const Sequence& s) {
    ASSERT_LE(s.computed - s.ring_begin, std::max(ring_, s.computed));
    if (s.ring_begin == s.computed) return;
    const ModelRunner::HiddenRows part{&s, s.ring_begin, s.computed};
    const Tensor rows = runner_.gather_hidden({&part, 1});
    for (int64_t t = s.ring_begin; t < s.computed; ++t, ++rows_compared)
      ASSERT_EQ(get_hidden(rows[t - s.ring_begin].as<float>()), shadow.hidden(t)) << "row of token " << t;
  }

  std::mt19937_64 random_;
  ReferenceBackend backend_;
  HashModel model_;
  ModelRunner runner_;
  const int64_t ring_;
  std::deque<Known> sequences_;
  std::deque<Sequence> checkpoints_;  // hold a slot and a lane
};

TEST(RunnerSteps, DraftsCutsAndHiddenRowsEqualTheShadow) {
  int resumed = 0;
  int64_t accepted = 0, rows = 0;
  for (uint64_t seed = 1; seed <= 60; ++seed) {
    for (const auto& [block_size, ring] : {std::pair{1, 8}, {4, 16}, {16, 64}}) {
      SCOPED_TRACE("seed " + std::to_string(seed) + ", pages of " + std::to_string(block_size));
      Steps steps(seed, block_size, ring);
      steps.prefill();
      while (steps.room() && !HasFailure()) steps.decode();
      steps.copy_ring();
      ASSERT_FALSE(HasFailure());
      ASSERT_EQ(steps.violations(), std::vector<std::string>{});
      resumed += steps.resumed;
      accepted += steps.accepted;
      rows += steps.rows_compared;
    }
  }
  EXPECT_GT(resumed, 300);
  RecordProperty("resumed", resumed);
  RecordProperty("accepted_drafts", std::to_string(accepted));
  RecordProperty("hidden_rows", std::to_string(rows));
}

// What a runner's caches hold.
std::vector<std::byte> content(ModelRunner& runner) {
  std::vector<std::byte> all;
  const auto add = [&](const Tensor& tensor) {
    const auto* bytes = static_cast<const std::byte*>(tensor.data());
    all.insert(all.end(), bytes, bytes + tensor.bytes());
  };
  const size_t layers = runner.model().cache_specs().size() + runner.model().drafter()->cache_specs().size();
  for (size_t layer = 0; layer < layers; ++layer) {
    for (const Tensor& tensor : runner.pages().layer(static_cast<int>(layer))) add(tensor);
    for (const Tensor& tensor : runner.slots().layer(static_cast<int>(layer))) add(tensor);
  }
  add(runner.slots().N());
  add(runner.slots().accepted());
  add(runner.slots().hidden());
  return all;
}

TEST(RunnerSteps, ThoseRecordedAtTheStartChangeNothingAndComeAgain) {
  if (CALANDRA_STAMPS) GTEST_SKIP() << "skipped: stamps want every tensor to be used when it was made";
  HashModelConfig config;
  config.mtp_layers = 1;
  HashModel model(config);
  DeferredBackend<ReferenceBackend> stream(1, DeferredFaults{});
  const DeferredModel deferred(model, stream.queue());
  ModelRunner runner(deferred, stream,
                     {.max_num_seqs = 20,
                      .max_num_batched_tokens = 40,
                      .max_model_len = 160,
                      .block_size = 4,
                      .pending_capacity = 2,
                      .hidden_ring = 8});
  const std::vector<std::byte> before = content(runner);
  runner.record_steps(1, [] { return 0.0; });
  stream.queue().run_all();
  EXPECT_EQ(content(runner), before);
  EXPECT_GT(runner.recorded_steps(), 20);

  const int64_t first_runs = runner.first_runs();
  std::deque<Sequence> sequences(1);
  const std::vector<int32_t> drafts{3, 4};
  for (int step = 0; step < 8; ++step) {
    std::vector<ModelRunner::Part> parts;
    for (Sequence& s : sequences) {
      s.tokens.push_back(step);
      ASSERT_TRUE(runner.reserve(s, s.size() + 2));
      parts.push_back({&s, 1, std::span(drafts).first(static_cast<size_t>(step % 3))});
    }
    EXPECT_EQ(runner.forward(parts).size(0), std::ssize(parts) * (1 + step % 3));
    if (step == 3) sequences.resize(2);
  }
  EXPECT_EQ(runner.first_runs(), first_runs);
  stream.queue().run_all();
  EXPECT_EQ(model.violations(), std::vector<std::string>{});
  for (Sequence& s : sequences) runner.release(s);
}

}  // namespace
}  // namespace calandra::hashsim
