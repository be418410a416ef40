// How many drafts of the demo models' MTP layer are accepted, by position, beside what other ways of drafting would
// reach on the same text. A report: the bounds only say that drafting works.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <filesystem>

#include "base/json.h"
#include "base/noise.h"
#include "tests/losslessness_session.h"
#include "tests/oracle_tools.h"

namespace calandra::lossless {
namespace {

namespace fs = std::filesystem;

constexpr int kDrafts = 3;
constexpr int64_t kAnswer = 32;
constexpr float kTemperature = 0.8f;
constexpr uint64_t kSeed = 11;

// Beginnings of held-out text where it is at hand, else the recorded prompts.
std::vector<std::vector<int32_t>> prompts(Subject& subject) {
  std::vector<std::vector<int32_t>> all;
  const fs::path text = CALANDRA_SOURCE_DIR "/../shared/demo/eval/eval.txt";
  if (fs::exists(text)) {
    const std::vector<int32_t> ids = subject.tokenizer->encode(read_text_file(text));
    const int64_t count = whole_matrix() ? 40 : testing::kHostile ? 2 : 8;
    for (int64_t i = 0; i < count; ++i) {
      const auto begin = ids.begin() + i * (std::ssize(ids) / count);
      all.push_back({begin, begin + 32});
    }
    return all;
  }
  const json::value file =
      read_json_file(fs::path(CALANDRA_SOURCE_DIR "/demo") / subject.name / "expected_greedy.json");
  for (const json::value& c : file.at("cases").as_array()) {
    std::vector<int32_t>& prompt = all.emplace_back();
    for (const json::value& id : c.at("prompt_ids").as_array()) prompt.push_back(static_cast<int32_t>(id.as_int64()));
  }
  return all;
}

std::vector<double> softmax(const float* logits, int64_t V, double temperature) {
  std::vector<double> p(static_cast<size_t>(V));
  const double largest = *std::max_element(logits, logits + V);
  double sum = 0;
  for (int64_t i = 0; i < V; ++i) sum += p[i] = std::exp((logits[i] - largest) / temperature);
  for (double& x : p) x /= sum;
  return p;
}

int32_t coupled(const float* logits, int64_t V, int64_t token_index) {
  int32_t best = 0;
  float best_value = -1e30f;
  for (int64_t id = 0; id < V; ++id) {
    const PhiloxCounter words = noise_words({kSeed, static_cast<uint32_t>(token_index)}, static_cast<uint32_t>(id / 4));
    const float value = logits[id] / kTemperature + gumbel(words[id % 4]);
    if (value > best_value) best = static_cast<int32_t>(id);
    best_value = std::max(best_value, value);
  }
  return best;
}

struct Rates {
  int64_t positions = 0;
  std::array<double, kDrafts> greedy_text{}, coupled{}, ideal{}, greedy{};
};

// Along an answer: what the j-th draft is worth, given that those before it were right.
void follow(Subject& subject, const std::vector<int32_t>& tokens, int64_t prompt_size, Rates& sampled) {
  const int64_t D = subject.model->hidden_size(), V = subject.model->vocab_size(), T = std::ssize(tokens);
  ModelRunner runner(*subject.model, *subject.backend,
                     {.max_num_seqs = 1, .max_num_batched_tokens = 512, .max_model_len = T + kDrafts});
  Sequence s;
  s.tokens = tokens;
  ASSERT_TRUE(runner.reserve(s, T));
  std::vector<float> logits;
  const std::vector<float> hidden = testing::target_hidden(runner, s, 512, &logits);
  const testing::MtpPass pass = testing::mtp_pass(runner, s, hidden, {tokens.begin() + 1, tokens.end()}, 0, 512);
  // From the end, so that entries before a position are still the true ones.
  for (int64_t known = T - kDrafts; known > prompt_size; --known) {
    ++sampled.positions;
    std::vector<float> drafted(pass.logits.begin() + (known - 2) * V, pass.logits.begin() + (known - 1) * V);
    std::vector<float> row(pass.hidden.begin() + (known - 2) * D, pass.hidden.begin() + (known - 1) * D);
    for (int j = 0; j < kDrafts; ++j) {
      if (j > 0) {
        std::vector<bf16> narrow(row.begin(), row.end());
        const Tensor kept = runner.keep_hidden(Tensor(narrow.data(), DType::kBF16, {1, D}));
        const ModelRunner::DraftPart part{&s, known + j - 1, std::span(tokens).subspan(known + j - 1, 1)};
        const Tensor result = runner.draft({&part, 1}, kept, j);
        for (int64_t d = 0; d < D; ++d) row[d] = static_cast<float>(result.as<bf16>()[d]);
        drafted = testing::all_logits(runner, result);
      }
      const float* target = logits.data() + (known + j - 1) * V;
      const std::vector<double> p = softmax(target, V, kTemperature), q = softmax(drafted.data(), V, kTemperature);
      for (int64_t id = 0; id < V; ++id) sampled.ideal[j] += std::min(p[id], q[id]);
      sampled.greedy[j] += p[testing::argmax(drafted.data(), V)];
      sampled.greedy_text[j] += testing::argmax(drafted.data(), V) == testing::argmax(target, V);
      sampled.coupled[j] += coupled(drafted.data(), V, known + j) == coupled(target, V, known + j);
    }
  }
  runner.release(s);
}

std::string row(const std::array<double, kDrafts>& sums, int64_t positions) {
  std::string words;
  for (const double sum : sums) words += fmt::format(" {:.3f}", sum / static_cast<double>(positions));
  return words;
}

class Acceptance : public ::testing::TestWithParam<const char*> {};

TEST_P(Acceptance, OfDraftsByPosition) {
  Subject& subject = *lossless::subject(GetParam());
  const std::vector<std::vector<int32_t>> begins = prompts(subject);
  int64_t longest = 0;
  for (const auto& prompt : begins) longest = std::max(longest, std::ssize(prompt));
  for (const float temperature : {0.f, kTemperature}) {
    std::vector<Request> requests;
    for (const auto& prompt : begins) {
      Request& request = requests.emplace_back();
      request.prompt_token_ids = prompt;
      request.params.temperature = temperature;
      request.params.seed = kSeed;
      request.params.max_tokens = static_cast<int32_t>(kAnswer);
      request.params.ignore_eos = true;
    }
    ModelRunner runner(*subject.model, *subject.backend,
                       {.max_num_seqs = 8,
                        .max_num_batched_tokens = 512,
                        .max_model_len = longest + kAnswer,
                        .pending_capacity = kDrafts,
                        .hidden_ring = 32});
    EngineOptions options{.seed = 1};
    options.speculative = {.num_speculative_tokens = kDrafts, .adaptive = false};
    EngineCore core(runner, subject.text(), options);
    Rates rates;
    for (size_t i = 0; const std::vector<Answer>& answers : core.run(requests)) {
      std::vector<int32_t> tokens = begins[i];
      tokens.insert(tokens.end(), answers[0].token_ids.begin(), answers[0].token_ids.end());
      follow(subject, tokens, std::ssize(begins[i++]), rates);
    }
    const EngineStats& stats = core.stats();
    std::string engine;
    for (int j = 0; j < kDrafts; ++j)
      engine += fmt::format(" {:.3f}", static_cast<double>(stats.accepted_per_position[j]) /
                                           static_cast<double>(stats.drafted_per_position[j]));
    fmt::print("{}, temperature {}: of {} runs of drafts accepted up to each position{}, {:.2f} tokens per step\n",
               GetParam(), temperature, stats.drafts, engine,
               1 + static_cast<double>(stats.accepted_tokens) / static_cast<double>(stats.drafts));
    if (temperature == 0)
      fmt::print("  given those before, at {} places:{}\n", rates.positions, row(rates.greedy_text, rates.positions));
    else
      fmt::print("  given those before, at {} places: coupled{}; ideal rejection sampling{}; greedy drafts{}\n",
                 rates.positions, row(rates.coupled, rates.positions), row(rates.ideal, rates.positions),
                 row(rates.greedy, rates.positions));
    const double first = (temperature == 0 ? rates.greedy_text : rates.coupled)[0];
    EXPECT_GT(first, 0.35 * static_cast<double>(rates.positions));
    EXPECT_GT(rates.ideal[0], rates.greedy[0] * 0.9);
    RecordProperty(fmt::format("accepted_of_1000_at_temperature_{}", temperature > 0 ? "0.8" : "0"),
                   static_cast<int>(1000 * stats.accepted_per_position[0] / stats.drafted_per_position[0]));
  }
}

INSTANTIATE_TEST_SUITE_P(Models, Acceptance, ::testing::Values("demo-qwen3_5", "demo-bailing"), [](const auto& info) {
  return std::string(info.param == std::string("demo-bailing") ? "bailing" : "qwen3_5");
});

}  // namespace
}  // namespace calandra::lossless
