#include "apps/api/api_routes.h"

namespace calandra::apps {
namespace {

constexpr ApiRoute kRoutes[] = {
    {"POST", "/v1/chat/completions", "The answer to a conversation", kChatBody, "ChatCompletion", true},
    {"POST", "/v1/completions", "What follows a text", kCompletionBody, "Completion", true},
    {"POST", "/v1/responses", "OpenAI's Responses", kResponseBody, "Response", true},
    {"GET", "/v1/responses/{response_id}", "A response that was stored or runs in the background", kNoBody, "Response"},
    {"DELETE", "/v1/responses/{response_id}", "Forgets a response", kNoBody, "DeletedResponse"},
    {"POST", "/v1/responses/{response_id}/cancel", "Ends a response in the background", kNoBody, "Response"},
    {"POST", "/v1/messages", "Anthropic's Messages", kMessageBody, "MessageAnswer", true},
    {"POST", "/v1/messages/count_tokens", "Tokens of a prompt", kCountBody, "TokenCount"},
    {"POST", "/v1/embeddings", "A vector for each text", kEmbeddingBody, "EmbeddingList"},
    {"GET", "/v1/models", "The model, by all of its names", kNoBody, "ModelList"},
    {"GET", "/v1/models/{model}", "The model", kNoBody, "Model"},
    {"POST", "/tokenize", "Token ids of a text or a conversation", kTokenizeBody, "TokenList"},
    {"POST", "/detokenize", "The text of token ids", kDetokenizeBody, "Text"},
    {"GET", "/health", "200 while requests are taken and steps are made", kNoBody, "Health"},
    {"GET", "/ping", "The same", kNoBody, "Health"},
    {"POST", "/ping", "The same", kNoBody, "Health"},
    {"GET", "/version", "The version", kNoBody, "Version"},
    {"GET", "/load", "Requests in the engine", kNoBody, "Load"},
    {"GET", "/metrics", "Prometheus text", kNoBody, ""},
    {"GET", "/openapi.json", "This document", kNoBody, "Document"},
};

constexpr std::string_view kSleepQuery =
    R"([{"name":"level","in":"query","schema":{"type":"string","enum":["1","2"]}},)"
    R"({"name":"mode","in":"query","schema":{"type":"string","enum":["abort","wait"]}}])";
constexpr std::string_view kWakeUpQuery =
    R"([{"name":"tags","in":"query","schema":{"type":"array","items":{"type":"string","enum":["weights","kv_cache"]}}}])";

constexpr ApiRoute kAdminRoutes[] = {
    {"POST", "/sleep", "Gives memory back until /wake_up", kNoBody, "Done", false, kSleepQuery},
    {"POST", "/wake_up", "Ends the sleep", kNoBody, "Done", false, kWakeUpQuery},
    {"GET", "/is_sleeping", "Whether it sleeps", kNoBody, "IsSleeping"},
    {"POST", "/reset_prefix_cache", "Drops the states of prefixes that nobody uses", kNoBody, "Done"},
    {"POST", "/reset_mm_cache", "Drops the rows of pictures that nobody uses", kNoBody, "Done"},
    {"POST", "/reset_encoder_cache", "The same", kNoBody, "Done"},
};

}  // namespace

std::span<const ApiRoute> api_routes() { return kRoutes; }
std::span<const ApiRoute> admin_routes() { return kAdminRoutes; }

bool is_path_of(const ApiRoute& route, std::string_view path) {
  const size_t open = route.path.find('{'), close = route.path.find('}');
  if (open == std::string_view::npos) return path == route.path;
  const std::string_view before = route.path.substr(0, open), behind = route.path.substr(close + 1);
  if (!path.starts_with(before) || !path.ends_with(behind) || path.size() <= before.size() + behind.size())
    return false;
  const std::string_view name = path.substr(before.size(), path.size() - before.size() - behind.size());
  return route.answer == "Model" || name.find('/') == std::string_view::npos;
}

bool is_method_of(const ApiRoute& route, std::string_view method) {
  return method == route.method || (method == "HEAD" && route.method == "GET");
}

std::string_view allowed_methods(const ApiRoute& route) { return route.method == "GET" ? "GET, HEAD" : route.method; }

}  // namespace calandra::apps
