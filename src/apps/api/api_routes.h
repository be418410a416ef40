// The routes of the API, for the server and for /openapi.json.
#pragma once

#include <span>
#include <string_view>

#include "apps/api/api_fields.h"

namespace calandra::apps {

struct ApiRoute {
  std::string_view method, path;  // {name} in a path: any text
  std::string_view summary;
  Bodies body;                  // what is posted
  std::string_view answer;      // in components/schemas; empty: plain text
  bool streams = false;         // with "stream": true, the answer is events
  std::string_view query = "";  // what may stand behind a ?, as OpenAPI's parameters
};

std::span<const ApiRoute> api_routes();
// Those of AdminApi.
std::span<const ApiRoute> admin_routes();

// Whether a request's path is the route's. The name of a model may have slashes, that of a response has none.
bool is_path_of(const ApiRoute& route, std::string_view path);
// HEAD is asked as GET: the server sends no body then.
bool is_method_of(const ApiRoute& route, std::string_view method);
// What the header Allow says of it: "GET, HEAD".
std::string_view allowed_methods(const ApiRoute& route);

}  // namespace calandra::apps
