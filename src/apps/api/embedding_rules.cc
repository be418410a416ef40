#include "apps/api/embedding_rules.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cctype>

#include "apps/api/body_fields.h"

namespace calandra::apps {
namespace {

constexpr const char* kFlag = "--pooler-config";

const json::value* find_in_config(const json::object& config, std::string_view name) {
  const json::object* text = object_field(config, "text_config");
  const json::value* value = find_field(config, name);
  return value != nullptr || text == nullptr ? value : find_field(*text, name);
}

Pooling pooling_of(const json::value& value) {
  std::string name = value.is_string() ? std::string(value.get_string()) : "";
  std::transform(name.begin(), name.end(), name.begin(), [](unsigned char c) { return std::toupper(c); });
  if (name == "LAST") return Pooling::kLast;
  if (name == "MEAN") return Pooling::kMean;
  throw UsageError(fmt::format("{}: pooling_type must be LAST or MEAN, found {}", kFlag, to_json(value)));
}

}  // namespace

EmbeddingRules::EmbeddingRules(const std::optional<json::object>& flag, const json::object& config, int64_t hidden_size)
    : hidden_size_(hidden_size), usual_(hidden_size) {
  const json::value* any = find_in_config(config, "is_matryoshka");
  is_matryoshka_ = any != nullptr && *any == json::value(true);
  if (const json::value* list = find_in_config(config, "matryoshka_dimensions"); list != nullptr && list->is_array())
    for (const json::value& one : list->get_array())
      if (one.is_int64()) trained_.push_back(one.get_int64());
  is_matryoshka_ = is_matryoshka_ || !trained_.empty();
  if (!flag) return;
  for (const auto& [key, value] : *flag) {
    if (value.is_null()) continue;
    if (key == "pooling_type" || key == "seq_pooling_type") {
      pooling = pooling_of(value);
    } else if (key == "normalize" || key == "use_activation") {
      if (!value.is_bool()) throw UsageError(fmt::format("{}: {} must be true or false", kFlag, std::string_view(key)));
      normalize = value.get_bool();
    } else if (key == "dimensions") {
      if (!value.is_int64()) throw UsageError(fmt::format("{}: dimensions must be a whole number", kFlag));
      try {
        usual_ = dimensions_of(value.get_int64());
      } catch (const RefusedBody& refused) {
        throw UsageError(fmt::format("{}: {}", kFlag, refused.error.message));
      }
    } else {
      throw UsageError(fmt::format("{}: {} is not supported; pooling_type, normalize and dimensions are", kFlag,
                                   std::string_view(key)));
    }
  }
}

int64_t EmbeddingRules::dimensions_of(std::optional<int64_t> asked) const {
  if (!asked) return usual_;
  if (*asked == hidden_size_) return hidden_size_;
  if (!is_matryoshka_)
    refuse_field("dimensions",
                 fmt::format("dimensions must be {}, the model's: it does not support a Matryoshka representation (its "
                             "config has neither is_matryoshka nor matryoshka_dimensions)",
                             hidden_size_));
  if (!trained_.empty() && std::find(trained_.begin(), trained_.end(), *asked) == trained_.end())
    refuse_field("dimensions", fmt::format("dimensions must be one of {}", fmt::join(trained_, ", ")));
  if (*asked < 1 || *asked > hidden_size_)
    refuse_field("dimensions", fmt::format("dimensions must be from 1 to {}", hidden_size_));
  return *asked;
}

}  // namespace calandra::apps
