// Compiling while the machine has no memory. The program has an operator new of its own, which fails when it is told
// to.
#include <gtest/gtest.h>

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <new>
#include <optional>

#include "structured/grammar_compiler.h"

namespace {

thread_local bool is_tests_own = false;   // what the test itself allocates never fails
std::atomic<int64_t> until_failure = -1;  // allocations; negative: none fails
std::atomic<bool> goes_on_failing = false, has_failed = false;

void* allocate(size_t bytes) {
  if (!is_tests_own && until_failure >= 0 && until_failure.fetch_sub(1) == 0) {
    has_failed = true;
    if (goes_on_failing) until_failure = 0;
    throw std::bad_alloc();
  }
  if (void* allocated = std::malloc(bytes == 0 ? 1 : bytes)) return allocated;
  throw std::bad_alloc();
}

}  // namespace

void* operator new(size_t bytes) { return allocate(bytes); }
void* operator new[](size_t bytes) { return allocate(bytes); }
void operator delete(void* allocated) noexcept { std::free(allocated); }
void operator delete[](void* allocated) noexcept { std::free(allocated); }
void operator delete(void* allocated, size_t) noexcept { std::free(allocated); }
void operator delete[](void* allocated, size_t) noexcept { std::free(allocated); }

namespace calandra {
namespace {

// Whoever asks included: bad_alloc is theirs.
TEST(NoMemory, IsNoRefusalOfAForm) {
  is_tests_own = true;
  std::vector<std::string> bytes(257);
  for (int byte = 0; byte < 256; ++byte) bytes[byte] = static_cast<char>(byte);
  struct Row {
    OutputForm form;
    std::string_view why;  // it is refused
  };
  const OutputForm object = OutputForm::json_schema(
      parse_json(
          R"({"type": "object", "properties": {"a": {"type": "string", "maxLength": 40}, "c": {"pattern": "^a"},
                     "b": {"enum": [1, "x"]}}})",
          "schema"),
      true);
  const Row rows[] = {{object, ""},
                      {OutputForm::regex("(ab|[^c]{40,200})*x"), ""},
                      {OutputForm::choice({"yes", "no"}), ""},
                      {OutputForm::regex("(a"), "cannot be used"},
                      {{.kind = OutputForm::Kind::kEbnf, .text = "root ::= root"}, "no text has it"}};
  int failed = 0;
  for (const bool goes_on : {true, false})
    for (const Row& row : rows)
      for (int64_t at = 0;; at += 1 + at / 20) {
        GrammarCompiler compiler(bytes, {256});
        const auto is_usual = [&](const GrammarCompiler::Compiled& compiled) {
          return row.why.empty() ? !compiled.error
                                 : compiled.error && compiled.error->message.find(row.why) != std::string::npos;
        };
        goes_on_failing = goes_on;
        has_failed = false;
        std::optional<GrammarCompiler::Compiled> first;
        until_failure = at;
        try {
          is_tests_own = false;
          first = compiler.compile(row.form);
        } catch (const std::bad_alloc&) {
        }
        is_tests_own = true;
        until_failure = -1;
        ASSERT_TRUE(first || has_failed);
        if (first && (!first->error || first->error->status != 503)) {
          EXPECT_TRUE(is_usual(*first)) << row.form.text << " at " << at << ": " << first->error->message;
        }
        const GrammarCompiler::Compiled again = compiler.compile(row.form);
        EXPECT_TRUE(is_usual(again)) << row.form.text << " at " << at << ": " << again.error->message;
        if (!has_failed) break;
        ++failed;
      }
  std::printf("failed at %d allocations\n", failed);
  EXPECT_GT(failed, 100);
}

}  // namespace
}  // namespace calandra
