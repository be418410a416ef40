// JsonToolParser (`hermes`): tool calls as {"name": …, "arguments": {…}} between <tool_call> tags.
//
// A call is certain when the whole object and the closing tag (or the end of the text) are there; what is none stays
// content. Arguments given as a string are taken as JSON.
#pragma once

#include <string>
#include <string_view>

#include "text/parsers/content_pieces.h"

namespace calandra {

class JsonToolParser {
 public:
  void push(std::string_view text, bool last, OutputEvents& events);

 private:
  bool step(bool last, OutputEvents& events);
  void content(size_t size, OutputEvents& events);

  std::string held_;
  size_t scanned_ = 0;  // of held_: how far the object was followed
  int depth_ = 0;
  bool in_string_ = false, escaped_ = false;
  ContentPieces pieces_;
  int calls_ = 0;
};

}  // namespace calandra
