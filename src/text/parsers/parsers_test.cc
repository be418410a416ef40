// Recorded answers of models through the parsers, over every way of cutting them: at every place, at every pair of
// places of short ones, one character at a time, as recorded, and at random.
#include <gtest/gtest.h>

#include <filesystem>
#include <random>
#include <sstream>

#include "text/parsers/parse_rows.h"
#include "text/parsers/python_literal.h"

namespace calandra {
namespace {

const std::filesystem::path kGoldens = std::filesystem::path(CALANDRA_SOURCE_DIR) / "tests/oracle/text/parsers";

std::vector<json::object> read_rows(const char* name) {
  std::vector<json::object> rows;
  std::istringstream lines(read_text_file(kGoldens / name));
  for (std::string line; std::getline(lines, line);) rows.push_back(parse_json(line, name).as_object());
  return rows;
}

std::string string_of(const json::value& value) { return std::string(value.as_string()); }

AnswerParser::Options options_of(const json::object& row) {
  AnswerParser::Options options;
  if (row.contains("parser")) options.reasoning = *reasoning_format(string_of(row.at("parser")));
  if (row.contains("thinking")) options.thinking = row.at("thinking").as_bool();
  if (row.contains("style"))
    options.tools = row.at("style").as_string() == "xml" ? ToolFormat::kQwen3Coder : ToolFormat::kHermes;
  if (row.contains("tools")) options.tool_list = std::make_shared<const json::array>(row.at("tools").as_array());
  return options;
}

// The places of `text` where characters begin, its end included.
std::vector<size_t> borders(std::string_view text) {
  std::vector<size_t> places;
  for (size_t i = 0; i <= text.size(); ++i)
    if (i == text.size() || (static_cast<unsigned char>(text[i]) & 0xC0) != 0x80) places.push_back(i);
  return places;
}

// Parses the text cut at `cuts` and checks what holds of every stream of events.
ParsedAnswer parse(const AnswerParser::Options& options, std::string_view text, const std::vector<size_t>& cuts) {
  AnswerParser parser(options);
  ParsedAnswer answer;
  int calls = 0;
  bool open = false, behind_reasoning = false;
  const auto take = [&](const OutputEvents& events) {
    answer.add(events);
    for (const OutputEvent& event : events) {
      using Kind = OutputEvent::Kind;
      EXPECT_EQ(event.text.empty(), event.kind == Kind::kToolCallEnd);
      if (event.kind == Kind::kReasoning) {
        EXPECT_FALSE(behind_reasoning) << "reasoning behind content";
        continue;
      }
      behind_reasoning = true;
      if (event.kind == Kind::kContent) {
        EXPECT_FALSE(open) << "content inside of a call";
        continue;
      }
      EXPECT_EQ(open, event.kind != Kind::kToolCallBegin);
      EXPECT_EQ(event.call, calls);
      open = event.kind != Kind::kToolCallEnd;
      if (!open) ++calls;
    }
  };
  size_t begin = 0;
  for (const size_t cut : cuts) {
    take(parser.add(text.substr(begin, cut - begin)));
    begin = cut;
  }
  take(parser.add(text.substr(begin)));
  take(parser.finish());
  EXPECT_FALSE(open) << "a call without an end";
  return answer;
}

bool same_number(const json::value& a, const json::value& b) { return a.to_number<double>() == b.to_number<double>(); }

bool same(const json::value& a, const json::value& b) {
  if (a.is_number() && b.is_number()) return same_number(a, b);
  if (a.is_array() && b.is_array()) {
    const json::array &x = a.get_array(), &y = b.get_array();
    return std::equal(x.begin(), x.end(), y.begin(), y.end(), same);
  }
  if (a.is_object() && b.is_object()) {
    const json::object &x = a.get_object(), &y = b.get_object();
    return x.size() == y.size() && std::all_of(x.begin(), x.end(), [&](const auto& member) {
             const json::value* other = y.if_contains(member.key());
             return other != nullptr && same(member.value(), *other);
           });
  }
  return a == b;
}

std::string stripped(std::string_view text) {
  const size_t begin = skip_space(text, 0), end = text.find_last_not_of(kOutputSpace);
  return begin == text.size() ? "" : std::string(text.substr(begin, end + 1 - begin));
}

void compare_with_golden(const json::object& row, const ParsedAnswer& answer) {
  if (row.contains("reasoning")) {
    EXPECT_EQ(answer.reasoning, string_of(row.at("reasoning")));
    EXPECT_EQ(answer.content, string_of(row.at("content")));
    return;
  }
  for (const ParsedAnswer::ToolCall& call : answer.tool_calls)
    EXPECT_TRUE(parse_json(call.arguments, "arguments").is_object()) << call.arguments;
  if (row.contains("lenient")) return;
  EXPECT_EQ(stripped(answer.content), stripped(string_of(row.at("content"))));
  const json::array& wanted = row.at("tool_calls").as_array();
  ASSERT_EQ(answer.tool_calls.size(), wanted.size());
  for (size_t i = 0; i < wanted.size(); ++i) {
    EXPECT_EQ(answer.tool_calls[i].name, string_of(wanted[i].at("name")));
    EXPECT_TRUE(same(parse_json(answer.tool_calls[i].arguments, "arguments"), wanted[i].at("arguments")))
        << answer.tool_calls[i].arguments;
  }
}

bool equal(const ParsedAnswer& a, const ParsedAnswer& b) {
  return a.reasoning == b.reasoning && a.content == b.content &&
         std::equal(a.tool_calls.begin(), a.tool_calls.end(), b.tool_calls.begin(), b.tool_calls.end(),
                    [](const auto& x, const auto& y) { return x.name == y.name && x.arguments == y.arguments; });
}

// All ways of cutting `text` that are tried. Returns how many.
int64_t try_cuts(const AnswerParser::Options& options, const std::string& text, const json::array* recorded) {
  const std::vector<size_t> places = borders(text);
  const ParsedAnswer whole = parse(options, text, {});
  int64_t tried = 0;
  const auto attempt = [&](const std::vector<size_t>& cuts) {
    ++tried;
    const ParsedAnswer answer = parse(options, text, cuts);
    if (equal(answer, whole)) return;
    ADD_FAILURE() << "cut at " << json::serialize(json::value_from(cuts)) << "\nreasoning " << answer.reasoning
                  << "\ncontent " << answer.content << "\ncalls " << answer.tool_calls.size();
  };
  attempt(places);  // single characters
  for (const size_t place : places) attempt({place});
  if (places.size() <= 120)
    for (size_t i = 0; i < places.size(); ++i)
      for (size_t j = i; j < places.size(); j += 1 + j % 3) attempt({places[i], places[j]});
  if (recorded != nullptr) {
    for (const json::value& chunking : *recorded) {
      std::vector<size_t> cuts;
      size_t at = 0;
      for (const json::value& chunk : chunking.as_array()) cuts.push_back(at += chunk.as_string().size());
      attempt(cuts);
    }
  }
  std::mt19937 random(text.size());
  for (int i = 0; i < 120; ++i) {
    std::vector<size_t> cuts;
    const unsigned every = 1 + random() % 12;
    for (const size_t place : places)
      if (random() % every == 0) cuts.push_back(place);
    attempt(cuts);
  }
  return tried;
}

TEST(Parsers, GoldensHoweverTheyAreCut) {
  int64_t tried = 0, rows = 0;
  for (const char* name : {"reasoning.jsonl", "tool_calls_xml.jsonl", "tool_calls_hermes.jsonl"}) {
    for (const json::object& row : read_rows(name)) {
      SCOPED_TRACE(string_of(row.at("id")) + " " + string_of(row.at("text")));
      const AnswerParser::Options options = options_of(row);
      const std::string text = string_of(row.at("text"));
      compare_with_golden(row, parse(options, text, {}));
      tried += try_cuts(options, text, &row.at("chunkings").as_array());
      ++rows;
      if (HasFailure()) return;
    }
  }
  std::printf("%ld rows, %ld ways of cutting them\n", static_cast<long>(rows), static_cast<long>(tried));
  EXPECT_GE(tried, 100'000);
}

// Malformed and unfinished: every beginning of a golden, and goldens with a part taken out.
TEST(Parsers, BrokenTextHoweverItIsCut) {
  std::mt19937 random(7);
  for (const char* name : {"reasoning.jsonl", "tool_calls_xml.jsonl", "tool_calls_hermes.jsonl"}) {
    for (const json::object& row : read_rows(name)) {
      const std::string text = string_of(row.at("text"));
      const std::vector<size_t> places = borders(text);
      AnswerParser::Options options = options_of(row);
      if (options.reasoning == ReasoningFormat::kNone) options.reasoning = ReasoningFormat::kQwen3;
      for (int i = 0; i < 12; ++i) {
        const size_t begin = places[random() % places.size()], end = places[random() % places.size()];
        std::string broken = i % 2 == 0 ? text.substr(0, begin) : text.substr(0, std::min(begin, end));
        if (i % 2 == 1) broken += text.substr(std::max(begin, end));
        SCOPED_TRACE(broken);
        const ParsedAnswer whole = parse(options, broken, {});
        for (const ParsedAnswer::ToolCall& call : whole.tool_calls)
          EXPECT_TRUE(parse_json(call.arguments, "arguments").is_object());
        EXPECT_TRUE(equal(parse(options, broken, borders(broken)), whole));
        EXPECT_TRUE(equal(parse(options, broken, {broken.size() / 2}), whole));
        if (HasFailure()) return;
      }
    }
  }
}

TEST(Parsers, PromptsThatEndInReasoning) {
  for (const json::object& row : read_rows("prompt_state.jsonl"))
    EXPECT_EQ(ends_in_reasoning(string_of(row.at("text"))), row.at("in_reasoning").as_bool()) << row.at("id");
}

TEST(Parsers, ChatsThatEndInReasoning) {
  using Pieces = std::vector<TextPiece>;
  const TextPiece turn{"<im_start>user\n"}, open{"<im_start>assistant\n<think>\n"}, closed{"\n</think>\n\n"};
  for (const char* text : {"hi", "<think>", "</think>", "<think></think><think>", "</think> <think>"}) {
    const TextPiece said{text, true};
    EXPECT_FALSE(ends_in_reasoning(Pieces{turn, said, {"<role>ASSISTANT</role>"}})) << text;
    EXPECT_TRUE(ends_in_reasoning(Pieces{turn, said, open})) << text;
    EXPECT_FALSE(ends_in_reasoning(Pieces{turn, said, open, closed})) << text;
    EXPECT_FALSE(ends_in_reasoning(Pieces{open, said, closed, said, {"<role>ASSISTANT</role>"}})) << text;
    EXPECT_TRUE(ends_in_reasoning(Pieces{turn, said, open, {"so far", true}})) << text;
  }
  // An answer that goes on from its own thoughts.
  EXPECT_TRUE(ends_in_reasoning(Pieces{turn, {"hi", true}, open, closed, {"<think>\nso far", true}}));
  EXPECT_FALSE(ends_in_reasoning(Pieces{turn, {"hi", true}, open, {"so far</think>", true}}));
  EXPECT_FALSE(ends_in_reasoning(Pieces{}));
}

TEST(Parsers, StringsArriveBeforeTheirEnd) {
  const auto tools = std::make_shared<const json::array>(
      parse_json(R"([{"type": "function", "function": {"name": "write", "parameters":
        {"type": "object", "properties": {"text": {"type": "string"}}}}}])",
                 "tools")
          .as_array());
  AnswerParser parser({.tools = ToolFormat::kQwen3Coder, .tool_list = tools});
  parser.add("<tool_call>\n<function=write>\n<parameter=text>\n");
  const OutputEvents events = parser.add("first line \"quoted\"\nsecond");
  ASSERT_EQ(events.size(), 1u);
  EXPECT_EQ(events[0].kind, OutputEvent::Kind::kArguments);
  EXPECT_EQ(events[0].text, "\"first line \\\"quoted\\\"\\nsecond");
}

// `every` bytes at a time, as "name(arguments)…" in the order of the events, content as it is.
std::string told(std::string_view text, size_t every) {
  AnswerParser parser({.tools = ToolFormat::kHermes});
  std::string out;
  const auto take = [&](const OutputEvents& events) {
    for (const OutputEvent& event : events) {
      out += event.text;
      if (event.kind == OutputEvent::Kind::kToolCallBegin) out += '(';
      if (event.kind == OutputEvent::Kind::kToolCallEnd) out += ')';
    }
  };
  for (size_t at = 0; at < text.size(); at += every) take(parser.add(text.substr(at, every)));
  take(parser.finish());
  return out;
}

TEST(Parsers, JsonArgumentsArriveWhileTheyAreWritten) {
  AnswerParser parser({.tools = ToolFormat::kHermes});
  const auto arguments = [&](std::string_view text) {
    std::string out;
    for (const OutputEvent& event : parser.add(text))
      if (event.kind == OutputEvent::Kind::kArguments) out += event.text;
    return out;
  };
  EXPECT_EQ(arguments("<tool_call>\n{\"name\": \"write\", \"arguments\": "), "");
  EXPECT_EQ(arguments("{"), "{");
  EXPECT_EQ(arguments("\"text\" "), "");  // a key is held back until its value begins
  EXPECT_EQ(arguments(": \"one"), "\"text\" : \"one");
  EXPECT_EQ(arguments(" two\\"), " two");
  EXPECT_EQ(arguments("n\\ud83d"), "\\n");
  EXPECT_EQ(arguments("\\udc4d\", \"n\": -1"), "\\ud83d\\udc4d\"");
  EXPECT_EQ(arguments("2.5"), "");  // 2.5e3 might come
  EXPECT_EQ(arguments(" "), ", \"n\": -12.5");
  EXPECT_EQ(arguments(", \"list\": [[ ], tru"), " , \"list\": [[ ]");
}

TEST(Parsers, BrokenJsonCalls) {
  const std::string begin = "<tool_call>\n{\"name\": \"f\", \"arguments\": ", end = "\n</tool_call>";
  const std::pair<std::string, std::string> cases[] = {
      // As they are written.
      {begin + "{ \"x\" : [ 1.50 , 2 ] ,\n\"y\":{} } }" + end, "f({ \"x\" : [ 1.50 , 2 ] ,\n\"y\":{} })"},
      {begin + "{\"x\": 12345678901234567890123}}" + end, "f({\"x\": 12345678901234567890123})"},
      // The text breaks off.
      {begin + "{", "f({})"},
      {begin + "{\"x", "f({})\"x"},
      {begin + "{\"x\": ", "f({})\"x\": "},
      {begin + "{\"x\": \"ab", "f({\"x\": \"ab\"})"},
      {begin + "{\"x\": \"ab\\u00", "f({\"x\": \"ab\"})\\u00"},
      {begin + "{\"x\": [1, {\"y\": tru", "f({\"x\": [1, {}]})\"y\": tru"},
      {begin + "{\"x\": 1}", "f({\"x\": 1})"},
      {begin + "{\"x\": 1} }\n</tool", "f({\"x\": 1})</tool"},
      // No JSON.
      {begin + "{\"x\": nope}}" + end + " so", "f({})\"x\": nope}}" + end + " so"},
      {begin + "{\"x\": 1, 'y': 2}}" + end, "f({\"x\": 1}), 'y': 2}}" + end},
      {begin + "{\"x\": [1}}" + end, "f({\"x\": [1]})}}" + end},
      {begin + "{\"x\": 01}}" + end, "f({})\"x\": 01}}" + end},
      // Mended.
      {begin + "{\"x\": \"a\n\tb\"}}" + end, "f({\"x\": \"a\\u000a\\u0009b\"})"},
      {begin + "{\"x\": \"\\d+\\.\\u12\\ud83d!\"}}" + end, "f({\"x\": \"\\\\d+\\\\.\\\\u12\\\\ud83d!\"})"},
      {begin + "{\"a\nb\": 1}}" + end, "f({\"a\\u000ab\": 1})"},
      {begin + "{\"a\nb", "f({})\"a\nb"},
      {begin + "{\"x\": 1}" + end + "x", "f({\"x\": 1})x"},
      {begin + "{\"x\": 1}}}" + end + "x", "f({\"x\": 1})x"},
      // Other members.
      {begin + "{}, \"id\": {\"a\": \"}\"}}" + end + "x", "f({})x"},
      {begin + "{}, \"id\": 5", "f({}), \"id\": 5"},
      {begin + "{}} Then <tool_call>\n{\"name\": \"g\"}" + end, "f({})Then g({})"},
      {begin + "5, \"arguments\": {\"x\": 1}}" + end, "f({\"x\": 1})"},
      {"<tool_call>{\"name\": \"f\", \"x\": {\"arguments\": {}}, \"arguments\": {\"y\": {}}}</tool_call>",
       "f({\"y\": {}})"},
  };
  for (const auto& [text, wanted] : cases)
    for (const size_t every : {text.size(), size_t{1}, size_t{2}, size_t{7}})
      EXPECT_EQ(told(text, every), wanted) << every;
}

// Whatever a call of any depth is cut to, its arguments can be read.
TEST(Parsers, DeepArguments) {
  for (const int depth : {255, 256, 257, 100'000}) {
    const std::string text = "<tool_call>{\"name\": \"f\", \"arguments\": {\"x\": " + std::string(depth, '[') +
                             std::string(depth, ']') + "}}</tool_call>";
    AnswerParser parser({.tools = ToolFormat::kHermes});
    ParsedAnswer answer;
    answer.add(parser.add(text));
    answer.add(parser.finish());
    ASSERT_EQ(answer.tool_calls.size(), 1u);
    EXPECT_EQ(answer.content.empty(), depth <= 255);
    boost::system::error_code failed;
    json::parse(answer.tool_calls[0].arguments, failed, {}, {.max_depth = 256});
    EXPECT_FALSE(failed) << depth;
  }
}

TEST(Parsers, OneCallUnlessParallel) {
  const std::string text =
      "<tool_call>\n{\"name\": \"a\", \"arguments\": {}}\n</tool_call>\n<tool_call>\n{\"name\": \"b\", \"arguments\": "
      "{}}\n</tool_call>";
  for (const bool parallel : {true, false}) {
    AnswerParser parser({.tools = ToolFormat::kHermes, .parallel_tool_calls = parallel});
    ParsedAnswer answer;
    answer.add(parser.add(text));
    answer.add(parser.finish());
    EXPECT_EQ(answer.tool_calls.size(), parallel ? 2u : 1u);
    EXPECT_EQ(answer.content, "");
  }
}

TEST(Parsers, WithoutToolsCallsAreText) {
  AnswerParser parser({.reasoning = ReasoningFormat::kDeepSeekR1, .thinking = true});
  ParsedAnswer answer;
  answer.add(parser.add("a</think><tool_call>\n<function=f>\n</function>\n</tool_call>"));
  answer.add(parser.finish());
  EXPECT_EQ(answer.reasoning, "a");
  EXPECT_EQ(answer.content, "<tool_call>\n<function=f>\n</function>\n</tool_call>");
}

TEST(Parsers, ChosenByNameAndByTemplate) {
  EXPECT_EQ(tool_format("qwen3_xml"), ToolFormat::kQwen3Coder);
  EXPECT_EQ(tool_format("hermes"), ToolFormat::kHermes);
  EXPECT_EQ(tool_format("mistral"), std::nullopt);
  EXPECT_EQ(reasoning_format("deepseek_r1"), ReasoningFormat::kDeepSeekR1);
  EXPECT_EQ(reasoning_format("granite"), std::nullopt);
  const std::string qwen = "<tool_call>\\n<function=name>\\n<parameter= </think>",
                    ling = "<tool_call> {\"name\": </think>";
  EXPECT_EQ(tool_format_of_template(qwen), ToolFormat::kQwen3Coder);
  EXPECT_EQ(reasoning_format_of_template(qwen), ReasoningFormat::kQwen3);
  EXPECT_EQ(tool_format_of_template(ling), ToolFormat::kHermes);
  EXPECT_EQ(reasoning_format_of_template(ling), ReasoningFormat::kDeepSeekR1);
  EXPECT_EQ(tool_format_of_template("{{ messages }}"), ToolFormat::kNone);
  EXPECT_EQ(reasoning_format_of_template("{{ messages }}"), ReasoningFormat::kNone);
}

TEST(Parsers, ToolCallIds) {
  EXPECT_EQ(tool_call_id(1, 0).size(), 29u);
  EXPECT_EQ(tool_call_id(1, 0), tool_call_id(1, 0));
  EXPECT_NE(tool_call_id(1, 0), tool_call_id(1, 1));
  EXPECT_NE(tool_call_id(1, 0), tool_call_id(2, 0));
}

TEST(Parsers, PythonLiterals) {
  const auto literal = [](std::string_view text) {
    const auto value = parse_python_literal(text);
    return value ? to_json(*value) : "none";
  };
  EXPECT_EQ(literal("{'a': [1, 2.5, (True, None)], \"b\": 'x\\'y\\n\\u00e9',}"),
            R"({"a":[1,2.5,[true,null]],"b":"x'y\né"})");
  EXPECT_EQ(literal("(1)"), "1");
  EXPECT_EQ(literal("(1,)"), "[1]");
  EXPECT_EQ(literal(" -5 "), "-5");
  for (const char* broken : {"", "{", "[1", "{1: 2}", "'a", "Truex", "1 2", "nothing", "{'a' 1}"})
    EXPECT_EQ(literal(broken), "none") << broken;
  EXPECT_EQ(literal(std::string(100'000, '[')), "none");
}

}  // namespace
}  // namespace calandra
