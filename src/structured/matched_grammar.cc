#include "structured/matched_grammar.h"

#include <algorithm>
#include <atomic>

#include "base/check.h"
#include "structured/work_budget.h"

namespace calandra {

MatchedGrammar::MatchedGrammar(const xgrammar::CompiledGrammar& compiled, std::vector<int32_t> thinking_end,
                               int64_t most_steps)
    : compiled_(compiled),
      matcher_(compiled),
      vocab_size_(compiled.GetTokenizerInfo().GetVocabSize()),
      most_steps_(most_steps),
      thinking_end_(std::move(thinking_end)),
      thinking_{!thinking_end_.empty()} {}

MatchedGrammar::Thinking MatchedGrammar::behind(Thinking thinking, int32_t token) const {
  // The longest beginning of the end that the outputs end with; its tokens are few.
  size_t matched = thinking.matched;
  while (matched > 0 && thinking_end_[matched] != token) {
    size_t shorter = matched - 1;
    while (shorter > 0 && !std::equal(thinking_end_.begin(), thinking_end_.begin() + shorter,
                                      thinking_end_.begin() + (matched - shorter)))
      --shorter;
    matched = shorter;
  }
  if (thinking_end_[matched] == token) ++matched;
  return {matched < thinking_end_.size(), matched < thinking_end_.size() ? matched : 0};
}

bool MatchedGrammar::is_end(int32_t token) const {
  const std::vector<int>& ends = matcher_.GetStopTokenIds();
  return std::find(ends.begin(), ends.end(), token) != ends.end();
}

// Asks the matcher only what it does not warn about.
bool MatchedGrammar::advance(int32_t token) {
  return !matcher_.IsTerminated() && token >= 0 && token < vocab_size_ && matcher_.AcceptToken(token);
}

std::string_view MatchedGrammar::fault() const {
  return too_slow_
             ? "finding the tokens that may come next takes too many steps, as of repeats that may be read in many ways"
             : "";
}

// The tokens that the matcher allows. False, with no words: it took more than most_steps and is in between places.
bool MatchedGrammar::fill(std::span<uint32_t> words) {
  static const std::atomic<bool> never = false;
  auto shape = static_cast<int64_t>(words.size());
  DLTensor tensor{words.data(), {kDLCPU, 0}, 1, xgrammar::GetBitmaskDLType(), &shape, nullptr, 0};
  WorkBudget budget({.allocations = most_steps_}, never);
  try {
    matcher_.FillNextTokenBitmask(&tensor);
  } catch (const WorkIsOver&) {
  }
  if (!budget.end()) return true;
  std::fill(words.begin(), words.end(), 0);
  return false;
}

bool MatchedGrammar::mask(std::span<const int32_t> drafts, std::span<uint32_t> words) {
  const int64_t own_words = xgrammar::GetBitmaskSize(vocab_size_);
  CHECK_LE(own_words, static_cast<int64_t>(words.size()));
  if (too_slow_) return true;
  if (!slow_drafts_.empty() && drafts.size() >= slow_drafts_.size() &&
      std::equal(slow_drafts_.begin(), slow_drafts_.end(), drafts.begin()))
    return drafts.size() == slow_drafts_.size();  // no token there, and so none behind it
  Thinking thinking = thinking_;
  bool ended = ended_;
  int taken = 0;
  bool allowed = true;
  for (const int32_t draft : drafts) {
    if (ended) {
      allowed = false;
    } else if (thinking.open) {
      ended = is_end(draft);
      if (!ended) thinking = behind(thinking, draft);
    } else if ((allowed = advance(draft))) {
      ++taken;
    }
    if (!allowed) break;
  }
  if (allowed && (ended || matcher_.IsTerminated())) {
    for (const int end : matcher_.GetStopTokenIds()) words[end / 32] |= uint32_t{1} << (end % 32);
  } else if (allowed && thinking.open) {
    std::fill(words.begin(), words.end(), ~uint32_t{0});
  } else if (allowed && !fill(words.first(own_words))) {
    // The answer ends there, if it comes to there; it may still go another way than the drafts.
    slow_drafts_.assign(drafts.begin(), drafts.end());
    too_slow_ = drafts.empty();
    if (!too_slow_) return_to_accepted();
    return true;
  } else if (allowed) {
    // Its last word may also allow ids that the tokenizer does not have.
    if (const int rest = vocab_size_ % 32; rest > 0) words[own_words - 1] &= (uint32_t{1} << rest) - 1;
  }
  if (taken > 0) matcher_.Rollback(taken);
  return allowed;
}

void MatchedGrammar::accept(int32_t token) {
  if (too_slow_ || ended_ || matcher_.IsTerminated()) return;
  if (!slow_drafts_.empty()) {
    const bool on_the_way = slow_drafts_.front() == token;
    slow_drafts_.erase(slow_drafts_.begin(), on_the_way ? slow_drafts_.begin() + 1 : slow_drafts_.end());
    too_slow_ = on_the_way && slow_drafts_.empty();
    if (too_slow_) return;
  }
  if (thinking_.open) {
    ended_ = is_end(token);
    if (!ended_) thinking_ = behind(thinking_, token);
    return;
  }
  CHECK_MSG(advance(token), "the grammar does not allow the token that was emitted");
  accepted_.push_back(token);
}

void MatchedGrammar::return_to_accepted() {
  matcher_ = xgrammar::GrammarMatcher(compiled_);
  for (const int32_t token : accepted_) CHECK(matcher_.AcceptToken(token));
}

bool MatchedGrammar::finished() const {
  if (too_slow_) return false;
  if (ended_ || matcher_.IsTerminated()) return true;
  if (thinking_.open || !matcher_.IsCompleted()) return false;
  std::vector<uint32_t> words(xgrammar::GetBitmaskSize(vocab_size_));
  clone()->mask({}, words);  // none, if that takes too many steps
  if (std::all_of(words.begin(), words.end(), [](uint32_t word) { return word == 0; })) return false;
  for (const int end : matcher_.GetStopTokenIds()) words[end / 32] &= ~(uint32_t{1} << (end % 32));
  return std::all_of(words.begin(), words.end(), [](uint32_t word) { return word == 0; });
}

std::unique_ptr<Grammar> MatchedGrammar::clone() const {
  auto copy = std::make_unique<MatchedGrammar>(*this);
  if (!too_slow_) copy->matcher_ = matcher_.Fork();
  return copy;
}

}  // namespace calandra
