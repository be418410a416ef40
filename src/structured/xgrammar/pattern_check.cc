#include "structured/xgrammar/pattern_check.h"

#include <grammar_functor.h>  // of xgrammar's inside

#include <algorithm>
#include <unordered_set>
#include <utility>

namespace calandra {

bool keeps_pattern_of_json_string(const std::string& pattern) {
  auto built = xgrammar::GrammarFSMBuilder::Regex(pattern, /*json_string=*/true);
  if (built.IsErr()) return false;
  const auto automaton = std::move(built).Unwrap();
  std::unordered_set<int> reached;
  automaton.GetReachableStates(&reached);
  return std::any_of(reached.begin(), reached.end(), [&](int state) { return automaton.IsEndState(state); });
}

}  // namespace calandra
