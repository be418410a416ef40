// Ends of compiling: forms that are hard are stopped, give back what they took, and keep nobody from the others. Row C1
// of the acceptance table, with the vocabulary of a large model where ../shared has one.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <random>
#include <thread>

#include "structured/grammar_compiler.h"
#include "structured/work_budget.h"
#include "text/tokenizer.h"

namespace calandra {
namespace {

const std::atomic<bool> kNever = false;

// A call of it, which the compiler may not leave out.
void allocate_once() { ::operator delete(::operator new(100)); }

std::optional<WorkBudget::Bound> bound_of_a_loop(const WorkBudget::Limits& limits, const std::atomic<bool>& stop,
                                                 bool keeps) {
  std::vector<void*> kept(10 << 20);  // more than any of the bounds
  size_t count = 0;
  WorkBudget budget(limits, stop);
  bool goes_on_throwing = false;
  try {
    for (; count < kept.size(); ++count) {
      allocate_once();
      if (keeps) kept[count] = ::operator new(100);
    }
  } catch (const WorkIsOver&) {
    try {
      allocate_once();
    } catch (const WorkIsOver&) {
      goes_on_throwing = true;
    }
  }
  const auto over = budget.end();
  EXPECT_TRUE(goes_on_throwing);
  EXPECT_NO_THROW(allocate_once());
  EXPECT_LE(budget.most_bytes(), keeps ? limits.bytes + 100 : 1000);
  for (void* one : kept) ::operator delete(one);
  return over;
}

TEST(WorkBudget, EndsWhatItsThreadDoes) {
  using Bound = WorkBudget::Bound;
  EXPECT_EQ(bound_of_a_loop({.bytes = 1 << 20}, kNever, true), Bound::kBytes);
  EXPECT_EQ(bound_of_a_loop({.bytes = 1 << 20, .allocations = 100'000}, kNever, false), Bound::kAllocations);
  EXPECT_EQ(bound_of_a_loop({.time = std::chrono::milliseconds(20)}, kNever, false), Bound::kTime);
  const std::atomic<bool> stopped = true;
  EXPECT_EQ(bound_of_a_loop({}, stopped, false), Bound::kStop);
  std::atomic<bool> counts = false, tried = false;
  std::thread other([&] {
    const WorkBudget budget({.allocations = 0}, kNever);
    counts = true;
    while (!tried) std::this_thread::yield();
  });
  while (!counts) std::this_thread::yield();
  EXPECT_NO_THROW(allocate_once());  // what another thread's budget does not count
  tried = true;
  other.join();
}

// Each byte, and an end.
std::vector<std::string> bytes() {
  std::vector<std::string> pieces(257);
  for (int byte = 0; byte < 256; ++byte) pieces[byte] = static_cast<char>(byte);
  return pieces;
}
constexpr int32_t kEnd = 256;

// Words of letters of several alphabets, as many as a large model has.
std::vector<std::string> large_vocabulary() {
  constexpr const char* kLetters[] = {"a", "e", "n", "t", "s", " ",  "0",  "1",  "\"",
                                      ",", ":", "}", "é", "ж", "中", "文", "語", "\n"};
  std::vector<std::string> pieces = bytes();
  std::mt19937 random(11);
  while (pieces.size() < 200'000) {
    std::string word;
    for (size_t letters = 1 + random() % 9; letters > 0; --letters) word += kLetters[random() % std::size(kLetters)];
    pieces.push_back(std::move(word));
  }
  return pieces;
}

OutputForm schema(std::string_view text) { return OutputForm::json_schema(parse_json(text, "schema"), true); }

// Within every limit of forms, and more work than a test has time for: with a large vocabulary minutes.
OutputForm hard_form(int which) {
  std::string text = R"({"type": "object", "properties": {"a": {"type": "null"})";
  for (int i = 0; i < 300; ++i)
    text += fmt::format(R"(, "p{}": {{"type": "string", "pattern": "^[^a{}é]{{0,{}}}$"}})", i, i % 10,
                        33 + (i + which) % 30);
  return schema(text + "}}");
}

GrammarCompiler::Limits patient(GrammarCompiler::Limits limits = {}) {
  limits.patience = std::chrono::minutes(10);
  return limits;
}

std::string refusal(const GrammarCompiler::Compiled& compiled) { return compiled.error ? compiled.error->message : ""; }

TEST(CompileLimits, AnyAllocationMayBeTheLast) {
  const OutputForm forms[] = {
      {.kind = OutputForm::Kind::kJsonObject},
      schema(R"({"type": "object", "properties": {"a": {"type": "string", "maxLength": 40}, "b": {"type": "array",
                 "items": {"$ref": "#/$defs/c"}}}, "required": ["a"], "$defs": {"c": {"enum": [1, "x", null]}}})"),
      schema(
          R"({"anyOf": [{"type": "integer", "minimum": 3, "maximum": 4000}, {"type": "number"}, {"format": "date"}]})"),
      schema(R"({"oneOf": [{"type": "object", "properties": {"k": {"const": "a"}}}, {"type": "object"}]})"),  // warns
      schema(R"({"type": "no type"})"),
      schema(R"({"type": "string", "pattern": "^(a|b{2,300}c)*é?$"})"),
      OutputForm::regex("(ab|[^c]{40,200})*x"),
      OutputForm::regex("(a"),
      OutputForm::choice({"yes", "no"}),
      {.kind = OutputForm::Kind::kEbnf, .text = "root ::= a (\"x\" | root) \"y\"*\na ::= [0-9]{1,50} | \"\""},
      {.kind = OutputForm::Kind::kEbnf, .text = "root ::= \"a"},
      {.kind = OutputForm::Kind::kStructuralTag,
       .text =
           R"({"type": "structural_tag", "format": {"type": "triggered_tags", "triggers": ["<c>"], "tags": [{"type": "tag",
                   "begin": "<c>", "content": {"type": "json_schema", "json_schema": {"type": "boolean"}}, "end": "</c>"}]}})"},
      {.kind = OutputForm::Kind::kStructuralTag, .text = R"({"type": "structural_tag", "format": {"type": "what"}})"}};
  int stopped = 0, gone_through = 0;
  for (const OutputForm& form : forms) {
    const std::string whole = refusal(GrammarCompiler(bytes(), {kEnd}, patient()).compile(form));
    // One by one at first, then in steps that meet every kind of place.
    for (int64_t last = 1;; last += 1 + last / 20) {
      GrammarCompiler compiler(bytes(), {kEnd}, patient({.work = {.allocations = last}}));
      const std::string why = refusal(compiler.compile(form));
      if (why.find("too many steps") == std::string::npos) {
        EXPECT_EQ(why, whole);
        break;
      }
      ++stopped;
    }
    ++gone_through;
  }
  std::printf("%d forms, stopped at %d allocations\n", gone_through, stopped);
  EXPECT_GT(stopped, 1000);
}

TEST(CompileLimits, WhatIsHardIsStoppedAndGivenBack) {
  const std::vector<std::string> vocabulary = large_vocabulary();
  {
    GrammarCompiler compiler(vocabulary, {kEnd}, patient({.work = {.time = std::chrono::milliseconds(300)}}));
    for (int which = 0; which < 3; ++which)
      EXPECT_NE(refusal(compiler.compile(hard_form(which))).find("takes too long"), std::string::npos);
    EXPECT_EQ(compiler.stats().hard, 3);
    EXPECT_LT(compiler.stats().bytes, 200'000);  // their texts
    EXPECT_NE(refusal(compiler.compile(hard_form(0))).find("takes too long"), std::string::npos);
    EXPECT_EQ(compiler.stats().found, 1);  // its refusal
  }
  GrammarCompiler compiler(vocabulary, {kEnd}, patient({.work = {.bytes = 2 << 20}, .short_work = {}}));
  EXPECT_NE(refusal(compiler.compile(hard_form(0))).find("takes too much memory"), std::string::npos);
  EXPECT_EQ(refusal(compiler.compile(OutputForm::choice({"a", "b"}))), "");
}

TEST(CompileLimits, HardFormsKeepNobodyFromTheOthers) {
  GrammarCompiler compiler(large_vocabulary(), {kEnd},
                           {.work = {.time = std::chrono::hours(1)},
                            .short_work = {.allocations = 20'000},
                            .patience = std::chrono::minutes(10)});
  std::vector<std::thread> waiting;
  std::atomic<int> ended = 0;
  for (int which = 0; which < 4; ++which)
    waiting.emplace_back([&compiler, &ended, which] {
      EXPECT_NE(refusal(compiler.compile(hard_form(which))).find("was stopped"), std::string::npos);
      ++ended;
    });
  for (int i = 0; i < 20; ++i) EXPECT_EQ(refusal(compiler.compile(OutputForm::choice({"a", std::to_string(i)}))), "");
  while (compiler.stats().hard < 4) std::this_thread::yield();
  EXPECT_EQ(refusal(compiler.compile(OutputForm::choice({"a", "b"}))), "");
  EXPECT_EQ(ended, 0);
  compiler.stop();
  for (std::thread& thread : waiting) thread.join();
  EXPECT_NE(refusal(compiler.compile(OutputForm::choice({"a", "c"}))).find("was stopped"), std::string::npos);
}

TEST(CompileLimits, WhoHasWaitedForLongIsToldToComeAgain) {
  GrammarCompiler compiler(large_vocabulary(), {kEnd},
                           {.work = {.time = std::chrono::hours(1)}, .patience = std::chrono::seconds(0)});
  for (int which = 0; which < 20; ++which) {
    const GrammarCompiler::Compiled compiled = compiler.compile(hard_form(which));
    ASSERT_TRUE(compiled.error);
    EXPECT_EQ(compiled.error->status, 503);
  }
  EXPECT_LE(compiler.stats().hard, 1);  // what nobody waits for is not gone on with
}

// One that takes too long ends its own answer, wherever it is stopped, and leaves nothing behind in others.
TEST(CompileLimits, MasksEndByTheirAllocations) {
  const OutputForm forms[] = {
      {.kind = OutputForm::Kind::kJsonObject},
      schema(R"({"type": "object", "properties": {"a": {"type": "string", "pattern": "^([a-z]{1,3}){0,300}$"}}})"),
      OutputForm::regex("([a-z]{1,3}){0,3000}"),
      {.kind = OutputForm::Kind::kEbnf, .text = "root ::= root root | [a-z{\"]"}};
  std::vector<std::string> vocabulary = large_vocabulary();
  vocabulary.resize(4'000);
  int stopped = 0, whole = 0, stopped_drafts = 0;
  for (const OutputForm& form : forms) {
    GrammarCompiler free(vocabulary, {kEnd}, patient({.mask_allocations = int64_t{1} << 40}));
    const auto right = free.compile(form);
    ASSERT_FALSE(right.error) << right.error->message;
    const auto is_stopped = [&](int64_t most) {
      GrammarCompiler compiler(vocabulary, {kEnd}, patient({.mask_allocations = most}));
      const auto compiled = compiler.compile(form);
      if (compiled.error) return true;
      const auto known = right.grammar->clone(), tried = compiled.grammar->clone();
      std::mt19937 random(5);
      for (int step = 0; step < 6 && !known->finished(); ++step) {
        std::vector<uint32_t> expected(vocabulary.size() / 32 + 1), words(expected.size());
        known->mask({}, expected);
        EXPECT_TRUE(tried->mask({}, words));
        if (!tried->fault().empty()) {
          EXPECT_EQ(words, std::vector<uint32_t>(words.size()));
          const auto fork = tried->clone();
          fork->accept('a');
          EXPECT_TRUE(fork->mask({}, words) && !fork->fault().empty() && !fork->finished());
          return true;
        }
        EXPECT_EQ(words, expected);
        std::vector<int32_t> allowed;
        for (int32_t id = 0; id < kEnd; ++id)
          if ((words[id / 32] >> (id % 32) & 1) != 0 && id > ' ') allowed.push_back(id);
        if (allowed.empty()) break;
        const int32_t token = allowed[random() % allowed.size()];
        // A place that drafts lead to may be stopped, too; what was accepted stays.
        std::vector<uint32_t> drafted(words.size()), right_there(words.size()), again(words.size());
        EXPECT_TRUE(tried->mask({{token}}, drafted));
        EXPECT_TRUE(tried->fault().empty());
        known->mask({{token}}, right_there);
        if (drafted != right_there) {
          EXPECT_EQ(drafted, std::vector<uint32_t>(words.size()));
          ++stopped_drafts;
          std::vector<uint32_t> behind(words.size());
          EXPECT_FALSE(tried->mask({{token, token}}, behind));  // where no token is left none leads on
          const auto ahead = tried->clone(), aside = tried->clone();
          ahead->accept(token);
          EXPECT_FALSE(ahead->fault().empty());
          aside->accept(allowed.front() == token ? allowed.back() : allowed.front());
          EXPECT_EQ(aside->fault().empty(), allowed.size() > 1);
        }
        EXPECT_TRUE(tried->mask({}, again));
        if (!tried->fault().empty()) return true;  // what it had allocated before it has to allocate again
        EXPECT_EQ(again, expected);
        known->accept(token);
        tried->accept(token);
      }
      return false;
    };
    for (int64_t most = 1; most < 3'000'000; most += 1 + most / 2) ++(is_stopped(most) ? stopped : whole);
  }
  std::printf("masks were stopped at %d of %d limits\n", stopped, stopped + whole);
  EXPECT_GT(stopped, 40);
  EXPECT_GT(whole, 20);
  EXPECT_GT(stopped_drafts, 3);
}

std::filesystem::path large_tokenizer() {
  return std::filesystem::path(CALANDRA_SOURCE_DIR).parent_path() / "shared/data/tokenizers/qwen3_5";
}

// Lengths that schemas of tools have, all in one: they have most of what they cost in common. Three million
// allocations; one hundred and forty without what the patch of xgrammar keeps of one for the next.
TEST(CompileLimits, BoundedStringsOfALargeVocabularyAreTaken) {
  if (!std::filesystem::exists(large_tokenizer())) GTEST_SKIP() << "no tokenizer in ../shared/data";
  GrammarCompiler compiler(grammar_vocabulary(Tokenizer::load(large_tokenizer())), {248046},
                           patient({.work = {.allocations = 10'000'000}}));
  std::string text = R"({"type": "object", "properties": {"a": {"type": "null"})";
  for (const int most : {10, 20, 40, 64, 100, 128, 255, 256, 500, 1000, 2000, 4000, 8192, 10'000})
    text += fmt::format(R"(, "p{}": {{"type": "string", "maxLength": {}}})", most, most);
  EXPECT_EQ(refusal(compiler.compile(schema(text + "}}"))), "");
}

}  // namespace
}  // namespace calandra
