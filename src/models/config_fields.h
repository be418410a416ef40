// Fields of a config.json with their checks. Every error names the file, the key, what was expected and what was found.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "base/json.h"

namespace calandra {

class ConfigFields {
 public:
  // `where` is the file (and the object inside it) as errors name it.
  ConfigFields(const json::object& object, std::string where) : object_(object), where_(std::move(where)) {}

  bool has(std::string_view key) const;  // present and not null
  int64_t integer(std::string_view key, int64_t min, int64_t max, std::optional<int64_t> fallback = {}) const;
  double number(std::string_view key, double min, double max, std::optional<double> fallback = {}) const;
  bool boolean(std::string_view key, std::optional<bool> fallback = {}) const;
  std::string text(std::string_view key, std::optional<std::string> fallback = {}) const;
  const json::array& array(std::string_view key) const;
  ConfigFields child(std::string_view key) const;

  const json::object& object() const { return object_; }
  const std::string& where() const { return where_; }
  [[noreturn]] void fail(std::string_view key, const std::string& problem) const;

 private:
  const json::value& required(std::string_view key) const;

  const json::object& object_;
  std::string where_;
};

// What rope_parameters and the older rope_scaling say together, for both of HF's generations of configs: a key of
// rope_scaling goes before that of rope_parameters, so that the override of a model card (--hf-overrides
// '{"rope_scaling": {...}}') adds to what the file has. `type` there becomes rope_type.
json::object rope_settings(const ConfigFields& fields);

}  // namespace calandra
