// Errors as OpenAI's clients read them.
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

}  // namespace calandra::server
