// Incremental detokenization: text after each token, whole characters only, ended by stop strings.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "text/tokenizer.h"

namespace calandra {

// Bytes in, whole characters out; ill-formed parts become U+FFFD.
class Utf8Assembler {
 public:
  std::string push(std::string_view bytes);
  std::string flush();  // what is left, as U+FFFD

 private:
  std::string held_;  // the beginning of a character
};

// Looks for stop strings in text that comes in pieces (Knuth, Morris, Pratt: one automaton for each string).
class StopScanner {
 public:
  explicit StopScanner(std::vector<std::string> stops);

  struct Match {
    size_t stop;  // index in the list
    size_t end;   // bytes of the piece up to the end of the stop string
  };
  // Reads a piece. Returns the first match of the first string in the list that has one ending in this piece.
  std::optional<Match> push(std::string_view piece);
  // Bytes at the end of the text so far that could begin a stop string.
  size_t held() const;
  const std::string& stop(size_t index) const { return needles_[index].text; }

 private:
  struct Needle {
    std::string text;
    std::vector<size_t> border;  // [n]: longest proper beginning of text[0, n) that also ends it
    size_t matched = 0;          // bytes of `text` that the text read so far ends with
  };
  std::vector<Needle> needles_;
};

struct DetokenizerOptions {
  bool skip_special = true;
  std::vector<std::string> stop = {};       // not empty strings
  bool include_stop_str_in_output = false;  // vLLM's name
  int64_t min_tokens = 0;                   // stop strings that end in the first min_tokens tokens do not count
};

// One answer's text. Amortised constant work per byte of text; when push says stopped, later tokens are not part of the
// answer.
class Detokenizer {
 public:
  Detokenizer(const Tokenizer& tokenizer, DetokenizerOptions options);  // `tokenizer` must outlive this

  // Takes the next token; returns the text that may be sent now. Must not be called once stopped.
  std::string push(int32_t id);
  // The end of the answer: the text that was held back, unfinished characters as U+FFFD. Call once; empty once stopped.
  std::string flush();

  bool stopped() const { return stop_.has_value(); }
  const std::string& stop_reason() const { return scanner_.stop(*stop_); }  // the stop string; only if stopped
  int64_t tokens_used() const { return tokens_used_; }
  // All text that belongs to the answer so far, held back or sent.
  const std::string& text() const { return text_; }

 private:
  std::string release(size_t end);

  const Tokenizer* tokenizer_;
  DetokenizerOptions options_;
  Utf8Assembler assembler_;
  StopScanner scanner_;
  std::optional<size_t> stop_;
  int64_t tokens_used_ = 0;
  std::string text_;
  size_t sent_ = 0;
};

}  // namespace calandra
