// One conversation of `bench serve`: what it asks, and what came back when.
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "apps/bench/bench_load.h"
#include "apps/bench/bench_serve.h"
#include "server/http_client.h"

namespace calandra::apps {

// What a status other than 200 and the body with it say.
std::string fault_of(int status, std::string_view body);

class ServedUser final : public server::HttpUser {
 public:
  struct Asked {
    RequestTimes times;
    std::string error = {};  // empty: answered
  };
  // What all of them have in common; must outlive them.
  struct Common {
    std::string endpoint;
    std::vector<std::pair<std::string, std::string>> headers;
    json::object body;                 // fields of every request
    std::function<void()> ended = {};  // a request, or what is not asked because one before failed
  };

  ServedUser(const Common& common, ServedConversation conversation)
      : common_(common), conversation_(std::move(conversation)) {}
  const std::vector<Asked>& asked() const { return asked_; }

  double due() const override { return conversation_.arrival; }
  bool next(server::HttpCall& call, double now) override;
  void head(int status, std::string_view content_type) override;
  void body(std::string_view part, double now) override;
  void end(std::string_view error, double now) override;

 private:
  void take_line(std::string_view line, double now);
  void take_event(const json::value& event, double now);
  void take_usage(const json::object& usage);

  const Common& common_;
  const ServedConversation conversation_;
  std::vector<Asked> asked_;
  json::array messages_;  // of a chat, so far
  std::string text_;      // of a completion's prompt, so far
  // Of the request that runs.
  std::string answer_, rest_;  // rest_: of a line that has not ended, or of a reply that is no stream
  int status_ = 0;
  bool is_stream_ = false, done_ = false, counted_ = false;
};

}  // namespace calandra::apps
