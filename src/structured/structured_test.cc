// Structured output: recorded strings, and what the engine asks of a Grammar.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <random>
#include <sstream>

#include "structured/grammar_compiler.h"
#include "structured/grammar_rows.h"
#include "structured/requested_form.h"
#include "structured/schema_spelling.h"
#include "text/utf8.h"

namespace calandra {
namespace {

std::vector<json::object> read_rows(const char* name) {
  const std::filesystem::path file = std::filesystem::path(CALANDRA_SOURCE_DIR) / "tests/oracle/text/structured" / name;
  std::vector<json::object> rows;
  std::istringstream lines(read_text_file(file));
  for (std::string line; std::getline(lines, line);) rows.push_back(parse_json(line, name).as_object());
  return rows;
}

std::string fmt_kind(OutputForm::Kind kind) {
  constexpr const char* kNames[] = {"object ", "schema ", "regex ", "ebnf ", "tag "};
  return kNames[static_cast<int>(kind)];
}

TEST(Structured, Goldens) {
  int64_t strings = 0, refused = 0, rows = 0;
  for (const char* name : {"json_schemas.jsonl", "regexes.jsonl", "grammars.jsonl"}) {
    for (const json::object& row : read_rows(name)) {
      ++rows;
      const json::object answer = grammar_row(row);
      const std::string id(row.at("id").as_string());
      if (answer.contains("error")) {
        ++refused;
        EXPECT_TRUE(row.contains("may_refuse")) << id << " " << to_json(answer);
        continue;
      }
      const json::array& accepted = answer.at("accepted").as_array();
      for (size_t i = 0; i < accepted.size(); ++i, ++strings) {
        // Values stand with both spacings, one behind the other.
        const bool other = row.contains("one_spacing_suffices") && accepted[i ^ 1].as_bool();
        EXPECT_TRUE(accepted[i].as_bool() || other) << id << " " << row.at("accept").as_array()[i];
      }
      const json::array& rejected = answer.at("rejected").as_array();
      for (size_t i = 0; i < rejected.size(); ++i, ++strings)
        EXPECT_TRUE(rejected[i].as_bool()) << id << " " << row.at("reject").as_array()[i];
    }
  }
  std::printf("%ld rows, %ld refused as may_refuse allows, %ld strings\n", static_cast<long>(rows),
              static_cast<long>(refused), static_cast<long>(strings));
  EXPECT_GT(strings, 600);
}

// A vocabulary of bytes, two longer tokens, and an end.
constexpr int32_t kTrue = 256, kNull = 257, kThinkEnd = 258, kEnd = 259;

std::vector<std::string> small_vocabulary() {
  std::vector<std::string> pieces(kEnd + 1);
  for (int byte = 0; byte < 256; ++byte) pieces[byte] = static_cast<char>(byte);
  pieces[kTrue] = "true";
  pieces[kNull] = "null";
  pieces[kThinkEnd] = "</think>";
  pieces[kEnd] = "<end>";
  return pieces;
}

using Words = std::vector<uint32_t>;
Words mask_of(Grammar& grammar, const std::vector<int32_t>& drafts, bool* alive = nullptr) {
  Words words(10);  // as of logits that have more columns than there are tokens
  const bool answer = grammar.mask(drafts, words);
  if (alive != nullptr)
    *alive = answer;
  else
    EXPECT_TRUE(answer);
  return words;
}
bool has(const Words& words, int32_t token) { return (words[token / 32] >> (token % 32) & 1) != 0; }

OutputForm list_of_booleans() {
  return OutputForm::json_schema(
      parse_json(R"({"type": "array", "items": {"enum": [true, null]}, "maxItems": 2})", "schema"), true);
}

TEST(Structured, MasksBehindDraftsAreThoseOfWhatIsAccepted) {
  GrammarCompiler compiler(small_vocabulary(), {kEnd});
  std::mt19937 random(3);
  for (const OutputForm& form :
       {list_of_booleans(), OutputForm::regex("(ab|a[0-9]{2})*x"), OutputForm::choice({"yes", "no", "a \"b\"\\\n"}),
        OutputForm{.kind = OutputForm::Kind::kJsonObject}}) {
    const GrammarCompiler::Compiled compiled = compiler.compile(form);
    ASSERT_FALSE(compiled.error) << compiled.error->message;
    for (int walk = 0; walk < 20; ++walk) {
      const std::unique_ptr<Grammar> grammar = compiled.grammar->clone(), ahead = compiled.grammar->clone();
      for (int step = 0; step < 12 && !grammar->finished(); ++step) {
        std::vector<int32_t> drafts;
        const Words before = mask_of(*grammar, {});
        std::unique_ptr<Grammar> other = grammar->clone();
        for (int draft = 0; draft < 4; ++draft) {
          const Words words = mask_of(*other, {});
          EXPECT_EQ(mask_of(*grammar, drafts), words);
          for (size_t id = kEnd + 1; id < 32 * words.size(); ++id)  // columns without a token
            ASSERT_FALSE(has(words, static_cast<int32_t>(id))) << id;
          std::vector<int32_t> allowed, refused;
          for (int32_t token = 0; token <= kEnd; ++token) (has(words, token) ? allowed : refused).push_back(token);
          ASSERT_FALSE(allowed.empty());
          if (!refused.empty()) {
            bool alive = true;
            std::vector<int32_t> wrong = drafts;
            wrong.push_back(refused[random() % refused.size()]);
            mask_of(*grammar, wrong, &alive);
            EXPECT_FALSE(alive);
          }
          drafts.push_back(allowed[random() % allowed.size()]);
          if (drafts.back() == kEnd) break;  // nothing may be drafted behind it
          other->accept(drafts.back());
        }
        EXPECT_EQ(mask_of(*grammar, {}), before);  // masks leave nothing behind
        grammar->accept(drafts.front());
      }
    }
  }
}

TEST(Structured, FormatsTakeOnlyWhatIsValid) {
  const json::object row = parse_json(R"({"schema": {"type": "object", "properties": {"format": {"const": "date"},
    "a": {"type": "string", "format": "ipv4"}, "d": {"type": "string", "format": "date"}}, "required": ["format"]},
    "accept": ["{\"format\": \"date\", \"a\": \"10.0.255.249\", \"d\": \"2026-01-31\"}"],
    "reject": ["{\"format\": \"date\", \"a\": \"10.0.01.2\"}", "{\"format\": \"date\", \"a\": \"256.0.0.1\"}",
               "{\"format\": \"date\", \"d\": \"2026-02-30\"}", "{\"format\": \"date\", \"d\": \"2026-04-31\"}"]})",
                                      "row")
                               .as_object();
  const json::object result = grammar_row(row);
  EXPECT_EQ(result.at("accepted"), json::array({true})) << to_json(result);
  EXPECT_EQ(result.at("rejected"), json::array({true, true, true, true})) << to_json(result);
}

TEST(Structured, TextsWithoutAMaxLengthHaveAnUpperBound) {
  const json::value spelled = spelled_schema(json::object{{"type", "string"}, {"minLength", 3000}});
  EXPECT_TRUE(std::string_view(spelled.at("pattern").as_string()).ends_with("{3000,1073741824}$")) << to_json(spelled);
}

// Answers that take whatever byte breaks texts, wherever one is allowed.
TEST(Structured, StringsAreJsonAndAsLongAsTheyMayBe) {
  const std::pair<const char*, std::pair<size_t, size_t>> schemas[] = {
      {R"({"type": "string", "maxLength": 8})", {0, 8}},
      {R"({"type": "string", "minLength": 3})", {3, 1000}},
      {R"({"minLength": 2, "maxLength": 3})", {2, 3}},
      {R"({"minLength": 3, "maxLength": 9223372036854775807})", {3, 1000}},
      {R"({"type": ["null", "string"], "minLength": 5, "maxLength": 5})", {5, 5}},
      {R"({"type": "string", "pattern": "^[^a]{0,6}$"})", {0, 6}},
      {R"({"type": "string", "pattern": "^[^\u00e9]{2}(\u00e9|\"|\\\\)$"})", {3, 3}},
      {R"({"type": "string", "pattern": "^\\u00e9[\t\u4e00-\u4e10x]{4}.$"})", {6, 6}},
      {R"({"type": "string", "pattern": "^\\S{3}\\W\\D$"})", {5, 5}},
      {R"({"type": "string", "format": "email"})", {3, 1000}},
      {R"({"type": "string", "format": "json-pointer"})", {0, 1000}},
      {R"({"type": "string", "format": "relative-json-pointer"})", {1, 1000}},
      {R"({"type": "string", "format": "uri"})", {1, 1000}},
      {R"({"type": "string", "format": "uri-template"})", {0, 1000}},
      {R"({"type": "string", "format": "duration"})", {1, 1000}},
      {R"({"enum": ["\u0000\t\u001f\u007f\"\\/"]})", {7, 7}},
      {R"({"const": "\b\f\n\r\u2028"})", {5, 5}},
  };
  GrammarCompiler compiler(small_vocabulary(), {kEnd});
  std::mt19937 random(11);
  const std::string nasty = "\"\\\t\n\r\x01\x1f\x7f/é日👋";
  for (const auto& [text, length] : schemas) {
    SCOPED_TRACE(text);
    // As a value, and in the place of a property whose name is odd.
    const json::value schema = parse_json(text, "schema");
    const json::value object{{"type", "object"},
                             {"properties", {{"a\t\u0001\"\\é", schema}}},
                             {"required", {"a\t\u0001\"\\é"}},
                             {"additionalProperties", schema}};
    for (const bool in_object : {false, true}) {
      const auto compiled = compiler.compile(OutputForm::json_schema(in_object ? object : schema, false));
      ASSERT_FALSE(compiled.error) << compiled.error->message;
      for (int walk = 0; walk < 40; ++walk) {
        const std::unique_ptr<Grammar> grammar = compiled.grammar->clone();
        std::string answer;
        for (int step = 0; step < 400 && !grammar->finished(); ++step) {
          const Words words = mask_of(*grammar, {});
          std::vector<int32_t> allowed, odd;
          for (int32_t token = 0; token < 256; ++token)
            if (has(words, token))
              (nasty.find(static_cast<char>(token)) < nasty.size() ? odd : allowed).push_back(token);
          if (has(words, kEnd) && random() % 4 == 0) break;
          if (step > 60 && has(words, '"')) odd = {'"'};
          if (step > 60 && has(words, '}')) odd = {'}'};
          const std::vector<int32_t>& chosen =
              !odd.empty() && (random() % 2 == 0 || allowed.empty() || step > 60) ? odd : allowed;
          ASSERT_FALSE(chosen.empty()) << answer;
          const int32_t token = chosen[random() % chosen.size()];
          grammar->accept(token);
          answer += static_cast<char>(token);
        }
        if (!grammar->finished() && !has(mask_of(*grammar, {}), kEnd)) continue;  // numbers, say, go on
        // xgrammar takes characters in more bytes than they have; the detokenizer makes U+FFFD of these.
        boost::system::error_code failed;
        const json::value value = json::parse(replace_invalid_utf8(answer), failed);
        ASSERT_FALSE(failed) << ::testing::PrintToString(answer);
        if (!is_valid_utf8(answer)) continue;
        const auto check = [&, range = length](const json::value& one) {
          if (!one.is_string()) return;
          const std::string_view string = one.get_string();
          const auto characters = static_cast<size_t>(
              std::count_if(string.begin(), string.end(), [](char c) { return (c & 0xC0) != 0x80; }));
          EXPECT_GE(characters, range.first) << answer;
          EXPECT_LE(characters, range.second) << answer;
        };
        check(value);
        if (const json::object* members = value.if_object())
          for (const auto& member : *members) check(member.value());
      }
    }
  }
}

// What is said beside a keyword that stands for itself, and by schemas without a type.
TEST(Structured, SaysMoreThanOneThing) {
  const char* rows[] = {
      R"({"schema": {"type": "string", "enum": ["a", 1, null]}, "accept": ["\"a\""], "reject": ["1", "null"]})",
      R"({"schema": {"type": ["integer", "null"], "enum": ["a", 1, 1.5, 2.0, null]}, "accept": ["1", "null"], "reject": ["1.5"]})",
      R"({"schema": {"type": "string", "const": "a", "title": "t", "default": "a"}, "accept": ["\"a\""], "reject": ["\"b\""]})",
      R"({"schema": {"maximum": 5, "minimum": 0}, "accept": ["3"], "reject": ["7"]})",
      R"({"schema": {"required": ["a"]}, "accept": ["{\"a\": 1}"], "reject": ["{}", "5"]})",
      R"({"schema": {"maxItems": 1}, "accept": ["[1]", "[]"], "reject": ["[1, 2]"]})",
      R"({"schema": {"type": "object", "anyOf": [{"type": "object", "required": ["a"]}, {"type": "object", "required": ["b"]}]},
          "accept": ["{\"a\": 1}", "{\"b\": 1}"], "reject": ["{}"]})",
      R"({"schema": {"$ref": "#/$defs/a%", "description": "d", "$defs": {"a%": {"type": "null"}}}, "accept": ["null"], "reject": ["1"]})",
      R"({"schema": {"type": "array", "items": {"anyOf": [{"$ref": "#"}]}}, "accept": ["[[], [[]]]"], "reject": ["[1]"]})",
      R"({"schema": {"type": "string", "format": "date-time"}, "accept": ["\"2026-01-31T23:59:59.5Z\"", "\"2026-01-31T00:00:00+01:30\""],
          "reject": ["\"2026-02-30T00:00:00Z\"", "\"2026-01-31T23:59:60Z\"", "\"2026-01-31\""]})",
      R"({"schema": {"type": "string", "format": "ipv6"}, "accept": ["\"::\"", "\"fe80::1\"", "\"1:2:3:4:5:6:7:8\"", "\"1:2:3:4:5:6:7::\""],
          "reject": ["\"1:2:3\"", "\"::ffff:01.2.3.4\"", "\"1:2:3:4:5:6:7:8:9\""]})",
      R"({"schema": {"type": "string", "pattern": "^x(b[0-9]+)?(?:é[?c]+)??\\?$"}, "accept": ["\"x?\"", "\"xb1?\"", "\"xéc??\""],
          "reject": ["\"x1?\"", "\"xc?\"", "\"x\""]})",
      R"({"schema": {"type": "string", "format": "time"}, "accept": ["\"00:00:00Z\"", "\"00:00:00.25Z\""],
          "reject": ["\"00:00:0025Z\""]})",
      R"({"schema": {"type": "string", "format": "password", "maxLength": 2}, "accept": ["\"ab\""], "reject": ["\"abc\""]})",
  };
  for (const char* text : rows) {
    const json::object result = grammar_row(parse_json(text, "row").as_object());
    ASSERT_FALSE(result.contains("error")) << text << to_json(result);
    for (const char* key : {"accepted", "rejected"})
      for (const json::value& right : result.at(key).as_array()) EXPECT_EQ(right, true) << text << to_json(result);
  }
  const char* refused[] = {
      R"({"$ref": "#/$defs/a", "maxLength": 2, "$defs": {"a": {"type": "string"}}})",
      R"({"type": "object", "properties": {"a": {}}, "anyOf": [{"required": ["a"]}, {"required": ["b"]}]})",
      R"({"anyOf": [{"type": "string"}], "oneOf": [{"type": "string"}]})",
      R"({"enum": ["a", "bcd"], "maxLength": 2})",
      R"({"const": 5, "type": "string"})",
      R"({"type": "string", "enum": [5]})",
      R"({"$ref": "#/other", "other": {"not": {}}})",
      R"({"$ref": "https://example.com/schema"})",
      R"({"type": "object", "properties": {"a": {"type": "null"}, "b": {"$ref": "#/$defs/c"}}, "$defs": {"c": {"$ref": "#/$defs/c"}}})",
      R"({"type": "array", "items": {"$ref": "#/$defs/a"}, "$defs": {"a": {"anyOf": [{"$ref": "#/$defs/b"}]}, "b": {"$ref": "#/$defs/a"}}})",
      R"({"type": "string", "format": "email", "pattern": "^a"})",
      R"({"type": "string", "format": "uuid", "pattern": "^a"})",
      R"({"type": "string", "format": "email", "maxLength": 5})",
      R"({"type": "string", "format": "regex"})",
      R"({"type": "string", "pattern": "^a\"b$"})",
      R"({"type": "string", "pattern": "^\\\\$"})",
      R"({"type": "string", "pattern": "\t"})",
      R"({"type": "string", "minLength": 5, "maxLength": 2})",
      R"({"minLength": 2147483648})",
      R"({"type": "string", "maxLength": -1})",
  };
  for (const char* text : refused) {
    const json::object result = grammar_row({{"schema", parse_json(text, "schema")}});
    EXPECT_TRUE(result.contains("error")) << text;
  }
}

TEST(Structured, ExpressionsOfTagsAreKept) {
  GrammarCompiler compiler(small_vocabulary(), {kEnd});
  const auto compiled = compiler.compile(OutputForm::structural_tag(
      {{"type", "structural_tag"}, {"format", {{"type", "regex"}, {"pattern", "a(b[0-9]+)?"}}}}));
  ASSERT_FALSE(compiled.error) << compiled.error->message;
  const auto grammar = compiled.grammar->clone();
  grammar->accept('a');
  EXPECT_TRUE(has(mask_of(*grammar, {}), 'b'));
  EXPECT_FALSE(has(mask_of(*grammar, {}), '1'));
}

TEST(Structured, EndsWhereTheFormEnds) {
  GrammarCompiler compiler(small_vocabulary(), {kEnd});
  const auto grammar = compiler.compile(OutputForm::choice({"ab"})).grammar->clone();
  grammar->accept('a');
  EXPECT_FALSE(grammar->finished());
  EXPECT_FALSE(has(mask_of(*grammar, {}), kEnd));
  grammar->accept('b');
  EXPECT_TRUE(grammar->finished());
  Words only_end(10);
  only_end[kEnd / 32] = uint32_t{1} << (kEnd % 32);
  EXPECT_EQ(mask_of(*grammar, {}), only_end);
  bool alive = true;
  mask_of(*grammar, {kEnd, 'a'}, &alive);
  EXPECT_FALSE(alive);
  grammar->accept(kEnd);
  EXPECT_EQ(mask_of(*grammar, {}), only_end);
}

TEST(Structured, HoldsFromTheEndOfTheReasoningOn) {
  GrammarCompiler compiler(small_vocabulary(), {kEnd});
  const auto grammar = compiler.compile(list_of_booleans(), {kThinkEnd}).grammar->clone();
  const Words all(10, ~uint32_t{0});
  EXPECT_EQ(mask_of(*grammar, {'x'}), all);
  grammar->accept('x');
  const Words first = mask_of(*grammar, {'y', kThinkEnd});  // the end in the middle of drafts
  EXPECT_NE(first, all);
  EXPECT_TRUE(has(first, '['));
  EXPECT_FALSE(has(first, 'x'));
  EXPECT_EQ(mask_of(*grammar, {}), all);
  bool alive = true;
  mask_of(*grammar, {kThinkEnd, 'x'}, &alive);
  EXPECT_FALSE(alive);
  grammar->accept(kThinkEnd);
  EXPECT_EQ(mask_of(*grammar, {}), first);
  const auto split = compiler.compile(list_of_booleans(), {'<', '<', '/'}).grammar->clone();
  for (const int32_t token : {'<', '<', '<'}) split->accept(token);
  EXPECT_EQ(mask_of(*split, {}), all);
  EXPECT_EQ(mask_of(*split, {'/'}), first);
}

TEST(Structured, StructuralTags) {
  GrammarCompiler compiler(small_vocabulary(), {kEnd});
  const auto compiled =
      compiler.compile({.kind = OutputForm::Kind::kStructuralTag,
                        .text = R"({"type": "structural_tag", "format": {"type": "tag", "begin": "<call>", "content":
                   {"type": "json_schema", "json_schema": {"type": "boolean"}}, "end": "</call>"}})"});
  ASSERT_FALSE(compiled.error) << compiled.error->message;
  const auto grammar = compiled.grammar->clone();
  for (const char c : std::string("<call>")) grammar->accept(c);
  EXPECT_TRUE(has(mask_of(*grammar, {}), kTrue));
  EXPECT_FALSE(has(mask_of(*grammar, {}), kNull));
}

TEST(Structured, ReadsWhatRequestsAskFor) {
  const auto read = [](const char* body) { return requested_form(parse_json(body, "body").as_object()); };
  const auto form = [&](const char* body) {
    const auto answer = read(body);
    const auto* found = std::get_if<std::optional<OutputForm>>(&answer);
    return found == nullptr || !*found ? "" : fmt_kind((*found)->kind) + (*found)->text;
  };
  EXPECT_EQ(form("{}"), "");
  EXPECT_EQ(form(R"({"response_format": {"type": "text"}, "guided_json": null})"), "");
  EXPECT_EQ(form(R"({"response_format": {"type": "json_object"}})"), "object ");
  EXPECT_EQ(form(R"({"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"a": 1}}}})"),
            R"(schema {"a":1})");
  EXPECT_EQ(form(R"({"guided_json": "{\"a\": 1}"})"), R"(schema {"a":1})");
  EXPECT_EQ(form(R"({"guided_regex": "a.\\.[.]"})"), R"(regex a[^\n]\.[.])");
  EXPECT_EQ(form(R"({"structured_outputs": {"choice": ["a", "b"]}})"), R"(ebnf root ::= "a" | "b")");
  EXPECT_EQ(form(R"({"structured_outputs": {"json_object": true}})"), "object ");
  constexpr const char* kTagged =
      R"(tag {"type":"structural_tag","format":{"type":"triggered_tags","triggers":["<f"],"tags":[{"type":"tag",)"
      R"("begin":"<f=a>","content":{"type":"json_schema","json_schema":{"type":"boolean"},"max_whitespace_cnt":32},)"
      R"("end":"</f>"}]}})";
  EXPECT_EQ(form(R"({"response_format": {"type": "structural_tag", "triggers": ["<f"],
                     "structures": [{"begin": "<f=a>", "schema": {"type": "boolean"}, "end": "</f>"}]}})"),
            kTagged);
  const std::string text =
      R"({"structures": [{"begin": "<f=a>", "schema": "{\"type\": \"boolean\"}", "end": "</f>"}], "triggers": ["<f"]})";
  EXPECT_EQ(form(to_json({{"structured_outputs", {{"structural_tag", text}}}}).c_str()), kTagged);
  {
    GrammarCompiler compiler(small_vocabulary(), {kEnd});
    const auto compiled = compiler.compile({.kind = OutputForm::Kind::kStructuralTag, .text = kTagged + 4});
    ASSERT_FALSE(compiled.error) << compiled.error->message;
    const auto grammar = compiled.grammar->clone();
    for (const char c : std::string("free <f=a>")) grammar->accept(c);
    EXPECT_TRUE(has(mask_of(*grammar, {}), kTrue));
    EXPECT_FALSE(has(mask_of(*grammar, {}), kNull));
  }
  for (
      const char* wrong :
      {R"({"response_format": 5})", R"({"response_format": {}})", R"({"response_format": {"type": "xml"}})",
       R"({"response_format": {"type": "json_schema"}})", R"({"guided_json": "{"})", R"({"guided_json": 5})",
       R"({"guided_choice": []})", R"({"guided_regex": ""})", R"({"structured_outputs": []})",
       R"({"guided_regex": "a", "response_format": {"type": "json_object"}})",
       R"({"response_format": {"type": "structural_tag"}})",
       R"({"response_format": {"type": "structural_tag", "structures": [], "triggers": ["a"]}})",
       R"({"response_format": {"type": "structural_tag", "structures": [{"begin": "a"}], "triggers": ["a"]}})",
       R"({"response_format": {"type": "structural_tag", "structures": [5], "triggers": ["a"]}})",
       R"({"response_format": {"type": "structural_tag", "triggers": ["a"], "format": {"type": "any_text"},
           "structures": [{"begin": "a", "schema": {}, "end": "b"}]}})",
       R"({"response_format": {"type": "structural_tag", "structures": [{"begin": "a", "schema": {}, "end": ""}]}})"}) {
    const auto answer = read(wrong);
    ASSERT_TRUE(std::holds_alternative<RequestError>(answer)) << wrong;
    EXPECT_EQ(std::get<RequestError>(answer).status, 400);
  }
}

TEST(Structured, BombsAndNonsenseAreRefused) {
  GrammarCompiler compiler(small_vocabulary(), {kEnd});
  const auto schema = [](const std::string& text) {
    return OutputForm::json_schema(parse_json(text, "schema"), false);
  };
  std::string values = "1";
  for (int i = 0; i < 100'000; ++i) values += ",2";
  std::string nested = R"({"type": "string"})";
  for (int i = 0; i < 100; ++i) nested = R"({"oneOf": [)" + nested + "]}";
  std::string properties = R"({"type": "object", "properties": {"a": true)", patterns = properties;
  for (int i = 0; i < 1000; ++i) properties += fmt::format(R"(,"p{}": {{"type": "null"}})", i);
  for (int i = 0; i < 201; ++i) patterns += fmt::format(R"(,"p{}": {{"type": "string", "pattern": "a{{1,100}}"}})", i);
  std::string rules = "root ::= r0\n", ranges = "{\"type\": \"integer\", \"minimum\": 0}";
  for (int i = 0; i < 1000; ++i) rules += fmt::format("r{} ::= \"a\" r{} | \"b\"\n", i, (i + 1) % 1000);
  for (int i = 0; i < 1000; ++i) ranges += fmt::format(R"(, {{"type": "integer", "maximum": {}}})", i);
  const OutputForm forms[] = {
      {.kind = OutputForm::Kind::kEbnf, .text = rules},
      schema("{\"anyOf\": [" + ranges + "]}"),
      schema(properties + "}}"),
      schema(patterns + "}}"),
      schema(properties.substr(0, properties.find(",\"p100")) + R"(}, "minProperties": 50, "maxProperties": 60})"),
      // Rules that only name each other.
      schema(R"({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}})"),
      {.kind = OutputForm::Kind::kEbnf, .text = "root ::= x\nx ::= root"},
      {.kind = OutputForm::Kind::kEbnf, .text = "root ::= x x{2,3}\nx ::= x{1,3}"},
      OutputForm::regex(std::string(30'000, '(') + "a" + std::string(30'000, ')')),
      OutputForm::regex("((a{1000}){1000}){1000}"),
      OutputForm::regex("(a"),
      OutputForm::regex("a{999999999999999999999999}"),
      schema(R"({"enum": [)" + values + "]}"),
      schema(nested),
      schema(R"({"type": "array", "minItems": 1000000000})"),
      schema(R"({"type": "string", "pattern": "(a{1000}){1000}"})"),
      schema(R"({"type": "object", "properties": {"a": {"not": {}}}})"),
      schema(R"({"type": "no type"})"),
      schema(R"({"$ref": "#/nowhere"})"),
      schema(R"({"$dynamicRef": "#a"})"),
      schema(R"({"$recursiveRef": "#"})"),
      schema(R"(5)"),
      {.kind = OutputForm::Kind::kEbnf, .text = "root ::= "},
      {.kind = OutputForm::Kind::kEbnf, .text = "other ::= \"a\""},
      {.kind = OutputForm::Kind::kStructuralTag, .text = "{"},
      {.kind = OutputForm::Kind::kStructuralTag, .text = "{}"},
  };
  for (const OutputForm& form : forms) {
    const GrammarCompiler::Compiled compiled = compiler.compile(form);
    ASSERT_TRUE(compiled.error) << form.text.substr(0, 200);
    EXPECT_EQ(compiled.error->status, 400);
    EXPECT_EQ(compiled.grammar, nullptr);
  }
}

TEST(Structured, RulesAndNumbersWithBoundsAreTakenUpToTheirLimits) {
  GrammarCompiler compiler(small_vocabulary(), {kEnd}, {.work = {}, .patience = std::chrono::minutes(10)});
  const auto rules = [](int count) {
    std::string text = "root ::= r1\n";
    for (int i = 1; i < count; ++i) text += fmt::format("r{} ::= \"a\" r{} | \"b\"\n", i, i + 1 < count ? i + 1 : 1);
    return OutputForm{.kind = OutputForm::Kind::kEbnf, .text = text};
  };
  const auto numbers = [](int count) {
    json::array any;
    for (int i = 0; i < count; ++i)
      any.push_back({{"type", "integer"}, {i % 2 == 0 ? "minimum" : "exclusiveMaximum", i}});
    return OutputForm::json_schema({{"anyOf", std::move(any)}}, false);
  };
  EXPECT_FALSE(compiler.compile(rules(1000)).error);
  EXPECT_FALSE(compiler.compile(numbers(1000)).error);
  const auto is_refused_for = [&](const OutputForm& form, std::string_view why) {
    const auto error = compiler.compile(form).error;
    return error && error->message.find(why) != std::string::npos;
  };
  EXPECT_TRUE(is_refused_for(rules(1001), "more than 1000 rules"));
  EXPECT_TRUE(is_refused_for(numbers(1001), "more than 1000 of its numbers have bounds"));
}

TEST(Structured, GrammarsAreKeptUpToABound) {
  GrammarCompiler compiler(small_vocabulary(), {kEnd}, {.cache_bytes = 20'000});
  for (int round = 0; round < 2; ++round)
    for (int i = 0; i < 3; ++i) ASSERT_FALSE(compiler.compile(OutputForm::regex("a")).error);
  EXPECT_EQ(compiler.stats().compiled, 1);
  EXPECT_EQ(compiler.stats().found, 5);
  for (int i = 0; i < 40; ++i)
    ASSERT_FALSE(compiler.compile(OutputForm::regex("[a-f]{" + std::to_string(i + 20) + "}")).error);
  EXPECT_EQ(compiler.stats().compiled, 41);
  EXPECT_LE(compiler.stats().bytes, 20'000);
  ASSERT_FALSE(compiler.compile(OutputForm::regex("a")).error);
  EXPECT_EQ(compiler.stats().compiled, 42);  // it had been dropped
}

}  // namespace
}  // namespace calandra
