// Expected results of Hugging Face tokenizers; tests/oracle/text/tokenizer/README.md says what the rows mean.
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iostream>

#include "text/chat_template.h"
#include "text/tokenize_rows.h"

namespace calandra {
namespace {

namespace fs = std::filesystem;
const fs::path kRoot = CALANDRA_SOURCE_DIR;

std::vector<json::object> read_rows(const fs::path& file) {
  std::vector<json::object> rows;
  std::ifstream in(file);
  for (std::string line; std::getline(in, line);) rows.push_back(parse_json(line, file.string()).get_object());
  return rows;
}

struct GoldenSet {
  std::string name;
  fs::path tokenizer, goldens;
  bool always;  // part of the repository
};

void PrintTo(const GoldenSet& set, std::ostream* out) { *out << set.name; }

class TokenizerGolden : public testing::TestWithParam<GoldenSet> {
 protected:
  void SetUp() override {
    const GoldenSet& set = GetParam();
    const bool present = fs::exists(set.tokenizer / "tokenizer.json") && fs::exists(set.goldens);
    if (!present && !set.always) GTEST_SKIP() << "skipped: " << set.tokenizer << " or " << set.goldens << " is absent";
    ASSERT_TRUE(present) << set.tokenizer << " or " << set.goldens << " is absent";
  }

  // Counts the rows for which `right` holds; says how many.
  void check(const std::string& file, const std::function<bool(const Tokenizer&, const json::object&)>& right) {
    const Tokenizer tokenizer = Tokenizer::load(GetParam().tokenizer);
    const std::vector<json::object> rows = read_rows(GetParam().goldens / (file + ".jsonl"));
    ASSERT_FALSE(rows.empty());
    size_t passed = 0;
    for (const json::object& row : rows) {
      const bool good = right(tokenizer, row);
      EXPECT_TRUE(good) << to_json(row) << "\n" << to_json(tokenize_row(tokenizer, row));
      passed += good;
    }
    std::cout << "tokenizer " << GetParam().name << " " << file << ": " << passed << " of " << rows.size() << "\n";
    RecordProperty("goldens_of_" + file, static_cast<int>(passed));
  }
};

const json::value& or_else(const json::object& row, std::string_view key, std::string_view otherwise) {
  return row.contains(key) ? row.at(key) : row.at(otherwise);
}

TEST_P(TokenizerGolden, Encode) {
  check("encode", [](const Tokenizer& tokenizer, const json::object& row) {
    const json::value& text = row.at("text");
    const json::object whole = tokenize_row(tokenizer, {{"text", text}});
    const json::object plain = tokenize_row(tokenizer, {{"text", text}, {"specials", false}});
    if (whole.at("ids") != row.at("ids") || plain.at("ids") != or_else(row, "ids_without_specials", "ids"))
      return false;
    if (!row.contains("decoded")) return true;
    const json::object back = tokenize_row(tokenizer, {{"ids", row.at("ids")}});
    return back.at("text") == row.at("decoded") &&
           back.at("text_skip_special") == or_else(row, "decoded_skip_special", "decoded");
  });
}

TEST_P(TokenizerGolden, InvalidUtf8) {
  check("invalid_utf8", [](const Tokenizer& tokenizer, const json::object& row) {
    const json::object got = tokenize_row(tokenizer, {{"bytes_hex", row.at("bytes_hex")}});
    return got.at("text") == row.at("text") && got.at("ids") == row.at("ids");
  });
}

TEST_P(TokenizerGolden, Decode) {
  check("decode", [](const Tokenizer& tokenizer, const json::object& row) {
    const json::object got = tokenize_row(tokenizer, {{"ids", row.at("ids")}});
    return got.at("text") == row.at("text") && got.at("pieces") == row.at("pieces") &&
           got.at("flush") == row.at("flush") &&
           got.at("text_skip_special") == or_else(row, "text_skip_special", "text");
  });
}

TEST_P(TokenizerGolden, StopStrings) {
  check("stop_strings", [](const Tokenizer& tokenizer, const json::object& row) {
    const json::object got = tokenize_row(tokenizer, row);
    for (const std::string_view key : {"text", "stop_reason", "tokens_used", "released", "released_at_end"}) {
      if (got.at(key) != row.at(key)) return false;
    }
    return true;
  });
}

const fs::path kShared = kRoot / ".." / "shared";
INSTANTIATE_TEST_SUITE_P(All, TokenizerGolden,
                         testing::Values(GoldenSet{"demo", kRoot / "demo/demo-qwen3_5",
                                                   kRoot / "tests/oracle/text/tokenizer/demo", true},
                                         GoldenSet{"qwen3", kShared / "data/tokenizers/qwen3",
                                                   kShared / "oracle/text/tokenizer/qwen3", false},
                                         GoldenSet{"qwen3_5", kShared / "data/tokenizers/qwen3_5",
                                                   kShared / "oracle/text/tokenizer/qwen3_5", false}),
                         [](const auto& info) { return info.param.name; });

json::array to_array(const std::vector<int32_t>& ids) { return json::array(ids.begin(), ids.end()); }

TEST(TokenizerVariants, EachSettingOfTokenizerJson) {
  const std::vector<json::object> rows = read_rows(kRoot / "tests/oracle/text/tokenizer/variants.jsonl");
  ASSERT_GT(rows.size(), 1u);
  size_t passed = 0, count = 0;
  for (size_t i = 1; i < rows.size(); ++i) {
    json::object file = rows[0].at("base").get_object();
    for (const auto& member : rows[i].at("change").get_object()) file[member.key()] = member.value();
    const Tokenizer tokenizer = Tokenizer::from_json(to_json(file));
    for (const json::value& item : rows[i].at("cases").get_array()) {
      const json::object& row = item.get_object();
      const std::string_view text = row.at("text").get_string();
      const std::vector<int32_t> ids = tokenizer.encode(text);
      const json::array with_added = to_array(tokenizer.encode(text, {.add_special = true}));
      const bool good = to_array(ids) == row.at("ids") && with_added == or_else(row, "ids_with_added", "ids") &&
                        row.at("decoded").get_string() == tokenizer.decode(ids) &&
                        row.at("skipped").get_string() == tokenizer.decode(ids, true);
      EXPECT_TRUE(good) << to_json(rows[i].at("name")) << " " << to_json(row) << "\n"
                        << to_json(to_array(ids)) << to_json(with_added) << tokenizer.decode(ids);
      passed += good;
      ++count;
    }
  }
  std::cout << "tokenizer variants (" << rows.size() - 1 << " settings): " << passed << " of " << count << "\n";
  RecordProperty("goldens_of_settings", static_cast<int>(passed));
}

// The Bailing family: a vocabulary in the released layout, with its chat template.
TEST(BailingTokenizer, EncodeDecodeAndChat) {
  const fs::path folder = kRoot / "../shared/oracle/bailing/tokenizer";
  if (!fs::exists(folder)) GTEST_SKIP() << "skipped: the goldens are only in the shared oracle";
  const Tokenizer tokenizer = Tokenizer::load(folder);
  size_t encoded = 0, decoded = 0, chats = 0;
  for (const json::object& row : read_rows(folder / "encode.jsonl")) {
    const json::object got = tokenize_row(tokenizer, {{"text", row.at("text")}});
    EXPECT_EQ(got.at("ids"), row.at("ids")) << to_json(row);
    const json::object back = tokenize_row(tokenizer, {{"ids", row.at("ids")}});
    EXPECT_EQ(back.at("text"), row.at("text")) << to_json(row);
    EXPECT_EQ(back.at("text_skip_special"), row.at("decoded_skip_special")) << to_json(row);
    ++encoded;
  }
  for (const json::object& row : read_rows(folder / "decode.jsonl")) {
    const json::object got = tokenize_row(tokenizer, {{"ids", row.at("ids")}});
    EXPECT_EQ(got.at("text"), row.at("text")) << to_json(row);
    EXPECT_EQ(got.at("text_skip_special"), row.at("text_skip_special")) << to_json(row);
    ++decoded;
  }
  const ChatTemplate chat(tokenizer.chat_template());
  for (const json::object& row : read_rows(folder / "chat.jsonl")) {
    const RenderedPrompt prompt = chat.render(row.at("messages"), row.at("tools"),
                                              {{"add_generation_prompt", row.at("add_generation_prompt")}}, std::tm{});
    EXPECT_EQ(prompt.text, row.at("text").as_string()) << to_json(row);
    const std::vector<int32_t> ids = tokenizer.encode(std::string_view(prompt.text));
    EXPECT_EQ(json::array(ids.begin(), ids.end()), row.at("ids")) << to_json(row);
    ++chats;
  }
  std::cout << "tokenizer bailing: " << encoded << " encodings, " << decoded << " decodings, " << chats << " chats\n";
  EXPECT_GT(std::min({encoded, decoded, chats}), 0u);
  RecordProperty("goldens_of_encode", static_cast<int>(encoded));
  RecordProperty("goldens_of_decode", static_cast<int>(decoded));
  RecordProperty("goldens_of_chats", static_cast<int>(chats));
}

}  // namespace
}  // namespace calandra
