// The sampler has one result, bit for bit, on every backend: each feature alone and mixed, rows of all shapes.
#include "ops/sampling.h"

#include <cmath>
#include <cstring>

#include "tests/ops/op_setting.h"

namespace calandra {
namespace {

using ops::LogprobsMode;
using ops::SampledRow;
using ops::SamplingBatch;
using ops::SamplingRow;

uint32_t bits(float v) { return std::bit_cast<uint32_t>(v); }

class Sampler : public OpTest {
 protected:
  // A row of a normal distribution; with ties when `grain` > 0. Elements behind the row are NaN.
  Tensor logits(int64_t N, int64_t V, uint64_t seed, float scale, float grain) {
    const Tensor wide = pool.zeros(DType::kF32, {N, V + 3});
    for (int64_t r = 0; r < N; ++r)
      for (int64_t i = 0; i < V + 3; ++i) {
        float sum = 0;
        for (uint64_t term = 0; term < 4; ++term) sum += noise(seed + term, r * V + i);
        const float v = sum * scale;
        set_element(wide, r, i, i >= V ? NAN : grain > 0 ? std::round(v / grain) * grain : v);
      }
    return wide.slice(1, 0, V);
  }
  std::vector<SampledRow> sample(OpRunner& on, const Tensor& l, const SamplingBatch& batch) {
    return on.run([&](ExecContext& ctx) {
      ops::SamplingResult result;
      ops::sample(ctx, l, batch, result);
      return result.rows;
    });
  }
  void expect_as_reference(const Tensor& l, const SamplingBatch& batch, const std::string& label) {
    const auto got = sample(tested, l, batch), want = sample(reference, l, batch);
    ASSERT_EQ(got.size(), want.size());
    for (size_t r = 0; r < want.size(); ++r) {
      const SamplingRow& row = batch.rows[r];
      SCOPED_TRACE(name() + " " + label + " V " + std::to_string(l.size(1)) + " row " + std::to_string(r) + " top_k " +
                   std::to_string(row.top_k) + " top_p " + std::to_string(row.top_p) + " min_p " +
                   std::to_string(row.min_p) + " temperature " + std::to_string(row.temperature));
      EXPECT_EQ(got[r].status, want[r].status);
      EXPECT_EQ(got[r].token, want[r].token);
      EXPECT_EQ(got[r].greedy_id, want[r].greedy_id);
      EXPECT_EQ(got[r].distribution_ids, want[r].distribution_ids);
      EXPECT_EQ(got[r].distribution_probs, want[r].distribution_probs);
      if (want[r].status != ops::RowStatus::kOk || row.num_logprobs == ops::kNoLogprobs) continue;
      expect_same(got[r].logprobs, want[r].logprobs);
    }
  }

  void expect_same(const ops::TokenLogprobs& got, const ops::TokenLogprobs& want) {
    EXPECT_EQ(bits(got.logprob), bits(want.logprob)) << got.logprob << " " << want.logprob;
    EXPECT_EQ(got.rank, want.rank);
    for (const auto list : {&ops::TokenLogprobs::top, &ops::TokenLogprobs::listed}) {
      ASSERT_EQ((got.*list).size(), (want.*list).size());
      for (size_t i = 0; i < (want.*list).size(); ++i) {
        EXPECT_EQ((got.*list)[i].id, (want.*list)[i].id) << i;
        EXPECT_EQ(bits((got.*list)[i].logprob), bits((want.*list)[i].logprob)) << i;
      }
    }
  }
};

TEST_P(Sampler, FiltersKeepTheSameTokens) {
  for (const int64_t V : {1, 5, 257, 5003, 40000})
    for (const float scale : {0.0f, 0.01f, 2.0f, 30.0f})
      for (const float grain : {0.0f, 0.25f}) {
        SamplingBatch batch;
        for (const int32_t top_k : {0, 1, 3, 20, 300, 4999})
          for (const float top_p : {1.0f, 0.999f, 0.8f, 0.05f, 1e-6f})
            for (const float min_p : {0.0f, 0.02f, 1.0f})
              for (const float temperature : {0.7f, 3.0f}) {
                SamplingRow row;
                row.top_k = top_k;
                row.top_p = top_p;
                row.min_p = min_p;
                row.temperature = temperature;
                row.seed = 0x123456789abcdefu + batch.rows.size();
                row.token_index = static_cast<int32_t>(batch.rows.size());
                row.choice = 3;
                row.logit_row = static_cast<int32_t>(batch.rows.size() % 2);
                // The kept tokens are those whose logprob is finite.
                row.num_logprobs = batch.rows.size() % 3 == 0 ? 40 : 0;
                row.logprobs_mode = LogprobsMode::kProcessedLogprobs;
                batch.rows.push_back(row);
              }
        expect_as_reference(logits(2, V, 7, scale, grain), batch, "filters");
      }
}

TEST_P(Sampler, DrawsTheSameTokens) {
  for (const int64_t V : {11, 5003, 40000}) {
    SamplingBatch batch;
    for (int i = 0; i < 100; ++i) {
      SamplingRow row;
      row.seed = uint64_t{0x9e3779b97f4a7c15u} * (i + 1);
      row.token_index = 17 * i;
      row.choice = i % 3;
      row.temperature = i % 10 == 0 ? 0.0f : i % 10 == 1 ? 1e-5f : 0.1f * static_cast<float>(i % 10);
      batch.rows.push_back(row);
    }
    for (const float grain : {0.0f, 0.5f}) expect_as_reference(logits(1, V, 5, 1.5f, grain), batch, "draws");
  }
}

TEST_P(Sampler, MasksBiasesAndPenaltiesChangeTheSameLogits) {
  constexpr int32_t kV = 3001;
  SamplingBatch batch;
  for (int i = 0; i < 128; ++i) {
    SamplingRow row;
    row.seed = static_cast<uint64_t>(i);
    row.temperature = i % 5 == 0 ? 0.0f : 0.9f;
    row.top_p = i % 3 == 0 ? 0.9f : 1.0f;
    const auto list = [&](int count, int step) {
      const auto begin = static_cast<int32_t>(batch.ids.size());
      for (int j = 0; j < count; ++j) batch.ids.push_back((i + j * step) % (kV + 20) - 5);  // some name no logit
      return ops::ListRange{begin, static_cast<int32_t>(batch.ids.size())};
    };
    if (i & 1) row.allowed = list(700, 3);
    if (i & 2) row.forbidden = list(900, 2);
    if (i & 4) {
      row.bias.begin = static_cast<int32_t>(batch.bias.size());
      for (int32_t id = i; id < kV + 5; id += 7) batch.bias.push_back({id, noise(3, id) * 4});
      row.bias.end = static_cast<int32_t>(batch.bias.size());
    }
    if (i & 8) {
      row.repetition_penalty = i & 64 ? 1e38f : 1.3f;
      row.frequency_penalty = 0.2f;
      row.presence_penalty = 0.7f;
      row.counts.begin = static_cast<int32_t>(batch.counts.size());
      for (int32_t id = 0; id < kV; id += 2) batch.counts.push_back({id, id % 5});
      row.counts.end = static_cast<int32_t>(batch.counts.size());
    }
    if (i & 16) {
      row.grammar = static_cast<int32_t>(batch.grammar.size());
      for (uint32_t word = 0; word < (kV + 31) / 32; ++word) batch.grammar.push_back(0x5bd1e995u * (word + i + 1));
    }
    row.num_logprobs = i & 32 ? 12 : 0;
    row.logprobs_mode = static_cast<LogprobsMode>(i % 4);
    batch.rows.push_back(row);
  }
  SamplingRow none;
  none.allowed = none.forbidden = batch.rows[1].allowed;
  batch.rows.push_back(none);
  expect_as_reference(logits(1, kV, 9, 2, 0.125f), batch, "changed");
}

TEST_P(Sampler, ReportsTheSameLogprobs) {
  for (const int64_t V : {5, 2000, 30011}) {
    SamplingBatch batch;
    batch.ids = {3, 0, 1999, 3, 99999, 4};
    for (const int32_t count : {0, 1, 5, 20, 64, 65, ops::kAllLogprobs})
      for (int mode = 0; mode < 4; ++mode)
        for (const float temperature : {0.0f, 0.8f}) {
          SamplingRow row;
          row.seed = batch.rows.size();
          row.temperature = temperature;
          row.top_k = 30;
          row.num_logprobs = count;
          row.logprobs_mode = static_cast<LogprobsMode>(mode);
          if (mode % 2 == 1) row.logprob_ids = {1, 6};
          if (count == 5) row.scored_id = 4;
          row.distribution = count == 1;
          batch.rows.push_back(row);
        }
    for (const float grain : {0.0f, 2.0f}) expect_as_reference(logits(1, V, 11, 2, grain), batch, "logprobs");
  }
}

TEST_P(Sampler, BadRowsStayAlone) {
  const Tensor l = logits(6, 5003, 13, 2, 0);
  set_element(l, 1, 5002, NAN);
  set_element(l, 2, 0, INFINITY);
  set_element(l, 3, 2500, -INFINITY);
  set_element(l, 4, 17, NAN);
  SamplingBatch batch;
  batch.bias = {{17, 1.0f}};
  batch.ids = {3, 4, 5};
  for (int32_t r = 0; r < 6; ++r) {
    SamplingRow row;
    row.logit_row = r;
    if (r == 4) row.bias = {0, 1};
    if (r == 5) row.allowed = {0, 3};
    row.num_logprobs = 2;
    batch.rows.push_back(row);
    row.top_k = 5;
    batch.rows.push_back(row);
  }
  expect_as_reference(l, batch, "bad rows");
}

// As many equal logits as a backend may have room for, and more: all in one place, or everywhere.
TEST_P(Sampler, ManyTiesAtTheEdge) {
  constexpr int64_t kV = 40000;
  const Tensor l = logits(10, kV, 17, 1, 0);
  SamplingBatch batch;
  for (int32_t r = 0; r < 10; ++r) {
    constexpr int64_t kTies[] = {3, 511, 512, 513, 4095, 4096, 4097, kV};
    for (int64_t i = 0; i < kV; ++i) {
      const bool tied = r < 8 ? i < kTies[r] : i % (r == 8 ? 9 : 79) == 0;
      if (tied) set_element(l, r, i, 9);
    }
    for (const int32_t top_k : {1, 50, 512, 600, 5000})
      for (const float top_p : {1.0f, 0.7f})
        for (const int32_t count : {ops::kNoLogprobs, 20}) {
          SamplingRow row;
          row.logit_row = r;
          row.seed = batch.rows.size();
          row.top_k = top_k;
          row.top_p = top_p;
          row.num_logprobs = count;
          row.logprobs_mode = static_cast<LogprobsMode>(batch.rows.size() / 2 % 4);
          batch.rows.push_back(row);
        }
  }
  expect_as_reference(l, batch, "ties");
}

// Minus infinity in the logits themselves: everywhere, or but for a few, of which more are asked for than there are.
TEST_P(Sampler, RowsOfFewFiniteLogits) {
  constexpr int64_t kV = 5004;
  const Tensor l = pool.zeros(DType::kF32, {5, kV});  // rows begin where four can be read at once
  SamplingBatch batch;
  batch.bias = {{4999, 3.0f}, {11, 2.0f}};
  for (int32_t r = 0; r < 5; ++r) {
    for (int64_t i = 0; i < kV; ++i)
      set_element(l, r, i, r > 0 && i % 1000 == 11 - r && i / 1000 < r ? noise(19, i) : -INFINITY);
    for (const int32_t top_k : {0, 2, 30})
      for (const float top_p : {1.0f, 0.6f})
        for (int mode = 0; mode < 4; ++mode) {
          SamplingRow row;
          row.logit_row = r;
          row.seed = batch.rows.size();
          row.top_k = top_k;
          row.top_p = top_p;
          row.num_logprobs = 7;
          row.logprobs_mode = static_cast<LogprobsMode>(mode);
          if (top_k == 2) row.bias = {0, 2};
          batch.rows.push_back(row);
        }
  }
  expect_as_reference(l, batch, "few");
}

TEST_P(Sampler, DraftVocabulariesAreSampledTheSame) {
  for (const int32_t step : {3, 1, 7}) {  // another vocabulary each time
    std::vector<int32_t> ids;
    for (int32_t id = 0; id < 6000; ++id)
      if (id < 700 || id % step == 0) ids.push_back(id);
    SamplingBatch batch;
    batch.token_ids = ids;
    batch.counts = {{0, 0}, {703, 1}, {ids[705], 1}};
    batch.grammar.assign(188, 0xfffefffbu);
    for (int i = 0; i < 40; ++i) {
      SamplingRow row;
      row.seed = static_cast<uint64_t>(i);
      row.top_k = i % 2 ? 50 : 0;
      row.top_p = i % 3 ? 0.9f : 1.0f;
      row.grammar = i % 5 == 0 ? 0 : -1;
      row.repetition_penalty = 1.5f;
      row.counts = {0, 3};
      row.num_logprobs = 4;
      batch.rows.push_back(row);
    }
    expect_as_reference(logits(1, static_cast<int64_t>(ids.size()), 15, 2, 0), batch, "draft vocabulary");
  }
}

// Where the backend has a stream: the same rows, and their tokens for whoever goes on there.
TEST_P(Sampler, SampledInTwoHalvesIsSampledTheSame) {
  const Tensor l = logits(5, 700, 3, 2, 0);
  SamplingBatch batch;
  for (int32_t i = 0; i < 5; ++i) {
    SamplingRow row;
    row.logit_row = i;
    row.seed = 7;
    row.token_index = i;
    row.num_logprobs = i % 2 ? 3 : ops::kNoLogprobs;
    if (i == 2) row.allowed = {0, 1};
    batch.rows.push_back(row);
  }
  batch.ids = {100'000};  // of no column: row 2 has no token
  const auto want = sample(reference, l, batch);
  // The same rows of another seed are on their way meanwhile.
  SamplingBatch other = batch;
  for (SamplingRow& row : other.rows) row.seed = 8;
  const auto want_other = sample(reference, l, other);
  const Tensor tokens = pool.ints({9, 9, 9, 9, 9}), other_tokens = pool.ints({9, 9, 9, 9, 9});
  const auto start = [&](ExecContext& ctx, const SamplingBatch& rows, int flight, Tensor to) {
    return !ctx.dry_run && ops::start_sample(ctx, l, rows, flight, to);
  };
  ops::SamplingResult result, other_result;
  bool started = false;
  tested.run([&](ExecContext& ctx) {
    started = start(ctx, batch, 0, tokens) && start(ctx, other, ops::kSamplesAtOnce - 1, other_tokens);
    if (!started) return 0;
    ops::finish_sample(ctx, batch, 0, result);
    ops::finish_sample(ctx, other, ops::kSamplesAtOnce - 1, other_result);
    return 0;
  });
  if (!started) GTEST_SKIP() << "skipped: " << name() << " has no stream";
  for (size_t r = 0; r < want.size(); ++r) {
    EXPECT_EQ(tokens.as<int32_t>()[r], want[r].token);
    EXPECT_EQ(other_tokens.as<int32_t>()[r], want_other[r].token);
    EXPECT_EQ(result.rows[r].token, want[r].token);
    EXPECT_EQ(other_result.rows[r].token, want_other[r].token);
    EXPECT_EQ(result.rows[r].status, want[r].status);
    if (batch.rows[r].num_logprobs != ops::kNoLogprobs) expect_same(result.rows[r].logprobs, want[r].logprobs);
  }
  // The same places, told on the device.
  SamplingBatch moved = batch;
  moved.moves = pool.ints({3, 1});
  for (int32_t r : {1, 3, 4}) {
    moved.rows[r].moved_by = r == 1;
    moved.rows[r].token_index -= r == 1 ? 1 : 3;
  }
  tested.run([&](ExecContext& ctx) {
    if (start(ctx, moved, 3, other_tokens)) ops::finish_sample(ctx, moved, 3, other_result);
    return 0;
  });
  for (size_t r = 0; r < want.size(); ++r) EXPECT_EQ(other_result.rows[r].token, want[r].token);
  batch.rows[4].num_logprobs = ops::kAllLogprobs;  // of the host
  tested.run([&](ExecContext& ctx) {
    EXPECT_FALSE(start(ctx, batch, 0, tokens));
    return 0;
  });
}

std::vector<int32_t> ints_of(const Tensor& tensor) {
  return {tensor.as<int32_t>(), tensor.as<int32_t>() + tensor.numel()};
}

// Drafts are kept up to the first that was not sampled, that ends the answer, or that reaches its length.
TEST_P(Sampler, AcceptsDrafts) {
  //                          0  1  2  3  4   5  6  7  8  9
  std::vector<int32_t> tokens{5, 6, 7, 8, -1, 5, 6, 7, -1, 0};
  struct Case {
    int32_t row;
    std::vector<int32_t> drafts, stop_ids;
    int32_t most, accepted, active, last;
  };
  const std::vector<Case> each{
      {0, {}, {}, 9, 0, 1, 5},              // no drafts
      {0, {5, 6, 7}, {}, 9, 3, 1, 8},       // all
      {0, {5, 6, 9}, {7, 9}, 9, 2, 0, -1},  // the token behind them ends it
      {0, {5, 6, 9}, {9, 1}, 9, 2, 1, 7},   // a refused draft ends nothing
      {0, {9, 6, 7}, {6}, 9, 0, 1, 5},      // none behind a refused one
      {0, {5, 6, 7}, {6}, 9, 1, 0, -1},     // a draft that ends it
      {0, {5, 6, 7}, {5}, 9, 0, 0, -1},     // the first
      {1, {6, 7, 8}, {}, 9, 2, 0, -1},      // no token behind them: the last of them was the last token
      {3, {8, 0, 0}, {0}, 9, 0, 0, -1},     // no token in the place of a draft
      {4, {0}, {0}, 9, 0, 0, -1},           // no token at all
      {8, {}, {}, 9, 0, 0, -1},             //
      {5, {5, 6}, {}, 2, 2, 0, -1},         // its length
      {5, {5, 8}, {}, 2, 1, 1, 6},          // not yet
      {9, {}, {3, -1}, 1, 0, 1, 0},         // token 0 is one
      {9, {}, {}, 0, 0, 0, -1},
  };
  std::vector<Case> cases;  // more than a block of a device has threads
  while (cases.size() <= 256) cases.insert(cases.end(), each.begin(), each.end());
  const auto B = static_cast<int32_t>(cases.size());
  constexpr size_t kRowInts = sizeof(ops::VerifiedRow) / sizeof(int32_t);
  std::vector<int32_t> lists(cases.size() * kRowInts), sequence, place, index;
  const auto append = [&](const std::vector<int32_t>& ids) {
    lists.insert(lists.end(), ids.begin(), ids.end());
    return static_cast<int32_t>(lists.size());
  };
  for (int32_t b = 0; b < B; ++b) {
    const Case& c = cases[static_cast<size_t>(b)];
    ops::VerifiedRow row{};
    row.row = c.row;
    row.drafts_begin = append({});
    row.drafts_end = row.stop_ids_begin = append(c.drafts);
    row.stop_ids_end = append(c.stop_ids);
    row.most = c.most;
    row.slot = B - b;
    row.entry_row = 10 * b;
    std::memcpy(lists.data() + static_cast<size_t>(b) * kRowInts, &row, sizeof row);
    sequence.push_back(b);
    place.push_back(static_cast<int32_t>(tokens.size()) + b);
    index.push_back(100 * b);
  }
  tokens.resize(tokens.size() + cases.size(), 77);
  const Tensor sampled = pool.ints(tokens), last = sampled.slice(0, place.front(), place.back() + 1);
  const std::vector<int32_t> before(static_cast<size_t>(B + 1), 7), nines(static_cast<size_t>(B), 9);
  SlotCounts slots{.N = pool.ints(before), .accepted = pool.ints(before), .hidden = {}};
  ops::VerifiedTokens out{pool.ints(nines), pool.ints(nines), last, pool.ints(nines)};
  Batch batch;  // a row of each, which goes on from what was accepted
  batch.token_ids = pool.ints(nines);
  batch.token_index = pool.ints(index);
  batch.row_sequence = pool.ints(sequence);
  batch.positions = pool.ints(std::vector<int32_t>(3 * cases.size())).view({3, B});
  batch.seq_len = pool.ints(index);
  batch.active = pool.ints(nines);
  batch.ahead = {pool.ints(place), pool.ints({B, B}), pool.ints(lists)};
  tested.run([&](ExecContext& ctx) {
    ops::complete_batch(ctx, sampled, batch, slots, out);
    return 0;
  });
  for (int32_t b = 0; b < B; ++b) {
    SCOPED_TRACE(b);
    const Case& c = cases[static_cast<size_t>(b)];
    EXPECT_EQ(ints_of(out.accepted)[b], c.accepted);
    EXPECT_EQ(ints_of(out.active)[b], c.active);
    EXPECT_EQ(ints_of(out.last)[b], c.last);
    EXPECT_EQ(ints_of(out.entry_row)[b], 10 * b + c.accepted);
    EXPECT_EQ(ints_of(slots.accepted)[B - b], c.accepted);
    EXPECT_EQ(ints_of(batch.token_ids)[b], std::max(0, c.last));
    EXPECT_EQ(ints_of(batch.token_index)[b], 100 * b + c.accepted);
    EXPECT_EQ(ints_of(batch.active)[b], c.active);
  }
  EXPECT_EQ(ints_of(slots.accepted)[0], 7);  // of nobody
  EXPECT_EQ(ints_of(slots.N), before);
}

// Tokens go to their rows, and what has none is 0. A batch for no accepted drafts stands behind those that were
// accepted.
TEST_P(Sampler, CompletesABatch) {
  const Tensor sampled = pool.ints({5, -1, 7, 9});
  const Tensor three = pool.ints({0, 0, 0});
  ops::VerifiedTokens verified{pool.ints({2, 0, 3}), pool.ints({1, 0, 1}), three, three};  // before this batch
  SlotCounts slots{.N = {}, .accepted = pool.ints({7}), .hidden = {}};
  for (const bool mtp : {false, true}) {
    Batch batch;
    batch.token_ids = pool.ints({3, 3, 3, 3, 3});
    batch.token_index = pool.ints({10, 11, 20, 30, 40});
    batch.ahead = {pool.ints({3, -1, 1, 0, -1}), pool.ints({0, 3}), pool.ints({0})};  // the fourth does not move
    batch.row_sequence = pool.ints({0, 0, 1, 2, 3});
    batch.positions = pool.ints({1, 2, 3, 4, 50, 5, 6, 7, 8, 50, 9, 10, 11, 12, 50}).view({3, 5});
    batch.seq_len = pool.ints({12, 21, 31, 41});
    batch.active = pool.ints({1, 1, 1, 0});
    if (mtp) batch.mtp.positions = pool.ints({0, 1, 2, 3, 50, 4, 5, 6, 7, 50, 8, 9, 10, 11, 50}).view({3, 5});
    Batch still = batch;  // tokens alone
    still.token_ids = pool.ints(ints_of(batch.token_ids));
    still.ahead.counts = pool.ints({0, 0});
    tested.run([&](ExecContext& ctx) {
      ops::complete_batch(ctx, sampled, still, slots, verified);
      return 0;
    });
    EXPECT_EQ(ints_of(still.token_ids), (std::vector<int32_t>{9, 3, 0, 5, 3}));
    EXPECT_EQ(ints_of(still.token_index), (std::vector<int32_t>{10, 11, 20, 30, 40}));
    EXPECT_EQ(ints_of(still.active), (std::vector<int32_t>{1, 1, 1, 0}));
    tested.run([&](ExecContext& ctx) {
      ops::complete_batch(ctx, sampled, batch, slots, verified);
      return 0;
    });
    EXPECT_EQ(ints_of(batch.token_ids), (std::vector<int32_t>{9, 3, 0, 5, 3}));
    EXPECT_EQ(ints_of(batch.token_index), (std::vector<int32_t>{12, 13, 20, 33, 40}));
    EXPECT_EQ(ints_of(batch.positions), (std::vector<int32_t>{3, 4, 3, 7, 50, 7, 8, 7, 11, 50, 11, 12, 11, 15, 50}));
    EXPECT_EQ(ints_of(batch.seq_len), (std::vector<int32_t>{14, 21, 34, 41}));
    EXPECT_EQ(ints_of(batch.active), (std::vector<int32_t>{1, 0, 1, 0}));
    if (mtp) {
      EXPECT_EQ(ints_of(batch.mtp.positions),
                (std::vector<int32_t>{2, 3, 2, 6, 50, 6, 7, 6, 10, 50, 10, 11, 10, 14, 50}));
    }
  }
}

CALANDRA_ON_ALL_BACKENDS(Sampler);

}  // namespace
}  // namespace calandra
