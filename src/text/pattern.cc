#include "text/pattern.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "base/check.h"
#include "base/error.h"
#include "text/pattern_unicode.h"
#include "text/utf8.h"

namespace calandra {
namespace {

constexpr size_t kMaxExpression = 64 << 10;
constexpr uint32_t kMatchSteps = 1'000'000;  // plus a share for each byte of text
constexpr size_t kStepsPerByte = 64;
constexpr size_t kJitStackStart = 32 << 10, kJitStackMax = 8 << 20;

// What a match needs and the pattern cannot hold, since patterns are shared between threads.
struct Scratch {
  Scratch()
      : match(pcre2_match_data_create(1, nullptr)),
        context(pcre2_match_context_create(nullptr)),
        stack(pcre2_jit_stack_create(kJitStackStart, kJitStackMax, nullptr)) {
    CHECK(match != nullptr && context != nullptr);
    if (stack != nullptr) pcre2_jit_stack_assign(context, nullptr, stack);
  }
  ~Scratch() {
    pcre2_jit_stack_free(stack);
    pcre2_match_context_free(context);
    pcre2_match_data_free(match);
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  pcre2_match_data* match;
  pcre2_match_context* context;
  pcre2_jit_stack* stack;
};

std::string error_text(int error) {
  unsigned char buffer[256] = {};
  pcre2_get_error_message(error, buffer, sizeof buffer);
  return reinterpret_cast<const char*>(buffer);
}

}  // namespace

Pattern::Pattern(std::string_view expression, uint32_t options, const std::string& where) {
  if (expression.empty() || expression.size() > kMaxExpression)
    throw LoadError(where + ": a pattern has 1 to " + std::to_string(kMaxExpression) + " bytes, found " +
                    std::to_string(expression.size()));
  const std::unique_ptr<pcre2_compile_context, decltype(&pcre2_compile_context_free)> context(
      pcre2_compile_context_create(nullptr), &pcre2_compile_context_free);
  CHECK(context != nullptr);
  pcre2_set_newline(context.get(), PCRE2_NEWLINE_LF);  // "." stops at LF only
  int error = 0;
  size_t offset = 0;
  pcre2_code* code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(expression.data()), expression.size(),
                                   PCRE2_UTF | options, &error, &offset, context.get());
  if (code == nullptr)
    throw LoadError(where + ": the pattern does not compile at byte " + std::to_string(offset) + ": " +
                    error_text(error));
  code_ = std::shared_ptr<const void>(
      code, [](const void* p) { pcre2_code_free(static_cast<pcre2_code*>(const_cast<void*>(p))); });
  pcre2_jit_compile(code, PCRE2_JIT_COMPLETE);  // where it fails, the interpreter matches
}

Pattern Pattern::regex(std::string_view expression, const std::string& where) {
  return Pattern(to_pcre2(expression, where), PCRE2_UCP, where);
}

Pattern Pattern::literal(std::string_view text, const std::string& where) {
  return Pattern(text, PCRE2_LITERAL, where);
}

Pattern Pattern::word_character() {
  return Pattern("[\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}\\x{200C}\\x{200D}]", PCRE2_UCP, "word character");
}

void Pattern::find_all(std::string_view text, std::vector<TextSpan>& matches, size_t most) const {
  thread_local Scratch scratch;
  matches.clear();
  size_t filled = 0;
  std::string buffer;
  const std::string_view subject = with_stand_ins(text, buffer);
  const auto* code = static_cast<const pcre2_code*>(code_.get());
  pcre2_set_match_limit(scratch.context,
                        static_cast<uint32_t>(std::min<size_t>(kMatchSteps + kStepsPerByte * text.size(), UINT32_MAX)));
  const size_t* found = pcre2_get_ovector_pointer(scratch.match);
  for (size_t at = 0; at <= subject.size();) {
    const auto match = [&](uint32_t options) {
      return pcre2_match(code, reinterpret_cast<PCRE2_SPTR>(subject.data()), subject.size(), at,
                         PCRE2_NO_UTF_CHECK | options, scratch.match, scratch.context);
    };
    int result = match(0);
    if (result == PCRE2_ERROR_JIT_STACKLIMIT) result = match(PCRE2_NO_JIT);
    if (result == PCRE2_ERROR_NOMATCH) return;
    if (result < 0) throw UsageError("the text cannot be split into words: " + error_text(result));
    const TextSpan span{found[0], found[1]};
    const bool empty = span.begin == span.end;
    if (empty && !matches.empty() && matches.back().end == span.end) {
      at = span.end < subject.size() ? span.end + next_utf8(subject, span.end).length : span.end + 1;
      continue;
    }
    matches.push_back(span);
    if (!empty && ++filled > most) return;
    at = span.end;
  }
}

}  // namespace calandra
