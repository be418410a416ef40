// A prompt may be cut anywhere: into two steps, into steps of any size, by a checkpoint inside a step, or because its
// tokens come as drafts. All logits, the state in the slot after every step, and what the pages hold, entries of the
// drafter included, are bit for bit those of the prompt run token by token.
//
// A third of the cuts, which the commit chooses, runs in CI; CALANDRA_MATRIX=all runs all of them.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <optional>

#include "engine/vision_runner.h"
#include "tests/commit_part.h"
#include "tests/exactness_tools.h"
#include "tests/oracle_tools.h"
#include "vision/placeholders.h"

namespace calandra {
namespace {

using namespace calandra::testing;
namespace fs = std::filesystem;

constexpr int64_t kLongest = 129;  // tokens of a prompt
constexpr int kMostDrafts = 8;

using Bytes = std::vector<std::byte>;

// What is there once a prompt was run.
struct Result {
  std::vector<float> logits;        // [T * V]
  std::map<int64_t, Bytes> states;  // of the slot after so many tokens, without pending updates
  Bytes pages;                      // of the prompt's tokens
};

class Prefill {
 public:
  Prefill(ModelUnderTest& model, int64_t pending_capacity)
      : backend_(model.backend()),
        runner_(model.runner({.max_num_seqs = 1,
                              .max_num_batched_tokens = kLongest,
                              .max_model_len = kLongest + kMostDrafts,
                              .num_state_slots = 2,
                              .pending_capacity = pending_capacity,
                              .max_cuts = 1,
                              .hidden_ring = model.model().drafter() != nullptr ? 12 : 0})),
        copy_([this](void* to, const void* from, size_t bytes) { backend_.copy_bytes(to, from, bytes); }) {}

  // In steps that end behind these numbers of tokens; the state after `cut` tokens, inside a step, goes to another
  // slot.
  Result in_steps(const Sequence& prompt, const std::vector<int64_t>& ends, int64_t cut = 0) {
    Sequence s = begin(prompt);
    const int32_t other = *runner_->slots().take();
    spoil_slot(other);
    Result result;
    for (const int64_t end : ends) {
      const ModelRunner::Cut at{cut, other};
      ModelRunner::Part part{&s, end - s.computed};
      const bool inside = s.computed < cut && cut < end;
      if (inside) part.cuts = {&at, 1};
      const std::vector<float> rows = all_logits(*runner_, runner_->forward({&part, 1}));
      result.logits.insert(result.logits.end(), rows.begin(), rows.end());
      if (inside) result.states[cut] = state(other);
      result.states[end] = state(s.slot);
      write_entries(s);
    }
    runner_->slots().release(other);
    return ended(s, std::move(result));
  }

  // One token for certain in each step, and `drafts` behind it, of which the first `right` are the prompt's.
  Result behind_drafts(const Sequence& prompt, int drafts, int right) {
    Sequence s = begin(prompt);
    const auto V = static_cast<int32_t>(runner_->model().vocab_size());
    Result result;
    while (s.computed < s.size()) {
      std::vector<int32_t> guesses;
      const int64_t kept = std::min<int64_t>(right, s.size() - s.computed - 1);
      for (int i = 0; i < drafts; ++i) {
        const int32_t next = s.tokens[static_cast<size_t>((s.computed + 1 + i) % s.size())];
        guesses.push_back(i < kept ? next : (next + 1) % V);
      }
      const ModelRunner::Part part{&s, 1, guesses};
      const std::vector<float> rows = all_logits(*runner_, runner_->forward({&part, 1}));
      result.logits.insert(result.logits.end(), rows.begin(), rows.begin() + (1 + kept) * V);
      result.states[s.computed] = state(s.slot);
      runner_->accept(s, static_cast<int32_t>(kept));
      write_entries(s);
    }
    return ended(s, std::move(result));
  }

 private:
  // Nothing that is read may be what it holds at first.
  Sequence begin(const Sequence& prompt) {
    Sequence s = prompt;
    CHECK(runner_->reserve(s, s.size() + runner_->limits().pending_capacity));
    const int64_t tokens = runner_->limits().block_size;
    const Bytes bytes(static_cast<size_t>(runner_->pages().content_bytes(tokens)), std::byte{0xff});
    for (const int32_t page : s.block_table) runner_->pages().copy_in(page, tokens, bytes.data(), copy_);
    spoil_slot(s.slot);
    return s;
  }

  void spoil_slot(int32_t slot) {
    const Bytes bytes(static_cast<size_t>(runner_->slots().bytes_per_slot()), std::byte{0xff});
    runner_->slots().copy_in(slot, bytes.data(), copy_);
  }

  Bytes state(int32_t slot) const {
    Bytes all;
    const auto add = [&](const Tensor& t) {
      Bytes bytes(static_cast<size_t>(t.bytes()));
      backend_.copy_bytes(bytes.data(), t.data(), bytes.size());
      all.insert(all.end(), bytes.begin(), bytes.end());
    };
    const std::vector<CacheSpec> specs = runner_->model().cache_specs();
    for (size_t layer = 0; layer < specs.size(); ++layer)
      for (size_t i = 0; i < specs[layer].slotted.size(); ++i)
        if (!specs[layer].slotted[i].per_pending) add(runner_->slots().layer(static_cast<int>(layer))[i][slot]);
    add(runner_->slots().N().slice(0, slot, slot + 1));
    add(runner_->slots().hidden()[slot][0]);
    return all;
  }

  // Entries of the drafter for the tokens that have run, out of the rows that were kept.
  void write_entries(Sequence& s) {
    if (runner_->model().drafter() == nullptr || s.mtp_end >= s.computed) return;
    const ModelRunner::HiddenRows rows{&s, s.mtp_end - 1, s.computed - 1};
    const ModelRunner::DraftPart part{
        &s, s.mtp_end,
        std::span(s.tokens).subspan(static_cast<size_t>(s.mtp_end), static_cast<size_t>(s.computed - s.mtp_end))};
    runner_->draft({&part, 1}, runner_->gather_hidden({&rows, 1}), 0);
    s.mtp_end = s.computed;
  }

  Result ended(Sequence& s, Result result) {
    const int64_t page = runner_->limits().block_size;
    for (int64_t first = 0; first < s.size(); first += page) {
      const int64_t tokens = std::min(page, s.size() - first);
      Bytes bytes(static_cast<size_t>(runner_->pages().content_bytes(tokens)));
      runner_->pages().copy_out(s.block_table[static_cast<size_t>(first / page)], tokens, bytes.data(), copy_);
      result.pages.insert(result.pages.end(), bytes.begin(), bytes.end());
    }
    runner_->release(s);
    return result;
  }

  Backend& backend_;
  std::unique_ptr<ModelRunner> runner_;
  PagePool::CopyBytes copy_;
};

// Empty, or the first that differs.
std::string difference(const Result& got, const Result& plain, int64_t vocab_size) {
  for (const auto& [tokens, bytes] : got.states)
    if (bytes != plain.states.at(tokens)) return fmt::format("the state after {} tokens", tokens);
  if (got.pages != plain.pages) return "pages";
  for (size_t row = 0; row < plain.logits.size() / static_cast<size_t>(vocab_size); ++row) {
    const auto row_of = [&](const Result& result) {
      const auto begin = result.logits.begin() + static_cast<int64_t>(row) * vocab_size;
      return std::vector<float>(begin, begin + vocab_size);
    };
    if (got.logits.size() != plain.logits.size() || !same_bits(row_of(got), row_of(plain)))
      return fmt::format("logits of token {}", row);
  }
  return "";
}

struct Param {
  std::string model;
  std::string backend;
};

std::vector<Param> params() {
  std::vector<Param> out;
  for (const char* model : {"mtp_dense", "vision_dense", "demo-qwen3_5", "demo-bailing"})
    for (const std::string& backend : model_backends())
      if (backend != "reference") out.push_back({model, backend});  // too slow
  return out;
}

class EveryCut : public ::testing::TestWithParam<Param> {
 protected:
  void SetUp() override {
    const auto& [name, backend] = GetParam();
    const fs::path folder = folder_of(name);
    if (folder.empty()) GTEST_SKIP() << "skipped: " << name << " is only in the shared oracle";
    demo_ = name.starts_with("demo");
    model_.emplace(folder, BackendChoice{.backend = backend, .deterministic = backend == "cuda"},
                   demo_ ? DType::kBF16 : DType::kF32, ModelParts{.drafter = true, .vision = name != "demo-bailing"});
  }

  // Longer than a chunk of the recurrences. Demo models are slow: two prompts there.
  std::vector<Sequence> prompts() {
    std::vector<Sequence> all;
    for (const int64_t length : {int64_t{65}, int64_t{80}, int64_t{97}, kLongest}) {
      all.push_back(sequence_of(random_tokens(length, static_cast<uint32_t>(length), vocab_size() - 60)));
      if (demo_ && all.size() == 2) break;
    }
    return all;
  }

  // In place of some of its tokens.
  void add_pictures(Sequence& s) {
    const json::object& config = model_->config().config;
    const auto id = [&](const char* key) { return static_cast<int32_t>(config.at(key).as_int64()); };
    const VisionEncoder& tower = *model_->model().vision();
    const ExpansionRule rule{
        {id("image_token_id"), id("video_token_id"), id("vision_start_token_id"), id("vision_end_token_id")},
        tower.spatial_merge_size()};
    const std::vector<PatchGrid> grids = {{1, 8, 12}, {1, 4, 6}};
    const int64_t side = tower.patch_size(), values = 3 * tower.temporal_patch_size() * side * side;
    int64_t begin = 20;
    for (const PatchGrid& grid : grids) {
      std::vector<float> patches;
      for (const int32_t value : random_tokens(grid.patches() * values, static_cast<uint32_t>(begin), 1000))
        patches.push_back(static_cast<float>(value) / 500 - 1);
      pictures_.push_back(encode_patches(tower, model_->backend(), patches, {&grid, 1}));
      const int64_t rows = pictures_.back().rows.size(0);
      s.tokens[static_cast<size_t>(begin - 1)] = rule.tokens.vision_start;
      std::fill_n(s.tokens.begin() + begin, rows, rule.tokens.image_pad);
      s.tokens[static_cast<size_t>(begin + rows)] = rule.tokens.vision_end;
      s.images.push_back({begin, pictures_.back().rows});
      begin += rows + 12;
    }
    const auto placed = std::get<ExpandedPrompt>(locate_placeholders(s.tokens, grids, {}, rule));
    const auto T = static_cast<size_t>(s.size());
    for (size_t i = 0; i < T; ++i)
      s.positions.push_back({placed.positions[i], placed.positions[T + i], placed.positions[2 * T + i]});
    s.position_delta = static_cast<int32_t>(placed.position_delta);
  }

  int64_t vocab_size() const { return model_->model().vocab_size(); }

  // Whether the next run belongs to the part of them that runs.
  bool takes() { return part_.takes(number_++) && !HasFailure(); }
  void report(const char* what) {
    fmt::print("{} on {}, {}: {} of {} runs\n", GetParam().model, GetParam().backend, what, runs_, number_);
    RecordProperty("runs_with_equal_bits", static_cast<int>(runs_));
  }
  void compare(const Result& got, const Result& plain, const std::string& what) {
    EXPECT_EQ(difference(got, plain, vocab_size()), "") << what;
    ++runs_;
  }

  bool demo_ = false;
  std::optional<ModelUnderTest> model_;
  std::vector<ImageEmbeds> pictures_;
  const TablePart part_ = table_part(kHostile ? 24 : 3);
  uint64_t number_ = 0;
  int64_t runs_ = 0;
};

// Ends of steps of `chunk` tokens.
std::vector<int64_t> steps_of(int64_t chunk, int64_t tokens) {
  std::vector<int64_t> ends;
  for (int64_t end = chunk; end < tokens; end += chunk) ends.push_back(end);
  ends.push_back(tokens);
  return ends;
}

TEST_P(EveryCut, IntoStepsOrByACheckpoint) {
  Prefill prefill(*model_, 0);
  std::vector<Sequence> all = prompts();
  if (model_->model().vision() != nullptr) add_pictures(all.front());
  for (const Sequence& prompt : all) {
    const int64_t T = prompt.size();
    const Result plain = prefill.in_steps(prompt, steps_of(1, T));
    for (int64_t cut = 1; cut < T; ++cut) {
      if (takes()) compare(prefill.in_steps(prompt, {cut, T}), plain, fmt::format("{} tokens, two steps, {}", T, cut));
      if (takes()) compare(prefill.in_steps(prompt, {T}, cut), plain, fmt::format("{} tokens, cut at {}", T, cut));
    }
    for (int64_t chunk = 2; chunk <= 64; ++chunk)
      if (takes())
        compare(prefill.in_steps(prompt, steps_of(chunk, T)), plain, fmt::format("{} tokens, steps of {}", T, chunk));
  }
  report("cuts");
}

// Every step has one token for certain, and of the drafts behind it the first ones are right.
TEST_P(EveryCut, BehindDraftsThatAreKeptOrNot) {
  std::vector<std::pair<Sequence, Result>> all;
  for (const Sequence& prompt : prompts())
    all.push_back({prompt, Prefill(*model_, 0).in_steps(prompt, steps_of(1, prompt.size()))});
  for (int drafts = 1; drafts <= kMostDrafts; ++drafts) {
    Prefill prefill(*model_, drafts);
    for (int right = 0; right <= drafts; ++right)
      for (const auto& [prompt, plain] : all)
        if (takes())
          compare(prefill.behind_drafts(prompt, drafts, right), plain,
                  fmt::format("{} tokens, {} of {} drafts kept", prompt.size(), right, drafts));
  }
  report("drafts");
}

INSTANTIATE_TEST_SUITE_P(Models, EveryCut, ::testing::ValuesIn(params()), [](const auto& info) {
  std::string name = info.param.model + "_" + info.param.backend;
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
});

}  // namespace
}  // namespace calandra
