// Patterns of schemas with counts, which rules of their own count above 64, and that rules with the same mask are
// the same: what a token of several bytes may do is what its bytes may do.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include "structured/grammar_compiler.h"
#include "structured/grammar_rows.h"

namespace calandra {
namespace {

json::object string_of(std::string pattern) { return {{"type", "string"}, {"pattern", std::move(pattern)}}; }

json::object object_of(json::object properties) {
  json::array names;
  for (const auto& property : properties) names.emplace_back(property.key());
  return {{"type", "object"}, {"properties", std::move(properties)}, {"required", std::move(names)}};
}

void expect_right(const json::object& row) {
  const json::object result = grammar_row(row);
  ASSERT_FALSE(result.contains("error")) << to_json(row).substr(0, 300) << to_json(result);
  for (const char* key : {"accepted", "rejected"}) EXPECT_GT(result.at(key).as_array().size(), 0U);
  for (const json::value& right : result.at("accepted").as_array()) EXPECT_EQ(right, true) << to_json(row);
  for (const json::value& right : result.at("rejected").as_array()) EXPECT_EQ(right, true) << to_json(row);
}

std::string letters(size_t count) { return std::string(count, 'q'); }

TEST(CountedPatterns, HoldAtTheirBorders) {
  struct Case {
    const char* pattern;
    std::vector<size_t> accept, reject;
  };
  const Case cases[] = {
      {"^[a-z]{64}$", {64}, {63, 65}},
      {"^[a-z]{65}$", {65}, {0, 64, 66}},
      {"^[a-z]{128}$", {128}, {127, 129}},
      {"^[a-z]{129}$", {129}, {0, 128, 130}},
      {"^[a-z]{300}$", {300}, {299, 301}},
      {"^[a-z]{1000}$", {1000}, {999, 1001}},
      {"^[a-z]{0,300}$", {0, 1, 299, 300}, {301, 302}},
      {"^[a-z]{300,}$", {300, 301, 1000}, {0, 299}},
      {"^[a-z]{129,400}$", {129, 130, 399, 400}, {128, 401}},
      {"^([a-z]{150}){2,3}$", {300, 450}, {150, 299, 301, 449, 451, 600}},
      {"^([a-z]{2}){150}$", {300}, {298, 299, 301}},
      {"^([a-z]{3}|q){129}$", {129, 131, 385, 387}, {128, 130, 386, 388}},
      {"^([a-z]{150})?$", {0, 150}, {1, 149, 151, 300}},
      {"^([a-z]{129}|[a-z]{131}){1,2}$", {129, 131, 258, 260, 262}, {128, 130, 132, 259, 261, 263}},
      {"^(q*[a-z]{140})+$", {140, 141, 280}, {0, 139}},
      {"^(([a-z]{2}){130}){2}$", {520}, {260, 519, 521}},
      {"^([a-z]?){200}$", {0, 1, 200}, {201}},
  };
  for (const auto& [pattern, accept, reject] : cases) {
    SCOPED_TRACE(pattern);
    json::array taken, refused, taken_inside, refused_inside;
    const auto add = [](size_t count, json::array& whole, json::array& inside) {
      const std::string text = letters(count);
      whole.emplace_back('"' + text + '"');
      inside.emplace_back(fmt::format(R"({{"a": {{"b": "{}"}}}})", text));
    };
    for (const size_t count : accept) add(count, taken, taken_inside);
    for (const size_t count : reject) add(count, refused, refused_inside);
    refused.emplace_back('"' + letters(accept[0]) + "\n\"");
    expect_right({{"schema", string_of(pattern)}, {"accept", taken}, {"reject", refused}});
    expect_right({{"schema", object_of({{"a", object_of({{"b", string_of(pattern)}})}})},
                  {"accept", taken_inside},
                  {"reject", refused_inside}});
  }
}

TEST(CountedPatterns, WithoutAnUpperBoundRepeatWholeParts) {
  expect_right({{"schema", string_of("^(a{1,2}b{0,2}){0,}$")},
                {"accept", {"\"\"", "\"aabb\"", "\"abbaab\""}},
                {"reject", {"\"aabbb\"", "\"aabbba\"", "\"b\""}}});
  expect_right({{"schema", string_of("^(a[^b]{1,2}|b){2,}$")},
                {"accept", {"\"bb\"", "\"acb\"", "\"bacc\""}},
                {"reject", {"\"bba\"", "\"bbcb\"", "\"b\""}}});
  const std::string many(75, 'c');
  expect_right({{"schema", string_of("^(c|a+b{1,2}){75,}$")},
                {"accept", {'"' + many + '"', '"' + many + "aab\""}},
                {"reject", {'"' + many + "b\"", '"' + many + "abcb\"", '"' + many.substr(1) + '"'}}});
}

TEST(CountedPatterns, GroupsAndSeveralInOneSchema) {
  const auto groups = [](std::initializer_list<size_t> counts) {
    std::string text = "\"";
    for (const size_t count : counts) text += letters(count) + '-';
    return text + '"';
  };
  expect_right(
      {{"schema", string_of("^([a-z]{200}-){3}$")},
       {"accept", {groups({200, 200, 200})}},
       {"reject",
        {groups({200, 200}), groups({200, 199, 200}), groups({200, 200, 201}), groups({200, 200, 200, 200})}}});
  const auto both = [](std::string_view a, std::string_view b) {
    return fmt::format(R"({{"a": "{}", "b": "{}"}})", a, b);
  };
  const std::string words = letters(300), digits(300, '7');
  expect_right({{"schema", object_of({{"a", string_of("^[a-z]{300}$")}, {"b", string_of("^[0-9]{300}$")}})},
                {"accept", {both(words, digits)}},
                {"reject",
                 {both(digits, words), both(words, words), both(digits, digits), both(words, digits + '7'),
                  both(words + 'q', digits), both(words, digits.substr(1))}}});
}

TEST(CountedPatterns, TakeNothingThatStringsEscape) {
  for (const char* pattern : {"^[^x]{130}$", "^\\S{130}$", "^(.|\\W){130}$", "^[^x]{0,130}$", "^[^x]{130,}$"}) {
    SCOPED_TRACE(pattern);
    const std::string most = '"' + letters(129);
    expect_right({{"schema", string_of(pattern)},
                  {"accept", {most + "q\"", most + "\u00e9\"", most + "\U0001f44b\""}},
                  {"reject",
                   {most + "\"\"", most + "\\\"", most + "\\n\"", most + "\n\"", most + "\x01\"",
                    "\"\"" + letters(128) + "\"", "\"\n" + letters(129) + "\""}}});
  }
}

constexpr int32_t kBytes = 256, kEnd = kBytes;

bool has(const std::vector<uint32_t>& words, int32_t token) { return (words[token / 32] >> (token % 32) & 1) != 0; }

// How often a token of `pieces` was allowed and refused behind the beginnings of `text`.
void compare_with_bytes(const OutputForm& form, const std::string& text, const std::vector<std::string>& pieces,
                        int64_t counts[2]) {
  std::vector<std::string> vocabulary(kBytes + 1);
  for (int byte = 0; byte < kBytes; ++byte) vocabulary[byte] = static_cast<char>(byte);
  vocabulary[kEnd] = "<end>";
  vocabulary.insert(vocabulary.end(), pieces.begin(), pieces.end());
  GrammarCompiler compiler(vocabulary, {kEnd});
  const GrammarCompiler::Compiled compiled = compiler.compile(form);
  ASSERT_FALSE(compiled.error) << compiled.error->message;
  const std::unique_ptr<Grammar> at = compiled.grammar->clone();
  std::vector<uint32_t> words((vocabulary.size() + 31) / 32), after(words.size());
  for (size_t place = 0; place <= text.size(); ++place) {
    at->mask({}, words);
    for (size_t piece = 0; piece < pieces.size(); ++piece) {
      const std::unique_ptr<Grammar> bytes = at->clone();
      bool allowed = true;
      for (const char c : pieces[piece]) {
        const auto byte = static_cast<unsigned char>(c);
        bytes->mask({}, after);
        allowed = allowed && has(after, byte);
        if (!allowed) break;
        bytes->accept(byte);
      }
      EXPECT_EQ(has(words, static_cast<int32_t>(kEnd + 1 + piece)), allowed)
          << pieces[piece] << " behind " << text.substr(0, place);
      ++counts[allowed ? 1 : 0];
    }
    if (place == text.size()) break;
    const auto byte = static_cast<unsigned char>(text[place]);
    ASSERT_TRUE(has(words, byte)) << text.substr(0, place + 1);
    at->accept(byte);
  }
}

TEST(CountedPatterns, TokensMayDoWhatTheirBytesMay) {
  std::vector<std::string> pieces;
  for (const size_t length : {1, 2, 3, 31, 32, 33, 64}) {
    pieces.push_back(letters(length));
    pieces.push_back(letters(length) + "\"");
    pieces.push_back(std::string(length, '7'));
    pieces.push_back(std::string(length, '7') + "\"}");
    pieces.push_back(letters(length) + "-" + letters(length));
  }
  for (const char* piece : {"\", \"b\": \"7", "q7", "7q", "-q", "{\"a\"", "b!", "xb", "bb!", "xy", "zb!", "zw!", "!."})
    pieces.emplace_back(piece);
  const auto both = [](std::string_view a, std::string_view b) {
    return fmt::format(R"({{"a": "{}", "b": "{}"}})", a, b);
  };
  const auto schema = [](const json::value& value) { return OutputForm::json_schema(value, false); };
  const auto ebnf = [](const char* text) { return OutputForm{.kind = OutputForm::Kind::kEbnf, .text = text}; };
  const char* grammar =
      "root ::= (\"1\" r | \"2\" s) \".\"\nb ::= \"b\" | \"bb\" b \"c\"\n"
      "r ::= b \"!\" | \"x\" b \"!\" | \"xy!\" | \"zw!\"\ns ::= b \"!\" | \"z\" b \"!\" | \"xy!\" | \"zw!\"\n";
  const std::pair<OutputForm, std::string> cases[] = {
      {schema(object_of({{"a", string_of("^[a-z]{135}$")}, {"b", string_of("^[0-9]{135}$")}})),
       both(letters(135), std::string(135, '7'))},
      {schema(object_of({{"a", string_of("^[a-z]{135}$")}, {"b", string_of("^[a-z]{140}$")}})),
       both(letters(135), letters(140))},
      {schema(object_of({{"a", string_of("^([a-z]{130}-){2}$")}, {"b", string_of("^([0-9]{130}-){2}$")}})),
       both(letters(130) + '-' + letters(130) + '-', std::string(130, '7') + '-' + std::string(130, '7') + '-')},
      {schema(object_of({{"a", string_of("^[a-z]{130,}$")}, {"b", string_of("^[0-9]{0,130}$")}})),
       both(letters(140), std::string(130, '7'))},
      {ebnf(grammar), "1xb!."},
      {ebnf(grammar), "2zb!."},
      {ebnf(grammar), "1b!."},
  };
  int64_t counts[2] = {0, 0};
  for (const auto& [form, text] : cases) {
    SCOPED_TRACE(form.text);
    compare_with_bytes(form, text, pieces, counts);
  }
  EXPECT_GT(counts[1], 1000);
}

}  // namespace
}  // namespace calandra
