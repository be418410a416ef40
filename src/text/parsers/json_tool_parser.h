// JsonToolParser (`hermes`): tool calls as {"name": …, "arguments": {…}} between <tool_call> tags.
//
// A call whose name stands before its arguments begins at the brace of these, and they are passed on while they are
// written, as they are written. From there on it is a call, whatever follows: of arguments that break off or are no
// JSON, what JsonFollower passed on is closed, and the text behind that is content. Closing braces too many or too few
// and a closing tag that is missing at the end of the text change nothing. Any other call is certain when the whole
// object and the closing tag (or the end of the text) are there; what is none stays content. Arguments given as a
// string are taken as JSON.
#pragma once

#include <string>
#include <string_view>

#include "text/parsers/content_pieces.h"
#include "text/parsers/json_follower.h"

namespace calandra {

class JsonToolParser {
 public:
  void push(std::string_view text, bool last, OutputEvents& events);

 private:
  enum class State { kContent, kArguments, kBehind, kClosing };
  // Each decides what stands at the beginning of text(); false: that needs more of it.
  bool content(bool last, OutputEvents& events);
  bool arguments(bool last, OutputEvents& events);
  bool behind_arguments(bool last);
  bool closing(bool last);

  // How far the object at `body` was followed: to its end, or to the brace of its arguments.
  enum class Follow { kMore, kEnd, kArguments, kFault };
  Follow follow(size_t body);

  std::string_view text() const { return std::string_view(held_).substr(begin_); }
  void drop(size_t size);  // off the beginning of text()
  void add_content(size_t size, OutputEvents& events);
  void begin_call(size_t size, std::string name, OutputEvents& events);
  void end_call(State next, OutputEvents& events);

  State state_ = State::kContent;
  std::string held_;  // text that was not consumed, from begin_ on
  size_t begin_ = 0;
  // Of the object at the beginning of text().
  size_t scanned_ = 0;  // how far it was followed
  int depth_ = 0;
  bool in_string_ = false, escaped_ = false, met_arguments_ = false;
  JsonFollower follower_;  // of the arguments that are being passed on
  ContentPieces pieces_;
  int calls_ = 0;
};

}  // namespace calandra
