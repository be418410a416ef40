// ContentPieces: the text outside of tool calls, as it becomes certain.
//
// The text falls into pieces at calls and at tags that turned out to begin none. Of a piece other than the first, white
// space alone is dropped when the answer has a call.
#pragma once

#include "text/parsers/output_events.h"

namespace calandra {

class ContentPieces {
 public:
  void add(std::string_view text, OutputEvents& events) {
    if (text.empty()) return;
    if (!first_ && blank_) {
      if (skip_space(text, 0) == text.size()) {
        space_ += text;
        return;
      }
      blank_ = false;
      emit(space_ + std::string(text), events);
      space_.clear();
      return;
    }
    emit(std::string(text), events);
  }

  // The text before here and the text behind are two pieces.
  void cut() {
    first_ = false;
    blank_ = true;
  }
  void begin_call() {
    space_.clear();
    calls_ = true;
    cut();
  }
  void finish(OutputEvents& events) {
    if (!calls_) emit(std::move(space_), events);
    space_.clear();
  }

 private:
  static void emit(std::string text, OutputEvents& events) {
    if (text.empty()) return;
    if (!events.empty() && events.back().kind == OutputEvent::Kind::kContent)
      events.back().text += text;
    else
      events.push_back({OutputEvent::Kind::kContent, std::move(text)});
  }

  bool first_ = true, blank_ = true, calls_ = false;
  std::string space_;  // of a piece that was only white space so far
};

}  // namespace calandra
