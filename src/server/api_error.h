// Errors as OpenAI's clients read them, and Anthropic's.
#pragma once

#include <string_view>

#include "base/error.h"
#include "base/json.h"
#include "server/http.h"

namespace calandra::server {

// {"message", "type", "param", "code"}
json::object error_object(const RequestError& error);
// {"error": {…}} with the status; with Retry-After where trying again helps.
HttpReply error_reply(const RequestError& error);

// {"type": "error", "error": {"type", "message"}}
json::object anthropic_error_object(const RequestError& error);
// In the form of the API that the path belongs to.
HttpReply error_reply(const RequestError& error, std::string_view path);

}  // namespace calandra::server
