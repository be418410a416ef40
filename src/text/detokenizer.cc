#include "text/detokenizer.h"

#include <algorithm>

#include "base/check.h"
#include "text/utf8.h"

namespace calandra {
namespace {

// Two bytes of three that would be a surrogate. They are ill-formed, but Python's incremental decoder, which made the
// expected results, waits for the third.
bool half_surrogate(std::string_view rest) {
  return rest.size() == 2 && rest[0] == '\xED' && static_cast<unsigned char>(rest[1]) >= 0xA0 &&
         static_cast<unsigned char>(rest[1]) <= 0xBF;
}

}  // namespace

std::string Utf8Assembler::push(std::string_view bytes) {
  std::string joined;
  if (!held_.empty()) {
    joined = held_ + std::string(bytes);
    bytes = joined;
    held_.clear();
  }
  std::string out;
  for (size_t at = 0; at < bytes.size();) {
    const Utf8Step step = next_utf8(bytes, at);
    if (step.valid) {
      out.append(bytes, at, step.length);
    } else if (step.cut || half_surrogate(bytes.substr(at))) {
      held_ = bytes.substr(at);
      break;
    } else {
      append_utf8(out, 0xFFFD);
    }
    at += step.length;
  }
  return out;
}

std::string Utf8Assembler::flush() {
  const std::string out = replace_invalid_utf8(held_);
  held_.clear();
  return out;
}

StopScanner::StopScanner(std::vector<std::string> stops) {
  for (std::string& text : stops) {
    CHECK(!text.empty());
    std::vector<size_t> border(text.size() + 1, 0);
    for (size_t n = 1, k = 0; n < text.size(); ++n) {
      while (k > 0 && text[n] != text[k]) k = border[k];
      if (text[n] == text[k]) ++k;
      border[n + 1] = k;
    }
    needles_.push_back({std::move(text), std::move(border)});
  }
}

std::optional<StopScanner::Match> StopScanner::push(std::string_view piece) {
  std::optional<Match> first;
  for (size_t index = 0; index < needles_.size(); ++index) {
    auto& [text, border, matched] = needles_[index];
    bool found = first.has_value();
    for (size_t i = 0; i < piece.size(); ++i) {
      while (matched > 0 && piece[i] != text[matched]) matched = border[matched];
      if (piece[i] == text[matched]) ++matched;
      if (matched < text.size()) continue;
      matched = border[matched];
      if (!found) first = Match{index, i + 1};
      found = true;
    }
  }
  return first;
}

size_t StopScanner::held() const {
  size_t most = 0;
  for (const Needle& needle : needles_) most = std::max(most, needle.matched);
  return most;
}

Detokenizer::Detokenizer(const Tokenizer& tokenizer, DetokenizerOptions options)
    : tokenizer_(&tokenizer), options_(std::move(options)), scanner_(options_.stop) {}

std::string Detokenizer::push(int32_t id) {
  CHECK(!stopped());
  ++tokens_used_;
  if (options_.skip_special && tokenizer_->is_special(id)) return {};
  const std::string piece = assembler_.push(tokenizer_->id_to_piece(id));
  const size_t before = text_.size();
  text_ += piece;
  const auto match = scanner_.push(piece);
  if (match && tokens_used_ > options_.min_tokens) {
    stop_ = match->stop;
    const size_t end = before + match->end;
    text_.resize(options_.include_stop_str_in_output ? end : end - stop_reason().size());
    return release(text_.size());
  }
  return release(text_.size() - scanner_.held());
}

std::string Detokenizer::flush() {
  if (!stopped()) text_ += assembler_.flush();
  return release(text_.size());
}

std::string Detokenizer::release(size_t end) {
  CHECK_LE(sent_, text_.size());
  if (end <= sent_) return {};
  std::string out = text_.substr(sent_, end - sent_);
  sent_ = end;
  return out;
}

}  // namespace calandra
