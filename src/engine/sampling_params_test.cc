#include "engine/sampling_params.h"

#include <gtest/gtest.h>

#include <cmath>

#include "text/tokenizer.h"

namespace calandra {
namespace {

std::variant<SamplingParams, RequestError> read(std::string_view body, SamplingParams defaults = {}) {
  return read_sampling_params(parse_json(body, "body").get_object(), std::move(defaults));
}

TEST(SamplingParams, DefaultsAreThoseOfVllmAndValid) {
  const SamplingParams p = std::get<SamplingParams>(read("{}"));
  EXPECT_EQ(p.n, 1);
  EXPECT_EQ(p.temperature, 1.0f);
  EXPECT_EQ(p.top_k, 0);
  EXPECT_EQ(p.top_p, 1.0f);
  EXPECT_EQ(p.min_p, 0.0f);
  EXPECT_EQ(p.repetition_penalty, 1.0f);
  EXPECT_FALSE(p.seed);
  EXPECT_FALSE(p.logprobs);
  EXPECT_TRUE(p.skip_special_tokens);
  EXPECT_FALSE(p.check(100));
}

TEST(SamplingParams, ReadsEveryField) {
  const auto read_one =
      read(R"({"n": 2, "temperature": 0.5, "top_k": 20, "top_p": 0.8, "min_p": 0.1, "seed": 18446744073709551615,
      "repetition_penalty": 1.1, "frequency_penalty": 0.2, "presence_penalty": 1.5, "logit_bias": {"9": -3, "4": 2.5},
      "allowed_token_ids": [1, 2], "bad_words": ["no"], "bad_words_ids": [[1, 2], [3]], "max_tokens": 9, "min_tokens": 3, "stop": "x",
      "stop_token_ids": [7], "ignore_eos": true, "include_stop_str_in_output": true, "logprobs": 5, "prompt_logprobs": 0,
      "logprob_token_ids": [8], "prompt_logprob_token_ids": [6], "detokenize": true, "skip_special_tokens": false,
      "spaces_between_special_tokens": false, "thinking_token_budget": 100,
      "repetition_detection": {"max_pattern_size": 8, "min_pattern_size": 2, "min_count": 3}, "model": "ignored"})");
  ASSERT_TRUE(std::holds_alternative<SamplingParams>(read_one)) << std::get<RequestError>(read_one).message;
  const SamplingParams& p = std::get<SamplingParams>(read_one);
  EXPECT_EQ(p.n, 2);
  EXPECT_EQ(p.temperature, 0.5f);
  EXPECT_EQ(p.top_k, 20);
  EXPECT_EQ(p.top_p, 0.8f);
  EXPECT_EQ(p.min_p, 0.1f);
  EXPECT_EQ(p.seed, ~uint64_t{0});
  EXPECT_EQ(p.repetition_penalty, 1.1f);
  EXPECT_EQ(p.frequency_penalty, 0.2f);
  EXPECT_EQ(p.presence_penalty, 1.5f);
  ASSERT_EQ(p.logit_bias.size(), 2u);
  EXPECT_EQ(p.logit_bias[0].id, 4);
  EXPECT_EQ(p.logit_bias[1].bias, -3.0f);
  EXPECT_EQ(p.allowed_token_ids, (std::vector<int32_t>{1, 2}));
  EXPECT_EQ(p.bad_words, std::vector<std::string>{"no"});
  EXPECT_EQ(p.bad_words_token_ids, (std::vector<std::vector<int32_t>>{{1, 2}, {3}}));
  EXPECT_EQ(p.max_tokens, 9);
  EXPECT_EQ(p.min_tokens, 3);
  EXPECT_EQ(p.stop, std::vector<std::string>{"x"});
  EXPECT_EQ(p.stop_token_ids, std::vector<int32_t>{7});
  EXPECT_TRUE(p.ignore_eos);
  EXPECT_TRUE(p.include_stop_str_in_output);
  EXPECT_EQ(p.logprobs, 5);
  EXPECT_EQ(p.prompt_logprobs, 0);
  EXPECT_EQ(p.logprob_token_ids, std::vector<int32_t>{8});
  EXPECT_EQ(p.prompt_logprob_token_ids, std::vector<int32_t>{6});
  EXPECT_FALSE(p.skip_special_tokens);
  EXPECT_FALSE(p.spaces_between_special_tokens);
  EXPECT_EQ(p.thinking_token_budget, 100);
  EXPECT_EQ(p.repetition_detection, (SamplingParams::RepetitionDetection{8, 2, 3}));
  EXPECT_FALSE(p.check(10));
}

TEST(SamplingParams, NullAndAbsentKeepTheDefaults) {
  SamplingParams defaults;
  defaults.temperature = 0.7f;
  defaults.top_k = 20;
  const SamplingParams p = std::get<SamplingParams>(read(R"({"temperature": null, "top_k": 5})", defaults));
  EXPECT_EQ(p.temperature, 0.7f);
  EXPECT_EQ(p.top_k, 5);
}

TEST(SamplingParams, SeedsOfTheWholeRange) {
  EXPECT_EQ(std::get<SamplingParams>(read(R"({"seed": 0})")).seed, 0u);
  EXPECT_EQ(std::get<SamplingParams>(read(R"({"seed": -2})")).seed, ~uint64_t{0} - 1);
  EXPECT_FALSE(std::get<SamplingParams>(read(R"({"seed": -1})")).seed);
}

// As JSON Schema has it, and as clients whose language has one kind of numbers write them.
TEST(SamplingParams, WholeNumbersMayHaveAPoint) {
  const SamplingParams p =
      std::get<SamplingParams>(read(R"({"max_tokens": 9.0, "top_k": -0.0, "seed": 1e3, "stop_token_ids": [7.0, 8]})"));
  EXPECT_EQ(p.max_tokens, 9);
  EXPECT_EQ(p.top_k, 0);
  EXPECT_EQ(p.seed, 1000u);
  EXPECT_EQ(p.stop_token_ids, (std::vector<int32_t>{7, 8}));
  for (const char* body : {R"({"max_tokens": 9.5})", R"({"max_tokens": 4294967296.0})", R"({"seed": 1e17})",
                           R"({"seed": 0.5})", R"({"stop_token_ids": [7.1]})", R"({"max_tokens": "9"})"})
    EXPECT_TRUE(std::holds_alternative<RequestError>(read(body))) << body;
}

TEST(SamplingParams, WrongTypesNameTheField) {
  for (const auto& [param, body] : std::initializer_list<std::pair<const char*, const char*>>{
           {"temperature", R"({"temperature": "hot"})"},
           {"top_k", R"({"top_k": 2.5})"},
           {"top_k", R"({"top_k": 4294967296})"},
           {"seed", R"({"seed": 1.5})"},
           {"ignore_eos", R"({"ignore_eos": 1})"},
           {"stop", R"({"stop": [1]})"},
           {"stop_token_ids", R"({"stop_token_ids": ["a"]})"},
           {"logit_bias", R"({"logit_bias": {"x": 1}})"},
           {"logit_bias", R"({"logit_bias": {"1": "x"}})"},
           {"logit_bias", R"({"logit_bias": [1]})"},
           {"logit_bias", R"({"logit_bias": {"7": 1, "07": 2}})"},
           {"bad_words_ids", R"({"bad_words_ids": [1]})"},
           {"logprobs", R"({"logprobs": true})"},
           {"min_count", R"({"repetition_detection": {"min_count": "x"}})"},
       }) {
    const auto got = read(body);
    ASSERT_TRUE(std::holds_alternative<RequestError>(got)) << body;
    EXPECT_EQ(std::get<RequestError>(got).param, param);
    EXPECT_EQ(std::get<RequestError>(got).status, 400);
  }
}

TEST(SamplingParams, WrongValuesNameTheField) {
  struct Case {
    const char* param;
    void (*spoil)(SamplingParams&);
    void (*mend)(SamplingParams&);  // to the nearest value that is fine
  };
  const Case cases[] = {
      {"temperature", [](auto& p) { p.temperature = -0.1f; }, [](auto& p) { p.temperature = 0; }},
      {"temperature", [](auto& p) { p.temperature = NAN; }, [](auto& p) { p.temperature = 100; }},
      {"temperature", [](auto& p) { p.temperature = INFINITY; }, [](auto& p) { p.temperature = 2; }},
      {"top_p", [](auto& p) { p.top_p = 0; }, [](auto& p) { p.top_p = 1e-9f; }},
      {"top_p", [](auto& p) { p.top_p = 1.01f; }, [](auto& p) { p.top_p = 1; }},
      {"top_k", [](auto& p) { p.top_k = -2; }, [](auto& p) { p.top_k = -1; }},
      {"min_p", [](auto& p) { p.min_p = 1.5f; }, [](auto& p) { p.min_p = 1; }},
      {"repetition_penalty", [](auto& p) { p.repetition_penalty = 0; }, [](auto& p) { p.repetition_penalty = 0.1f; }},
      {"frequency_penalty", [](auto& p) { p.frequency_penalty = 2.1f; }, [](auto& p) { p.frequency_penalty = 2; }},
      {"presence_penalty", [](auto& p) { p.presence_penalty = -2.1f; }, [](auto& p) { p.presence_penalty = -2; }},
      {"n", [](auto& p) { p.n = 17; }, [](auto& p) { p.n = 16; }},
      {"n", [](auto& p) { p.n = 0; }, [](auto& p) { p.n = 1; }},
      {"max_tokens", [](auto& p) { p.max_tokens = 0; }, [](auto& p) { p.max_tokens = 1; }},
      {"min_tokens", [](auto& p) { p.max_tokens = 3, p.min_tokens = 4; }, [](auto& p) { p.min_tokens = 3; }},
      {"logprobs", [](auto& p) { p.logprobs = 21; }, [](auto& p) { p.logprobs = 20; }},
      {"logprobs", [](auto& p) { p.logprobs = -1; }, [](auto& p) { p.logprobs.reset(); }},
      {"prompt_logprobs", [](auto& p) { p.prompt_logprobs = -2; }, [](auto& p) { p.prompt_logprobs = 0; }},
      {"logit_bias",
       [](auto& p) {
         p.logit_bias = {{100, 1}};
       },
       [](auto& p) {
         p.logit_bias = {{99, 1}};
       }},
      {"logit_bias",
       [](auto& p) {
         p.logit_bias = {{1, 100.5f}};
       },
       [](auto& p) {
         p.logit_bias = {{1, 100}};
       }},
      {"logit_bias",
       [](auto& p) {
         p.logit_bias = {{1, NAN}};
       },
       [](auto& p) {
         p.logit_bias = {{1, -100}};
       }},
      {"logit_bias",
       [](auto& p) {
         p.logit_bias.assign(1025, {1, 1});
       },
       [](auto& p) { p.logit_bias.pop_back(); }},
      {"allowed_token_ids", [](auto& p) { p.allowed_token_ids = {-1}; }, [](auto& p) { p.allowed_token_ids = {0}; }},
      {"stop_token_ids", [](auto& p) { p.stop_token_ids = {100}; }, [](auto& p) { p.stop_token_ids = {99}; }},
      {"logprob_token_ids", [](auto& p) { p.logprob_token_ids.assign(129, 1); },
       [](auto& p) { p.logprob_token_ids.pop_back(); }},
      {"stop", [](auto& p) { p.stop = {""}; }, [](auto& p) { p.stop = {"x"}; }},
      {"stop", [](auto& p) { p.stop = {std::string(257, 'x')}; }, [](auto& p) { p.stop[0].pop_back(); }},
      {"stop", [](auto& p) { p.stop.assign(17, "x"); }, [](auto& p) { p.stop.pop_back(); }},
      {"stop", [](auto& p) { p.stop = {"x"}, p.detokenize = false; }, [](auto& p) { p.detokenize = true; }},
      {"bad_words", [](auto& p) { p.bad_words = {""}; }, [](auto& p) { p.bad_words = {"x"}; }},
      {"bad_words",
       [](auto& p) {
         p.bad_words_token_ids = {{1, 100}};
       },
       [](auto& p) {
         p.bad_words_token_ids = {{1, 99}};
       }},
      {"bad_words", [](auto& p) { p.bad_words_token_ids = {{}}; }, [](auto& p) { p.bad_words_token_ids = {{1}}; }},
      {"thinking_token_budget", [](auto& p) { p.thinking_token_budget = -1; },
       [](auto& p) { p.thinking_token_budget = 0; }},
      {"repetition_detection",
       [](auto& p) {
         p.repetition_detection = {4, 5, 2};
       },
       [](auto& p) {
         p.repetition_detection = {5, 5, 2};
       }},
      {"repetition_detection",
       [](auto& p) {
         p.repetition_detection = {4, 1, 1};
       },
       [](auto& p) {
         p.repetition_detection = {4, 1, 2};
       }},
  };
  for (const Case& c : cases) {
    SamplingParams p;
    c.spoil(p);
    const auto error = p.check(100);
    ASSERT_TRUE(error) << c.param;
    EXPECT_EQ(error->param, c.param);
    EXPECT_EQ(error->status, 400);
    c.mend(p);
    EXPECT_FALSE(p.check(100)) << c.param << ": " << p.check(100)->message;
  }
  SamplingParams all;
  all.logprobs = -1;
  EXPECT_FALSE(all.check(SamplingLimits{.vocab_size = 100, .max_logprobs = -1}));
}

TEST(SamplingParams, BadWordsAreTokenizedWithAndWithoutASpace) {
  const Tokenizer tokenizer = Tokenizer::from_json(R"({
      "added_tokens": [], "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false}, "decoder": {"type": "ByteLevel"},
      "model": {"type": "BPE", "merges": [["a", "b"], ["Ġ", "ab"]], "vocab": {"a": 0, "b": 1, "c": 2, "Ġ": 3, "ab": 4, "Ġab": 5}}})");
  using Words = std::vector<std::vector<int32_t>>;
  EXPECT_EQ(tokenize_bad_words(tokenizer, {"ab"}), (Words{{4}, {5}}));
  EXPECT_EQ(tokenize_bad_words(tokenizer, {" ab"}), (Words{{4}, {5}}));  // leading space does not matter
  EXPECT_EQ(tokenize_bad_words(tokenizer, {"c"}), (Words{{2}}));         // "Ġ", "c": more tokens
  EXPECT_EQ(tokenize_bad_words(tokenizer, {"abc", "b"}), (Words{{4, 2}, {5, 2}, {1}}));
  EXPECT_EQ(tokenize_bad_words(tokenizer, {"  "}), Words{});
}

}  // namespace
}  // namespace calandra
