// Rows behind drafts equal the rows of a sequence to which the drafts were appended, whatever the request asks for; and
// what those rows sample is what decoding token by token samples.
#include "engine/sampling_row.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <tuple>

#include "backends/reference/reference.h"
#include "base/philox.h"

namespace calandra {
namespace {

using Ids = std::vector<int32_t>;

constexpr int32_t kVocab = 40;
const Ids kEos{38, 39};
// Single tokens, and sequences of several that begin alike.
const ThinkingTokens kThinking[] = {{}, {{1}, {2}}, {{1, 2}, {1, 3, 1, 3}}, {{4, 4}, {5, 5, 6}}, {{7}, {7, 8}}};

SamplingContext context(int thinking = 0) { return {kEos, kThinking[thinking], kVocab}; }

class Random {
 public:
  explicit Random(uint64_t seed) : bits_(seed) {}
  int32_t below(int64_t n) { return static_cast<int32_t>(bits_() % static_cast<uint64_t>(n)); }
  bool chance(int percent) { return below(100) < percent; }
  Ids ids(int64_t count, int32_t vocab) {
    Ids result(count);
    for (int32_t& id : result) id = below(vocab);
    return result;
  }
  float number(float low, float high) { return low + (high - low) * static_cast<float>(below(1000)) / 1000; }

 private:
  std::mt19937_64 bits_;
};

// Grammar of a chain: each token is at most `kStep` places behind the one before, around the vocabulary. Every fourth
// token may be followed by an end token, after which nothing is allowed.
class StepGrammar : public Grammar {
 public:
  static constexpr int32_t kStep = 9;

  bool mask(std::span<const int32_t> drafts, std::span<uint32_t> words) override {
    EXPECT_EQ(std::ssize(words), (kVocab + 31) / 32);
    EXPECT_TRUE(std::all_of(words.begin(), words.end(), [](uint32_t w) { return w == 0; }));
    StepGrammar ahead = *this;
    for (const int32_t draft : drafts) {
      if (!ahead.allows(draft)) return false;
      ahead.accept(draft);
    }
    for (int32_t id = 0; id < kVocab; ++id)
      if (ahead.allows(id)) words[id / 32] |= uint32_t{1} << (id % 32);
    return true;
  }
  void accept(int32_t token) override {
    ended_ = ended_ || is_end(token);
    last_ = token;
    ++accepted_;
  }
  bool finished() const override { return ended_; }
  std::unique_ptr<Grammar> clone() const override { return std::make_unique<StepGrammar>(*this); }

  bool allows(int32_t id) const {
    if (ended_) return false;
    if (is_end(id)) return accepted_ % 4 == 3;
    return (id - last_ + kVocab) % kVocab <= kStep;
  }

 private:
  static bool is_end(int32_t id) { return std::count(kEos.begin(), kEos.end(), id) > 0; }

  int32_t last_ = 0;
  int accepted_ = 0;
  bool ended_ = false;
};

// A processor as a user writes one: what it does depends on the whole prefix.
class PrefixProcessor : public LogitsProcessor {
 public:
  void apply(const Prefix& prefix, RowEdits& edits) const override {
    uint32_t hash = static_cast<uint32_t>(prefix.prompt_size());
    for (int64_t i = 0; i < prefix.size(); ++i) hash = hash * 31 + static_cast<uint32_t>(prefix[i]);
    edits.forbid(static_cast<int32_t>(hash % kVocab));
    edits.add_bias(static_cast<int32_t>(hash / 7 % kVocab), static_cast<float>(prefix.outputs()) / 8);
    if (hash % 3 != 0) return;
    Ids allowed;
    for (int32_t id = 0; id < kVocab; ++id)
      if ((hash >> (id % 29) & 1) != 0) allowed.push_back(id);
    edits.allow_only(allowed);
    edits.forbid(static_cast<int32_t>(hash / 5 % kVocab));
  }
};

SamplingParams random_params(Random& random) {
  SamplingParams p;
  p.temperature = random.chance(30) ? 0 : random.number(0.1f, 2);
  p.top_k = random.chance(50) ? 0 : random.below(20);
  p.top_p = random.chance(50) ? 1 : random.number(0.5f, 1);
  p.min_p = random.chance(70) ? 0 : random.number(0, 0.2f);
  if (random.chance(40)) p.repetition_penalty = random.number(0.5f, 2);
  if (random.chance(30)) p.frequency_penalty = random.number(-2, 2);
  if (random.chance(30)) p.presence_penalty = random.number(-2, 2);
  if (random.chance(30))
    for (int32_t id = random.below(10); id < kVocab; id += 1 + random.below(12))
      p.logit_bias.push_back({id, random.number(-5, 5)});
  if (random.chance(25)) p.allowed_token_ids = random.ids(1 + random.below(30), kVocab);
  if (random.chance(50))
    for (int words = random.below(12); words > 0; --words)
      p.bad_words_token_ids.push_back(random.ids(1 + random.below(3), 8));
  if (random.chance(40)) p.min_tokens = random.below(12);
  if (random.chance(40)) p.stop_token_ids = random.ids(random.below(4), kVocab);
  p.ignore_eos = random.chance(20);
  if (random.chance(40)) p.logprobs = random.below(5) - 1;
  if (random.chance(20)) p.logprob_token_ids = random.ids(random.below(4), kVocab);
  p.logprobs_mode = static_cast<ops::LogprobsMode>(random.below(4));
  if (random.chance(60)) p.thinking_token_budget = random.below(8);
  return p;
}

Sequence random_sequence(Random& random) {
  Sequence s;
  s.params = random_params(random);
  s.tokens = random.ids(random.below(12), 10);
  s.prompt_size = s.size();
  s.seed = static_cast<uint64_t>(random.below(1 << 30));
  s.choice = random.below(3);
  for (int count = random.below(3); count > 0; --count) s.processors.push_back(std::make_shared<PrefixProcessor>());
  if (random.chance(25)) s.grammar = std::make_shared<StepGrammar>();
  return s;
}

// As if it had come with all its tokens at once.
Sequence fresh(const Sequence& s, std::span<const int32_t> drafts) {
  Sequence appended = s;
  appended.counts = {};
  appended.thinking = {};
  appended.tokens.insert(appended.tokens.end(), drafts.begin(), drafts.end());
  if (s.grammar) {
    appended.grammar = s.grammar->clone();
    for (const int32_t draft : drafts) appended.grammar->accept(draft);
  }
  return appended;
}

// Every field: one that is added to SamplingRow is missed by the compiler here.
auto fields(const ops::SamplingRow& row) {
  const auto& [logit_row, temperature, top_k, top_p, min_p, repetition, frequency, presence, seed, token_index,
               moved_by, choice, counts, bias, allowed, forbidden, grammar, num_logprobs, mode, scored_id, logprob_ids,
               distribution] = row;
  const auto range = [](ops::ListRange r) { return std::pair(r.begin, r.end); };
  return std::tuple(logit_row, temperature, top_k, top_p, min_p, repetition, frequency, presence, seed, token_index,
                    moved_by, choice, range(counts), range(bias), range(allowed), range(forbidden), grammar,
                    num_logprobs, mode, scored_id, range(logprob_ids), distribution);
}

auto lists(const ops::SamplingBatch& batch) {
  std::vector<std::pair<int32_t, int32_t>> counts;
  for (const auto& [id, outputs] : batch.counts) counts.emplace_back(id, outputs);
  std::vector<std::pair<int32_t, float>> bias;
  for (const auto& [id, value] : batch.bias) bias.emplace_back(id, value);
  return std::tuple(counts, bias, batch.ids, batch.grammar);
}

void expect_same(const ops::SamplingBatch& got, const ops::SamplingBatch& want, const std::string& what) {
  ASSERT_EQ(got.rows.size(), want.rows.size()) << what;
  for (size_t i = 0; i < got.rows.size(); ++i)
    EXPECT_TRUE(fields(got.rows[i]) == fields(want.rows[i])) << what << ", row " << i;
  EXPECT_TRUE(lists(got) == lists(want)) << what;
}

TEST(SamplingRow, RowsBehindDraftsEqualThoseOfTheAppendedSequence) {
  Random random(11);
  int cases = 0, dead = 0, forced = 0, restricted = 0, forbidden = 0, new_ids = 0;
  ops::SamplingBatch got, want;
  for (int run = 0; run < 600; ++run) {
    Sequence s = random_sequence(random);
    const SamplingContext shared = context(random.below(std::ssize(kThinking)));
    for (int step = 0; step < 5; ++step) {  // the same sequence, so that what it keeps was left by earlier steps
      Ids drafts = random.ids(random.below(6), random.chance(50) ? 10 : kVocab);
      if (s.grammar && random.chance(70))
        for (size_t i = 0; i < drafts.size(); ++i)
          drafts[i] = ((i > 0 ? drafts[i - 1] : s.outputs() > 0 ? s.tokens.back() : 0) + drafts[i] % 9) % 38;
      got.clear();
      want.clear();
      bool refused = false;
      for (size_t j = 0; j <= drafts.size(); ++j) {
        const auto before = std::span(drafts).first(j);
        const auto row = static_cast<int32_t>(j);
        const bool alive = add_sampling_row(got, s, before, row, shared);
        const auto* grammar = static_cast<const StepGrammar*>(s.grammar.get());
        if (grammar != nullptr && j > 0) {
          const Sequence one_less = fresh(s, before.first(j - 1));
          refused = refused || !static_cast<const StepGrammar&>(*one_less.grammar).allows(drafts[j - 1]);
        }
        EXPECT_EQ(alive, !refused);
        if (!alive) {
          ++dead;
          continue;  // and the batch is as before, or the comparison fails
        }
        Sequence appended = fresh(s, before);
        ASSERT_TRUE(add_sampling_row(want, appended, {}, row, shared));
        const ops::SamplingRow& last = got.rows.back();
        restricted += !last.allowed.empty();
        forced += s.params.thinking_token_budget && s.processors.empty() && s.params.allowed_token_ids.empty() &&
                  last.allowed.size() == 1;
        forbidden += !last.forbidden.empty();
        new_ids += j > 0 && !last.counts.empty() && got.counts.back().outputs > 0;
      }
      expect_same(got, want, "run " + std::to_string(run) + " step " + std::to_string(step));
      ++cases;
      for (const int32_t id : random.ids(1 + random.below(4), 10)) {
        if (s.grammar && !static_cast<const StepGrammar&>(*s.grammar).allows(id)) break;
        s.tokens.push_back(id);
        if (s.grammar) s.grammar->accept(id);
      }
    }
  }
  std::printf("%d cases; rows: %d dead, %d restricted, %d forced, %d with forbidden ids, %d with counts of drafts\n",
              cases, dead, restricted, forced, forbidden, new_ids);
  EXPECT_GE(cases, 2000);
  for (const int seen : {dead, restricted, forced, forbidden, new_ids}) EXPECT_GT(seen, 50);
}

// Where it says that rows do not read the drafts, unknown ones give the same rows.
TEST(SamplingRow, ReadsDraftsOrTheirNumberAlone) {
  Random random(12);
  int number_alone = 0, differ = 0;
  ops::SamplingBatch known, unknown;
  for (int run = 0; run < 6000; ++run) {
    Sequence s = random_sequence(random);
    const SamplingContext shared = context(random.below(std::ssize(kThinking)));
    const Ids drafts = random.ids(1 + random.below(4), 10), zeros(drafts.size());
    known.clear();
    unknown.clear();
    const bool alive = add_sampling_row(known, s, drafts, 0, shared);
    const bool also = add_sampling_row(unknown, s, zeros, 0, shared);
    if (reads_drafts(s, shared)) {
      differ += alive != also || !(lists(known) == lists(unknown));
      continue;
    }
    ++number_alone;
    ASSERT_TRUE(alive && also);
    expect_same(known, unknown, "run " + std::to_string(run));
  }
  EXPECT_GT(number_alone, 100);
  EXPECT_GT(differ, 1000);
}

TEST(SamplingRow, DraftsAreOutputs) {
  Sequence s;
  s.tokens = {5, 6, 5, 7};
  s.prompt_size = 2;
  s.params.presence_penalty = 1;
  s.params.min_tokens = 4;
  s.params.stop_token_ids = {30};
  s.params.bad_words_token_ids = {{7, 9, 11}, {5, 7, 12}, {9, 6}, {20}, {6, 5, 7, 13}};
  const Ids drafts{9, 5};
  ops::SamplingBatch batch;
  for (int32_t j = 0; j <= 2; ++j) ASSERT_TRUE(add_sampling_row(batch, s, std::span(drafts).first(j), j, context()));
  const std::vector<std::vector<std::pair<int32_t, int32_t>>> counts{
      {{5, 1}, {6, 0}, {7, 1}}, {{5, 1}, {6, 0}, {7, 1}, {9, 1}}, {{5, 2}, {6, 0}, {7, 1}, {9, 1}}};
  // The last bad word began in the prompt, which does not count.
  const std::vector<Ids> forbidden{{12, 20, 30, 38, 39}, {11, 6, 20, 30, 38, 39}, {20}};
  for (int32_t j = 0; j <= 2; ++j) {
    const ops::SamplingRow& row = batch.rows[j];
    EXPECT_EQ(row.token_index, 4 + j);
    std::vector<std::pair<int32_t, int32_t>> got;
    for (int32_t i = row.counts.begin; i < row.counts.end; ++i)
      got.emplace_back(batch.counts[i].id, batch.counts[i].outputs);
    EXPECT_EQ(got, counts[j]);
    EXPECT_EQ(Ids(batch.ids.begin() + row.forbidden.begin, batch.ids.begin() + row.forbidden.end), forbidden[j]);
  }
}

TEST(SamplingRow, AFormThatHasNothingMoreEndsBeforeMinTokens) {
  class Ends final : public Grammar {  // 3 or an end, then an end
   public:
    bool mask(std::span<const int32_t> drafts, std::span<uint32_t> words) override {
      for (const int32_t id : kEos) words[id / 32] |= uint32_t{1} << (id % 32);
      if (drafts.empty()) words[0] |= uint32_t{1} << 3;
      return true;
    }
    void accept(int32_t) override {}
    bool finished() const override { return false; }
    std::unique_ptr<Grammar> clone() const override { return std::make_unique<Ends>(); }
  };
  Sequence s;
  s.tokens = {1};
  s.prompt_size = 1;
  s.params.min_tokens = 4;
  s.params.stop_token_ids = {30};
  s.grammar = std::make_unique<Ends>();
  ops::SamplingBatch batch;
  const Ids draft{3}, ends{38, 39, 38};  // a model's files may name one twice
  const SamplingContext context{ends, {}, kVocab};
  for (int32_t j = 0; j <= 1; ++j) ASSERT_TRUE(add_sampling_row(batch, s, std::span(draft).first(j), j, context));
  const auto forbidden = [&](int j) {
    const auto& range = batch.rows[j].forbidden;
    return Ids(batch.ids.begin() + range.begin, batch.ids.begin() + range.end);
  };
  EXPECT_EQ(forbidden(0), (Ids{30, 38, 39, 38}));
  EXPECT_EQ(forbidden(1), Ids());
}

TEST(SamplingRow, LogprobsAreLeftOutWhenNotWanted) {
  Sequence s;
  s.tokens = {1};
  s.prompt_size = 1;
  s.params.logprobs = 3;
  s.params.logprob_token_ids = {4, 5};
  s.params.logprobs_mode = ops::LogprobsMode::kProcessedLogits;
  ops::SamplingBatch batch;
  ASSERT_TRUE(add_sampling_row(batch, s, {}, 0, context()));
  EXPECT_EQ(batch.rows[0].num_logprobs, 3);
  EXPECT_EQ(batch.rows[0].logprob_ids.size(), 2);
  batch.clear();
  ASSERT_TRUE(add_sampling_row(batch, s, {}, 0, context(), /*want_logprobs=*/false));
  ops::SamplingRow plain;
  plain.token_index = 1;
  EXPECT_TRUE(fields(batch.rows[0]) == fields(plain));
  EXPECT_TRUE(batch.ids.empty());
}

TEST(Grammar, DeadRowsLeaveNothingBehind) {
  Sequence s;
  s.tokens = {3};
  s.prompt_size = 1;
  s.params.logprob_token_ids = {1};
  s.params.presence_penalty = 1;
  auto grammar = std::make_shared<StepGrammar>();
  s.grammar = grammar;
  ops::SamplingBatch batch;
  const Ids drafts{5, 14, 24, 24};  // 24 is ten places behind 14
  for (int32_t j = 0; j <= 4; ++j)
    EXPECT_EQ(add_sampling_row(batch, s, std::span(drafts).first(j), j, context()), j < 3) << j;
  ASSERT_EQ(batch.rows.size(), 3u);
  EXPECT_EQ(batch.grammar.size(), 6u);
  EXPECT_EQ(batch.ids.size(), 3u);
  EXPECT_EQ(batch.counts.size(), 1u + 2 + 3);
  for (int32_t j = 0; j < 3; ++j) {
    const int32_t last = j == 0 ? 0 : drafts[j - 1];
    for (int32_t id = 0; id < 38; ++id) {
      const bool allowed = (batch.grammar[batch.rows[j].grammar + id / 32] >> (id % 32) & 1) != 0;
      EXPECT_EQ(allowed, (id - last + kVocab) % kVocab <= StepGrammar::kStep) << j << " " << id;
    }
  }

  const Ids ended{5, 5, 5, 38, 5};  // nothing follows an end token
  for (int32_t j = 0; j <= 5; ++j)
    EXPECT_EQ(add_sampling_row(batch, s, std::span(ended).first(j), j, context()), j < 5) << j;
  EXPECT_FALSE(grammar->finished());

  const std::unique_ptr<Grammar> fork = s.grammar->clone();
  for (const int32_t id : {5, 5, 5, 38}) fork->accept(id);
  EXPECT_TRUE(fork->finished());
  EXPECT_FALSE(grammar->finished());
}

// Logits of a model whose next token depends on all tokens before.
void logits_of(std::span<const int32_t> tokens, std::span<float> logits) {
  uint64_t hash = 1469598103934665603u;
  for (const int32_t id : tokens) hash = (hash ^ static_cast<uint64_t>(id)) * 1099511628211u;
  for (size_t c = 0; c < logits.size(); ++c) {
    const auto words = philox4x32({static_cast<uint32_t>(c), 0, 0, 0}, hash);
    logits[c] = static_cast<float>(words[0] % 4096) / 512 - 4;
  }
}

struct Sampler {
  ReferenceBackend backend;
  Workspace workspace;
  OneRank rank;
  ExecContext ctx{backend, workspace, rank};
  ops::SamplingBatch batch;
  ops::SamplingResult result;
  std::vector<float> logits;

  // Tokens of the rows behind drafts[0..j) of all j, fewer where the grammar refuses a draft.
  Ids sample(Sequence& s, std::span<const int32_t> drafts, const SamplingContext& shared) {
    batch.clear();
    Ids prefix = s.tokens;
    logits.resize((drafts.size() + 1) * kVocab);
    for (size_t j = 0; j <= drafts.size(); ++j) {
      logits_of(prefix, std::span(logits).subspan(j * kVocab, kVocab));
      if (!add_sampling_row(batch, s, drafts.first(j), static_cast<int32_t>(j), shared)) break;
      if (j < drafts.size()) prefix.push_back(drafts[j]);
    }
    const auto N = static_cast<int64_t>(drafts.size()) + 1;
    ops::sample(ctx, Tensor(logits.data(), DType::kF32, {N, kVocab}), batch, result);
    Ids tokens;
    for (const ops::SampledRow& row : result.rows) tokens.push_back(row.token);
    return tokens;
  }
};

TEST(SamplingRow, VerifiedDraftsGiveTheTokensOfDecodingOneByOne) {
  constexpr int kTokens = 24;
  Random random(13);
  Sampler sampler;
  int accepted = 0, ended = 0, all_masked = 0;
  for (int run = 0; run < 300; ++run) {
    Sequence plain = random_sequence(random);
    plain.tokens.push_back(random.below(9));
    ++plain.prompt_size;
    const SamplingContext shared = context(random.below(std::ssize(kThinking)));
    Sequence drafted = fresh(plain, {});
    const auto append = [](Sequence& s, int32_t token) {  // false: it ends here
      if (token < 0) return false;
      s.tokens.push_back(token);
      if (s.grammar) s.grammar->accept(token);
      return !(s.grammar && s.grammar->finished());
    };
    while (plain.outputs() < kTokens && append(plain, sampler.sample(plain, {}, shared)[0])) {
    }
    all_masked += !sampler.result.rows.empty() && sampler.result.rows[0].status == ops::RowStatus::kAllMasked;
    ended += plain.grammar && plain.grammar->finished();

    for (bool goes_on = true; goes_on && drafted.outputs() < kTokens;) {
      const int64_t left = plain.size() - drafted.size();
      Ids drafts(plain.tokens.end() - left, plain.tokens.end() - std::max<int64_t>(0, left - random.below(5)));
      if (!drafts.empty() && random.chance(50)) drafts[random.below(std::ssize(drafts))] = random.below(kVocab);
      const Ids tokens = sampler.sample(drafted, drafts, shared);
      for (size_t j = 0; j < tokens.size() && goes_on && drafted.outputs() < kTokens; ++j) {
        goes_on = append(drafted, tokens[j]);
        if (j == drafts.size() || tokens[j] != drafts[j]) break;
        ++accepted;
      }
    }
    ASSERT_EQ(drafted.tokens, plain.tokens) << "run " << run;
  }
  std::printf("%d drafts accepted; %d answers ended by the grammar, %d without a token left\n", accepted, ended,
              all_masked);
  EXPECT_GT(accepted, 1000);
  EXPECT_GT(ended, 5);
  EXPECT_GT(all_masked, 5);
}

}  // namespace
}  // namespace calandra
