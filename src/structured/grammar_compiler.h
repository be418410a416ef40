// GrammarCompiler: output forms to grammars that the engine's choices follow.
//
// Grammars are compiled on a thread of the compiler, one at a time, and kept up to a number of bytes. Callers wait
// there, never the engine.
#pragma once

#include <chrono>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/error.h"
#include "engine/grammar.h"
#include "structured/output_form.h"

namespace calandra {

class Tokenizer;

class GrammarCompiler {
 public:
  struct Limits {
    int64_t cache_bytes = int64_t{256} << 20;
    std::chrono::milliseconds patience{10'000};  // for one grammar; then it is refused, and kept if it comes later
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
  // the form holds from the first token on. Safe from several threads at once.
  Compiled compile(const OutputForm& form, std::vector<int32_t> thinking_end = {});

  struct Stats {
    int64_t compiled = 0, found = 0, bytes = 0;
  };
  Stats stats() const;

 private:
  class Worker;
  std::unique_ptr<Worker> worker_;
};

// What GrammarCompiler takes of a tokenizer: special tokens are never part of a text.
std::vector<std::string> grammar_vocabulary(const Tokenizer& tokenizer);

}  // namespace calandra
