// Bodies of Anthropic's Messages API as bodies of a chat. Source: Anthropic's API reference.
#pragma once

#include <variant>

#include "base/error.h"
#include "base/json.h"

namespace calandra::apps {

// The chat that the body asks for. Fields that both forms know under one name, and those of neither, stay as they are.
// `counting`: of count_tokens, which needs no max_tokens.
std::variant<json::object, RequestError> chat_of_messages(const json::object& body, bool counting = false);

}  // namespace calandra::apps
