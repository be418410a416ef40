// The targets json_schema_fuzz, regex_fuzz and ebnf_fuzz: any bytes as an output form of the kind FORM; the first byte
// says whether a schema is strict. What is not refused leads an answer to its end: at each of 200 steps some token is
// allowed, and one that is allowed is taken.
#include <cstddef>
#include <cstdint>
#include <cstdlib>

#include "structured/grammar_compiler.h"

namespace {

using namespace calandra;

constexpr int kSteps = 200;

// Each byte, words that begin or end in the middle of something, and the end.
std::vector<std::string> vocabulary() {
  std::vector<std::string> tokens(256);
  for (int byte = 0; byte < 256; ++byte) tokens[byte] = std::string(1, static_cast<char>(byte));
  for (const char* word :
       {"the", "\": ", "\",\"", "{\"", "}}", "]]", "true", "null", "\xe4\xb8", "\xad\"", "12", "abc"})
    tokens.emplace_back(word);
  tokens.emplace_back();  // the end
  return tokens;
}

OutputForm form_of(uint8_t first, std::string text) {
  constexpr auto kKind = OutputForm::Kind::FORM;
  if (kKind == OutputForm::Kind::kRegex) return OutputForm::regex(text);
  return {.kind = kKind, .text = std::move(text), .strict = (first & 1) != 0};
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const std::vector<std::string> kTokens = vocabulary();
  static const auto kEnd = static_cast<int32_t>(kTokens.size()) - 1;
  if (size < 3 || size > 1024) return 0;
  GrammarCompiler compiler(kTokens, {kEnd});
  const std::string text(reinterpret_cast<const char*>(data) + 2, size - 2);
  const GrammarCompiler::Compiled compiled = compiler.compile(form_of(data[0], text));
  if (compiled.error) {
    if (compiled.error->status != 400 || compiled.error->message.empty()) std::abort();
    return 0;
  }
  const std::unique_ptr<Grammar> grammar = compiled.grammar->clone();
  uint32_t noise = data[1];
  for (int step = 0; step < kSteps && !grammar->finished(); ++step) {
    std::vector<uint32_t> words(kTokens.size() / 32 + 1);
    if (!grammar->mask({}, words)) std::abort();
    std::vector<int32_t> allowed;
    for (int32_t token = 0; token <= kEnd; ++token)
      if ((words[token / 32] >> (token % 32) & 1) != 0) allowed.push_back(token);
    if (allowed.empty()) std::abort();
    noise = noise * 1664525 + 1013904223;
    const int32_t token = allowed[(noise >> 8) % allowed.size()];
    const int32_t drafts[] = {token};
    std::fill(words.begin(), words.end(), 0);
    if (!grammar->mask(drafts, words)) std::abort();
    if (token == kEnd) break;
    grammar->accept(token);
  }
  return 0;
}
