// What the parsers of model output give: events in the order of the text.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace calandra {

struct OutputEvent {
  enum class Kind { kReasoning, kContent, kToolCallBegin, kArguments, kToolCallEnd };
  Kind kind;
  std::string
      text;  // reasoning, content, a part of the arguments' JSON, or the name of the tool; never empty but at the end
  int call = -1;  // of tool calls: 0, 1, 2, …
};
using OutputEvents = std::vector<OutputEvent>;

// White space of the tags' grammar.
inline constexpr std::string_view kOutputSpace = " \t\n\r\f\v";
inline constexpr std::string_view kThinkBegin = "<think>", kThinkEnd = "</think>";
inline constexpr std::string_view kToolCallBegin = "<tool_call>", kToolCallEnd = "</tool_call>";

// How a text that may go on compares with a tag at a position of it.
enum class TagMatch { kNo, kYes, kMore };  // kMore: all of it is a beginning of the tag
inline TagMatch match_tag(std::string_view text, size_t at, std::string_view tag) {
  const std::string_view here = text.substr(at, tag.size());
  if (here == tag) return TagMatch::kYes;
  return tag.starts_with(here) ? TagMatch::kMore : TagMatch::kNo;
}

// Where white space from `at` on ends; the size of the text if nothing else comes.
inline size_t skip_space(std::string_view text, size_t at) {
  const size_t end = text.find_first_not_of(kOutputSpace, at);
  return end == std::string_view::npos ? text.size() : end;
}

// First place from `at` on where the tag stands or may begin to stand; the size of the text if there is none.
inline size_t find_tag(std::string_view text, size_t at, std::string_view tag) {
  for (size_t found = text.find(tag.front(), at); found != std::string_view::npos;
       found = text.find(tag.front(), found + 1))
    if (match_tag(text, found, tag) != TagMatch::kNo) return found;
  return text.size();
}

}  // namespace calandra
