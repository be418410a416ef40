#include "server/request_reader.h"

#include <algorithm>
#include <boost/beast/http.hpp>
#include <string_view>

#include "server/reply_text.h"
#include "server/request_head.h"

namespace calandra::server {
namespace http = boost::beast::http;
using Code = boost::system::error_code;

bool RequestReader::read_head(std::optional<RequestError>& fault) {
  constexpr std::string_view kEnd = "\r\n\r\n";
  const std::string_view text(static_cast<const char*>(buffer_.data().data()), buffer_.size());
  const size_t end = text.find(kEnd, seen_);
  if (std::min(end, text.size()) > options_.header_bytes) fault = fault_of(http::error::header_limit, options_);
  if (fault) return true;
  seen_ = end == std::string_view::npos && text.size() >= kEnd.size() ? text.size() - kEnd.size() + 1 : 0;
  if (end == std::string_view::npos) return false;
  fault = fault_of_head(text.substr(0, end), options_.headers);
  if (fault) return true;
  body_begun_ = false;
  parser_.emplace();
  parser_->header_limit(static_cast<uint32_t>(options_.header_bytes));
  parser_->body_limit(options_.body_bytes);
  Code code;
  buffer_.consume(parser_->put(boost::asio::buffer(buffer_.data(), end + kEnd.size()), code));
  if (code) fault = fault_of(code, options_);
  return true;
}

bool RequestReader::read_body(std::optional<RequestError>& fault) {
  // A first chunk that is the last and comes in parts aborts Beast 1.81; no body in chunks has fewer bytes.
  constexpr size_t kShortestChunks = 5;
  while (!parser_->is_done()) {
    if (buffer_.size() < (parser_->chunked() && !body_begun_ ? kShortestChunks : 1)) return false;
    body_begun_ = true;
    Code code;
    buffer_.consume(parser_->put(buffer_.data(), code));
    if (code == http::error::need_more) {
      // A chunk's length, or fields behind the last one.
      if (buffer_.size() > options_.header_bytes) fault = fault_of(http::error::header_limit, options_);
      return fault.has_value();
    }
    if (!code) continue;
    fault = fault_of(code, options_);
    return true;
  }
  return true;
}

}  // namespace calandra::server
