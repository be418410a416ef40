#include "text/tokenizer.h"

#include <gtest/gtest.h>

#include <thread>

#include "base/error.h"
#include "base/json.h"
#include "text/normalizer.h"
#include "text/utf8.h"

namespace calandra {
namespace {

// The 256 bytes (id = byte), four merges, two added tokens.
json::object small_tokenizer() {
  json::object vocab;
  for (int byte = 0; byte < 256; ++byte) vocab[to_byte_spelling(std::string(1, static_cast<char>(byte)))] = byte;
  json::array merges;
  for (const auto& [left, right] : {std::pair{"a", "b"}, {"ab", "c"}, {"Ġ", "ab"}, {"Ã", "©"}}) {
    vocab[std::string(left) + right] = vocab.size();
    merges.push_back(json::array{left, right});
  }
  return {{"version", "1.0"},
          {"added_tokens", json::parse(R"([
              {"id": 260, "content": "<|end|>", "special": true, "normalized": false, "single_word": false, "lstrip": false, "rstrip": false},
              {"id": 261, "content": "<think>", "special": false, "normalized": false, "single_word": false, "lstrip": false, "rstrip": false}])")},
          {"normalizer", json::object{{"type", "NFC"}}},
          {"pre_tokenizer", json::parse(R"({"type": "ByteLevel", "add_prefix_space": false, "use_regex": true})")},
          {"decoder", json::object{{"type", "ByteLevel"}}},
          {"model", json::object{{"type", "BPE"}, {"vocab", vocab}, {"merges", merges}}}};
}

constexpr int32_t kEnd = 260, kThink = 261;

Tokenizer make(const json::object& file, std::string_view config = {}) {
  return Tokenizer::from_json(to_json(file), config);
}

using Ids = std::vector<int32_t>;

TEST(Tokenizer, SpecialTokensAreParsedOnlyWhenAsked) {
  const Tokenizer tokenizer = make(small_tokenizer());
  EXPECT_EQ(tokenizer.encode("abc<|end|> ab"), (Ids{257, kEnd, 258}));
  const Ids plain = tokenizer.encode("abc<|end|>", {.parse_special = false});
  EXPECT_EQ(plain.size(), 1 + std::string_view("<|end|>").size());
  EXPECT_EQ(std::count(plain.begin(), plain.end(), kEnd), 0);
  EXPECT_EQ(tokenizer.decode(plain), "abc<|end|>");
}

TEST(Tokenizer, NoMoreIsReadThanWasAskedFor) {
  json::object file = small_tokenizer();
  json::object& model = file["model"].as_object();
  // Of no word: what is not cut into words has other ids.
  model["vocab"].as_object().erase("Ã©");
  model["vocab"].as_object()["abĠ"] = 259;
  json::array& merges = model["merges"].as_array();
  merges.pop_back();
  merges.insert(merges.begin() + 1, json::array{"ab", "Ġ"});
  const Tokenizer tokenizer = make(file);
  for (const char* part : {"abc abx", "a<|end|>", "ab ", "ab", "xab"}) {  // the last two: all of it is one word
    std::string text;
    for (int i = 0; i < 1000; ++i) text += part;
    const Ids all = tokenizer.encode(text);
    for (const size_t most : {size_t{0}, size_t{1}, size_t{7}, size_t{500}, all.size() - 1, all.size()}) {
      const Ids some = tokenizer.encode(text, {.most = most});
      EXPECT_EQ(some.size() > most, all.size() > most);
      EXPECT_LE(some.size(), most + 4);
      EXPECT_TRUE(std::equal(some.begin(), some.end(), all.begin()));
      const std::vector<TextPiece> pieces = {{text, false}};
      EXPECT_EQ(tokenizer.encode(pieces, most), some);
    }
  }
}

// Eight letters at a time are passed over.
TEST(Utf8, WhatStandsBehindAnyNumberOfLettersIsSeen) {
  for (int n = 0; n < 40; ++n) {
    const std::string letters(n, 'e');
    for (const char* behind : {"", "e", "eeeeeeeeeeee"}) {
      EXPECT_FALSE(is_valid_utf8(letters + "\xff" + behind)) << n;
      EXPECT_FALSE(is_valid_utf8(letters + "\xc3")) << n;
      EXPECT_TRUE(is_valid_utf8(letters + "é" + behind)) << n;
      EXPECT_EQ(nfc(letters + "e\u0301" + behind), letters + "\u00e9" + behind) << n;
    }
  }
}

TEST(Tokenizer, InputNeverBecomesASpecialToken) {
  const Tokenizer tokenizer = make(small_tokenizer());
  const auto encode = [&](std::vector<TextPiece> pieces) { return tokenizer.encode(pieces); };
  EXPECT_EQ(encode({{"<|end|>", false}, {"abc", true}, {"<think>", false}}), (Ids{kEnd, 257, kThink}));
  // Words go over the border, as in the joined text.
  EXPECT_EQ(encode({{"a", false}, {"bc", true}}), (Ids{257}));
  EXPECT_EQ(encode({{"<|", false}, {"end|>", false}}), (Ids{kEnd}));
  // Every way to place input in a special token.
  const std::string text = "<|end|>";
  for (size_t begin = 0; begin < text.size(); ++begin) {
    for (size_t end = begin + 1; end <= text.size(); ++end) {
      const Ids ids = encode({{"ab" + text.substr(0, begin), false},
                              {text.substr(begin, end - begin), true},
                              {text.substr(end) + "ab", false}});
      EXPECT_EQ(std::count(ids.begin(), ids.end(), kEnd), 0) << begin << " " << end;
      EXPECT_EQ(tokenizer.decode(ids), "ab" + text + "ab");
    }
  }
}

TEST(Tokenizer, InputCannotComposeASpecialToken) {
  json::object file = small_tokenizer();
  file["added_tokens"].get_array()[0].get_object()["content"] = "<é>";
  file["added_tokens"].get_array()[0].get_object()["normalized"] = true;
  const Tokenizer tokenizer = make(file);
  EXPECT_EQ(tokenizer.encode("<e\u0301>"), (Ids{kEnd}));
  const std::vector<TextPiece> composed = {{"<e", false}, {"\u0301", true}, {">", false}};
  EXPECT_EQ(tokenizer.encode(composed), (Ids{'<', 259, '>'}));
  const std::vector<TextPiece> beside = {{"<e\u0301>", false}, {"e\u0301", true}};
  EXPECT_EQ(tokenizer.encode(beside), (Ids{kEnd, 259}));
}

TEST(Tokenizer, BrokenUtf8IsReplaced) {
  const Tokenizer tokenizer = make(small_tokenizer());
  EXPECT_EQ(tokenizer.decode(tokenizer.encode("a\xE4\xB8"
                                              "b\xFF")),
            "a\uFFFDb\uFFFD");
  // A character cut between pieces of one origin is whole.
  const std::vector<TextPiece> same = {{"\xC3", true}, {"\xA9", true}};
  EXPECT_EQ(tokenizer.encode(same), (Ids{259}));
  const std::vector<TextPiece> cut = {{"<\xFF|end|>", false}, {"\xE4\xB8", true}, {"\xAD<|end|>", false}};
  EXPECT_EQ(tokenizer.decode(tokenizer.encode(cut)), "<\uFFFD|end|>中<|end|>");
  EXPECT_EQ(tokenizer.encode(cut).back(), kEnd);
}

TEST(Tokenizer, IdsOutsideTheVocabularyAreEmpty) {
  const Tokenizer tokenizer = make(small_tokenizer());
  EXPECT_EQ(tokenizer.size(), 262);
  EXPECT_EQ(tokenizer.model_size(), 260);
  for (const int32_t id : {-1, 262, 300000, INT32_MAX, INT32_MIN}) {
    EXPECT_EQ(tokenizer.decode(Ids{'x', id, 'y'}), "xy");
    EXPECT_EQ(tokenizer.id_to_piece(id), "");
    EXPECT_EQ(tokenizer.id_to_token(id), "");
    EXPECT_FALSE(tokenizer.is_special(id));
    EXPECT_FALSE(tokenizer.is_added(id));
  }
  EXPECT_EQ(tokenizer.id_to_token(258), "Ġab");
  EXPECT_EQ(tokenizer.id_to_piece(258), " ab");
  EXPECT_EQ(tokenizer.token_to_id("Ġab"), 258);
  EXPECT_EQ(tokenizer.token_to_id("<think>"), kThink);
  EXPECT_EQ(tokenizer.token_to_id("nothing"), std::nullopt);
  EXPECT_TRUE(tokenizer.is_special(kEnd));
  EXPECT_FALSE(tokenizer.is_special(kThink));
  EXPECT_TRUE(tokenizer.is_added(kThink));
  EXPECT_EQ(tokenizer.decode(Ids{kThink, kEnd}, /*skip_special=*/true), "<think>");
}

TEST(Tokenizer, RolesTemplatesAndAddedIdsComeFromTheConfig) {
  const Tokenizer tokenizer = make(small_tokenizer(), R"({"bos_token": {"content": "<|end|>"}, "eos_token": "abc",
      "pad_token": null, "add_bos_token": true, "chat_template": [{"name": "default", "template": "D"}, {"name": "tool_use", "template": "T"}],
      "added_tokens_decoder": {"261": {"content": "<think>", "special": true}, "262": {"content": "<new>", "special": true}},
      "model_max_length": 1000000000000000019884624838656})");
  EXPECT_EQ(tokenizer.bos_id(), kEnd);
  EXPECT_EQ(tokenizer.eos_id(), 257);
  EXPECT_EQ(tokenizer.pad_id(), std::nullopt);
  EXPECT_EQ(tokenizer.encode("abc", {.add_special = true}), (Ids{kEnd, 257}));
  EXPECT_EQ(tokenizer.encode("abc<new>"), (Ids{257, 262}));
  EXPECT_TRUE(tokenizer.is_special(kThink));
  EXPECT_EQ(tokenizer.chat_template(), "D");
  EXPECT_EQ(tokenizer.chat_template("tool_use"), "T");
  EXPECT_EQ(tokenizer.chat_template("other"), "");
}

std::string load_error(const json::object& file, std::string_view config = {}) {
  try {
    make(file, config);
  } catch (const LoadError& error) {
    return error.what();
  }
  return "";
}

TEST(Tokenizer, WhatIsNotSupportedIsRefusedByName) {
  struct Case {
    std::string key, value, named;
  };
  const Case cases[] = {
      {"truncation", R"({"max_length": 512})", "truncation"},
      {"padding", R"({"strategy": "BatchLongest"})", "padding"},
      {"version", R"("2.0")", "version"},
      {"surprise", "1", "surprise"},
      {"normalizer", R"({"type": "NFKC"})", "normalizer.type"},
      {"normalizer", R"({"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Lowercase"}]})",
       "normalizers[1]"},
      {"pre_tokenizer", "null", "pre_tokenizer"},
      {"pre_tokenizer", R"({"type": "Whitespace"})", "pre_tokenizer.type"},
      {"pre_tokenizer", R"({"type": "Split", "pattern": {"Regex": "\\bx"}, "behavior": "Isolated", "invert": false})",
       "pattern.Regex"},
      {"decoder", R"({"type": "Metaspace"})", "decoder"},
      {"decoder", "null", "decoder"},
      {"post_processor", R"({"type": "BertProcessing"})", "post_processor.type"},
      {"added_tokens", R"([{"id": 5, "content": "<x>", "special": true, "normalized": false, "single_word": false,
                            "lstrip": false, "rstrip": false}])",
       "added_tokens"},
      {"added_tokens", R"([{"id": 9, "content": "abc", "special": true, "normalized": false, "single_word": false,
                            "lstrip": false, "rstrip": false}])",
       "added_tokens"},
      {"added_tokens", R"([{"id": 261, "content": "<x>", "special": true, "normalized": false, "single_word": false,
                            "lstrip": false, "rstrip": false}])",
       "expected the id 260"},
      {"added_tokens", R"([{"id": 900, "content": "<x>"}])", "special"},
      {"model", R"({"type": "Unigram", "vocab": {}, "merges": []})", "model.type"},
      {"model", R"({"type": "BPE", "vocab": {"a": 0}, "merges": [["a", "b"]]})", "merges[0]"},
      {"model", R"({"type": "BPE", "vocab": {"a": 0}, "merges": ["a b c"]})", "merges[0]"},
      {"model", R"({"type": "BPE", "vocab": {"a": 0, "b": 0}, "merges": []})", "model.vocab.b"},
      {"model", R"({"type": "BPE", "vocab": {"a": 4000000000}, "merges": []})", "model.vocab.a"},
      {"model", R"({"type": "BPE", "vocab": {"a": 0}, "merges": [], "dropout": 0.1})", "dropout"},
      {"model", R"({"type": "BPE", "vocab": {"a": 0}, "merges": [], "byte_fallback": true})", "byte_fallback"},
      {"model", R"({"type": "BPE", "vocab": {"a": 0}, "merges": [], "unk_token": "a"})", "unk_token"},
      {"model", R"({"type": "BPE", "vocab": {"a": 0}, "merges": [], "end_of_word_suffix": "</w>"})", "end_of_word"},
  };
  for (const Case& c : cases) {
    json::object file = small_tokenizer();
    file[c.key] = json::parse(c.value);
    const std::string message = load_error(file);
    EXPECT_NE(message.find("tokenizer.json"), std::string::npos) << c.key << " " << c.value << ": " << message;
    EXPECT_NE(message.find(c.named), std::string::npos) << c.key << " " << c.value << ": " << message;
  }
  const std::pair<std::string_view, std::string_view> configs[] = {
      {R"({"eos_token": "<none>"})", "eos_token"},
      {R"({"clean_up_tokenization_spaces": true})", "clean_up_tokenization_spaces"},
      {R"({"add_bos_token": true})", "add_bos_token"},
      {R"({"add_prefix_space": true})", "add_prefix_space"},
      {R"({"added_tokens_decoder": {"260": {"content": "<other>"}}})", "added_tokens_decoder.260"},
      {R"({"added_tokens_decoder": {"x": {"content": "<other>"}}})", "added_tokens_decoder.x"}};
  for (const auto& [config, named] : configs) {
    const std::string message = load_error(small_tokenizer(), config);
    EXPECT_NE(message.find("tokenizer_config.json"), std::string::npos) << config << ": " << message;
    EXPECT_NE(message.find(named), std::string::npos) << config << ": " << message;
  }
}

TEST(Tokenizer, MissingFolderIsALoadError) { EXPECT_THROW(Tokenizer::load("/nonexistent/folder"), LoadError); }

// Without an n log n merge, or with the library's own ordering of marks, these take hours.
TEST(Tokenizer, LongRunsAreNotQuadratic) {
  const Tokenizer tokenizer = make(small_tokenizer());
  constexpr size_t kLength = 1'000'000;
  std::string marks = "a";
  for (size_t i = 0; i < kLength / 4; ++i) marks += "\u0301\u0323";
  std::string tokens;
  for (size_t i = 0; i < kLength / 8; ++i) tokens += "<|end|";
  std::string letters;
  for (size_t i = 0; i < kLength / 2; ++i) letters += "ab";
  for (const std::string& text : {std::string(kLength, 'a'), letters, std::string(kLength, ' '), tokens,
                                  std::string(kLength, ' ') + "x", std::string(kLength, '\n') + " x"}) {
    EXPECT_EQ(tokenizer.decode(tokenizer.encode(text)), text);
  }
  EXPECT_EQ(tokenizer.decode(tokenizer.encode(marks)), nfc(marks));
}

TEST(Tokenizer, ThreadsMayShareIt) {
  const Tokenizer tokenizer = make(small_tokenizer());
  const Ids expected = tokenizer.encode("abc abc é<think> x\u180e 12");
  std::vector<std::thread> threads;
  std::vector<int> wrong(4, 0);
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 200; ++i) wrong[t] += tokenizer.encode("abc abc é<think> x\u180e 12") != expected;
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, std::vector<int>(4, 0));
}

}  // namespace
}  // namespace calandra
