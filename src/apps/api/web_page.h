// The chat page that `serve` shows at /: the files of web/, which the build puts into the program.
#pragma once

#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "server/http.h"

namespace calandra::apps {

struct WebFile {
  std::string_view name;  // in web/
  std::string_view etag;  // with its quotes
  std::string_view bytes;
};

// cmake/EmbedFiles.cmake makes their table.
std::span<const WebFile> web_files();

// Paths of the page. They need no API key: the page asks for one and sends it with its requests.
std::vector<std::string> web_paths();

// Nothing when the path is none of the page's.
std::optional<server::HttpReply> web_reply(const server::HttpRequest& request);

}  // namespace calandra::apps
