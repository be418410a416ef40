// What is written of a reply before its body, and what is said of a request that cannot be read.
#pragma once

#include <boost/system/error_code.hpp>
#include <optional>
#include <string>

#include "base/error.h"
#include "server/http_server.h"

namespace calandra::server {

// "Content-Length: 5", or nothing where HTTP forbids it (RFC 9110, 8.6).
std::string length_text(const HttpReply& reply);
// The head and its empty line. `length` is the header that says how long the body is; may be empty.
std::string head_text(const HttpReply& reply, bool keep, const std::string& length);

// What is wrong with what was read, or nothing when there is nobody to tell.
std::optional<RequestError> fault_of(const boost::system::error_code& code, const ServerOptions& options);

}  // namespace calandra::server
