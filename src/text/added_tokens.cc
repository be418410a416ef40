#include "text/added_tokens.h"

#include <algorithm>

#include "text/pattern.h"
#include "text/utf8.h"

namespace calandra {
namespace {

bool is_space(char32_t c) {  // Unicode property White_Space
  return (c >= 0x09 && c <= 0x0D) || c == 0x20 || c == 0x85 || c == 0xA0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
}

// The start of the character that ends at `end` (> 0).
size_t character_before(std::string_view text, size_t end) {
  size_t at = end - 1;
  while (at > 0 && (text[at] & 0xC0) == 0x80) --at;
  return at;
}

bool is_word(std::string_view character) {
  static const Pattern word = Pattern::word_character();
  std::vector<TextSpan> matches;
  word.find_all(character, matches);
  return !matches.empty();
}

bool touches_word(std::string_view text, size_t begin, size_t end) {
  if (begin > 0) {
    const size_t before = character_before(text, begin);
    if (is_word(text.substr(before, begin - before))) return true;
  }
  return end < text.size() && is_word(text.substr(end, next_utf8(text, end).length));
}

}  // namespace

void MarkedText::append(std::string_view part, bool is_input) {
  if (part.empty()) return;
  text += part;
  if (runs.empty() || runs.back().is_input != is_input) runs.push_back({0, is_input});
  runs.back().end = text.size();
}

MarkedText MarkedText::slice(size_t begin, size_t end) const {
  MarkedText part;
  size_t at = begin;
  auto run = std::upper_bound(runs.begin(), runs.end(), begin, [](size_t b, const TextRun& r) { return b < r.end; });
  for (; at < end; ++run) {
    const size_t stop = std::min(end, run->end);
    part.append(std::string_view(text).substr(at, stop - at), run->is_input);
    at = stop;
  }
  return part;
}

AddedTokenMatcher::AddedTokenMatcher(std::vector<AddedToken> tokens) : tokens_(std::move(tokens)), token_at_{-1} {
  for (size_t index = 0; index < tokens_.size(); ++index) {
    uint32_t node = 0;
    begins_[static_cast<unsigned char>(tokens_[index].content.front())] = true;
    for (const char c : tokens_[index].content) {
      const auto fresh = static_cast<uint32_t>(token_at_.size());
      const auto [edge, added] = edges_.try_emplace(uint64_t{node} << 8 | static_cast<unsigned char>(c), fresh);
      if (added) token_at_.push_back(-1);
      node = edge->second;
    }
    if (token_at_[node] < 0) token_at_[node] = static_cast<int32_t>(index);  // the first of equals counts
  }
}

const AddedToken* AddedTokenMatcher::longest_at(std::string_view text, size_t begin, size_t end) const {
  const AddedToken* found = nullptr;
  uint32_t node = 0;
  for (size_t at = begin; at < end; ++at) {
    const auto edge = edges_.find(uint64_t{node} << 8 | static_cast<unsigned char>(text[at]));
    if (edge == edges_.end()) break;
    node = edge->second;
    if (token_at_[node] >= 0) found = &tokens_[token_at_[node]];
  }
  return found;
}

std::vector<AddedTokenMatcher::Part> AddedTokenMatcher::split(const MarkedText& marked) const {
  const std::string_view text = marked.text;
  std::vector<Part> parts;
  size_t done = 0;
  size_t run_begin = 0;
  for (const TextRun& run : marked.runs) {
    for (size_t at = run_begin; !run.is_input && !tokens_.empty() && at < run.end;) {
      const AddedToken* token = begins_[static_cast<unsigned char>(text[at])] ? longest_at(text, at, run.end) : nullptr;
      if (token == nullptr) {
        ++at;
        continue;
      }
      size_t begin = at;
      size_t end = at + token->content.size();
      at = end;
      if (token->single_word && touches_word(text, begin, end)) continue;
      if (token->lstrip) {
        while (begin > done) {
          const size_t before = character_before(text, begin);
          if (!is_space(next_utf8(text, before).code)) break;
          begin = before;
        }
      }
      if (token->rstrip) {
        while (end < text.size()) {
          const Utf8Step step = next_utf8(text, end);
          if (!is_space(step.code)) break;
          end += step.length;
        }
      }
      if (done < begin) parts.push_back({-1, done, begin});
      parts.push_back({token->id, begin, end});
      done = end;
    }
    run_begin = run.end;
  }
  if (done < text.size()) parts.push_back({-1, done, text.size()});
  return parts;
}

}  // namespace calandra
