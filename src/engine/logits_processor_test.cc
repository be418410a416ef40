// Edits of rows; the thinking budget against a table and against its definition; repetition.
#include "engine/logits_processor.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>

#include "engine/repetition.h"
#include "engine/sampling_row.h"

namespace calandra {
namespace {

using Ids = std::vector<int32_t>;

// Single tokens, and sequences of several that begin alike.
const ThinkingTokens kThinking[] = {{}, {{1}, {2}}, {{1, 2}, {1, 3, 1, 3}}, {{4, 4}, {5, 5, 6}}, {{7}, {7, 8}}};

// A row's lists, after edits in any order.
struct Edited {
  ops::SamplingBatch batch;
  ops::SamplingRow row;
  RowEdits edits;
  explicit Edited(const Ids& allowed = {}, const std::vector<ops::TokenBias>& biases = {})
      : batch{.rows = {},
              .counts = {},
              .bias = {{1, 1}},
              .ids = {1, 2, 3},
              .grammar = {},
              .token_ids = {},
              .moves = {}},
        edits(batch, row, allowed, biases) {}

  Ids slice(ops::ListRange range) const { return {batch.ids.begin() + range.begin, batch.ids.begin() + range.end}; }
  Ids allowed() const { return slice(row.allowed); }
  Ids forbidden() const { return slice(row.forbidden); }
};

TEST(RowEdits, AllowedIdsAreIntersected) {
  Edited e({9, 3, 7});
  e.edits.forbid(3);
  e.edits.allow_only(Ids{3, 7, 8});
  e.edits.forbid(Ids{5, 6});
  EXPECT_EQ(e.allowed(), (Ids{3, 7}));
  EXPECT_EQ(e.forbidden(), (Ids{3, 5, 6}));
  e.edits.allow_only(Ids{7});
  EXPECT_EQ(e.allowed(), Ids{7});
  EXPECT_EQ(e.forbidden(), (Ids{3, 5, 6}));
  EXPECT_EQ(Ids(e.batch.ids.begin(), e.batch.ids.begin() + 3), (Ids{1, 2, 3})) << "lists of other rows";

  Edited all;
  all.edits.forbid(4);
  all.edits.allow_only(Ids{4, 5});
  EXPECT_EQ(all.allowed(), (Ids{4, 5}));
  EXPECT_EQ(all.forbidden(), Ids{4});
}

TEST(RowEdits, NothingAllowedIsNotEverythingAllowed) {
  for (const bool restricted : {false, true}) {
    Edited e(restricted ? Ids{4, 5} : Ids{});
    e.edits.allow_only(restricted ? Ids{6} : Ids{});
    e.edits.forbid(9);
    EXPECT_EQ(e.allowed(), Ids{-1});
    e.edits.allow_only(Ids{4, 5});
    EXPECT_EQ(e.allowed(), Ids{-1});
    EXPECT_EQ(e.forbidden(), Ids{9});
  }
}

TEST(RowEdits, BiasesOfOneIdAreAdded) {
  Edited e({}, {{4, 2}, {6, 1}});
  e.edits.add_bias(6, 0.5f);
  e.edits.add_bias(1, -1);
  e.edits.add_bias(1, -2);
  std::vector<std::pair<int32_t, float>> got;
  for (int32_t i = e.row.bias.begin; i < e.row.bias.end; ++i)
    got.emplace_back(e.batch.bias[i].id, e.batch.bias[i].bias);
  EXPECT_EQ(got, (std::vector<std::pair<int32_t, float>>{{4, 2}, {6, 1.5f}, {1, -3}}));
  EXPECT_EQ(e.batch.bias[0].bias, 1) << "lists of other rows";
}

struct ThinkingCase {
  const char* what;
  int thinking;
  int32_t budget;
  Ids prompt, outputs, drafts;
  int32_t forced;  // -1: none
};

const ThinkingCase kThinkingCases[] = {
    {"no reasoning", 1, 0, {9, 9}, {9}, {}, -1},
    {"opened by the prompt, nothing yet", 1, 3, {9, 1}, {}, {}, -1},
    {"budget 0 ends it at once", 1, 0, {9, 1}, {}, {}, 2},
    {"one short of the budget", 1, 3, {9, 1}, {9, 9}, {}, -1},
    {"at the budget", 1, 3, {9, 1}, {9, 9, 9}, {}, 2},
    {"beyond it, as a resumed request may be", 1, 3, {9, 1}, {9, 9, 9, 9, 9}, {}, 2},
    {"tokens of the prompt count", 1, 3, {1, 9, 9}, {9}, {}, 2},
    {"all of it in the prompt", 1, 3, {1, 9, 9, 9, 9}, {}, {}, 2},
    {"ended in the prompt", 1, 0, {1, 9, 2, 9}, {9}, {}, -1},
    {"ended in the outputs", 1, 2, {1}, {9, 2, 9, 9, 9}, {}, -1},
    {"opened by the outputs", 1, 2, {9}, {9, 1, 9, 9}, {}, 2},
    {"opened again: counted from the last start", 1, 2, {9}, {1, 9, 2, 9, 9, 1, 9}, {}, -1},
    {"a start inside: counted from there", 1, 2, {1, 9}, {9, 1, 9}, {}, -1},
    {"an end without a start", 1, 0, {2}, {2, 9}, {}, -1},
    {"a draft reaches the budget", 1, 3, {1}, {9, 9}, {9}, 2},
    {"drafts short of it", 1, 4, {1}, {9, 9}, {9}, -1},
    {"a draft is the end", 1, 3, {1}, {9, 9, 9}, {2}, -1},
    {"a draft is the start", 1, 0, {9}, {}, {1}, 2},
    {"drafts open and end", 1, 1, {9}, {}, {1, 9, 2}, -1},
    {"drafts go on after the budget", 1, 2, {1}, {9}, {9, 9}, 2},

    {"half a start", 2, 0, {1}, {}, {}, -1},
    {"start across the prompt's border", 2, 0, {1}, {2}, {}, 1},
    {"start across the outputs' border", 2, 0, {9}, {1}, {2}, 1},
    {"first of four", 2, 2, {1, 2}, {9, 9}, {}, 1},
    {"second of four", 2, 2, {1, 2}, {9, 9, 1}, {}, 3},
    {"third of four", 2, 2, {1, 2}, {9, 9, 1, 3}, {}, 1},
    {"fourth of four", 2, 2, {1, 2}, {9, 9, 1, 3, 1}, {}, 3},
    {"all four", 2, 2, {1, 2}, {9, 9, 1, 3, 1, 3}, {}, -1},
    {"second, first drafted", 2, 2, {1, 2}, {9, 9}, {1}, 3},
    {"third, others drafted", 2, 3, {1, 2}, {9, 9}, {9, 1, 3}, 1},
    {"all drafted", 2, 2, {1, 2}, {9, 9}, {1, 3, 1, 3}, -1},
    {"certain first, second drafted", 2, 2, {1, 2}, {9, 9, 1}, {3}, 1},
    {"what the model began is completed", 2, 3, {1, 2}, {9, 9, 1}, {}, 3},
    {"a beginning that went another way", 2, 3, {1, 2}, {1, 3, 9}, {}, 1},
    {"1 3 1 3 after 1 3 1 1: one matched", 2, 3, {1, 2}, {1, 3, 1, 1}, {}, 3},
    {"overlapping beginnings", 2, 2, {1, 2}, {1, 3, 1, 3}, {}, -1},

    {"three fours: the last two open it", 3, 1, {4, 4, 4}, {}, {}, -1},
    {"5 5 5 still has two matched", 3, 1, {4, 4}, {5, 5, 5}, {}, 6},
    {"the end begins behind the start", 4, 0, {7}, {8}, {}, 7},
    {"start and a beginning of the end alike", 4, 1, {7}, {9, 7}, {}, -1},
};

TEST(ThinkingBudget, Table) {
  for (const ThinkingCase& c : kThinkingCases) {
    Sequence s;
    s.params.thinking_token_budget = c.budget;
    s.tokens = c.prompt;
    s.prompt_size = s.size();
    s.tokens.insert(s.tokens.end(), c.outputs.begin(), c.outputs.end());
    ops::SamplingBatch batch;
    ASSERT_TRUE(add_sampling_row(batch, s, c.drafts, 0, {.eos_token_ids = {}, .thinking = kThinking[c.thinking]}));
    const ops::SamplingRow& row = batch.rows[0];
    const int32_t forced = row.allowed.empty() ? -1 : batch.ids[row.allowed.begin];
    EXPECT_EQ(forced, c.forced) << c.what;
    EXPECT_LE(row.allowed.size(), 1) << c.what;
  }
}

// The definition, over the whole prefix: nothing is remembered.
int32_t forced_by_definition(const Ids& tokens, const ThinkingTokens& thinking, int64_t budget) {
  const auto ends_with = [&](int64_t end, int64_t begin, std::span<const int32_t> ids) {
    return end - begin >= std::ssize(ids) &&
           std::equal(ids.begin(), ids.end(), tokens.begin() + (end - std::ssize(ids)));
  };
  const int64_t n = std::ssize(tokens);
  int64_t begin = -1;
  for (int64_t end = 1; end <= n; ++end) {
    if (begin >= 0 && ends_with(end, begin, thinking.end))
      begin = -1;
    else if (ends_with(end, 0, thinking.start))
      begin = end;
  }
  if (begin < 0 || n - begin < budget) return -1;
  for (int64_t k = std::ssize(thinking.end) - 1; k > 0; --k)
    if (ends_with(n, begin, std::span(thinking.end).first(k))) return thinking.end[k];
  return thinking.end[0];
}

TEST(ThinkingBudget, EqualsItsDefinition) {
  std::mt19937_64 bits(12);
  const auto below = [&](int64_t n) { return static_cast<int32_t>(bits() % static_cast<uint64_t>(n)); };
  const auto ids = [&](int64_t count) {
    Ids result(count);
    for (int32_t& id : result) id = below(9);
    return result;
  };
  int forced_rows = 0, rows = 0;
  for (int run = 0; run < 3000; ++run) {
    const SamplingContext shared{.eos_token_ids = {}, .thinking = kThinking[1 + below(std::ssize(kThinking) - 1)]};
    Sequence s;
    s.params.thinking_token_budget = below(7);
    s.tokens = ids(below(8));
    s.prompt_size = s.size();
    if (below(2) == 0) s.tokens.insert(s.tokens.end(), shared.thinking.start.begin(), shared.thinking.start.end());
    for (int step = 0; step < 6; ++step) {
      Ids drafts = ids(below(5)), prefix = s.tokens;
      for (size_t j = 0; j <= drafts.size(); ++j) {
        const int32_t want = forced_by_definition(prefix, shared.thinking, *s.params.thinking_token_budget);
        ops::SamplingBatch batch;
        ASSERT_TRUE(add_sampling_row(batch, s, std::span(drafts).first(j), 0, shared));
        const ops::SamplingRow& row = batch.rows[0];
        ASSERT_EQ(row.allowed.empty() ? -1 : batch.ids[row.allowed.begin], want) << "run " << run;
        ++rows;
        forced_rows += want >= 0;
        if (j == drafts.size()) break;
        if (want >= 0 && below(5) > 0) drafts[j] = want;
        prefix.push_back(drafts[j]);
      }
      const int64_t kept = below(std::ssize(drafts) + 1);
      s.tokens.insert(s.tokens.end(), drafts.begin(), drafts.begin() + kept);
      s.tokens.push_back(below(9));
    }
  }
  EXPECT_GT(forced_rows, rows / 10);
}

TEST(ThinkingBudget, WithoutTokensItIsOff) {
  Sequence s;
  s.params.thinking_token_budget = 0;
  s.tokens = {1, 1};
  s.prompt_size = 1;
  ops::SamplingBatch batch;
  for (const ThinkingTokens& tokens : {ThinkingTokens{}, {{1}, {}}, {{}, {1}}})
    ASSERT_TRUE(add_sampling_row(batch, s, {}, 0, {.eos_token_ids = {}, .thinking = tokens}));
  EXPECT_TRUE(batch.ids.empty());
}

TEST(Repetition, PatternsAtTheEnd) {
  const auto detected = [](SamplingParams::RepetitionDetection d, const Ids& outputs) {
    return repetition_detected(d, outputs);
  };
  EXPECT_FALSE(detected({}, {1, 1, 1, 1, 1, 1})) << "off";
  EXPECT_TRUE(detected({3, 0, 3}, {5, 1, 1, 1}));
  EXPECT_TRUE(detected({3, 1, 3}, {1, 1, 1}));
  EXPECT_FALSE(detected({3, 1, 3}, {1, 1})) << "too few";
  EXPECT_FALSE(detected({3, 1, 3}, {1, 1, 1, 2})) << "not at the end";
  EXPECT_TRUE(detected({3, 1, 2}, {9, 1, 2, 3, 1, 2, 3}));
  EXPECT_FALSE(detected({2, 1, 2}, {9, 1, 2, 3, 1, 2, 3})) << "longer than max_pattern_size";
  EXPECT_FALSE(detected({3, 2, 2}, {9, 8, 1, 1})) << "shorter than min_pattern_size";
  EXPECT_TRUE(detected({3, 2, 2}, {1, 1, 1, 1})) << "twice 1 1";
  EXPECT_FALSE(detected({3, 2, 2}, {}));
}

}  // namespace
}  // namespace calandra
