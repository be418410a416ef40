// XmlToolParser (`qwen3_coder`): tool calls as
//     <tool_call> <function=NAME> <parameter=KEY> VALUE </parameter> … </function> </tool_call>
//
// A value loses one newline at each end and gets its type from the tool's schema. It ends at a </parameter> that the
// format goes on behind (nested ones are counted), so that literal tags inside of values stay; tags that a model forgot
// are repaired. Strings are passed on while they arrive, up to the first tag that might end them.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "base/json.h"
#include "text/parsers/argument_types.h"
#include "text/parsers/content_pieces.h"

namespace calandra {

class XmlToolParser {
 public:
  explicit XmlToolParser(std::shared_ptr<const json::array> tools) : tools_(std::move(tools)) {}

  void push(std::string_view text, bool last, OutputEvents& events);

 private:
  enum class State { kContent, kArguments, kValue, kFunctionEnd, kCallEnd };
  // Each decides what stands at the beginning of held_; false: that needs more text.
  bool content(bool last, OutputEvents& events);
  bool begin_call(size_t function, bool last, OutputEvents& events);
  bool arguments(bool last, OutputEvents& events);
  bool value(bool last, OutputEvents& events);
  bool function_end(bool last);
  bool call_end(bool last);

  bool known(std::string_view parameter) const { return properties_ != nullptr && properties_->contains(parameter); }
  TagMatch goes_on_at(size_t at, bool last) const;
  struct ValueEnd {
    size_t end, next;  // where the value ends, and where the text goes on
  };
  bool find_value_end(bool last, ValueEnd& found);
  ValueEnd repaired_value_end() const;
  void stream_string(OutputEvents& events);
  void emit_arguments(std::string text, OutputEvents& events);

  std::shared_ptr<const json::array> tools_;
  State state_ = State::kContent;
  std::string held_;  // text that was not consumed
  ContentPieces pieces_;
  int calls_ = 0;

  // The call that is being read.
  const json::object* properties_ = nullptr;
  bool any_argument_ = false;
  ArgumentType type_;
  size_t scanned_ = 0;           // of the value: followed up to here
  int depth_ = 0;                // open <parameter= inside of it
  size_t streamed_ = 0;          // of the value: passed on up to here; 0: it was not begun
  bool stream_stopped_ = false;  // a tag was met that might end it
};

}  // namespace calandra
