// An answer in the form of Anthropic's Messages API, from the parts that AnswerParser makes of it. The message as a
// whole and its events are made together, so that they say the same.
#pragma once

#include <string>
#include <utility>

#include "apps/api/form_parts.h"
#include "base/error.h"
#include "base/json.h"
#include "text/parsers/output_events.h"

namespace calandra::apps {

class MessageWriter {
 public:
  // `seed`: of the ids of the message and its calls.
  MessageWriter(std::string model, uint64_t seed, int64_t prompt_tokens);

  void begin();
  void add(const OutputEvent& part);
  void end(const FormEnd& end);
  void fail(const RequestError& error);

  // The events since the last call, as a stream has them.
  std::string take_events() { return std::exchange(events_, {}); }
  const json::object& object() const { return message_; }

 private:
  void open(const char* type, const OutputEvent& part);
  void close();
  void send(const char* type, json::object fields);
  void send_delta(const char* type, const char* name, const std::string& text);

  const uint64_t seed_;
  json::object message_;
  json::array blocks_;
  json::object block_;  // the open one; empty: none
  std::string text_;    // of the open block: what it says, or the JSON of its input
  std::string events_;
  bool has_calls_ = false;
};

}  // namespace calandra::apps
