#include "models/rope_config.h"

#include "base/log.h"

namespace calandra {

json::object rope_settings(const ConfigFields& fields) {
  json::object merged;
  for (const char* key : {"rope_theta", "partial_rotary_factor"})
    if (fields.has(key)) merged[key] = fields.object().at(key);
  for (const char* key : {"rope_parameters", "rope_scaling"}) {
    if (!fields.has(key)) continue;
    const ConfigFields child = fields.child(key);
    const json::object& settings = child.object();
    if (child.has("type") && !settings.contains("rope_type")) merged["rope_type"] = settings.at("type");
    for (const auto& [name, value] : settings)
      if (!value.is_null()) merged[name] = value;
  }
  return merged;
}

RopeParameters parse_rope(const ConfigFields& settings, double default_theta, int64_t max_position_embeddings) {
  constexpr double kMinTheta = 1.001;  // its logarithm divides
  RopeParameters rope;
  rope.rope_theta = settings.number("rope_theta", kMinTheta, 1e15, default_theta);
  const std::string type = settings.text("rope_type", "default");
  if (type == "default") return rope;
  if (type != "yarn") settings.fail("rope_type", "must be default or yarn, found " + type);
  rope.rope_type = RopeParameters::Type::kYarn;
  rope.factor = settings.number("factor", 1, 1e6);
  rope.original_max_position_embeddings =
      settings.integer("original_max_position_embeddings", 1, int64_t{1} << 30, max_position_embeddings);
  if (!settings.has("original_max_position_embeddings"))
    log_warning_once("{}: original_max_position_embeddings is missing; taken as max_position_embeddings {}",
                     settings.where(), max_position_embeddings);
  rope.attention_factor = settings.number("attention_factor", 0, 1e3, 0.0);
  rope.beta_fast = settings.number("beta_fast", 1e-6, 1e6, 32.0);
  rope.beta_slow = settings.number("beta_slow", 1e-6, 1e6, 1.0);
  rope.truncate = settings.boolean("truncate", true);
  return rope;
}

}  // namespace calandra
