// The other end: HTTP/1.1 clients on one thread, many for benches, one for traces. Each request has a connection of its
// own, as that of a stranger would.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace calandra::server {

struct HttpTarget {
  bool tls = false;
  std::string host, port, path;  // path: what all paths begin with, without a last slash
};
// "http://HOST[:PORT][/PATH]", also https and [IPv6]. Throws UsageError.
HttpTarget read_target(const std::string& url);

struct HttpCall {
  std::string method = "POST", path = {}, body = {};
  std::vector<std::pair<std::string, std::string>> headers = {};
};

// Somebody who asks for one thing after another. Times are seconds from the start of run_users; all calls come on its
// thread.
class HttpUser {
 public:
  virtual ~HttpUser() = default;
  virtual double due() const = 0;  // the first call begins then
  // False: nothing more is asked. Called again after each end.
  virtual bool next(HttpCall& call, double now) = 0;
  virtual void head(int status, std::string_view content_type) = 0;
  virtual void body(std::string_view part, double now) = 0;
  // `error` is empty when the reply came whole.
  virtual void end(std::string_view error, double now) = 0;
};

// Runs all users to their ends, in the order of their dues and at most `concurrency` of them at once (0: any number).
// A call that takes longer than `timeout` seconds is given up. Returns the seconds it took. Throws LoadError when the
// host has no address.
double run_users(const HttpTarget& target, std::span<HttpUser* const> users, int64_t concurrency, double timeout);

}  // namespace calandra::server
