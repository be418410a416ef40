#include "apps/api/web_page.h"

#include "server/api_error.h"

namespace calandra::apps {
namespace {

constexpr std::string_view kIndex = "index.html";
constexpr std::string_view kFolder = "/web/";

// No script or style in the page's text, nothing of other hosts, no frame around it: what a model wrote can at most be
// read. Pictures that a user attached are data: URLs.
constexpr const char* kPolicy =
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; base-uri "
    "'none'; form-action 'none'; frame-ancestors 'none'";

std::string_view content_type(std::string_view name) {
  if (name.ends_with(".html")) return "text/html; charset=utf-8";
  if (name.ends_with(".css")) return "text/css; charset=utf-8";
  return "text/javascript; charset=utf-8";
}

std::string path_of(const WebFile& file) {
  return file.name == kIndex ? "/" : std::string(kFolder) + std::string(file.name);
}

// If-None-Match: a list of tags, of which proxies may have made weak ones.
bool is_known(std::string_view if_none_match, std::string_view etag) {
  return if_none_match == "*" || if_none_match.find(etag) != std::string_view::npos;
}

}  // namespace

std::vector<std::string> web_paths() {
  std::vector<std::string> paths;
  for (const WebFile& file : web_files()) paths.push_back(path_of(file));
  return paths;
}

std::optional<server::HttpReply> web_reply(const server::HttpRequest& request) {
  for (const WebFile& file : web_files()) {
    if (path_of(file) != request.path) continue;
    if (request.method != "GET" && request.method != "HEAD") {
      server::HttpReply reply = server::error_reply({405, "method_not_allowed", "", "use GET"}, request.path);
      reply.headers.emplace_back("Allow", "GET, HEAD");
      return reply;
    }
    server::HttpReply reply{.content_type = std::string(content_type(file.name))};
    reply.headers = {{"ETag", std::string(file.etag)},
                     {"Cache-Control", "no-cache"},  // kept, and asked for again: a new program has a new page
                     {"Content-Security-Policy", kPolicy},
                     {"X-Content-Type-Options", "nosniff"},
                     {"Referrer-Policy", "no-referrer"}};
    if (is_known(request.if_none_match, file.etag))
      reply.status = 304;
    else
      reply.body = file.bytes;
    return reply;
  }
  return std::nullopt;
}

}  // namespace calandra::apps
