// Goldens of the sampler, in float64 and vLLM's order (tests/oracle/text/sampling/README.md), through the rows of
// `calandra sample` and, for chains of drafts, through the rows that the engine makes.
#include "engine/sample_rows.h"

#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <map>

#include "backends/reference/reference.h"
#include "base/error.h"
#include "engine/sampling_row.h"

namespace calandra {
namespace {

const std::string kSmall = CALANDRA_SOURCE_DIR "/tests/oracle/text/sampling/";
const std::string kWhole = CALANDRA_SOURCE_DIR "/../shared/oracle/text/sampling/";

std::vector<json::object> read_rows(const std::string& file) {
  std::ifstream in(file);
  std::vector<json::object> rows;
  for (std::string line; std::getline(in, line);) rows.push_back(parse_json(line, file).get_object());
  return rows;
}

// A sampler with what it needs.
struct Sampler {
  ReferenceBackend backend;
  Workspace workspace;
  OneRank rank;
  ExecContext ctx{backend, workspace, rank};
};

double number(const json::value& v) { return v.is_string() ? -INFINITY : v.to_number<double>(); }

std::vector<int32_t> ids(const json::value& v) {
  std::vector<int32_t> result;
  for (const json::value& id : v.get_array()) result.push_back(static_cast<int32_t>(id.get_int64()));
  return result;
}

void expect_number(double got, double want, double tolerance, const std::string& what) {
  if (std::isinf(want)) {
    EXPECT_EQ(got, want) << what;
  } else {
    EXPECT_NEAR(got, want, tolerance) << what;
  }
}

void expect_logprobs(const json::value& got, const json::value& want, const std::string& what) {
  expect_number(number(got.at("logprob")), number(want.at("logprob")), 1e-4, what + " logprob");
  EXPECT_EQ(got.at("rank"), want.at("rank")) << what;
  const json::array &g = got.at("top").get_array(), &w = want.at("top").get_array();
  ASSERT_EQ(g.size(), w.size()) << what;
  for (size_t i = 0; i < w.size(); ++i) {
    EXPECT_EQ(g[i].at(0), w[i].at(0)) << what << " top " << i;
    expect_number(number(g[i].at(1)), number(w[i].at(1)), 1e-4, what + " top");
  }
}

void check_distributions(const std::string& folder) {
  Sampler sampler;
  const json::object logits = read_json_file(folder + "logits.json").get_object();
  std::map<std::string, int> with;
  int rows = 0, probabilities = 0;
  for (const json::object& row : read_rows(folder + "distributions.jsonl")) {
    const std::string id(row.at("id").get_string());
    const json::object got = sample_row(sampler.ctx, row, logits);
    EXPECT_EQ(got.at("greedy_id"), row.at("greedy_id")) << id;
    const json::value &g = got.at("distribution"), &w = row.at("distribution");
    EXPECT_EQ(g.at("ids"), w.at("ids")) << id;
    if (g.at("ids") == w.at("ids")) {
      for (size_t i = 0; i < w.at("probs").get_array().size(); ++i, ++probabilities)
        EXPECT_NEAR(number(g.at("probs").at(i)), number(w.at("probs").at(i)), 1e-5) << id << " " << i;
    }
    expect_logprobs(got.at("raw_logprobs"), row.at("raw_logprobs"), id + " raw");
    expect_logprobs(got.at("processed_logprobs"), row.at("processed_logprobs"), id + " processed");
    ++rows;
    for (const auto& param : row.at("params").get_object()) ++with[std::string(param.key())];
    with["grammar"] += row.contains("grammar_allowed_ids") ? 1 : 0;
    with["top_p ties"] += row.contains("note") ? 1 : 0;
  }
  EXPECT_GT(rows, 200);
  ::testing::Test::RecordProperty("sampling_distributions", rows);
  ::testing::Test::RecordProperty("sampling_probabilities", probabilities);
  std::printf("distributions: %d rows, %d probabilities;", rows, probabilities);
  for (const auto& [name, count] : with) std::printf(" %s %d", name.c_str(), count);
  std::printf("\n");
}

TEST(SampleRows, DistributionsOfTheGoldens) { check_distributions(kSmall); }

TEST(SampleRows, DistributionsOfAllGoldens) {
  if (!std::filesystem::exists(kWhole)) GTEST_SKIP() << "skipped: " << kWhole << " is not there";
  check_distributions(kWhole);
}

// P(chi-square with `freedom` degrees > x): the regularised upper incomplete gamma function, by its series or continued
// fraction.
double chi_square_tail(double x, double freedom) {
  const double a = freedom / 2, y = x / 2, front = std::exp(-y + a * std::log(y) - std::lgamma(a));
  if (y < a + 1) {
    double term = 1 / a, sum = term;
    for (int n = 1; n < 1000; ++n) sum += term *= y / (a + n);
    return 1 - sum * front;
  }
  double b = y + 1 - a, c = 1e300, d = 1 / b, h = d;
  for (int i = 1; i < 1000; ++i) {
    const double an = -i * (i - a);
    b += 2;
    d = 1 / (an * d + b);
    c = b + an / c;
    h *= d * c;
  }
  return front * h;
}

TEST(ChiSquare, TailIsRight) {
  EXPECT_NEAR(chi_square_tail(3.841458820694124, 1), 0.05, 1e-9);
  EXPECT_NEAR(chi_square_tail(18.307038053275146, 10), 0.05, 1e-9);
  EXPECT_NEAR(chi_square_tail(29.58829844507442, 10), 0.001, 1e-9);
  EXPECT_NEAR(chi_square_tail(2, 2), std::exp(-1), 1e-12);
}

// The row of position `i` behind the first i drafts: they are outputs.
Sequence sequence_of(const json::object& chain, size_t i) {
  Sequence s;
  s.params = std::get<SamplingParams>(read_sampling_params(chain.at("params").get_object()));
  s.tokens = ids(chain.at("prompt_ids"));
  s.prompt_size = s.size();
  for (const int32_t id : ids(chain.at("output_ids"))) s.tokens.push_back(id);
  const std::vector<int32_t> drafts = ids(chain.at("draft_ids"));
  s.tokens.insert(s.tokens.end(), drafts.begin(), drafts.begin() + static_cast<std::ptrdiff_t>(i));
  return s;
}

Tensor logits_of(const json::object& chain, std::vector<float>& memory) {
  memory.clear();
  const json::array& rows = chain.at("target_logits").get_array();
  for (const json::value& row : rows)
    for (const json::value& l : row.get_array()) memory.push_back(static_cast<float>(number(l)));
  const auto N = static_cast<int64_t>(rows.size());
  return Tensor(memory.data(), DType::kF32, {N, static_cast<int64_t>(memory.size()) / N});
}

struct ChainCounts {
  int greedy = 0, random = 0, positions = 0, tests = 0;
  double least = 1;  // smallest p-value
};

void check_greedy(Sampler& sampler, const json::object& chain, const Tensor& logits, ChainCounts& counts) {
  const std::vector<int32_t> drafts = ids(chain.at("draft_ids"));
  ops::SamplingBatch batch;
  for (size_t i = 0; i <= drafts.size(); ++i) {
    Sequence s = sequence_of(chain, i);
    ASSERT_TRUE(add_sampling_row(batch, s, {}, static_cast<int32_t>(i), {}));
  }
  ops::SamplingResult result;
  ops::sample(sampler.ctx, logits, batch, result);
  std::vector<int32_t> emitted;
  for (size_t i = 0; i <= drafts.size(); ++i) {
    emitted.push_back(result.rows[i].token);
    if (i < drafts.size() && emitted.back() != drafts[i]) break;
  }
  EXPECT_EQ(emitted, ids(chain.at("emitted_ids"))) << chain.at("id");
  ++counts.greedy;
}

// Tokens of `kSeeds` seeds against the target: cells expected less than 5 times are pooled.
void check_random(Sampler& sampler, const json::object& chain, const Tensor& logits, ChainCounts& counts) {
  constexpr int kSeeds = 20000;
  const json::array& targets = chain.at("targets").get_array();
  ops::SamplingBatch batch;
  ops::SamplingResult result;
  for (size_t i = 0; i < targets.size(); ++i) {
    Sequence s = sequence_of(chain, i);
    batch.clear();
    ASSERT_TRUE(add_sampling_row(batch, s, {}, static_cast<int32_t>(i), {}));
    const std::vector<int32_t> support = ids(targets[i].at("ids"));
    const int seeds = support.size() > 1 ? kSeeds : 100;
    batch.rows.resize(seeds, batch.rows[0]);
    for (int seed = 0; seed < seeds; ++seed)
      batch.rows[seed].seed = static_cast<uint64_t>(seed) << 20 | counts.positions;
    ops::sample(sampler.ctx, logits, batch, result);
    std::map<int32_t, int> seen;
    for (const ops::SampledRow& row : result.rows) ++seen[row.token];

    double statistic = 0, rest_expected = 0, rest_seen = 0;
    int cells = 0;
    const auto add = [&](double got, double expected) {
      statistic += (got - expected) * (got - expected) / expected, ++cells;
    };
    int inside = 0;
    for (size_t t = 0; t < support.size(); ++t) {
      const double expected = seeds * number(targets[i].at("probs").at(t));
      inside += seen[support[t]];
      if (expected >= 5)
        add(seen[support[t]], expected);
      else
        rest_expected += expected, rest_seen += seen[support[t]];
    }
    EXPECT_EQ(inside, seeds) << "a token outside the support, " << chain.at("id") << " position " << i;
    if (rest_expected >= 5) add(rest_seen, rest_expected);
    ++counts.positions;
    if (cells < 2) continue;
    // 1e-6 for the whole file, shared by at most 500 positions.
    const double p = chi_square_tail(statistic, cells - 1);
    EXPECT_GT(p, 1e-6 / 500) << chain.at("id") << " position " << i << " chi-square " << statistic << " cells "
                             << cells;
    counts.least = std::min(counts.least, p);
    ++counts.tests;
  }
  ++counts.random;
}

void check_chains(const std::string& folder) {
  Sampler sampler;
  ChainCounts counts;
  std::vector<float> memory;
  for (const json::object& chain : read_rows(folder + "chains.jsonl")) {
    const Tensor logits = logits_of(chain, memory);
    if (chain.contains("emitted_ids"))
      check_greedy(sampler, chain, logits, counts);
    else
      check_random(sampler, chain, logits, counts);
  }
  EXPECT_GE(counts.greedy, 10);
  EXPECT_GE(counts.random, 10);
  EXPECT_LE(counts.tests, 500);
  ::testing::Test::RecordProperty("sampling_chains", counts.greedy + counts.random);
  ::testing::Test::RecordProperty("chi_square_tests", counts.tests);
  std::printf("chains: %d greedy, %d random with %d positions, %d chi-square tests of 20000 seeds, smallest p %.2g\n",
              counts.greedy, counts.random, counts.positions, counts.tests, counts.least);
}

TEST(SampleRows, ChainsOfTheGoldens) { check_chains(kSmall); }

TEST(SampleRows, ChainsOfAllGoldens) {
  if (!std::filesystem::exists(kWhole)) GTEST_SKIP() << "skipped: " << kWhole << " is not there";
  check_chains(kWhole);
}

// Verification draws the tokens that decoding one by one draws, since a draft that equals the token is an output.
TEST(SampleRows, VerifyRowsEqualSequentialDecoding) {
  Sampler sampler;
  std::vector<float> memory;
  int accepted = 0, runs = 0;
  for (const json::object& chain : read_rows(kSmall + "chains.jsonl")) {
    const Tensor logits = logits_of(chain, memory);
    const size_t k = ids(chain.at("draft_ids")).size();
    for (uint64_t seed = 0; seed < 50; ++seed, ++runs) {
      Sequence plain = sequence_of(chain, 0);
      plain.seed = seed;
      ops::SamplingBatch batch;
      ops::SamplingResult result;
      for (size_t i = 0; i <= k; ++i) {  // one by one
        batch.clear();
        ASSERT_TRUE(add_sampling_row(batch, plain, {}, static_cast<int32_t>(i), {}));
        ops::sample(sampler.ctx, logits, batch, result);
        plain.tokens.push_back(result.rows[0].token);
      }
      Sequence verify = sequence_of(chain, 0);
      verify.seed = seed;
      std::vector<int32_t> drafts(plain.tokens.begin() + verify.size(), plain.tokens.end() - 1);
      if (k > 1 && seed % 2 == 1) drafts[seed / 2 % k] = (drafts[seed / 2 % k] + 1) % 32;  // one that is refused
      batch.clear();
      for (size_t i = 0; i <= k; ++i) {  // all at once
        ASSERT_TRUE(add_sampling_row(batch, verify, std::span(drafts).first(i), static_cast<int32_t>(i), {}));
      }
      ops::sample(sampler.ctx, logits, batch, result);
      for (size_t i = 0; i <= k; ++i) {
        EXPECT_EQ(result.rows[i].token, plain.tokens[verify.size() + i]) << chain.at("id") << " position " << i;
        if (i == k || result.rows[i].token != drafts[i]) break;
        ++accepted;
      }
    }
  }
  EXPECT_GT(accepted, 1000);
  RecordProperty("verify_runs", runs);
  std::printf("verify: %d runs, %d drafts accepted\n", runs, accepted);
}

json::object run(std::string_view row) {
  Sampler sampler;
  return sample_row(sampler.ctx, parse_json(row, "row").get_object());
}

TEST(SampleRows, TokenNeedsSeedAndPosition) {
  const json::object got =
      run(R"({"logits": [0, 1, "-inf", 2], "params": {"seed": 5}, "position": 7, "num_logprobs": 1})");
  const json::object other = run(R"({"logits": [0, 1, "-inf", 2], "params": {"seed": 5}, "position": 7, "choice": 2})");
  EXPECT_TRUE(got.contains("token"));
  EXPECT_TRUE(got.contains("raw_logprobs"));
  EXPECT_TRUE(other.contains("token"));
  EXPECT_FALSE(run(R"({"logits": [0, 1], "params": {"seed": 5}})").contains("token"));
  EXPECT_FALSE(run(R"({"logits": [0, 1], "position": 5})").contains("token"));
  const json::object plain = run(R"({"logits": [0, 1]})");
  EXPECT_EQ(plain.size(), 2u);
  const json::object masked = run(R"({"logits": [0, 1, "-inf"], "sampled_id": 2, "num_logprobs": 3})");
  EXPECT_EQ(masked.at("raw_logprobs").at("logprob"), "-inf");
  EXPECT_EQ(masked.at("raw_logprobs").at("rank"), 3);
}

TEST(SampleRows, WrongRowsAreUsageErrors) {
  for (const char* row : {
           R"({})",
           R"({"logits": []})",
           R"({"logits": "unknown"})",
           R"({"logits": [1, 2], "params": {"temprature": 1}})",
           R"({"logits": [1, "nan"]})",
           R"({"logits": [1, 1e300]})",
           R"({"logits": [1], "params": {"temperature": -1}})",
           R"({"logits": [1], "params": {"top_k": 1.5}})",
           R"({"logits": [1], "params": {"allowed_token_ids": [1]}})",
           R"({"logits": [1], "prompt_ids": [1]})",
           R"({"logits": [1], "sampled_id": 1})",
           R"({"logits": [1], "num_logprobs": -1})",
           R"({"logits": [1], "position": "x"})",
           R"({"logits": [1, 2], "params": {"bad_words_ids": [[0], [1]]}})",
       })
    EXPECT_THROW(run(row), UsageError) << row;
}

}  // namespace
}  // namespace calandra
