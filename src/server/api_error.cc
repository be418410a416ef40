#include "server/api_error.h"

namespace calandra::server {
namespace {

constexpr const char* kRetryAfterSeconds = "1";

std::string_view error_type(int status) {
  switch (status) {
    case 401:
      return "authentication_error";
    case 404:
      return "not_found_error";
    case 429:
      return "rate_limit_error";
    case 503:
      return "service_unavailable";
    default:
      return status < 500 ? "invalid_request_error" : "server_error";
  }
}

std::string_view anthropic_error_type(int status) {
  switch (status) {
    case 401:
      return "authentication_error";
    case 403:
      return "permission_error";
    case 404:
      return "not_found_error";
    case 413:
      return "request_too_large";
    case 429:
      return "rate_limit_error";
    case 503:
      return "overloaded_error";
    default:
      return status < 500 ? "invalid_request_error" : "api_error";
  }
}

}  // namespace

json::object error_object(const RequestError& error) {
  return {{"message", error.message},
          {"type", error_type(error.status)},
          {"param", error.param.empty() ? json::value(nullptr) : json::value(error.param)},
          {"code", error.code}};
}

HttpReply error_reply(const RequestError& error) {
  HttpReply reply{.status = error.status, .body = to_json(json::object{{"error", error_object(error)}})};
  if (error.status == 401) reply.headers.emplace_back("WWW-Authenticate", "Bearer");
  if (error.status == 429 || error.status == 503) reply.headers.emplace_back("Retry-After", kRetryAfterSeconds);
  return reply;
}

json::object anthropic_error_object(const RequestError& error) {
  // By these words agents know that they must shorten a conversation.
  const char* hint = error.code == "context_length_exceeded" ? "prompt is too long: " : "";
  return {{"type", "error"},
          {"error", {{"type", anthropic_error_type(error.status)}, {"message", hint + error.message}}}};
}

HttpReply error_reply(const RequestError& error, std::string_view path) {
  HttpReply reply = error_reply(error);
  if (path == "/v1/messages" || path.starts_with("/v1/messages/")) reply.body = to_json(anthropic_error_object(error));
  return reply;
}

}  // namespace calandra::server
