#include "text/detokenizer.h"

#include <gtest/gtest.h>

#include <random>

#include "text/utf8.h"

namespace calandra {
namespace {

TEST(Utf8Assembler, AnyCutGivesTheSameText) {
  std::mt19937 random(3);
  const std::string alphabet = "a\xC3\xA9\xE4\xB8\xAD\xF0\x9F\x98\x80\xFF\xED\xA0\xC0";
  for (int round = 0; round < 2000; ++round) {
    std::string bytes;
    for (size_t i = random() % 20; i > 0; --i) bytes += alphabet[random() % alphabet.size()];
    Utf8Assembler assembler;
    std::string text;
    for (size_t at = 0; at < bytes.size();) {
      const size_t count = 1 + random() % 3;
      const std::string piece = assembler.push(std::string_view(bytes).substr(at, count));
      EXPECT_TRUE(is_valid_utf8(piece));
      text += piece;
      at += count;
    }
    text += assembler.flush();
    EXPECT_EQ(text, replace_invalid_utf8(bytes));
  }
}

// What the automata find and hold must equal a plain search of the whole text, whatever the cuts.
TEST(StopScanner, EqualsPlainSearch) {
  std::mt19937 random(4);
  const auto word = [&](size_t most) {
    std::string text;
    for (size_t i = 1 + random() % most; i > 0; --i) text += static_cast<char>('a' + random() % 2);
    return text;
  };
  for (int round = 0; round < 3000; ++round) {
    const std::vector<std::string> stops = {word(4), word(6)};
    StopScanner scanner(stops);
    std::string text;
    for (int step = 0; step < 8; ++step) {
      const std::string piece = word(5);
      const size_t before = text.size();
      text += piece;
      std::optional<StopScanner::Match> expected;
      for (size_t s = 0; s < stops.size() && !expected; ++s) {
        const size_t from = before + 1 > stops[s].size() ? before + 1 - stops[s].size() : 0;
        if (const size_t found = text.find(stops[s], from); found != std::string::npos)
          expected = {s, found + stops[s].size() - before};
      }
      size_t held = 0;
      for (const std::string& stop : stops) {
        for (size_t n = 1; n < stop.size(); ++n) {
          if (text.ends_with(stop.substr(0, n))) held = std::max(held, n);
        }
      }
      const auto got = scanner.push(piece);
      ASSERT_EQ(got.has_value(), expected.has_value()) << text;
      if (got) {
        ASSERT_EQ(got->stop, expected->stop) << text;
        ASSERT_EQ(got->end, expected->end) << text;
      }
      ASSERT_EQ(scanner.held(), held) << text;
    }
  }
}

// One id for each byte, 256 is special.
Tokenizer byte_tokenizer() {
  std::string vocab;
  for (int byte = 0; byte < 256; ++byte) {
    const std::string spelling = to_byte_spelling(std::string(1, static_cast<char>(byte)));
    const std::string escape = spelling == "\"" || spelling == "\\" ? "\\" : "";
    vocab += (byte > 0 ? ",\"" : "\"") + escape + spelling + "\":" + std::to_string(byte);
  }
  return Tokenizer::from_json(
      R"({"added_tokens": [{"id": 256, "content": "<|end|>", "special": true, "normalized": false, "single_word": false,
                            "lstrip": false, "rstrip": false}],
          "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false}, "decoder": {"type": "ByteLevel"},
          "model": {"type": "BPE", "merges": [], "vocab": {)" +
      vocab + "}}}");
}

struct Answer {
  std::vector<std::string> sent;
  std::string at_end, text;
  bool stopped;
  int64_t used;
};

Answer run(const Tokenizer& tokenizer, std::string_view bytes, DetokenizerOptions options) {
  Detokenizer detokenizer(tokenizer, std::move(options));
  Answer answer;
  for (const char c : bytes) {
    answer.sent.push_back(detokenizer.push(static_cast<unsigned char>(c)));
    if (detokenizer.stopped()) break;
  }
  answer.at_end = detokenizer.flush();
  answer.text = detokenizer.text();
  answer.stopped = detokenizer.stopped();
  answer.used = detokenizer.tokens_used();
  return answer;
}

using Pieces = std::vector<std::string>;

TEST(Detokenizer, HoldsBackWhatMayBeginAStopString) {
  const Tokenizer tokenizer = byte_tokenizer();
  const Answer stopped = run(tokenizer, "xENDy", {.stop = {"END"}});
  EXPECT_EQ(stopped.sent, (Pieces{"x", "", "", ""}));
  EXPECT_EQ(stopped.text, "x");
  EXPECT_TRUE(stopped.stopped);
  EXPECT_EQ(stopped.used, 4);
  const Answer not_stopped = run(tokenizer, "xENyEN", {.stop = {"END"}});
  EXPECT_EQ(not_stopped.sent, (Pieces{"x", "", "", "ENy", "", ""}));
  EXPECT_EQ(not_stopped.at_end, "EN");
  EXPECT_EQ(not_stopped.text, "xENyEN");
  const Answer included = run(tokenizer, "xENDy", {.stop = {"END"}, .include_stop_str_in_output = true});
  EXPECT_EQ(included.sent, (Pieces{"x", "", "", "END"}));
}

TEST(Detokenizer, MinTokensCountsTokens) {
  const Tokenizer tokenizer = byte_tokenizer();
  const Answer answer = run(tokenizer, "ababab", {.stop = {"ab"}, .min_tokens = 2});
  EXPECT_EQ(answer.text, "ab");
  EXPECT_EQ(answer.used, 4);
}

TEST(Detokenizer, SkipsSpecialTokensAndPaddingRows) {
  const Tokenizer tokenizer = byte_tokenizer();
  Detokenizer skipping(tokenizer, {});
  EXPECT_EQ(skipping.push(256), "");
  EXPECT_EQ(skipping.push(999999), "");
  EXPECT_EQ(skipping.push('a'), "a");
  Detokenizer showing(tokenizer, {.skip_special = false});
  EXPECT_EQ(showing.push(256), "<|end|>");
}

TEST(Detokenizer, UnfinishedCharactersComeAtTheEnd) {
  const Tokenizer tokenizer = byte_tokenizer();
  const Answer answer = run(tokenizer, "\xE4\xB8\xAD\xE4\xB8", {});
  EXPECT_EQ(answer.sent, (Pieces{"", "", "中", "", ""}));
  EXPECT_EQ(answer.at_end, "\uFFFD");
}

}  // namespace
}  // namespace calandra
