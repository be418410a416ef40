// data: URLs, as clients send pictures in them.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <variant>

#include "base/error.h"

namespace calandra::apps {

struct DataUrl {
  std::string media_type;    // lower case, without parameters; may be empty
  std::string_view payload;  // of the URL: base64
};

// Error: no data: URL, or one whose content is not base64.
std::variant<DataUrl, RequestError> read_data_url(std::string_view url);

// Nothing for what is not base64 (RFC 4648, the usual alphabet; "=" at the end may be missing).
std::optional<std::string> decode_base64(std::string_view text);

}  // namespace calandra::apps
