// Flags that scripts for vLLM, SGLang and llama.cpp carry along and that are none of ours: what each means here.
#pragma once

#include <span>
#include <string>
#include <string_view>

namespace calandra::apps {

struct ForeignFlag {
  enum class Kind {
    kAlias,   // another name of the flag `means`
    kModel,   // its value is MODEL
    kAlways,  // asks for what is always so; without a value
    kOnly,    // asks for what is always so with one of the values `means`, "a|b"
    kMissing  // is not there
  };
  std::string_view names;  // "--one --other -o"
  Kind kind;
  std::string_view means = {};
  std::string_view why = {};  // other values are refused, or what there is instead; for the user
};

std::span<const ForeignFlag> foreign_flags();
// Null when nobody has it. `flag` with its dashes.
const ForeignFlag* find_foreign_flag(std::string_view flag);

// For a flag of kOnly. Throws UsageError.
void check_only_value(const ForeignFlag& foreign, const std::string& flag, std::string_view value);
// Throws UsageError, which says what there is instead.
[[noreturn]] void refuse_missing(const ForeignFlag& foreign, const std::string& flag);

}  // namespace calandra::apps
