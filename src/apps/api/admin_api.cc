#include "apps/api/admin_api.h"

#include <fmt/format.h>

#include <algorithm>

#include "apps/api/api_routes.h"
#include "base/json.h"
#include "server/api_error.h"
#include "server/request_head.h"

namespace calandra::apps {
namespace {

using server::error_reply;
using server::HttpReply;
using server::query_values;

HttpReply reply_of(const std::optional<RequestError>& error) {
  return error ? error_reply(*error) : HttpReply{.body = "{}"};
}

RequestError bad(std::string_view param, std::string message) {
  return {400, "invalid_value", std::string(param), std::move(message)};
}

// The one value of a name in the query, or `usual`.
std::string value_of(const server::HttpRequest& request, std::string_view name, std::string usual) {
  std::vector<std::string> values = query_values(request.query, name);
  return values.empty() ? std::move(usual) : std::move(values.back());
}

}  // namespace

bool AdminApi::is_admin(std::string_view path) {
  return std::any_of(admin_routes().begin(), admin_routes().end(), [&](const auto& r) { return r.path == path; });
}

AdminApi::Result AdminApi::handle(const server::HttpRequest& request, server::Wake wake) {
  const auto route = std::find_if(admin_routes().begin(), admin_routes().end(),
                                  [&](const ApiRoute& r) { return r.path == request.path; });
  if (!is_method_of(*route, request.method)) {
    HttpReply reply = error_reply({405, "method_not_allowed", "", fmt::format("use {}", route->method)});
    reply.headers.emplace_back("Allow", allowed_methods(*route));
    return reply;
  }
  if (request.path == "/is_sleeping")
    return HttpReply{.body = to_json(json::object{{"is_sleeping", sleeper_.is_sleeping()}})};
  if (request.path == "/sleep") return sleep(request, std::move(wake));
  if (request.path == "/wake_up") return wake_up(request, std::move(wake));
  return thread_.defer([this, path = request.path](const auto&) -> Result { return reset(path); }, std::move(wake));
}

AdminApi::Result AdminApi::sleep(const server::HttpRequest& request, server::Wake wake) {
  const std::string level = value_of(request, "level", "1"), mode = value_of(request, "mode", "abort");
  if (level != "1" && level != "2")
    return error_reply(bad("level", "level must be 1 (caches are dropped) or 2 (the weights too)"));
  if (mode != "abort" && mode != "wait")
    return error_reply(bad("mode", "mode must be abort (requests that run end) or wait (they come to their end)"));
  return thread_.defer([this, number = level == "2" ? 2 : 1, abort = mode == "abort"](
                           const auto&) -> Result { return reply_of(sleeper_.sleep(number, abort)); },
                       std::move(wake));
}

AdminApi::Result AdminApi::wake_up(const server::HttpRequest& request, server::Wake wake) {
  bool weights = false, caches = false;
  const std::vector<std::string> tags = query_values(request.query, "tags");
  for (const std::string& tag : tags) {
    if (tag != "weights" && tag != "kv_cache")
      return error_reply(bad("tags", "tags must be weights or kv_cache; without any, both wake up"));
    (tag == "weights" ? weights : caches) = true;
  }
  if (tags.empty()) weights = caches = true;
  return thread_.defer(
      [this, weights, caches](const auto&) -> Result { return reply_of(sleeper_.wake_up(weights, caches)); },
      std::move(wake));
}

// What is in use at the moment stays.
HttpReply AdminApi::reset(std::string_view path) {
  const bool pictures = path != "/reset_prefix_cache";
  const bool done = engine_.between_steps([pictures](EngineCore& core) {
    if (pictures && core.encoder_cache() != nullptr) core.encoder_cache()->clear();
    if (!pictures && core.cache() != nullptr) core.cache()->clear();
  });
  return done ? HttpReply{.body = "{}"}
              : error_reply({503, "service_unavailable", "", "the engine takes no more requests"});
}

}  // namespace calandra::apps
