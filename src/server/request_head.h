// What a request's head says: paths, keys, ids, origins.
#pragma once

#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"

namespace calandra::server {

// What is wrong with the form of a head (request line and fields, without the empty line). What a parser forgives,
// another one on the way may read differently: then one client's body is another's request.
std::optional<RequestError> fault_of_head(std::string_view head, size_t most_fields);

// "/v1/models/a%2Fb?x=1" -> "/v1/models/a/b". Nothing when it is no path or an escape is wrong.
std::optional<std::string> decode_path(std::string_view target);

// "/sleep?level=1&x=a%20b" -> "level=1&x=a%20b"
std::string_view query_of(std::string_view target);
// The values that a query gives to a name, in their order, percent-decoded; those with a wrong escape are left out.
std::vector<std::string> query_values(std::string_view query, std::string_view name);

// Whether one of the keys is in `authorization` ("Bearer KEY") or `api_key`. The time it takes tells nothing about
// them.
bool has_key(std::span<const std::string> keys, std::string_view authorization, std::string_view api_key);

// May stand in a header and in a log as it is.
bool is_plain_id(std::string_view id);
std::string make_request_id();

// What access-control-allow-origin must say, or nothing.
std::optional<std::string> allowed_origin(std::span<const std::string> allowed, std::string_view origin);

}  // namespace calandra::server
