#include "text/pretokenizer.h"

namespace calandra {
namespace {

struct Part {
  TextSpan span;
  bool is_match;
};

// Matches and what lies between them, in order, covering the text.
std::vector<Part> parts_of(size_t size, const std::vector<TextSpan>& matches, bool invert) {
  std::vector<Part> parts;
  size_t end = 0;
  for (const TextSpan& match : matches) {
    if (end != match.begin) parts.push_back({{end, match.begin}, invert});
    parts.push_back({match, !invert});
    end = match.end;
  }
  if (end != size) parts.push_back({{end, size}, invert});
  return parts;
}

// tokenizers: NormalizedString::split.
std::vector<TextSpan> keep(const std::vector<Part>& parts, SplitBehavior behavior) {
  std::vector<TextSpan> kept;
  bool previous = false;
  switch (behavior) {
    case SplitBehavior::kIsolated:
      for (const Part& part : parts) kept.push_back(part.span);
      break;
    case SplitBehavior::kRemoved:
      for (const Part& part : parts) {
        if (!part.is_match) kept.push_back(part.span);
      }
      break;
    case SplitBehavior::kContiguous:
      for (const Part& part : parts) {
        if (part.is_match == previous && !kept.empty()) {
          kept.back().end = part.span.end;
        } else {
          kept.push_back(part.span);
        }
        previous = part.is_match;
      }
      break;
    case SplitBehavior::kMergedWithPrevious:
      for (const Part& part : parts) {
        if (part.is_match && !previous && !kept.empty()) {
          kept.back().end = part.span.end;
        } else {
          kept.push_back(part.span);
        }
        previous = part.is_match;
      }
      break;
    case SplitBehavior::kMergedWithNext:  // the mirror image
      for (auto part = parts.rbegin(); part != parts.rend(); ++part) {
        if (part->is_match && !previous && !kept.empty()) {
          kept.back().begin = part->span.begin;
        } else {
          kept.push_back(part->span);
        }
        previous = part->is_match;
      }
      kept = {kept.rbegin(), kept.rend()};
      break;
  }
  return kept;
}

}  // namespace

void PreTokenizer::split(std::string_view text, Words& result, size_t most) const {
  result.words.clear();
  result.storage.clear();
  if (!text.empty()) result.words.push_back(text);
  const auto prefix_spaces = [&result] {
    for (std::string_view& word : result.words) {
      if (word.starts_with(' ')) continue;
      result.storage.push_back(" " + std::string(word));
      word = result.storage.back();
    }
  };
  for (const SplitStep& step : steps_) {
    if (step.add_prefix_space) prefix_spaces();
    result.next.clear();
    for (const std::string_view word : result.words) {
      // The usual case: without the list of parts, and each match that is not empty is a word.
      const bool isolated = step.behavior == SplitBehavior::kIsolated && !step.invert;
      step.pattern.find_all(word, result.matches, isolated && &step == &steps_.back() ? most : SIZE_MAX);
      if (isolated) {
        size_t end = 0;
        for (const TextSpan& match : result.matches) {
          if (end < match.begin) result.next.push_back(word.substr(end, match.begin - end));
          if (match.begin < match.end) result.next.push_back(word.substr(match.begin, match.end - match.begin));
          end = match.end;
        }
        if (end < word.size()) result.next.push_back(word.substr(end));
        continue;
      }
      for (const TextSpan& span : keep(parts_of(word.size(), result.matches, step.invert), step.behavior)) {
        if (span.begin < span.end) result.next.push_back(word.substr(span.begin, span.end - span.begin));
      }
    }
    std::swap(result.words, result.next);
  }
  if (add_prefix_space_at_end_) prefix_spaces();
}

}  // namespace calandra
