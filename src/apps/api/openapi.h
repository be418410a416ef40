// The OpenAPI document of the server, made of the tables that it works by: api_routes.h and api_fields.h.
#pragma once

#include <cstdint>
#include <string>

#include "base/json.h"

namespace calandra::apps {

// `vocab_size`: ids of tokens are below it. `has_admin`: with admin_routes().
json::object openapi_document(const std::string& version, int64_t vocab_size, bool has_admin);

// components/schemas: what lies inside of bodies, and the answers. {"$ref": "#Name"} is short for one of them.
extern const char* const kOpenApiSchemas;

}  // namespace calandra::apps
