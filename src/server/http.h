// What a server of HTTP asks of the program behind it. Nothing of the network is in here.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace calandra::server {

struct HttpRequest {
  std::string method;  // "GET", …
  std::string path;    // percent-decoded, without the query
  std::string body = {};
  std::string request_id;  // the client's x-request-id, or a new one
  std::string traceparent = {};
  std::string if_none_match = {};
  std::string query = {};  // as it was sent, without the "?"
};

struct HttpReply {
  int status = 200;
  std::string content_type = "application/json";
  std::string body = {};
  std::vector<std::pair<std::string, std::string>> headers = {};
  // What was done, for traces: "gen_ai.usage.completion_tokens".
  std::vector<std::pair<std::string_view, double>> measures = {};
};

// A reply that comes later, or in parts. The server asks it again after each call of `wake` and once a while; it never
// blocks. Destroyed before it has ended, it gives up what it runs.
class PendingReply {
 public:
  virtual ~PendingReply() = default;
  // False: what follows is not known yet. Asked again as `advance` is.
  virtual bool is_ready() const { return true; }
  // A stream's parts are sent as they come, after a reply with status 200; else the whole reply is sent at the end.
  virtual bool is_stream() const = 0;
  // What has come since the last call is appended to reply.body. True: it has ended.
  virtual bool advance(HttpReply& reply) = 0;
};

// Any thread may call it, also after the reply has ended.
using Wake = std::function<void()>;
// Called on one of several threads. A request's fault is a reply.
using HttpHandler = std::function<std::variant<HttpReply, std::unique_ptr<PendingReply>>(const HttpRequest&, Wake)>;

// What an event stream says while there is nothing to say, so that proxies keep it open.
inline constexpr std::string_view kPing = ": ping\n\n";

}  // namespace calandra::server
