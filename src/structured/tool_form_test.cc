// Tool calls under a grammar: what it allows is read back as calls whose arguments are valid.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>

#include "structured/grammar_compiler.h"
#include "structured/tool_form.h"
#include "text/utf8.h"

namespace calandra {
namespace {

constexpr int32_t kEnd = 256;

GrammarCompiler bytes_compiler() {
  std::vector<std::string> pieces(kEnd + 1);
  for (int byte = 0; byte < kEnd; ++byte) pieces[byte] = static_cast<char>(byte);
  pieces[kEnd] = "<end>";
  return {pieces, {kEnd}};
}

class Walk {
 public:
  explicit Walk(const Grammar& grammar) : grammar_(grammar.clone()) {}

  bool allows(int32_t token) const {
    std::vector<uint32_t> words((kEnd + 32) / 32);
    EXPECT_TRUE(grammar_->mask({}, words));
    return (words[token / 32] >> (token % 32) & 1) != 0;
  }
  std::vector<int32_t> allowed() const {
    std::vector<uint32_t> words((kEnd + 32) / 32);
    EXPECT_TRUE(grammar_->mask({}, words));
    std::vector<int32_t> tokens;
    for (int32_t token = 0; token <= kEnd; ++token)
      if ((words[token / 32] >> (token % 32) & 1) != 0) tokens.push_back(token);
    return tokens;
  }
  bool add(char c) {
    const auto byte = static_cast<unsigned char>(c);
    if (grammar_->finished() || !allows(byte)) return false;
    grammar_->accept(byte);
    text_ += c;
    return true;
  }
  // How much of it is allowed here.
  size_t add(std::string_view text) {
    size_t i = 0;
    while (i < text.size() && add(text[i])) ++i;
    return i;
  }
  bool may_end() const { return grammar_->finished() || allows(kEnd); }
  bool finished() const { return grammar_->finished(); }
  const std::string& text() const { return text_; }

 private:
  std::unique_ptr<Grammar> grammar_;
  std::string text_;
};

bool accepts(const Grammar& grammar, std::string_view text) {
  Walk walk(grammar);
  return walk.add(text) == text.size() && walk.may_end();
}

json::array tools() {
  return parse_json(R"([
    {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "required": ["city", "days"],
      "properties": {"city": {"type": "string"}, "days": {"type": "integer", "minimum": 1, "maximum": 14},
        "unit": {"enum": ["C", "F"]}, "exact": {"type": "boolean"}}}}},
    {"type": "function", "function": {"name": "note", "strict": true, "parameters": {"type": "object",
      "required": ["text", "tags", "weight", "short", "level"],
      "properties": {"text": {"type": ["string", "null"]}, "tags": {"type": "array", "maxItems": 3, "items": {"$ref": "#/$defs/tag"}},
        "weight": {"type": "number"}, "short": {"type": "string", "minLength": 2, "maxLength": 4},
        "level": {"anyOf": [{"type": "integer"}, {"type": "null"}]}, "size": {"type": "integer", "enum": [1, 20]}},
      "$defs": {"tag": {"type": "object", "properties": {"k": {"type": "string", "maxLength": 5}}, "required": ["k"]}}}}},
    {"type": "function", "function": {"name": "now"}}])",
                    "tools")
      .as_array();
}

std::shared_ptr<const Grammar> grammar_of(GrammarCompiler& compiler, const json::array& list, const ToolForm& wanted) {
  const auto form = tool_form(list, wanted);
  if (const auto* error = std::get_if<RequestError>(&form)) {
    ADD_FAILURE() << error->message;
    return nullptr;
  }
  GrammarCompiler::Compiled compiled = compiler.compile(std::get<OutputForm>(form));
  EXPECT_FALSE(compiled.error) << compiled.error->message;
  return compiled.grammar;
}

// Bytes that the grammar allows, drawn so that what is open is closed now and then.
std::string wander(const Grammar& grammar, std::mt19937& random) {
  constexpr std::string_view kOften = "\"\"}],:0123456789<aeintw";
  Walk walk(grammar);
  for (int step = 0; step < 500 && !walk.finished(); ++step) {
    const std::vector<int32_t> allowed = walk.allowed();
    if (allowed.back() == kEnd && random() % 2 == 0) return walk.text();
    std::vector<int32_t> often;
    for (const int32_t token : allowed)
      if (kOften.find(static_cast<char>(token)) != std::string_view::npos) often.push_back(token);
    const std::vector<int32_t>& from = often.empty() || random() % 16 == 0 ? allowed : often;
    const int32_t token = from[random() % from.size()];
    if (token == kEnd) return walk.text();
    if (allowed.size() > 100 && random() % 6 == 0) {
      for (const char* close : {"\n</parameter>\n", "\""})
        if (walk.add(close) > 1) break;
    } else {
      walk.add(static_cast<char>(token));
    }
  }
  return walk.may_end() ? walk.text() : "";
}

TEST(ToolForm, ALengthThatIsNoWholeNumberIsNotPassedOver) {
  for (const char* key : {"minLength", "maxLength"}) {
    json::array list = tools();
    list[1].at("function").at("parameters").at("properties").at("short").as_object()[key] = 2.5;
    const auto form = tool_form(list, {.format = ToolFormat::kQwen3Coder});
    const auto* error = std::get_if<RequestError>(&form);
    ASSERT_NE(error, nullptr) << key;
    EXPECT_NE(error->message.find("whole numbers"), std::string::npos) << error->message;
  }
}

TEST(ToolForm, WhatIsAllowedIsReadAsValidCalls) {
  GrammarCompiler compiler = bytes_compiler();
  const json::array list = tools();
  std::map<std::string, std::shared_ptr<const Grammar>> schemas;
  for (const json::value& tool : list) {
    const json::object& function = tool.at("function").as_object();
    const json::value parameters =
        function.contains("parameters") ? function.at("parameters") : json::value{{"type", "object"}};
    const auto compiled = compiler.compile(OutputForm::json_schema(parameters, true));
    ASSERT_FALSE(compiled.error) << compiled.error->message;
    schemas[std::string(function.at("name").as_string())] = compiled.grammar;
  }
  std::mt19937 random(5);
  for (const ToolFormat format : {ToolFormat::kQwen3Coder, ToolFormat::kHermes}) {
    for (const bool one_call : {true, false}) {
      const auto grammar = grammar_of(compiler, list, {.format = format, .one_call = one_call});
      ASSERT_TRUE(grammar);
      int calls = 0, answers = 0;
      for (int round = 0; round < 60; ++round) {
        const std::string text = replace_invalid_utf8(wander(*grammar, random));  // as the detokenizer
        if (text.empty()) continue;
        ++answers;
        AnswerParser parser({.tools = format, .tool_list = std::make_shared<const json::array>(list)});
        ParsedAnswer parsed;
        parsed.add(parser.add(text));
        parsed.add(parser.finish());
        EXPECT_EQ(parsed.content, "") << text;
        EXPECT_FALSE(parsed.tool_calls.empty()) << text;
        EXPECT_TRUE(!one_call || parsed.tool_calls.size() == 1) << text;
        for (const ParsedAnswer::ToolCall& call : parsed.tool_calls) {
          ASSERT_TRUE(schemas.contains(call.name)) << text;
          json::value arguments = parse_json(call.arguments, text);
          if (json::value* bounded = arguments.as_object().if_contains("short")) {
            const std::string_view value = bounded->as_string();
            const auto length = std::count_if(value.begin(), value.end(), [](char c) { return (c & 0xC0) != 0x80; });
            EXPECT_TRUE(length >= 2 && length <= 4) << text;
            *bounded = "abc";  // in a schema with bounds xgrammar has no escapes
          }
          EXPECT_TRUE(accepts(*schemas[call.name], to_json(arguments))) << text << "\n" << call.arguments;
          ++calls;
        }
      }
      std::printf("%d answers, %d calls\n", answers, calls);
      EXPECT_GT(answers, 20);
    }
  }
}

TEST(ToolForm, AllowsWhatTheModelWrites) {
  GrammarCompiler compiler = bytes_compiler();
  const std::string call =
      "<tool_call>\n<function=weather>\n<parameter=city>\nParis\n</parameter>\n<parameter=days>\n3\n</parameter>\n"
      "</function>\n</tool_call>";
  const std::string hermes = R"(<tool_call>
{"name": "weather", "arguments": {"city": "Paris", "days": 3}}
</tool_call>)";
  const auto xml = grammar_of(compiler, tools(), {});
  const auto xml_one = grammar_of(compiler, tools(), {.one_call = true});
  const auto json = grammar_of(compiler, tools(), {.format = ToolFormat::kHermes});
  EXPECT_TRUE(accepts(*xml, call));
  EXPECT_TRUE(accepts(*xml, call + "\n" + call));
  EXPECT_FALSE(accepts(*xml, "\n\n" + call));
  EXPECT_TRUE(accepts(*grammar_of(compiler, tools(), {.thoughts = true}), "\n\n" + call));
  EXPECT_FALSE(accepts(*xml_one, call + "\n" + call));
  EXPECT_TRUE(accepts(*json, hermes));
  EXPECT_FALSE(accepts(*xml, ""));
  EXPECT_FALSE(accepts(*xml, "I call. " + call));
  const std::string none = "<tool_call>\n<function=now>\n</function>\n</tool_call>";
  EXPECT_TRUE(accepts(*xml, none));
  for (const auto& [from, to] : {std::pair{"3", "15"}, {"3", "x"}, {"weather", "whether"}, {"=city", "=town"}}) {
    std::string wrong = call;
    wrong.replace(wrong.find(from), std::string_view(from).size(), to);
    EXPECT_FALSE(accepts(*xml, wrong)) << wrong;
  }
  // The strict tool alone is held to its schema, and text may stand around calls.
  const auto strict = grammar_of(compiler, tools(), {.required = false, .all_strict = false});
  EXPECT_TRUE(accepts(*strict, "Just text."));
  std::string loose = call;
  loose.replace(loose.find('3'), 1, "three");
  EXPECT_TRUE(accepts(*strict, "I call. " + loose + " And more."));
  EXPECT_FALSE(accepts(*strict, "<tool_call>\n<function=note>\n</function>\n</tool_call>"));
  EXPECT_FALSE(accepts(*strict, "<tool_call>\n<function=other>\n"));
}

TEST(ToolForm, RefusesWhatItCannotPromise) {
  const char* parameters[] = {R"({"type": "array"})", R"({"type": "object", "properties": {"a": {"$ref": "#/x"}}})",
                              R"({"type": "object", "properties": {"a": {"not": {}}}})",
                              R"({"type": "object", "properties": {"a>": {}}})", R"({"type": "object", "anyOf": []})"};
  for (const char* text : parameters) {
    const json::array list = {
        {{"type", "function"}, {"function", {{"name", "f"}, {"parameters", parse_json(text, "schema")}}}}};
    const auto form = tool_form(list, {});
    ASSERT_TRUE(std::holds_alternative<RequestError>(form)) << text;
    EXPECT_EQ(std::get<RequestError>(form).status, 400);
    EXPECT_NE(std::get<RequestError>(form).message.find("\"f\""), std::string::npos);
  }
}

// What only the compiler refuses, of the tool that it is.
TEST(ToolForm, AnUnusableSchemaIsToldWithItsTool) {
  const char* schemas[] = {R"({"type": "string", "pattern": "("})",
                           R"({"type": "integer", "minimum": 5, "maximum": 3})",
                           R"({"type": "object", "properties": {"b": {"type": "string", "pattern": "[z-a]"}}})",
                           R"({"type": "strnig"})", R"({"type": "array", "items": 3})"};
  GrammarCompiler compiler = bytes_compiler();
  for (const char* text : schemas) {
    for (const ToolFormat format : {ToolFormat::kQwen3Coder, ToolFormat::kHermes}) {
      for (const bool required : {true, false}) {
        json::array list = tools();
        // Of which xgrammar warns, and which is no fault.
        list[0].at("function").at("parameters").at("properties").as_object()["either"] =
            parse_json(R"({"type": "array", "items": {"oneOf": [{"type": "integer"}, {"type": "number"}]}})", "schema");
        const auto fine = compiler.compile(std::get<OutputForm>(tool_form(list, {.format = format})));
        EXPECT_FALSE(fine.error) << fine.error->message;
        json::object& function = list[1].at("function").as_object();
        function["parameters"].at("properties").as_object()["a"] = parse_json(text, "schema");
        const auto form = tool_form(list, {.format = format, .required = required, .all_strict = required});
        ASSERT_TRUE(std::holds_alternative<OutputForm>(form)) << std::get<RequestError>(form).message;
        const auto compiled = compiler.compile(std::get<OutputForm>(form));
        ASSERT_TRUE(compiled.error) << text;
        EXPECT_EQ(compiled.error->param, "tools");
        EXPECT_EQ(compiled.error->message.find(R"(calls of the tool "note" cannot be constrained: )"), 0)
            << compiled.error->message;
      }
    }
  }
}

}  // namespace
}  // namespace calandra
