#include "engine/speculative_config.h"

#include <gtest/gtest.h>

#include "base/error.h"

namespace calandra {
namespace {

SpeculativeConfig parse(std::string_view text) {
  return parse_speculative_config(parse_json(text, "--speculative-config").get_object(), "org/Model-4B");
}

std::string error_of(std::string_view text) {
  try {
    parse(text);
  } catch (const UsageError& error) {
    return error.what();
  }
  return "no error";
}

bool has(const std::string& text, std::string_view part) { return text.find(part) != std::string::npos; }

TEST(SpeculativeConfig, MtpAsVllmUsersSendIt) {
  const SpeculativeConfig config = parse(R"({"method": "mtp", "num_speculative_tokens": 2})");
  EXPECT_EQ(config.method, DraftMethod::kMtp);
  EXPECT_EQ(config.num_speculative_tokens, 2);
  EXPECT_TRUE(config.adaptive);
  EXPECT_TRUE(config.notes.empty());
  EXPECT_EQ(config.drafts_for(1), 2);
  EXPECT_EQ(config.drafts_for(1000), 2);
}

TEST(SpeculativeConfig, OldNamesAreTakenWithANote) {
  for (const char* name : {"qwen3_5_mtp", "qwen3_next_mtp", "deepseek_mtp", "bailing_hybrid_mtp"}) {
    const SpeculativeConfig config = parse(std::string(R"({"method": ")") + name + "\"}");
    EXPECT_EQ(config.method, DraftMethod::kMtp);
    ASSERT_EQ(config.notes.size(), 1u);
    EXPECT_TRUE(has(config.notes[0], name)) << config.notes[0];
  }
  EXPECT_EQ(parse(R"({"method": "ngram_gpu"})").method, DraftMethod::kNgram);
  EXPECT_EQ(parse(R"({"method": "ngram_gpu"})").notes.size(), 1u);
}

TEST(SpeculativeConfig, NumberOfDrafts) {
  for (const char* text : {R"({"method": "mtp"})", R"({"method": "mtp", "num_speculative_tokens": "auto"})",
                           R"({"method": "mtp", "num_speculative_tokens": null, "adaptive": true})"}) {
    EXPECT_EQ(parse(text).num_speculative_tokens, 4);
    EXPECT_TRUE(parse(text).adaptive);
  }
  EXPECT_FALSE(parse(R"({"method": "mtp", "num_speculative_tokens": 3, "adaptive": false})").adaptive);
  EXPECT_EQ(parse(R"({"method": "mtp", "num_speculative_tokens": 0})").num_speculative_tokens, 0);
  EXPECT_EQ(parse(R"({"method": "mtp", "num_speculative_tokens": 8})").num_speculative_tokens, 8);
  for (const char* value : {"9", "-1", "1.5", "\"3\"", "[3]", "true"}) {
    const std::string error = error_of(std::string(R"({"method": "mtp", "num_speculative_tokens": )") + value + "}");
    EXPECT_TRUE(has(error, "--speculative-config: \"num_speculative_tokens\"") && has(error, value)) << error;
  }
  EXPECT_TRUE(has(error_of(R"({"method": "mtp", "adaptive": 1})"), "\"adaptive\""));
  EXPECT_TRUE(has(error_of(R"({"method": "mtp", "adaptive": false})"), "num_speculative_tokens"));
}

TEST(SpeculativeConfig, LookupLengthsFollowVllm) {
  const auto lengths = [](std::string_view more) {
    const auto config =
        parse(std::string(R"({"method": "ngram", "num_speculative_tokens": 3)") + std::string(more) + "}");
    return std::pair{config.prompt_lookup_min, config.prompt_lookup_max};
  };
  EXPECT_EQ(lengths(""), (std::pair{5, 5}));
  EXPECT_EQ(lengths(R"(, "prompt_lookup_max": 4)"), (std::pair{4, 4}));
  EXPECT_EQ(lengths(R"(, "prompt_lookup_min": 2)"), (std::pair{2, 2}));
  EXPECT_EQ(lengths(R"(, "prompt_lookup_min": 2, "prompt_lookup_max": 7)"), (std::pair{2, 7}));
  EXPECT_TRUE(has(error_of(R"({"method": "ngram", "prompt_lookup_min": 3, "prompt_lookup_max": 2})"), "above"));
  EXPECT_TRUE(has(error_of(R"({"method": "ngram", "prompt_lookup_max": 0})"), "\"prompt_lookup_max\""));
  EXPECT_TRUE(has(error_of(R"({"method": "mtp", "prompt_lookup_max": 4})"), "\"prompt_lookup_max\" is for"));
}

TEST(SpeculativeConfig, ModelIsTheTargetOrNothing) {
  EXPECT_EQ(parse(R"({"model": "org/Model-4B", "num_speculative_tokens": 1})").method, DraftMethod::kMtp);
  const SpeculativeConfig config = parse(R"({"method": "mtp", "model": "org/Model-4B/"})");
  ASSERT_EQ(config.notes.size(), 1u);
  EXPECT_TRUE(has(config.notes[0], "\"model\" is ignored"));
  EXPECT_EQ(parse(R"({"model": "ngram"})").method, DraftMethod::kNgram);
  EXPECT_EQ(parse(R"({"model": "[ngram]", "method": "ngram"})").method, DraftMethod::kNgram);
  EXPECT_TRUE(
      has(error_of(R"({"method": "mtp", "model": "org/Other"})"), "\"model\" must be the target (org/Model-4B)"));
  EXPECT_TRUE(has(error_of(R"({"method": "mtp", "model": "ngram"})"), "\"model\""));
  EXPECT_TRUE(has(error_of(R"({"num_speculative_tokens": 3})"), "\"method\" is missing"));
}

TEST(SpeculativeConfig, DraftsByBatchSize) {
  SpeculativeConfig config = parse(R"({"method": "mtp", "num_speculative_tokens": 3, "disable_by_batch_size": 8})");
  EXPECT_EQ(config.drafts_for(8), 3);
  EXPECT_EQ(config.drafts_for(9), 0);
  config = parse(R"({"method": "mtp", "num_speculative_tokens": 5,
                     "num_speculative_tokens_per_batch_size": [[3, 6, 2], [1, 1, 4]]})");
  EXPECT_EQ(config.drafts_for(1), 4);
  EXPECT_EQ(config.drafts_for(2), 5);
  EXPECT_EQ(config.drafts_for(3), 2);
  EXPECT_EQ(config.drafts_for(6), 2);
  EXPECT_EQ(config.drafts_for(7), 5);
  for (const char* ranges : {"3", "[3]", "[[1, 2]]", "[[2, 1, 1]]", "[[1, 2, 5]]", "[[1, 3, 1], [3, 4, 0]]"})
    EXPECT_TRUE(has(error_of(std::string(R"({"method": "mtp", "num_speculative_tokens": 4,
                                             "num_speculative_tokens_per_batch_size": )") +
                             ranges + "}"),
                    "\"num_speculative_tokens_per_batch_size\""))
        << ranges;
  EXPECT_TRUE(has(error_of(R"({"method": "mtp", "disable_by_batch_size": 4,
                               "num_speculative_tokens_per_batch_size": [[1, 1, 1]]})"),
                  "combined"));
}

TEST(SpeculativeConfig, OtherKeysAreIgnoredOrRefusedByName) {
  const SpeculativeConfig config =
      parse(R"({"method": "mtp", "draft_tensor_parallel_size": 1, "disable_logprobs": false,
                                             "rejection_sample_method": "standard", "quantization": null})");
  ASSERT_EQ(config.notes.size(), 3u);
  EXPECT_TRUE(has(config.notes[0], "draft_tensor_parallel_size"));
  EXPECT_TRUE(has(error_of(R"({"method": "mtp", "quantization": "fp8"})"), "\"quantization\" cannot be set"));
  EXPECT_TRUE(has(error_of(R"({"method": "mtp", "suffix_decoding_max_tree_depth": 24})"), "suffix_decoding"));
  EXPECT_TRUE(has(error_of(R"({"method": "mtp", "rejection_sample_method": "synthetic"})"), "synthetic-acceptance"));
  EXPECT_TRUE(has(error_of(R"({"method": "mtp", "rejection_sample_method": "wild"})"), "wild"));
  EXPECT_TRUE(has(error_of(R"({"method": "mtp", "num_draft_tokens": 2})"), "\"num_draft_tokens\" is not known"));
  for (const char* method : {"eagle3", "draft_model", "suffix", "medusa", "mtp2", ""})
    EXPECT_TRUE(has(error_of(std::string(R"({"method": ")") + method + "\"}"), "must be \"mtp\" or \"ngram\""));
  EXPECT_TRUE(has(error_of(R"({"method": 3})"), "\"method\" must be a string"));
}

}  // namespace
}  // namespace calandra
