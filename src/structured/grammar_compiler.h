// GrammarCompiler: output forms to grammars that the engine's choices follow.
//
// Grammars are compiled on threads of the compiler and kept up to a number of bytes. Callers wait there, never the
// engine. A form that is not compiled after a short time moves from one thread to the other, which takes all such: one
// after the other, and behind everything else that the machine has to do. It is stopped at its limits (WorkBudget), and
// its refusal is kept like a grammar. So forms that are hard to compile keep nobody from those that are not.
#pragma once

#include <chrono>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/error.h"
#include "engine/grammar.h"
#include "structured/output_form.h"
#include "structured/work_budget.h"

namespace calandra {

class Tokenizer;

class GrammarCompiler {
 public:
  struct Limits {
    int64_t cache_bytes = int64_t{512} << 20;  // about 36 forms of JSON with 248,077 tokens
    WorkBudget::Limits work{.time = std::chrono::seconds(5), .bytes = int64_t{256} << 20};  // of one grammar
    WorkBudget::Limits short_work{.time = std::chrono::milliseconds(250)};  // then it is one of the hard ones
    int64_t mask_allocations = 400'000;  // of one mask, about 40 ms: all that are in the batch wait for it
    std::chrono::seconds patience{60};   // of who waits for a grammar; it is kept if it comes later
  };
  // `vocabulary`: the bytes of each token, empty for those that no text may contain. The end-of-text ids end an answer.
  GrammarCompiler(const std::vector<std::string>& vocabulary, const std::vector<int32_t>& eos_token_ids, Limits limits);
  GrammarCompiler(const std::vector<std::string>& vocabulary, const std::vector<int32_t>& eos_token_ids);
  ~GrammarCompiler();

  struct Compiled {
    std::shared_ptr<const Grammar> grammar;
    std::optional<RequestError> error;
  };
  // `thinking_end`: tokens are free until these have come, for an answer that begins inside of a think block; empty:
  // the form holds from the first token on. Errors: 400, or 503 when `patience` is over or the machine has no memory,
  // which is not kept. Safe from several threads at once.
  Compiled compile(const OutputForm& form, std::vector<int32_t> thinking_end = {});
  // Ends what is being compiled; whoever waits for it, or comes later, gets an error.
  void stop();

  struct Stats {
    int64_t compiled = 0, found = 0, bytes = 0;
    int64_t hard = 0;  // that went on behind short_work, from the beginning
  };
  Stats stats() const;

 private:
  class Worker;
  std::unique_ptr<Worker> worker_;
};

// What GrammarCompiler takes of a tokenizer: special tokens are never part of a text.
std::vector<std::string> grammar_vocabulary(const Tokenizer& tokenizer);

}  // namespace calandra
