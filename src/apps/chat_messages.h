// The messages of a chat body, as chat templates take them.
#pragma once

#include <variant>

#include "base/error.h"
#include "base/json.h"

namespace calandra::apps {

// Checks them, and makes them what every template understands: system and developer messages become one system message
// in front, parts of text become one text, null content becomes the empty text, `reasoning` becomes
// `reasoning_content` as well.
std::variant<json::array, RequestError> chat_messages(const json::array& messages);

}  // namespace calandra::apps
