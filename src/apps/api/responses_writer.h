// An answer in the form of OpenAI's Responses API, from the parts that AnswerParser makes of it. The response as a
// whole and its events are made together, so that they say the same.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "apps/api/form_parts.h"
#include "base/error.h"
#include "base/json.h"
#include "text/parsers/output_events.h"

namespace calandra::apps {

class ResponseWriter {
 public:
  struct Head {
    std::string id, model;
    int64_t created_at = 0;
    json::object echo;                      // the fields of the request that a response says again
    std::vector<std::string> custom_tools;  // whose calls are items of their own type
    uint64_t seed = 0;                      // of the ids of items and calls
  };
  explicit ResponseWriter(Head head);

  void begin();
  void add(const OutputEvent& part);
  void end(const FormEnd& end);
  void fail(const RequestError& error);
  // Of a response in the background, which nobody reads the events of.
  void cancel();

  // The events since the last call, as a stream has them.
  std::string take_events() { return std::exchange(events_, {}); }
  const json::object& object() const { return response_; }

 private:
  enum class Item { kNone, kReasoning, kMessage, kCall, kCustomCall };
  void open(Item kind, const OutputEvent& part);
  void open_part(json::object part);
  void close(const char* status);
  void close_part(json::object part, const char* done);
  void finish(const char* status, const char* event);
  // An event of the open item.
  void send_of_item(const char* type, json::object fields);
  void send(const char* type, json::object fields);

  const Head head_;
  json::object response_;
  json::array output_;
  Item kind_ = Item::kNone;
  json::object item_;  // the open one
  std::string text_;   // of the open item: what it says, or the JSON of its arguments
  std::string events_;
  int64_t sequence_number_ = 0;
};

}  // namespace calandra::apps
