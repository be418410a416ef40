// Grammar: what structured output asks of a choice. One object belongs to one choice and follows its outputs.
//
// The engine calls accept() once for each token that it emits, in their order, and mask() for rows to sample. Tokens
// that were emitted stay accepted: preemption and resuming do not touch a grammar.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string_view>

namespace calandra {

class Grammar {
 public:
  virtual ~Grammar() = default;

  // What may follow the accepted tokens and, behind them, `drafts`: sets bit id % 32 of words[id / 32] for each allowed
  // id. `words` come zeroed and cover the columns of the logits, which may be more than the tokenizer has ids. Where
  // the text may end, the end-of-text ids are among the allowed ones; where it must, they alone are. Returns false when
  // one of the drafts is not allowed at its place, one behind an end-of-text id among them: a row with this prefix is
  // dead and `words` mean nothing. Without drafts the answer is true. What was accepted is the same before and after.
  virtual bool mask(std::span<const int32_t> drafts, std::span<uint32_t> words) = 0;

  // The next token of the outputs, one that mask() allowed.
  virtual void accept(int32_t token) = 0;

  // Nothing but an end-of-text id may follow, or one was accepted.
  virtual bool finished() const = 0;

  // Why masks have no token from here on; empty: they have.
  virtual std::string_view fault() const { return {}; }

  // The same place of the same grammar, for a choice that goes on from here by itself.
  virtual std::unique_ptr<Grammar> clone() const = 0;
};

}  // namespace calandra
