#include "apps/foreign_flags.h"

#include <gtest/gtest.h>

#include <sstream>

#include "apps/command_line.h"
#include "base/error.h"

namespace calandra::apps {
namespace {

Options parsed(std::vector<std::string> words) {
  words.insert(words.begin(), "calandra");
  std::vector<char*> arguments;
  for (std::string& word : words) arguments.push_back(word.data());
  return parse_command_line(static_cast<int>(arguments.size()), arguments.data()).value();
}

std::string refusal(const std::vector<std::string>& words) {
  try {
    parsed(words);
  } catch (const UsageError& error) {
    return error.what();
  }
  return "";
}

std::vector<std::string> words_of(const std::string& text) {
  std::istringstream in(text);
  std::vector<std::string> words;
  for (std::string word; in >> word;) words.push_back(word);
  return words;
}

// Those that users of vLLM, SGLang and llama.cpp know. With a value: it must be taken.
constexpr const char* kKnown[] = {"--served-model-name a",
                                  "--revision",
                                  "--tokenizer",
                                  "--trust-remote-code",
                                  "--download-dir",
                                  "--load-format auto",
                                  "--max-model-len 32k",
                                  "--max-num-seqs 4",
                                  "--max-num-batched-tokens 64",
                                  "--gpu-memory-utilization 0.9",
                                  "--kv-cache-memory-bytes 1g",
                                  "--block-size 16",
                                  "--dtype auto",
                                  "--kv-cache-dtype auto",
                                  "--quantization",
                                  "--seed 1",
                                  "--enforce-eager",
                                  "--enable-prefix-caching",
                                  "--no-enable-prefix-caching",
                                  "--mamba-cache-mode align",
                                  "--mamba-block-size",
                                  "--mamba-cache-dtype auto",
                                  "--mamba-ssm-cache-dtype float32",
                                  "--prefix-caching-hash-algo",
                                  "-c 4096",
                                  "-ngl 99",
                                  "-np 4",
                                  "-b 512",
                                  "-ub",
                                  "-ctk",
                                  "-ctv",
                                  "-fa on",
                                  "-tp 1",
                                  "--tensor-parallel-size 1",
                                  "-pp 1",
                                  "-dp 1",
                                  "--enable-expert-parallel",
                                  "--enable-eplb",
                                  "--eplb-config",
                                  "--nnodes 1",
                                  "--node-rank 0",
                                  "--master-addr",
                                  "--tp 1",
                                  "--dp 1",
                                  "--ep 1",
                                  "--pp-size 1",
                                  "--mem-fraction-static 0.9",
                                  "--chunked-prefill-size 512",
                                  "--speculative-config {\"method\":\"mtp\"}",
                                  "--chat-template",
                                  "--chat-template-content-format auto",
                                  "--enable-auto-tool-choice",
                                  "--tool-call-parser hermes",
                                  "--reasoning-parser qwen3",
                                  "--default-chat-template-kwargs {\"a\":1}",
                                  "--generation-config vllm",
                                  "--host a",
                                  "--port 8000",
                                  "--api-key a",
                                  "--root-path",
                                  "--ssl-keyfile a --ssl-certfile b",
                                  "--allowed-origins a",
                                  "--enable-request-id-headers",
                                  "--disable-log-requests",
                                  "--uvicorn-log-level info",
                                  "--ctx-size 4096",
                                  "--parallel 4",
                                  "--n-predict",
                                  "--context-length 4096",
                                  "--enable-sleep-mode"};

TEST(ForeignFlags, EveryKnownOneIsThereOrSaysWhatThereIsInstead) {
  for (const char* text : kKnown) {
    const std::vector<std::string> words = words_of(text);
    std::vector<std::string> line = words;
    line.insert(line.begin(), "serve");
    const ForeignFlag* foreign = find_foreign_flag(words[0]);
    const bool missing = foreign != nullptr && (foreign->kind == ForeignFlag::Kind::kMissing ||
                                                (words.size() == 1 && foreign->kind == ForeignFlag::Kind::kAlias));
    const std::string told = refusal(line);
    if (missing)
      EXPECT_TRUE(told.starts_with(words[0] + " is not supported: ")) << text << ": " << told;
    else
      EXPECT_EQ(told, "") << text;
  }
}

// Every row of the table does what it says, under every name of it and in a file too.
TEST(ForeignFlags, EveryRowHolds) {
  for (const ForeignFlag& foreign : foreign_flags()) {
    for (const std::string& name : words_of(std::string(foreign.names))) {
      ASSERT_EQ(find_foreign_flag(name), &foreign) << name << " is there twice";
      switch (foreign.kind) {
        case ForeignFlag::Kind::kModel:
          EXPECT_EQ(parsed({"serve", name, "some/model"}).model.model, "some/model");
          EXPECT_NE(refusal({"serve", name, "some/model", "other"}), "");
          EXPECT_EQ(refusal({"serve", name}), name + " needs a value");
          break;
        case ForeignFlag::Kind::kAlways:
          EXPECT_EQ(refusal({"serve", name, "some/model"}), "");
          EXPECT_EQ(refusal({"serve", name + "=1"}), name + " takes no value");
          break;
        case ForeignFlag::Kind::kOnly: {
          const std::string value(foreign.means.substr(0, foreign.means.find('|')));
          EXPECT_EQ(refusal({"serve", name, value}), "");
          EXPECT_EQ(refusal({"serve", name + "=" + value}), "");
          const std::string told = refusal({"serve", name, "7"});
          EXPECT_TRUE(told.starts_with(name + " can only be ") && told.ends_with(foreign.why)) << told;
          break;
        }
        case ForeignFlag::Kind::kMissing:
          EXPECT_EQ(refusal({"serve", name}), name + " is not supported: " + std::string(foreign.why));
          break;
        case ForeignFlag::Kind::kAlias: {  // the same as ours, whatever that says to the value
          const auto with = [&](const std::string& flag) { return refusal({"serve", flag, "0", "--port", "x"}); };
          const std::string told = with(name), ours = with(std::string(foreign.means));
          if (!foreign.why.empty())
            EXPECT_EQ(told, name + " is not supported: " + std::string(foreign.why));
          else
            EXPECT_EQ(told, ours) << name;
          EXPECT_FALSE(told.empty());
          break;
        }
      }
    }
  }
}

TEST(ForeignFlags, AliasesSetWhatOursSet) {
  EXPECT_EQ(parsed({"serve", "-c", "4096"}).model.max_model_len, 4096);
  EXPECT_EQ(parsed({"serve", "--context-length=32k"}).model.max_model_len, 32000);
  EXPECT_EQ(parsed({"serve", "-np", "3"}).model.max_num_seqs, 3);
  EXPECT_EQ(parsed({"serve", "--disable-radix-cache"}).engine.prefix_caching, false);
  EXPECT_EQ(parsed({"serve", "--mem-fraction-static", "0.5"}).engine.gpu_memory_utilization, 0.5);
  EXPECT_EQ(parsed({"serve", "-a", "one", "-a", "two"}).served_model_names, (std::vector<std::string>{"one", "two"}));
  EXPECT_EQ(parsed({"generate", "-n", "5", "--temp", "0", "hi"}).sampling.max_tokens, 5);
  EXPECT_EQ(refusal({"serve", "-c", "1", "--max-model-len", "2"}), "give -c or --max-model-len");
  EXPECT_NE(refusal({"tokenize", "-c", "1"}), "");  // it has no such flag
}

}  // namespace
}  // namespace calandra::apps
