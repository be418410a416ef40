// MatchedGrammar: a compiled grammar at the place that a choice has reached.
#pragma once

#include <xgrammar/matcher.h>

#include "engine/grammar.h"

#include <string_view>
#include <vector>

namespace calandra {

class MatchedGrammar : public Grammar {
 public:
  // `thinking_end`: the grammar begins behind these tokens; empty: at once. `most_steps`: allocations of one mask;
  // where it takes more, mask() allows no token, and there is a fault() once that place is reached.
  MatchedGrammar(const xgrammar::CompiledGrammar& compiled, std::vector<int32_t> thinking_end, int64_t most_steps);

  bool mask(std::span<const int32_t> drafts, std::span<uint32_t> words) override;
  void accept(int32_t token) override;
  bool finished() const override;
  std::string_view fault() const override;
  std::unique_ptr<Grammar> clone() const override;

 private:
  // How far the outputs got: inside of the reasoning, and how much of its end they end with.
  struct Thinking {
    bool open = false;
    size_t matched = 0;
  };
  bool fill(std::span<uint32_t> words);
  void return_to_accepted();
  Thinking behind(Thinking thinking, int32_t token) const;
  bool is_end(int32_t token) const;
  bool advance(int32_t token);

  xgrammar::CompiledGrammar compiled_;
  xgrammar::GrammarMatcher matcher_;
  std::vector<int32_t> accepted_;  // by the matcher
  int32_t vocab_size_;
  int64_t most_steps_;
  std::vector<int32_t> thinking_end_;
  Thinking thinking_;
  bool ended_ = false;                // an end-of-text id was accepted inside of the reasoning
  bool too_slow_ = false;             // the mask of this place took more than most_steps; the matcher is of no use
  std::vector<int32_t> slow_drafts_;  // from here to a place whose mask took more than most_steps; empty: none is known
};

}  // namespace calandra
