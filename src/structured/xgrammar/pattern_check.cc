#include "structured/xgrammar/pattern_check.h"

#include <grammar_functor.h>  // of xgrammar's inside

#include <algorithm>
#include <unordered_set>
#include <utility>

namespace calandra {

std::string fault_of_json_string_pattern(const std::string& pattern) {
  auto built = xgrammar::GrammarFSMBuilder::Regex(pattern, /*json_string=*/true);
  if (built.IsErr()) return std::move(built).UnwrapErr().what();
  const auto automaton = std::move(built).Unwrap();
  std::unordered_set<int> reached;
  automaton.GetReachableStates(&reached);
  const bool ends = std::any_of(reached.begin(), reached.end(), [&](int state) { return automaton.IsEndState(state); });
  return ends ? "" : "only texts with quotes, backslashes or control characters match it";
}

}  // namespace calandra
