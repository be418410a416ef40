// Any bytes as tokenizer.json. What loads must encode and decode without a crash, and ordinary text must come back if
// every byte has a token and nothing rewrites it.
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "base/error.h"
#include "base/log.h"
#include "text/detokenizer.h"
#include "text/utf8.h"

namespace calandra {
namespace {

constexpr std::string_view kTexts[] = {"Hello, world! I'll be 1234 <|end|> <think>\n\n  naïve e\u0301 中文 👍",
                                       "\xFF\xE4\xB8 aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "", "   \n \t x"};

void use(const Tokenizer& tokenizer, std::string_view text) {
  for (const bool parse_special : {true, false}) {
    std::vector<int32_t> ids;
    try {
      ids = tokenizer.encode(text, {.parse_special = parse_special, .add_special = parse_special});
    } catch (const UsageError&) {
      return;  // a pattern that backtracks without end
    }
    const std::string decoded = tokenizer.decode(ids);
    if (!is_valid_utf8(decoded)) std::abort();
    Detokenizer detokenizer(tokenizer, {.skip_special = false});
    std::string streamed;
    for (const int32_t id : ids) streamed += detokenizer.push(id);
    if (streamed + detokenizer.flush() != decoded) std::abort();
    for (const int32_t id : ids) {
      if (id < 0 || id >= tokenizer.size()) std::abort();
    }
  }
  const TextPiece pieces[] = {{"<|", false}, {std::string(text), true}, {"|><|end|>", false}};
  try {
    tokenizer.encode(pieces);
  } catch (const UsageError&) {
  }
}

}  // namespace
}  // namespace calandra

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size) {
  using namespace calandra;
  set_log_level(LogLevel::kOff);
  try {
    const Tokenizer tokenizer = Tokenizer::from_json({reinterpret_cast<const char*>(bytes), size});
    for (const std::string_view text : kTexts) use(tokenizer, text);
  } catch (const LoadError&) {
  }
  return 0;
}
