// The sampler op: every parameter by hand-made rows, their order, the noise, and a naive sampler on random rows.
#include "ops/sampling.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <numeric>

#include "backends/reference/reference.h"
#include "base/noise.h"

namespace calandra {
namespace {

using ops::LogprobsMode;
using ops::RowStatus;
using ops::SampledRow;
using ops::SamplingBatch;
using ops::SamplingRow;

constexpr float kInfinity = std::numeric_limits<float>::infinity();
const float kLog2 = std::log(2.0f);

std::vector<SampledRow> sample(std::vector<float> logits, const SamplingBatch& batch) {
  ReferenceBackend backend;
  Workspace workspace;
  OneRank rank;
  ExecContext ctx{backend, workspace, rank};
  ops::SamplingResult result;
  const auto V = static_cast<int64_t>(logits.size());
  ops::sample(ctx, Tensor(logits.data(), DType::kF32, {1, V}), batch, result);
  return result.rows;
}

// One row whose distribution is reported.
struct OneRow {
  SamplingBatch batch;
  SamplingRow row;

  OneRow() { row.distribution = true; }
  void allow(std::initializer_list<int32_t> ids) { row.allowed = add(ids); }
  void forbid(std::initializer_list<int32_t> ids) { row.forbidden = add(ids); }
  void bias(int32_t id, float value) {
    batch.bias.push_back({id, value});
    row.bias.end = static_cast<int32_t>(batch.bias.size());
  }
  void count(int32_t id, int32_t outputs) {
    batch.counts.push_back({id, outputs});
    row.counts.end = static_cast<int32_t>(batch.counts.size());
  }
  void grammar(std::initializer_list<uint32_t> words) {
    row.grammar = 0;
    batch.grammar = words;
  }
  SampledRow run(const std::vector<float>& logits) {
    batch.rows = {row};
    return sample(logits, batch)[0];
  }

 private:
  ops::ListRange add(std::initializer_list<int32_t> ids) {
    const auto begin = static_cast<int32_t>(batch.ids.size());
    batch.ids.insert(batch.ids.end(), ids);
    return {begin, static_cast<int32_t>(batch.ids.size())};
  }
};

void expect_distribution(const SampledRow& got, const std::vector<int32_t>& ids, const std::vector<double>& weights) {
  EXPECT_EQ(got.status, RowStatus::kOk);
  ASSERT_EQ(got.distribution_ids, ids);
  const double sum = std::accumulate(weights.begin(), weights.end(), 0.0);
  for (size_t i = 0; i < ids.size(); ++i)
    EXPECT_NEAR(got.distribution_probs[i], weights[i] / sum, 1e-6) << "id " << ids[i];
}

// Logits are logarithms of small weights, so that distributions can be written down.
std::vector<float> logs(std::initializer_list<float> weights) {
  std::vector<float> l;
  for (const float w : weights) l.push_back(std::log(w));
  return l;
}

TEST(Sampling, TemperatureDividesLogits) {
  OneRow r;
  expect_distribution(r.run(logs({1, 2, 4})), {0, 1, 2}, {1, 2, 4});
  r.row.temperature = 0.5f;
  expect_distribution(r.run(logs({1, 2, 4})), {0, 1, 2}, {1, 4, 16});
}

TEST(Sampling, GreedyIsTheArgmaxWithTiesToTheLowestId) {
  OneRow r;
  r.row.temperature = 0.99e-5f;
  const SampledRow got = r.run({1, 3, -1, 3, 2});
  EXPECT_EQ(got.token, 1);
  EXPECT_EQ(got.greedy_id, 1);
  expect_distribution(got, {1}, {1});
  r.row.temperature = 1e-5f;  // no longer greedy, but the tie is all that is left
  EXPECT_EQ(r.run({1, 3, -1, 3, 2}).distribution_ids, (std::vector<int32_t>{1, 3}));
}

TEST(Sampling, TopKKeepsTies) {
  OneRow r;
  r.row.top_k = 2;
  expect_distribution(r.run(logs({4, 1, 2, 2, 1})), {0, 2, 3}, {4, 2, 2});
  for (const int32_t off : {0, -1, 5, 6}) {
    r.row.top_k = off;
    EXPECT_EQ(r.run(logs({4, 1, 2, 2, 1})).distribution_ids.size(), 5u) << off;
  }
}

TEST(Sampling, TopPKeepsTheSmallestSetAndLowerIdsAmongTies) {
  OneRow r;
  r.row.top_p = 0.45f;  // before id 0: 0, id 2: 0.4, id 3: 0.6
  expect_distribution(r.run(logs({4, 1, 2, 2, 1})), {0, 2}, {4, 2});
  r.row.top_p = 0.35f;
  expect_distribution(r.run(logs({4, 1, 2, 2, 1})), {0}, {4});
  r.row.top_p = 1e-6f;
  expect_distribution(r.run(logs({4, 1, 2, 2, 1})), {0}, {4});
  r.row.top_p = 0.295f;  // equal ones: the first ids stay
  EXPECT_EQ(r.run(std::vector<float>(100, 1.5f)).distribution_ids.size(), 30u);
  EXPECT_EQ(r.run(std::vector<float>(100, 1.5f)).distribution_ids.back(), 29);
}

TEST(Sampling, MinPComparesWithTheLikeliest) {
  OneRow r;
  r.row.min_p = 0.3f;
  expect_distribution(r.run(logs({4, 1, 2, 2, 1})), {0, 2, 3}, {4, 2, 2});
  r.row.min_p = 1;
  expect_distribution(r.run(logs({4, 1, 4, 2, 1})), {0, 2}, {1, 1});
}

TEST(Sampling, FiltersComeInOrder) {
  OneRow r;  // min_p leaves 4 2 2; top_k 3 changes nothing; top_p works on what is left: before id 3 lies 0.75
  r.row.min_p = 0.3f;
  r.row.top_k = 3;
  r.row.top_p = 0.7f;
  expect_distribution(r.run(logs({4, 1, 2, 2, 1})), {0, 2}, {4, 2});
  r.row.top_p = 0.8f;  // of the whole row, 0.8 would be reached before id 3 as well; of three tokens it is not
  expect_distribution(r.run(logs({4, 1, 2, 2, 1})), {0, 2, 3}, {4, 2, 2});
  r.row.min_p = 0;
  r.row.top_k = 2;  // ties stay before top_p
  expect_distribution(r.run(logs({4, 1, 2, 2, 1})), {0, 2, 3}, {4, 2, 2});
  r.row.temperature = 0.5f;  // before the filters: 16 1 4 4 1, min_p would have kept 1/4
  r.row.top_k = 0;
  r.row.top_p = 1;
  r.row.min_p = 0.3f;
  expect_distribution(r.run(logs({4, 1, 2, 2, 1})), {0}, {1});
}

TEST(Sampling, PenaltiesSeePromptAndOutputs) {
  const std::vector<float> logits = {2, -2, 2, 0};
  OneRow repetition;  // all that occurred; away from 0
  repetition.row.repetition_penalty = 2;
  repetition.count(0, 0);
  repetition.count(1, 3);
  expect_distribution(repetition.run(logits), {0, 1, 2, 3}, {std::exp(1), std::exp(-4), std::exp(2), 1});
  OneRow frequency;  // outputs only, times the count
  frequency.row.frequency_penalty = 0.5f;
  frequency.count(0, 0);
  frequency.count(1, 3);
  expect_distribution(frequency.run(logits), {0, 1, 2, 3}, {std::exp(2), std::exp(-3.5), std::exp(2), 1});
  OneRow presence;  // outputs only, once
  presence.row.presence_penalty = 0.5f;
  presence.count(0, 0);
  presence.count(1, 3);
  expect_distribution(presence.run(logits), {0, 1, 2, 3}, {std::exp(2), std::exp(-2.5), std::exp(2), 1});
}

TEST(Sampling, BiasComesBeforeRepetitionAndThatBeforeFrequencyAndPresence) {
  OneRow r;
  r.row.repetition_penalty = 2;
  r.row.frequency_penalty = 0.25f;
  r.row.presence_penalty = 1;
  r.bias(0, 4);   // -2 + 4 = 2, / 2 = 1, - 0.5 - 1 = -0.5
  r.bias(1, -3);  // 2 - 3 = -1, * 2 = -2
  r.count(0, 2);
  r.count(1, 0);
  expect_distribution(r.run({-2, 2, 0}), {0, 1, 2}, {std::exp(-0.5), std::exp(-2), 1});
}

TEST(Sampling, ExtremePenaltiesKeepEveryTokenFinite) {
  for (const float temperature : {0.0f, 1.0f}) {
    OneRow r;
    r.row.temperature = temperature;
    r.row.num_logprobs = 0;
    r.row.logprobs_mode = ops::LogprobsMode::kProcessedLogprobs;
    r.count(0, 1);
    r.count(1, 1);
    r.row.repetition_penalty = 1e38f;  // would mask both
    SampledRow got = r.run({-50, -60});
    EXPECT_EQ(got.status, RowStatus::kOk);
    EXPECT_TRUE(std::isfinite(got.logprobs.logprob)) << got.logprobs.logprob;
    r.row.repetition_penalty = 1e-38f;  // would make both infinite
    got = r.run({50, 60, -kInfinity});
    EXPECT_EQ(got.status, RowStatus::kOk);
    EXPECT_NEAR(got.logprobs.logprob, -std::log(2.0), 1e-6);
  }
}

TEST(Sampling, MasksComeFirstAndStayMasked) {
  OneRow r;
  r.allow({0, 1, 2, 7});  // 7 names no logit
  r.forbid({1, 9});
  r.grammar({0b11011});
  r.bias(2, 100);
  r.bias(1, 100);
  expect_distribution(r.run(logs({1, 2, 3, 4, 5})), {0}, {1});
  r.row.allowed = {};
  expect_distribution(r.run(logs({1, 2, 3, 4, 5})), {0, 3, 4}, {1, 4, 5});
}

TEST(Sampling, ARowWithoutTokensOrWithBadLogitsIsReported) {
  OneRow r;
  r.allow({0});
  r.forbid({0});
  SampledRow got = r.run({1, 2});
  EXPECT_EQ(got.status, RowStatus::kAllMasked);
  EXPECT_EQ(got.token, -1);
  for (const float temperature : {0.0f, 1.0f})
    for (const float bad : {std::nanf(""), kInfinity})
      for (const size_t at : {size_t{0}, size_t{299}, size_t{600}}) {
        std::vector<float> logits(601, 1.0f);
        logits[at] = bad;
        OneRow plain;
        plain.row.temperature = temperature;
        got = plain.run(logits);
        EXPECT_EQ(got.status, RowStatus::kNotFinite);
        EXPECT_EQ(got.token, -1);
        logits[at] = -kInfinity;  // a mask of the model's own
        EXPECT_EQ(plain.run(logits).status, RowStatus::kOk);
      }
}

TEST(Sampling, TokenIsTheArgmaxOfLogitPlusNoiseOfItsId) {
  const std::vector<float> logits = logs({3, 1, 2, 2, 5, 1, 1, 4, 2, 3, 1});
  SamplingBatch batch;
  for (int i = 0; i < 2000; ++i) {
    SamplingRow row;
    row.seed = 0x1234567890abcdefu + i;
    row.token_index = 17 + i % 5;
    row.choice = i % 3;
    batch.rows.push_back(row);
  }
  const auto rows = sample(logits, batch);
  for (size_t r = 0; r < rows.size(); ++r) {
    int32_t best = -1;
    float score = -kInfinity;
    for (int32_t id = 0; id < 11; ++id) {  // the counter of noise.h, word by word
      const PhiloxCounter words = philox4x32(
          {static_cast<uint32_t>(id / 4), static_cast<uint32_t>(17 + r % 5), static_cast<uint32_t>(r % 3), 0},
          0x1234567890abcdefu + r);
      const float s = logits[id] - logits[4] + gumbel(words[id % 4]);
      if (s > score) score = s, best = id;
    }
    EXPECT_EQ(rows[r].token, best);
  }
}

TEST(Sampling, EachPartOfTheCounterChangesTheNoise) {
  const std::vector<float> logits(1000, 0.0f);
  const auto token = [&](uint64_t seed, int32_t index, int32_t choice) {
    SamplingBatch batch;
    batch.rows.resize(1);
    batch.rows[0].seed = seed;
    batch.rows[0].token_index = index;
    batch.rows[0].choice = choice;
    return sample(logits, batch)[0].token;
  };
  const int32_t t = token(1, 2, 3);
  EXPECT_EQ(token(1, 2, 3), t);
  EXPECT_NE(token(uint64_t{1} << 32 | 1, 2, 3), t);
  EXPECT_NE(token(2, 2, 3), t);
  EXPECT_NE(token(1, 3, 3), t);
  EXPECT_NE(token(1, 2, 4), t);
}

// Rows of a normal distribution with a few ties, as a model makes them.
std::vector<float> random_logits(int64_t V, uint64_t seed, float scale) {
  std::vector<float> l(V);
  for (int64_t i = 0; i < V; ++i) {
    const PhiloxCounter u = philox4x32({static_cast<uint32_t>(i), 0, 0, 9}, seed);
    const double r = std::sqrt(-2 * std::log((u[0] + 0.5) / 4294967296.0));
    l[i] = static_cast<float>(std::round(16 * scale * r * std::cos(6.283185307 * u[1] / 4294967296.0)) / 16);
  }
  return l;
}

TEST(Sampling, NoTokenThatCouldWinIsLeftOut) {
  for (const float scale : {0.5f, 4.0f}) {
    const std::vector<float> logits = random_logits(5003, 8, scale);
    const float max = *std::max_element(logits.begin(), logits.end());
    SamplingBatch batch;
    batch.rows.resize(100);
    for (int i = 0; i < 100; ++i) batch.rows[i].seed = i;
    const auto rows = sample(logits, batch);
    for (uint64_t seed = 0; seed < 100; ++seed) {
      int32_t best = -1;
      float score = -kInfinity;
      for (int32_t id = 0; id < 5003; ++id) {
        const float s = logits[id] - max + gumbel(noise_words({.seed = seed}, id / 4)[id % 4]);
        if (s > score) score = s, best = id;
      }
      EXPECT_EQ(rows[seed].token, best);
    }
  }
}

// Filters by sorting, in double.
std::vector<int32_t> naive_filter(const std::vector<float>& logits, const SamplingRow& row) {
  struct Entry {
    float z;
    int32_t id;
  };
  const float max = *std::max_element(logits.begin(), logits.end());
  std::vector<Entry> kept;
  for (size_t i = 0; i < logits.size(); ++i)
    kept.push_back({(logits[i] - max) / row.temperature, static_cast<int32_t>(i)});
  std::stable_sort(kept.begin(), kept.end(), [](const Entry& a, const Entry& b) { return a.z > b.z; });
  if (row.min_p > 0) std::erase_if(kept, [&](const Entry& e) { return std::exp(double{e.z}) < row.min_p; });
  if (row.top_k > 0 && row.top_k < static_cast<int32_t>(kept.size())) {
    const float kth = kept[row.top_k - 1].z;
    std::erase_if(kept, [&](const Entry& e) { return e.z < kth; });
  }
  if (row.top_p < 1) {
    double total = 0, before = 0;
    for (const Entry& e : kept) total += std::exp(double{e.z});
    size_t n = 0;
    while (n < kept.size() && before < row.top_p * total) before += std::exp(double{kept[n++].z});
    kept.resize(n);
  }
  std::vector<int32_t> ids;
  for (const Entry& e : kept) ids.push_back(e.id);
  std::sort(ids.begin(), ids.end());
  return ids;
}

TEST(Sampling, FiltersEqualThoseOfASort) {
  int cases = 0;
  for (const int64_t V : {5, 255, 256, 257, 5000})
    for (const float scale : {0.0f, 0.01f, 1.0f, 3.0f})
      for (const int32_t top_k : {0, 1, 3, 20, 300, 4999})
        for (const float top_p : {1.0f, 0.999f, 0.8f, 0.3f})
          for (const float min_p : {0.0f, 0.02f}) {
            OneRow r;
            r.row.temperature = 0.7f;
            r.row.top_k = top_k;
            r.row.top_p = top_p;
            r.row.min_p = min_p;
            const std::vector<float> logits = random_logits(V, static_cast<uint64_t>(V) + cases % 7, scale);
            EXPECT_EQ(r.run(logits).distribution_ids, naive_filter(logits, r.row))
                << "V " << V << " scale " << scale << " top_k " << top_k << " top_p " << top_p << " min_p " << min_p;
            ++cases;
          }
  std::printf("filters: %d cases\n", cases);
}

TEST(Sampling, AFilterThatDropsOtherTokensChangesNothing) {
  for (const int64_t V : {1001, 5003}) {
    const std::vector<float> logits = random_logits(V, 3, 2);
    int kept_winner = 0;
    for (int i = 0; i < 300; ++i) {
      SamplingBatch batch;
      SamplingRow row;
      row.seed = i;
      batch.rows.push_back(row);
      row.top_k = static_cast<int32_t>(V) - 1;  // drops the last: the tokens are candidates of a list in some order
      batch.rows.push_back(row);
      row.top_k = 40;
      row.distribution = true;
      batch.rows.push_back(row);
      const auto rows = sample(logits, batch);
      EXPECT_EQ(rows[0].token, rows[1].token);
      const auto& ids = rows[2].distribution_ids;
      if (std::binary_search(ids.begin(), ids.end(), rows[0].token)) {
        EXPECT_EQ(rows[2].token, rows[0].token);
        ++kept_winner;
      }
    }
    EXPECT_GT(kept_winner, 10);
  }
}

TEST(Sampling, NoiseBelongsToTheTokenIdInADraftVocabulary) {
  const std::vector<float> logits = random_logits(3000, 4, 2);
  std::vector<int32_t> ids;
  for (int32_t id = 0; id < 3000; ++id)
    if (id < 700 || id % 11 == 3) ids.push_back(id);
  std::vector<float> draft_logits;
  for (const int32_t id : ids) draft_logits.push_back(logits[id]);
  draft_logits[0] = *std::max_element(logits.begin(), logits.end());  // the same maximum, so the same rounding
  std::vector<float> full = logits;
  full[0] = draft_logits[0];
  int same = 0;
  for (int i = 0; i < 400; ++i) {
    for (const int32_t top_k : {0, 50}) {
      SamplingBatch batch;
      SamplingRow row;
      row.seed = i;
      row.top_k = top_k;
      row.repetition_penalty = 1.5f;
      batch.counts = {{0, 0}, {703, 1}, {ids[705], 1}};
      row.counts = {0, 3};
      batch.rows.push_back(row);
      const int32_t token = sample(full, batch)[0].token;
      batch.token_ids = ids;
      const int32_t draft = sample(draft_logits, batch)[0].token;
      EXPECT_TRUE(std::binary_search(ids.begin(), ids.end(), draft));
      if (top_k == 0 && std::binary_search(ids.begin(), ids.end(), token)) {
        EXPECT_EQ(draft, token);
        ++same;
      }
    }
  }
  EXPECT_GT(same, 50);
}

TEST(Sampling, LogprobsOfEachMode) {
  OneRow r;
  r.row.temperature = 0.5f;
  r.row.top_k = 2;
  r.bias(1, kLog2);  // 1 4 4 2 1 -> processed 16 16
  r.forbid({4});
  r.row.num_logprobs = 3;
  r.row.scored_id = 2;
  const std::vector<float> logits = logs({1, 2, 4, 2, 1});

  ops::TokenLogprobs got = r.run(logits).logprobs;
  EXPECT_NEAR(got.logprob, std::log(0.4), 1e-6);
  EXPECT_EQ(got.rank, 1);
  ASSERT_EQ(got.top.size(), 3u);
  EXPECT_EQ(got.top[0].id, 2);
  EXPECT_EQ(got.top[1].id, 1);
  EXPECT_EQ(got.top[2].id, 3);
  EXPECT_NEAR(got.top[2].logprob, std::log(0.2), 1e-6);

  r.row.logprobs_mode = LogprobsMode::kProcessedLogprobs;
  got = r.run(logits).logprobs;
  EXPECT_NEAR(got.logprob, std::log(0.5), 1e-6);
  EXPECT_EQ(got.rank, 2);
  EXPECT_EQ(got.top[0].id, 1);
  EXPECT_EQ(got.top[1].id, 2);
  EXPECT_EQ(got.top[2].id, 0);
  EXPECT_EQ(got.top[2].logprob, -kInfinity);

  r.row.logprobs_mode = LogprobsMode::kRawLogits;
  EXPECT_EQ(r.run(logits).logprobs.logprob, logits[2]);
  r.row.logprobs_mode = LogprobsMode::kProcessedLogits;
  EXPECT_NEAR(r.run(logits).logprobs.logprob, 2 * logits[2], 1e-6);

  r.row.temperature = 0;  // greedy: after bias and masks, without temperature and filters
  r.row.logprobs_mode = LogprobsMode::kProcessedLogprobs;
  got = r.run(logits).logprobs;
  EXPECT_NEAR(got.logprob, std::log(4.0 / 11), 1e-6);
  r.row.scored_id = 4;
  EXPECT_EQ(r.run(logits).logprobs.logprob, -kInfinity);
}

TEST(Sampling, LogprobsOfAllAndOfListedTokens) {
  OneRow r;
  r.row.num_logprobs = ops::kAllLogprobs;
  r.batch.ids = {3, 0, 99};
  r.row.logprob_ids = {0, 3};
  r.grammar({0b11111});
  const ops::TokenLogprobs got = r.run(logs({1, 2, 4, 2, 1})).logprobs;
  std::vector<int32_t> order;
  for (const auto& t : got.top) order.push_back(t.id);
  EXPECT_EQ(order, (std::vector<int32_t>{2, 1, 3, 0, 4}));
  ASSERT_EQ(got.listed.size(), 3u);
  EXPECT_EQ(got.listed[0].id, 3);
  EXPECT_NEAR(got.listed[0].logprob, std::log(0.2), 1e-6);
  EXPECT_NEAR(got.listed[1].logprob, std::log(0.1), 1e-6);
  EXPECT_EQ(got.listed[2].logprob, -kInfinity);
  r.row.num_logprobs = 0;
  EXPECT_TRUE(r.run(logs({1, 2, 4, 2, 1})).logprobs.top.empty());
  r.row.num_logprobs = ops::kNoLogprobs;
  EXPECT_TRUE(r.run(logs({1, 2, 4, 2, 1})).logprobs.listed.empty());
}

TEST(Sampling, RowsDoNotDependOnTheirBatch) {
  const std::vector<float> logits = random_logits(3000, 5, 2);
  SamplingBatch batch;
  for (int i = 0; i < 60; ++i) {
    SamplingRow row;
    row.seed = i;
    row.temperature = i % 5 == 0 ? 0.0f : 0.8f;
    row.top_k = i % 3 == 0 ? 20 : 0;
    row.top_p = i % 4 == 0 ? 0.9f : 1.0f;
    row.frequency_penalty = i % 2 ? 0.5f : 0.0f;
    row.num_logprobs = i % 7 == 0 ? 3 : ops::kNoLogprobs;
    const auto begin = static_cast<int32_t>(batch.counts.size());
    for (int32_t id = i; id < i + 30; ++id) batch.counts.push_back({id, 1 + id % 3});
    row.counts = {begin, begin + 30};
    batch.rows.push_back(row);
  }
  const auto together = sample(logits, batch);
  for (size_t i = 0; i < batch.rows.size(); ++i) {
    SamplingBatch alone = batch;
    alone.rows = {batch.rows[i]};
    const SampledRow got = sample(logits, alone)[0];
    EXPECT_EQ(got.token, together[i].token);
    EXPECT_EQ(std::bit_cast<uint32_t>(got.logprobs.logprob), std::bit_cast<uint32_t>(together[i].logprobs.logprob));
  }
}

TEST(Sampling, ReusesItsMemory) {
  const std::vector<float> logits = random_logits(5000, 6, 2);
  ReferenceBackend backend;
  Workspace workspace;
  OneRank rank;
  ExecContext ctx{backend, workspace, rank};
  ops::SamplingResult result;
  SamplingBatch batch;
  batch.bias = {{3, 1.0f}};
  const Tensor view(const_cast<float*>(logits.data()), DType::kF32, {1, 5000});
  const float* first = nullptr;
  for (int step = 0; step < 5; ++step) {
    batch.rows.assign(2, SamplingRow{});
    batch.rows[0].bias = {0, 1};
    batch.rows[1].top_p = 0.9f;
    ops::sample(ctx, view, batch, result);
    if (step == 0) first = result.scratch[0].logits.data();
    EXPECT_EQ(result.scratch[0].logits.data(), first);
  }
}

}  // namespace
}  // namespace calandra
