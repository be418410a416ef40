// The messages of a chat body, as chat templates take them.
#pragma once

#include <string>
#include <variant>
#include <vector>

#include "base/error.h"
#include "base/json.h"

namespace calandra::apps {

// A picture or video that a message shows.
struct MediaPart {
  bool is_video = false;
  std::string url;  // data:, http:, https: or file:
};

struct ChatMessages {
  json::array messages;
  std::vector<MediaPart> media;  // in the order of their items {"type": "image"} and {"type": "video"}
};

// Checks them, and makes them what every template understands: system and developer messages become one system message
// in front, parts of text become one text, null content becomes the empty text, `reasoning` becomes
// `reasoning_content` as well, arguments of calls become objects. Content with pictures stays a list, of items of text,
// image and video. Forms of pictures: image_url and video_url (OpenAI's, vLLM's; an object or the URL alone, also
// without a type), input_image (Responses),
// {"type": "image" or "video"} with the URL as `image`, `video` or `url` (Transformers').
std::variant<ChatMessages, RequestError> chat_messages(const json::array& messages);

// Whether something in messages or items may be a picture or a video; never false where there is one.
bool may_have_media(const json::value& messages);

}  // namespace calandra::apps
