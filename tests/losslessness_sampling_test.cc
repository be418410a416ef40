// Sampled tokens follow the model's distribution, with and without drafts: over many seeds of one prompt, the first
// three tokens are counted and compared with the softmax of the logits. And for each seed they are the same tokens.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>

#include "tests/losslessness_session.h"
#include "tests/model_under_test.h"

namespace calandra::lossless {
namespace {

using Tokens = std::vector<int32_t>;
constexpr int kTokens = 3;

std::vector<SamplingParams> distributions() {
  std::vector<SamplingParams> all;
  for (int i = 0; i < 20; ++i) {
    SamplingParams p;
    p.temperature = 0.5f + 0.1f * static_cast<float>(i % 8);
    // Few tokens, the same for drafter and target: drafts are accepted, and three tokens have few answers.
    p.allowed_token_ids = {2, 5, 8, 13, 21, 34};
    p.top_k = i % 2 == 0 ? 3 + i % 3 : 0;
    if (i % 3 == 1) p.top_p = 0.8f;
    if (i % 5 == 2) p.min_p = 0.1f;
    if (i % 4 == 3) p.logit_bias = {{5, 0.5f}, {21, -0.3f}};
    p.max_tokens = kTokens;
    p.ignore_eos = true;
    all.push_back(p);
  }
  return all;
}

// The model's distribution of the token after `prefix`, as the parameters ask for: by definition, in f64.
std::map<int32_t, double> distribution(std::vector<float> logits, const SamplingParams& p) {
  for (const ops::TokenBias& bias : p.logit_bias) logits[static_cast<size_t>(bias.id)] += bias.bias;
  std::vector<std::pair<double, int32_t>> kept;
  for (size_t id = 0; id < logits.size(); ++id)
    if (p.allowed_token_ids.empty() || std::find(p.allowed_token_ids.begin(), p.allowed_token_ids.end(),
                                                 static_cast<int32_t>(id)) != p.allowed_token_ids.end())
      kept.push_back({-static_cast<double>(logits[id]) / p.temperature, static_cast<int32_t>(id)});
  std::sort(kept.begin(), kept.end());
  const double largest = -kept[0].first;
  std::erase_if(kept, [&](const auto& k) { return -k.first - largest < std::log(std::max(1e-30f, p.min_p)); });
  if (p.top_k > 0) kept.resize(std::min(kept.size(), static_cast<size_t>(p.top_k)));
  const auto mass = [&] {
    double sum = 0;
    for (const auto& [z, id] : kept) sum += std::exp(-z - largest);
    return sum;
  };
  const double all = mass();
  double before = 0;
  size_t count = 0;
  while (count < kept.size() && before < static_cast<double>(p.top_p) * all)
    before += std::exp(-kept[count++].first - largest);
  kept.resize(count);
  const double rest = mass();
  std::map<int32_t, double> probabilities;
  for (const auto& [z, id] : kept) probabilities[id] = std::exp(-z - largest) / rest;
  return probabilities;
}

std::vector<Tokens> sampled(Subject& subject, const Tokens& prompt, const SamplingParams& params, int64_t seeds,
                            int drafts) {
  ModelRunner runner(*subject.model, *subject.backend,
                     {.max_num_seqs = 64,
                      .max_num_batched_tokens = 256,
                      .max_model_len = std::ssize(prompt) + kTokens,
                      .pending_capacity = drafts,
                      .hidden_ring = drafts > 0 ? 16 : 0});
  EngineOptions options{.seed = 1};
  if (drafts > 0) options.speculative = {.num_speculative_tokens = drafts, .adaptive = false};
  EngineCore core(runner, nullptr, options);
  std::vector<Tokens> out;
  while (std::ssize(out) < seeds) {
    std::vector<Request> requests(static_cast<size_t>(std::min<int64_t>(seeds - std::ssize(out), 512)));
    for (size_t i = 0; i < requests.size(); ++i) {
      requests[i].prompt_token_ids = prompt;
      requests[i].params = params;
      requests[i].params.seed = 1'000'003 * (out.size() + i) + 12345;
    }
    for (const std::vector<Answer>& answers : core.run(requests)) out.push_back(answers[0].token_ids);
  }
  EXPECT_EQ(core.stats().accepted_tokens > seeds / 10, drafts > 0);
  return out;
}

// Tail of the chi-square distribution, by Wilson and Hilferty's cube root.
double p_value(double chi_square, double degrees) {
  const double z = (std::cbrt(chi_square / degrees) - (1 - 2 / (9 * degrees))) / std::sqrt(2 / (9 * degrees));
  return 0.5 * std::erfc(z / std::sqrt(2.0));
}

class SampledDistributions : public ::testing::TestWithParam<const char*> {};

TEST_P(SampledDistributions, AreTheModelsWithAndWithoutDrafts) {
  Subject& subject = *lossless::subject(GetParam());
  const std::vector<SamplingParams> all = distributions();
  const testing::TablePart part = testing::table_part(CALANDRA_STAMPS ? all.size() : 3);
  const int64_t seeds = part.whole ? 100'000 : testing::kHostile ? 1000 : 20'000;
  const Tokens prompt = text_of(subject, 40, 2);
  ModelRunner runner(*subject.model, *subject.backend,
                     {.max_num_seqs = 1, .max_num_batched_tokens = 8, .max_model_len = 8});
  const int64_t V = subject.model->vocab_size();
  int64_t differences = 0;
  for (size_t i = 0; i < all.size(); ++i) {
    if (!part.takes(i)) continue;
    const std::vector<Tokens> plain = sampled(subject, prompt, all[i], seeds, 0);
    const std::vector<Tokens> drafted = sampled(subject, prompt, all[i], seeds, 2);
    std::map<Tokens, int64_t> counts;
    for (size_t seed = 0; seed < plain.size(); ++seed) {
      differences += plain[seed] != drafted[seed];
      ++counts[plain[seed]];
    }
    // Joint probabilities of three tokens, one forward for each prefix.
    std::map<Tokens, double> expected = {{{}, 1.0}};
    for (int token = 0; token < kTokens; ++token) {
      std::map<Tokens, double> longer;
      for (const auto& [answer, probability] : expected) {
        Sequence s;
        s.tokens = prompt;
        s.tokens.insert(s.tokens.end(), answer.begin(), answer.end());
        const std::vector<float> logits = testing::teacher_forced(runner, s, 8);
        runner.release(s);
        for (const auto& [id, p] : distribution({logits.end() - V, logits.end()}, all[i])) {
          Tokens next = answer;
          next.push_back(id);
          longer[next] = probability * p;
        }
      }
      expected = std::move(longer);
    }
    double chi_square = 0, rare = 0;
    int64_t cells = 0, rare_count = 0, counted = 0;
    const auto add = [&](double count, double mean) {
      chi_square += (count - mean) * (count - mean) / mean;
      ++cells;
    };
    for (const auto& [answer, probability] : expected) {
      const double mean = probability * static_cast<double>(seeds);
      const int64_t count = counts[answer];
      counted += count;
      if (mean >= 5) {
        add(static_cast<double>(count), mean);
      } else {
        rare += mean;
        rare_count += count;
      }
    }
    if (rare >= 5) add(static_cast<double>(rare_count), rare);
    EXPECT_EQ(counted, seeds) << "answers that have no probability";
    const double p = p_value(chi_square, static_cast<double>(cells - 1));
    EXPECT_GT(p, 0.001) << "distribution " << i;
    fmt::print("{}, distribution {}: {} seeds, chi-square {:.1f} of {} cells, p = {:.3f}\n", GetParam(), i, seeds,
               chi_square, cells, p);
    // The same counts against probabilities that are a little wrong: the test can fail, given enough seeds.
    if (testing::kHostile) continue;
    EXPECT_LT(p_value(chi_square + 0.02 * static_cast<double>(seeds), static_cast<double>(cells - 1)), 0.001);
  }
  EXPECT_EQ(differences, 0);
  RecordProperty("seeds_with_equal_tokens", static_cast<int>(seeds));
}

INSTANTIATE_TEST_SUITE_P(Models, SampledDistributions, ::testing::Values("small_qwen3_5", "small_bailing"));

}  // namespace
}  // namespace calandra::lossless
