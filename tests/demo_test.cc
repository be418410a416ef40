// The demo model through the engine: recorded greedy continuations, perplexity, and answers that depend on nothing but
// request and seed.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cmath>

#include "base/json.h"
#include "engine/engine_core.h"
#include "tests/oracle_tools.h"

namespace calandra {
namespace {

using namespace calandra::testing;
namespace fs = std::filesystem;

const fs::path kDemo = CALANDRA_SOURCE_DIR "/demo";
const fs::path kModel = kDemo / "demo-qwen3_5";

// Both models on the fast backends.
class BothDemos : public ::testing::TestWithParam<std::tuple<const char*, std::string>> {
 protected:
  const char* const name_ = std::get<0>(GetParam());
  const BackendChoice backend_{std::get<1>(GetParam()), 2, ""};
  const fs::path model_ = kDemo / name_;
};

std::vector<int32_t> ids_of(const json::value& array) {
  std::vector<int32_t> ids;
  for (const json::value& id : array.as_array()) ids.push_back(static_cast<int32_t>(id.as_int64()));
  return ids;
}

TEST_P(BothDemos, GreedyContinuationsAsRecorded) {
  const Tokenizer tokenizer = Tokenizer::load(model_);
  ModelUnderTest model(model_, backend_, DType::kF32);
  const json::value file = read_json_file(model_ / "expected_greedy.json");
  std::vector<Request> requests;
  int64_t longest = 0;
  for (const json::value& c : file.at("cases").as_array()) {
    Request request;
    request.prompt_token_ids = ids_of(c.at("prompt_ids"));
    EXPECT_EQ(tokenizer.encode(std::string_view(c.at("prompt").as_string())), request.prompt_token_ids);
    request.params.temperature = 0;
    request.params.max_tokens = 64;
    request.params.ignore_eos = true;
    longest = std::max(longest, static_cast<int64_t>(request.prompt_token_ids.size()) + 64);
    requests.push_back(std::move(request));
  }
  const auto runner = model.runner(
      {.max_num_seqs = static_cast<int64_t>(requests.size()), .max_num_batched_tokens = 256, .max_model_len = longest});
  EngineCore engine(*runner, &tokenizer, {});
  const std::vector<std::vector<Answer>> answers = engine.run(requests);
  int64_t compared = 0;
  for (size_t i = 0; i < requests.size(); ++i) {
    const json::value& c = file.at("cases").as_array()[i];
    const std::vector<int32_t> want = ids_of(c.at("output_ids"));
    // Exact up to the first stop; behind it only as far as the recorded margins are clear.
    size_t exact = c.at("first_stop").is_int64() ? static_cast<size_t>(c.at("first_stop").as_int64()) : want.size();
    const json::array& margins = c.at("margins").as_array();
    while (exact < want.size() && margins[exact].to_number<double>() >= 0.003) ++exact;
    const std::vector<int32_t>& got = answers[i][0].token_ids;
    ASSERT_EQ(got.size(), want.size());
    EXPECT_TRUE(std::equal(got.begin(), got.begin() + exact, want.begin())) << c.at("prompt").as_string();
    compared += static_cast<int64_t>(exact);
  }
  RecordProperty("continuations", static_cast<int>(requests.size()));
  RecordProperty("greedy_tokens", static_cast<int>(compared));
}

// Three chained greedy drafts behind every position of the recorded answers, the true prefix before it: how often the
// first 1, 2 and 3 all equal the answer.
TEST_P(BothDemos, DraftAgreementAsRecorded) {
  ModelUnderTest model(model_, backend_, DType::kF32, {.drafter = true});
  const json::value file = read_json_file(model_ / "expected_greedy.json");
  const auto runner = model.runner({.max_num_seqs = 1, .max_num_batched_tokens = 512, .max_model_len = 1024});
  int64_t positions = 0, accepted[3] = {};
  for (const json::value& c : file.at("cases").as_array()) {
    const std::vector<int32_t> prompt = ids_of(c.at("prompt_ids")), output = ids_of(c.at("output_ids"));
    const auto length = static_cast<int64_t>(
        c.at("first_stop").is_int64() ? static_cast<size_t>(c.at("first_stop").as_int64()) : output.size());
    Sequence sequence;
    sequence.tokens = prompt;
    sequence.tokens.insert(sequence.tokens.end(), output.begin(), output.begin() + length);
    ASSERT_TRUE(runner->reserve(sequence, sequence.size() + 4));
    const std::vector<float> hidden = target_hidden(*runner, sequence, 512);
    const int64_t D = model.model().hidden_size(), V = model.model().vocab_size();
    // One first pass over all true pairs; the drafts behind position p then overwrite the entries beyond it, which a
    // pass from the next position on writes anew.
    const std::vector<int32_t> all = sequence.tokens;
    const MtpPass pass = mtp_pass(*runner, sequence, hidden, {all.begin() + 1, all.end()}, 0, 512);
    const auto last_prompt = static_cast<int64_t>(prompt.size()) - 1;
    for (int64_t p = last_prompt + length - 4; p >= last_prompt; --p) {
      // Entry p + 1 pairs hidden p with token p + 1; its result drafts token p + 2. From the end to the front, so that
      // every position still finds the true entries before it.
      Sequence prefix = sequence;
      prefix.tokens.resize(p + 1);
      const MtpPass here{{pass.hidden.begin() + p * D, pass.hidden.begin() + (p + 1) * D},
                         {pass.logits.begin() + p * V, pass.logits.begin() + (p + 1) * V}};
      const Drafts drafts = chained_drafts(*runner, prefix, here, 3, true);
      ++positions;
      for (int64_t k = 0; k < 3 && drafts.tokens[k] == all[p + 2 + k]; ++k) ++accepted[k];
    }
    runner->release(sequence);
  }
  EXPECT_EQ(positions, file.at("draft_positions").as_int64());
  for (int k = 0; k < 3; ++k) {
    const double recorded = file.at("draft_acceptance").as_array()[k].to_number<double>();
    EXPECT_NEAR(static_cast<double>(accepted[k]), recorded * static_cast<double>(positions), 3.0) << "k = " << k + 1;
  }
  RecordProperty("draft_positions", static_cast<int>(positions));
  fmt::print("{} drafts: {} positions, agreement {:.3f} {:.3f} {:.3f}\n", name_, positions,
             static_cast<double>(accepted[0]) / static_cast<double>(positions),
             static_cast<double>(accepted[1]) / static_cast<double>(positions),
             static_cast<double>(accepted[2]) / static_cast<double>(positions));
}

std::vector<std::vector<int32_t>> sampled(const BackendChoice& choice, int64_t max_num_seqs, int64_t budget,
                                          int64_t block_size) {
  const Tokenizer tokenizer = Tokenizer::load(kModel);
  ModelUnderTest model(kModel, choice, DType::kBF16);
  const auto runner =
      model.runner({.max_num_seqs = max_num_seqs, .max_num_batched_tokens = budget, .max_model_len = 256}, block_size);
  EngineCore engine(*runner, &tokenizer, {{}, 3});
  std::vector<Request> requests;
  const char* prompts[] = {"Once upon a time", "The", "What is 17 + 25?\n",
                           "A small bird sat on the fence and looked at"};
  for (int i = 0; i < 8; ++i) {
    Request request;
    request.prompt_token_ids = tokenizer.encode(std::string_view(prompts[i % 4]));
    request.params.temperature = i % 2 == 0 ? 0.8f : 1.2f;
    request.params.top_k = i < 4 ? 20 : 0;
    request.params.top_p = 0.95f;
    request.params.min_p = i == 3 ? 0.05f : 0;
    request.params.repetition_penalty = i == 5 ? 1.3f : 1;
    request.params.presence_penalty = i == 6 ? 0.5f : 0;
    request.params.n = i == 1 ? 3 : 1;
    if (i % 3 != 0) request.params.seed = static_cast<uint64_t>(i);
    request.params.max_tokens = 24;
    requests.push_back(std::move(request));
  }
  std::vector<std::vector<int32_t>> out;
  for (const std::vector<Answer>& choices : engine.run(requests))
    for (const Answer& answer : choices) out.push_back(answer.token_ids);
  return out;
}

// Alone or together, in whatever chunks, pages and threads: the same request and seed give the same tokens.
TEST(Demo, SampledAnswersDependOnRequestAndSeedOnly) {
  const auto want = sampled({"cpu", 2, ""}, 10, 512, 16);
  ASSERT_EQ(want.size(), 10u);
  EXPECT_NE(want[1], want[2]);  // choices differ
  EXPECT_EQ(sampled({"cpu", 1, ""}, 1, 512, 16), want);
  EXPECT_EQ(sampled({"cpu", 3, ""}, 3, 7, 1), want);
  RecordProperty("sampled_answers", 2 * static_cast<int>(want.size()));
}

TEST(Demo, StopsAndLimits) {
  const Tokenizer tokenizer = Tokenizer::load(kModel);
  ModelUnderTest model(kModel, {"cpu", 1, ""}, DType::kF32);
  const auto runner = model.runner({.max_num_seqs = 2, .max_num_batched_tokens = 64, .max_model_len = 128});
  EngineCore engine(*runner, &tokenizer, {{6080, 6082}, {}});
  Request request;
  request.prompt_token_ids = tokenizer.encode("Once upon a time, there was a curious little fox named Rusty.");
  request.params.temperature = 0;
  request.params.max_tokens = 40;
  const auto run = [&](const Request& r) { return engine.run({r})[0][0]; };

  const Answer whole = run(request);
  EXPECT_EQ(whole.finish_reason, FinishReason::kLength);
  EXPECT_EQ(whole.token_ids.size(), 40u);

  Request stop = request;
  stop.params.stop = {"valley"};
  const Answer stopped = run(stop);
  EXPECT_EQ(stopped.finish_reason, FinishReason::kStop);
  EXPECT_EQ(stopped.stop_reason, "valley");
  EXPECT_EQ(stopped.text, whole.text.substr(0, whole.text.find("valley")));

  Request by_id = request;
  by_id.params.stop_token_ids = {whole.token_ids[5]};
  const Answer ended = run(by_id);
  EXPECT_EQ(ended.stop_token, whole.token_ids[5]);
  EXPECT_LE(ended.token_ids.size(), 6u);
  by_id.params.min_tokens = 20;
  EXPECT_GE(run(by_id).token_ids.size(), 20u);

  Request logprobs = request;
  logprobs.params.logprobs = 3;
  const Answer scored = run(logprobs);
  ASSERT_EQ(scored.logprobs.size(), scored.token_ids.size());
  for (size_t i = 0; i < scored.logprobs.size(); ++i) {
    EXPECT_EQ(scored.logprobs[i].rank, 1);
    EXPECT_EQ(scored.logprobs[i].top.size(), 3u);
    EXPECT_EQ(scored.logprobs[i].top[0].id, scored.token_ids[i]);
  }

  Request cancelled = request;
  const auto answers = engine.run({cancelled}, [](const TokenEvent&) { return false; });
  EXPECT_EQ(answers[0][0].finish_reason, FinishReason::kCancelled);
  EXPECT_EQ(answers[0][0].token_ids.size(), 1u);

  Request too_long = request;
  too_long.prompt_token_ids.assign(128, 5);
  EXPECT_EQ(run(too_long).error->code, "context_length_exceeded");
  Request outside = request;
  outside.prompt_token_ids = {1, 6144};
  EXPECT_EQ(run(outside).error->param, "prompt");
  Request bad = request;
  bad.params.top_p = 2;
  EXPECT_TRUE(run(bad).error);
  EXPECT_EQ(runner->pages().free_pages(), runner->pages().pages());
  EXPECT_EQ(runner->slots().free_slots(), runner->slots().slots());
}

// The whole recorded evaluation takes minutes; three windows from the middle of the text show the same.
TEST_P(BothDemos, PerplexityOfSomeWindowsAsRecorded) {
  const fs::path folder = CALANDRA_SOURCE_DIR "/../shared/demo/eval";
  if (!fs::exists(folder / "eval.txt")) GTEST_SKIP() << "skipped: the text is not part of the repository";
  const Tokenizer tokenizer = Tokenizer::load(model_);
  ModelUnderTest model(model_, backend_, DType::kF32);
  const json::value recorded = read_json_file(folder / "expected.json").at(name_);
  const std::vector<int32_t> ids = tokenizer.encode(read_text_file(folder / "eval.txt"));
  EXPECT_EQ(static_cast<int64_t>(ids.size()), recorded.at("tokens").as_int64());
  const auto runner = model.runner({.max_num_seqs = 1, .max_num_batched_tokens = 512, .max_model_len = 1024});
  const int64_t V = model.model().vocab_size();
  int predicted = 0;
  for (const size_t window : {size_t{7}, size_t{40}, ids.size() / 1024}) {
    Sequence s;
    s.tokens.assign(ids.begin() + window * 1024, ids.begin() + std::min(ids.size(), (window + 1) * 1024));
    const std::vector<float> logits = teacher_forced(*runner, s, 512);
    double nll = 0;
    for (int64_t t = 0; t + 1 < s.size(); ++t) {
      double sum = 0;
      for (int64_t v = 0; v < V; ++v) sum += std::exp(static_cast<double>(logits[t * V + v]));
      nll += std::log(sum) - logits[t * V + s.tokens[t + 1]];
    }
    nll /= static_cast<double>(s.size() - 1);
    EXPECT_NEAR(nll, recorded.at("window_nll").as_array()[window].to_number<double>(), 1e-3) << "window " << window;
    predicted += static_cast<int>(s.size() - 1);
    runner->release(s);
  }
  RecordProperty("tokens_of_perplexity", predicted);
}

std::vector<std::string> fast_backends() {
  std::vector<std::string> names = model_backends();
  std::erase(names, "reference");
  return names;
}

INSTANTIATE_TEST_SUITE_P(Models, BothDemos,
                         ::testing::Combine(::testing::Values("demo-qwen3_5", "demo-bailing"),
                                            ::testing::ValuesIn(fast_backends())),
                         [](const auto& info) {
                           const bool bailing = std::get<0>(info.param) == std::string("demo-bailing");
                           return std::string(bailing ? "bailing" : "qwen3_5") + "_" + std::get<1>(info.param);
                         });

}  // namespace
}  // namespace calandra
