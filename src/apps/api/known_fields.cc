#include "apps/api/known_fields.h"

#include <fmt/format.h>

#include <algorithm>

#include "apps/api/api_fields.h"
#include "apps/api/body_fields.h"
#include "base/log.h"

namespace calandra::apps {
namespace {

// That would change the answer.
constexpr std::pair<std::string_view, const char*> kRefused[] = {
    {"suffix", "these models do not fill in the middle"},
    {"use_beam_search", "there is no beam search"},
    {"logits_processors", "there are no plug-ins"},
    {"vllm_xargs", "there are no plug-ins"},
    {"prompt_embeds", "prompts are text or token ids"},
    {"kv_transfer_params", "caches are not transferred"},
    {"functions", "use tools"},
    {"function_call", "use tool_choice"},
    {"audio", "answers are text"},
    {"web_search_options", "the server searches nothing"},
    {"mcp_servers", "the server calls no tools"},
    {"container", "the server runs no code"},
    {"context_management", "conversations are not shortened"},
    {"output_format", "use output_config.format"},
};

bool is_neutral(const json::value& value) {
  return value.is_null() || value == false || (value.is_string() && value.get_string().empty()) ||
         (value.is_array() && value.get_array().empty()) || (value.is_object() && value.get_object().empty());
}

bool is_known(std::string_view name) {
  const auto is_it = [&](const ApiField& field) { return field.name == name; };
  return std::any_of(api_fields().begin(), api_fields().end(), is_it) ||
         std::any_of(std::begin(kRefused), std::end(kRefused), [&](const auto& r) { return r.first == name; });
}

}  // namespace

void refuse_unsupported(const json::object& body) {
  for (const auto& [name, reason] : kRefused)
    if (const json::value* value = body.if_contains(name); value != nullptr && !is_neutral(*value))
      refuse_field(name, fmt::format("{} cannot be set: {}", name, reason), "unsupported_parameter");
  if (const json::array* modalities = array_field(body, "modalities"))
    for (const json::value& modality : *modalities)
      if (modality != "text")
        refuse_field("modalities", "modalities can be [\"text\"] only: answers are text", "unsupported_parameter");
}

void UnknownFields::warn(const json::object& body) {
  constexpr size_t kMostWarnings = 100, kLongestName = 64;  // a longer one is no mistake in writing
  for (const auto& member : body) {
    const std::string_view name = member.key();
    if (name.size() > kLongestName || is_known(name)) continue;
    const std::lock_guard lock(mutex_);
    if (warned_.size() == kMostWarnings) return;
    if (std::find(warned_.begin(), warned_.end(), name) != warned_.end()) continue;
    log_warning("the field {} of a body is not known and has no effect", to_json(json::string(name)));
    warned_.emplace_back(name);
  }
}

}  // namespace calandra::apps
