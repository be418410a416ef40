#include "server/reply_text.h"

#include <fmt/format.h>

#include <boost/beast/core.hpp>
#include <boost/beast/http.hpp>

namespace calandra::server {
namespace beast = boost::beast;
namespace http = beast::http;

std::string length_text(const HttpReply& reply) {
  const bool has_none = reply.status == 204 || reply.status == 304;
  return has_none ? "" : fmt::format("Content-Length: {}", reply.body.size());
}

std::string head_text(const HttpReply& reply, bool keep, const std::string& length) {
  std::string head = fmt::format("HTTP/1.1 {} {}\r\nServer: calandra\r\nConnection: {}\r\n", reply.status,
                                 std::string_view(http::obsolete_reason(http::int_to_status(reply.status))),
                                 keep ? "keep-alive" : "close");
  if (reply.status != 204) head += fmt::format("Content-Type: {}\r\n", reply.content_type);
  if (!length.empty()) head += length + "\r\n";
  for (const auto& [name, value] : reply.headers) head += fmt::format("{}: {}\r\n", name, value);
  return head + "\r\n";
}

std::optional<RequestError> fault_of(const boost::system::error_code& code, const ServerOptions& options) {
  if (code == http::error::body_limit)
    return RequestError{
        413, "request_too_large", "",
        fmt::format("the body has more than {} bytes; send less, or raise --max-body-bytes", options.body_bytes)};
  if (code == http::error::header_limit)
    return RequestError{431, "headers_too_large", "",
                        fmt::format("the headers have more than {} bytes", options.header_bytes)};
  if (code == http::error::end_of_stream || code == http::error::partial_message || code == beast::error::timeout ||
      code.category() != http::make_error_code(http::error::bad_method).category())
    return std::nullopt;
  return RequestError{400, "bad_request", "", "this is no HTTP/1.1 request: " + code.message()};
}

}  // namespace calandra::server
