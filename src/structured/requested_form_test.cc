// What requests ask for and is not passed over: blanks of JSON, keys that are not known, expressions that look like
// ours.
#include <gtest/gtest.h>

#include <utility>

#include "structured/grammar_compiler.h"
#include "structured/requested_form.h"
#include "structured/schema_spelling.h"

namespace calandra {
namespace {

constexpr int32_t kEnd = 256;  // behind the bytes

std::vector<std::string> bytes() {
  std::vector<std::string> pieces(kEnd + 1);
  for (int byte = 0; byte < kEnd; ++byte) pieces[byte] = static_cast<char>(byte);
  pieces[kEnd] = "<end>";
  return pieces;
}

OutputForm requested(const json::object& body) {
  const auto answer = requested_form(body);
  if (const auto* error = std::get_if<RequestError>(&answer)) ADD_FAILURE() << error->message;
  return std::get<std::optional<OutputForm>>(answer).value();
}

// Whether the whole text is taken, byte by byte, and up to where.
std::pair<bool, size_t> taken(const GrammarCompiler::Compiled& compiled, std::string_view text) {
  const auto grammar = compiled.grammar->clone();
  const auto allows = [&](int32_t token) {
    std::vector<uint32_t> words(kEnd / 32 + 1);
    grammar->mask({}, words);
    return (words[token / 32] >> (token % 32) & 1) != 0;
  };
  for (size_t at = 0; at < text.size(); ++at) {
    const auto byte = static_cast<unsigned char>(text[at]);
    if (!allows(byte)) return {false, at};
    grammar->accept(byte);
  }
  return {allows(kEnd), text.size()};
}

TEST(RequestedForm, BlanksOfJsonHaveABound) {
  const json::value list = parse_json(R"({"type": "object", "properties": {"a": {"type": "array", "items":
      {"type": "object"}}, "b": {}}, "required": ["a", "b"], "additionalProperties": false})",
                                      "schema");
  const auto tag = [](const json::value& schema) {
    return json::object{{"type", "structural_tag"},
                        {"format",
                         {{"type", "tag"},
                          {"begin", "<c>"},
                          {"end", "</c>"},
                          {"content", {{"type", "json_schema"}, {"json_schema", schema}}}}}};
  };
  const std::pair<json::object, const char*> forms[] = {
      {{{"response_format", {{"type", "json_object"}}}}, ""},
      {{{"structured_outputs", {{"json_object", true}}}}, ""},
      {{{"guided_json", list}}, ""},
      {{{"response_format", tag(list)}}, "<c>"},
      {{{"response_format",
         {{"type", "structural_tag"},
          {"triggers", {"<c>"}},
          {"structures", json::array{{{"begin", "<c>"}, {"schema", list}, {"end", "</c>"}}}}}}},
       "<c>"},
  };
  const char* pieces[] = {"{", R"("a")", ":", "[", "{", R"("k")", ":", "[",      "1", ",",    "{", "}",
                          "]", "}",      ",", "{", "}", "]",      ",", R"("b")", ":", "null", "}"};
  GrammarCompiler compiler(bytes(), {kEnd});
  for (const auto& [body, begin] : forms) {
    SCOPED_TRACE(to_json(body));
    const auto compiled = compiler.compile(requested(body));
    ASSERT_FALSE(compiled.error) << compiled.error->message;
    const std::string end = *begin == '\0' ? "" : "</c>";
    const std::string most = "\n" + std::string(kMostBlanks - 1, ' ');
    for (size_t wide = 0; wide < std::size(pieces); ++wide) {
      std::string text = begin, before;
      for (size_t i = 0; i < std::size(pieces); ++i) {
        if (i > 0 && (wide == 0 || wide == i)) text += most;
        if (wide == i) before = text;
        text += pieces[i];
      }
      EXPECT_TRUE(taken(compiled, text + end).first) << text;
      if (wide == 0) continue;
      EXPECT_EQ(taken(compiled, before + " "), std::pair(false, before.size())) << text;
    }
  }
  const auto own = [&](int blanks) {
    json::object asked = tag(list);
    asked["format"].at("content").as_object()["max_whitespace_cnt"] = blanks;
    return compiler.compile(requested({{"response_format", asked}}));
  };
  EXPECT_EQ(taken(own(3), "<c>{    "), std::pair(false, size_t{7}));
  for (const int wrong : {-1, 0, kMostBlanks + 1}) EXPECT_TRUE(own(wrong).error) << wrong;
}

TEST(RequestedForm, JsonWithoutAnyWhitespaceIsOneLine) {
  GrammarCompiler compiler(bytes(), {kEnd});
  const json::object flag{{"disable_any_whitespace", true}};
  const auto with = [&](const char* key, const json::value& value) {
    json::object group = flag;
    group[key] = value;
    return json::object{{"structured_outputs", std::move(group)}};
  };
  const json::value schema = parse_json(R"({"properties": {"a": {"type": "array"}, "b": {}}})", "schema");
  for (const json::object& body :
       {with("json", schema), with("json_object", true),
        json::object{{"response_format", {{"type", "json_object"}}}, {"structured_outputs", flag}},
        json::object{{"response_format", {{"type", "json_schema"}, {"json_schema", {{"schema", schema}}}}},
                     {"structured_outputs", flag}}}) {
    const auto compiled = compiler.compile(requested(body));
    ASSERT_FALSE(compiled.error) << compiled.error->message;
    EXPECT_TRUE(taken(compiled, R"({"a": [1, {"k": []}, {}], "b": {"c": [null, 2], "d": " \\n "}})").first)
        << to_json(body);
    for (const char* spaced : {R"({ "a": [])", R"({"a" : [])", R"({"a":[])", R"({"a":  [])", R"({"a": [ )",
                               R"({"a": [1,2)", R"({"a": [1 )", R"({"a": [] })", R"({"a": [],"b)", "{\n"})
      EXPECT_LT(taken(compiled, spaced).second, std::string_view(spaced).size()) << spaced << to_json(body);
  }
  const auto both =
      compiler.compile(requested({{"guided_json", schema}}));  // another form, though its schema is the same
  EXPECT_TRUE(taken(both, R"({ "a" : [ ] } )").second > 10);
}

TEST(RequestedForm, WhatIsNotKeptOfARequestIsRefusedByName) {
  const std::pair<const char*, const char*> bodies[] = {
      {R"({"structured_outputs": {"jsn": {}}})", "structured_outputs.jsn"},
      {R"({"structured_outputs": {"json": {}, "strict": true}})", "structured_outputs.strict"},
      {R"({"structured_outputs": {"json": {}, "whitespace_pattern": " ?"}})", "structured_outputs.whitespace_pattern"},
      {R"({"guided_json": {}, "guided_whitespace_pattern": " ?"})", "guided_whitespace_pattern"},
      {R"({"structured_outputs": {"json": {}, "disable_any_whitespace": 1}})",
       "structured_outputs.disable_any_whitespace"},
      {R"({"structured_outputs": {"json_object": "yes"}})", "structured_outputs.json_object"},
      {R"({"structured_outputs": {"regex": "a", "disable_any_whitespace": true}})",
       "structured_outputs.disable_any_whitespace"},
      {R"({"structured_outputs": {"disable_any_whitespace": true}})", "structured_outputs.disable_any_whitespace"},
      {R"({"structured_outputs": {"disable_any_whitespace": true, "structural_tag": {"format": {"type": "any_text"}}}})",
       "structured_outputs.disable_any_whitespace"},
      {R"({"structured_outputs": {"regex": ""}})", "structured_outputs.regex"},
      {R"({"structured_outputs": {"regex": "a", "choice": ["b"]}})", "structured_outputs.choice"},
      {R"({"response_format": {"type": "json_object", "schema": {}}})", "response_format.schema"},
      {R"({"response_format": {"type": "json_schema", "schema": {}}})", "response_format.schema"},
      {R"({"response_format": {"type": "json_schema", "json_schema": {"schema": {}, "stric": true}}})",
       "response_format.json_schema.stric"},
      {R"({"response_format": {"type": "json_schema", "json_schema": {"schema": {}, "strict": "true"}}})",
       "response_format.json_schema.strict"},
      {R"({"response_format": {"type": "structural_tag", "format": {"type": "any_text"}, "tags": []}})",
       "response_format.tags"},
  };
  for (const auto& [body, param] : bodies) {
    const auto answer = requested_form(parse_json(body, "body").as_object());
    const auto* error = std::get_if<RequestError>(&answer);
    ASSERT_NE(error, nullptr) << body;
    EXPECT_EQ(error->param, param) << body;
    EXPECT_NE(error->message.find(std::string(param).substr(std::string(param).rfind('.') + 1)), std::string::npos)
        << error->message;
  }
  for (const char* body :
       {R"({"structured_outputs": {"json": null, "_backend": null}})", R"({"structured_outputs": {}})",
        R"({"structured_outputs": {"disable_any_whitespace": false}})",
        R"({"response_format": {"type": "text", "schema": null}})",
        R"({"guided_whitespace_pattern": null, "guided_decoding_backend": "x"})"}) {
    const auto answer = requested_form(parse_json(body, "body").as_object());
    EXPECT_TRUE(std::holds_alternative<std::optional<OutputForm>>(answer)) << body;
  }
}

// What a user reads is about what was sent: no place in a library's source, nothing that would be passed over.
TEST(RequestedForm, RefusalsSayWhatIsWrong) {
  const auto schema = [](const char* text) {
    return json::object{
        {"response_format", {{"type", "json_schema"}, {"json_schema", {{"schema", parse_json(text, "schema")}}}}}};
  };
  const auto tag = [](const char* format) {
    return json::object{{"response_format", {{"type", "structural_tag"}, {"format", parse_json(format, "format")}}}};
  };
  const auto group = [](const char* key, const char* text) {
    return json::object{{"structured_outputs", {{key, text}}}};
  };
  const std::pair<json::object, const char*> cases[] = {
      {schema(R"({"type": "nonsense"})"), R"(Unsupported type "nonsense")"},
      {schema(R"({"type": []})"), "type must not be empty"},
      {schema(R"({"anyOf": []})"), "anyOf must not be empty"},
      {schema(R"({"allOf": [{"type": "string"}, {"type": "string"}]})"),
       "allOf of more than one schema is not supported"},
      {schema(R"({"type": "string", "pattern": 5})"), "pattern must be a string"},
      {schema(R"({"type": "string", "format": {}})"), "format must be a string"},
      {schema(R"({"type": "object", "required": [1]})"), "required must be a list of strings"},
      {schema(R"({"type": "string", "pattern": "(a"})"),
       R"(the pattern "(a": Regex parsing error at position 1: The parenthesis is not closed)"},
      {schema(R"({"type": "string", "pattern": "^\"$"})"),
       "only texts with quotes, backslashes or control characters match it"},
      {schema(R"x({"type": "string", "pattern": "a(?=b)"})x"), "Lookahead assertion is not supported in regex: a(?=b)"},
      {schema(R"({"type": "string", "pattern": "^[*]a?{2}"})"), R"(the pattern "^[*]a{0,1}{2}" repeats a repeat)"},
      {schema(R"({"type": "string", "pattern": "a**"})"), R"(the pattern "a**" repeats a repeat)"},
      {group("regex", "a**"), "Two consecutive repetition modifiers are not allowed."},
      {schema(R"({"type": "number", "multipleOf": 0.1})"), "multipleOf is not supported for type:number"},
      {group("regex", "a(?=b)"), "Lookahead is not supported yet."},
      {group("regex", "a$b"), "'$' should be at the end of the regex, but found in the middle."},
      {group("regex", "*a"), "Expect element, but got *"},
      {group("grammar", "root ::= b"), R"(EBNF parser error at line 1, column 10: Rule "b" is not defined)"},
      {tag(R"({"type": "what"})"), "Format type not recognized: what"},
      {tag(R"({"type": "json_schema", "json_schema": {}, "max_whitespace_cnt": 2.5})"),
       "max_whitespace_cnt is no whole number from 1 to 32"},
      {tag(R"({"type": "tag", "begin": "a", "content": {"type": "any_text"}})"), "Tag format must have an end field"},
      {tag(R"x({"type": "regex", "pattern": "a(?=b)"})x"), "Lookahead is not supported yet."},
  };
  GrammarCompiler compiler(bytes(), {kEnd});
  for (const auto& [body, why] : cases) {
    const auto compiled = compiler.compile(requested(body));
    ASSERT_TRUE(compiled.error) << to_json(body);
    const std::string& said = compiled.error->message;
    EXPECT_TRUE(said.ends_with(why)) << said;
    for (const char* inner : {"Check failed", "gnor", "std::", "Invalid structural tag"})
      EXPECT_EQ(said.find(inner), std::string::npos) << said;
  }
}

TEST(RequestedForm, WhatOnlyLooksLikeARepeatOfARepeatIsTaken) {
  for (const char* pattern : {"a*?b", "[*+]+", "\\*+", "(a*)*", "a{2}?b{3}", "a+?c+"})
    EXPECT_EQ(refusal_of(OutputForm::json_schema({{"type", "string"}, {"pattern", pattern}}, false)), "") << pattern;
}

// A client's expression that begins as ours of lengths is one like any other.
TEST(RequestedForm, PatternsThatBeginLikeLengthsAreSpelledAndBounded) {
  const char* length = "^[^\"\\\\\\x00-\\x1f\u0080]{";
  EXPECT_TRUE(is_length_pattern(std::string(length) + "1,20}$"));
  EXPECT_TRUE(is_length_pattern("[^<]{1,20}"));
  for (const char* rest : {"1,20}é?$", "1,20}", "1,20}$a", "1}$", ",2}$", "1,}$"})
    EXPECT_FALSE(is_length_pattern(std::string(length) + rest)) << rest;
  for (const char* pattern : {"[^<]{1,20}$", "[^<]{1,2}(b[0-9]+)?", "^[^<]{1,20}", "[^<]{1}"})
    EXPECT_FALSE(is_length_pattern(pattern)) << pattern;
  const auto string_of = [](const std::string& pattern) {
    return OutputForm::json_schema({{"type", "string"}, {"pattern", json::string(pattern)}}, false);
  };
  GrammarCompiler compiler(bytes(), {kEnd});
  for (const std::string& begin : {std::string(length) + "1,3}", std::string("[^<]{1,3}")}) {
    const auto compiled = compiler.compile(string_of(begin + "!(b[0-9]+)?é$"));
    ASSERT_FALSE(compiled.error) << compiled.error->message;
    EXPECT_TRUE(taken(compiled, "\"ab!b1é\"").first);
    EXPECT_FALSE(taken(compiled, "\"ab!1é\"").first);
    const auto bomb = compiler.compile(string_of(begin + "((a{1000}){1000}){1000}$"));
    ASSERT_TRUE(bomb.error);
    EXPECT_NE(bomb.error->message.find("repeats of its patterns"), std::string::npos) << bomb.error->message;
  }
  json::object tag{{"type", "structural_tag"}, {"format", {{"type", "regex"}, {"pattern", "[^<]{1,3}!(b[0-9]+)?"}}}};
  const auto compiled = compiler.compile(OutputForm::structural_tag(std::move(tag)));
  ASSERT_FALSE(compiled.error) << compiled.error->message;
  EXPECT_TRUE(taken(compiled, "a!b1").first);
  EXPECT_FALSE(taken(compiled, "a!1").first);
}

}  // namespace
}  // namespace calandra
