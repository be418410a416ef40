#include "models/config_fields.h"

#include <fmt/format.h>

#include <cmath>

#include "base/error.h"

namespace calandra {
namespace {

thread_local std::set<std::string, std::less<>>* asked_for = nullptr;

}  // namespace

void ConfigFields::note_keys(std::set<std::string, std::less<>>* keys) { asked_for = keys; }

bool ConfigFields::has(std::string_view key) const {
  if (asked_for != nullptr) asked_for->emplace(key);
  const json::value* value = object_.if_contains(key);
  return value != nullptr && !value->is_null();
}

void ConfigFields::fail(std::string_view key, const std::string& problem) const {
  throw LoadError(fmt::format("{}: {} {}", where_, key, problem));
}

const json::value& ConfigFields::required(std::string_view key) const {
  if (!has(key)) fail(key, "is missing; the checkpoint cannot be read without it");
  return object_.at(key);
}

int64_t ConfigFields::integer(std::string_view key, int64_t min, int64_t max, std::optional<int64_t> fallback) const {
  if (!has(key) && fallback) return *fallback;
  const json::value& value = required(key);
  int64_t n = 0;
  if (value.is_int64()) {
    n = value.get_int64();
  } else if (value.is_double() && std::floor(value.get_double()) == value.get_double() &&
             std::abs(value.get_double()) < 1e15) {
    n = static_cast<int64_t>(value.get_double());  // 1e7 written as a float
  } else {
    fail(key, "must be an integer, found " + to_json(value));
  }
  if (n < min || n > max) fail(key, fmt::format("must lie in [{}, {}], found {}", min, max, n));
  return n;
}

double ConfigFields::number(std::string_view key, double min, double max, std::optional<double> fallback) const {
  if (!has(key) && fallback) return *fallback;
  const json::value& value = required(key);
  if (!value.is_number()) fail(key, "must be a number, found " + to_json(value));
  const double x = value.to_number<double>();
  if (!(x >= min && x <= max)) fail(key, fmt::format("must lie in [{}, {}], found {}", min, max, x));
  return x;
}

bool ConfigFields::boolean(std::string_view key, std::optional<bool> fallback) const {
  if (!has(key) && fallback) return *fallback;
  const json::value& value = required(key);
  if (!value.is_bool()) fail(key, "must be true or false, found " + to_json(value));
  return value.get_bool();
}

std::string ConfigFields::text(std::string_view key, std::optional<std::string> fallback) const {
  if (!has(key) && fallback) return *fallback;
  const json::value& value = required(key);
  if (!value.is_string()) fail(key, "must be a string, found " + to_json(value));
  return std::string(value.get_string());
}

const json::array& ConfigFields::array(std::string_view key) const {
  const json::value& value = required(key);
  if (!value.is_array()) fail(key, "must be a list, found " + to_json(value));
  return value.get_array();
}

ConfigFields ConfigFields::child(std::string_view key) const {
  const json::value& value = required(key);
  if (!value.is_object()) fail(key, "must be an object, found " + to_json(value));
  return ConfigFields(value.get_object(), where_ + " " + std::string(key));
}

void check_experts_in_all(const ConfigFields& fields, int64_t num_experts, int64_t num_hidden_layers) {
  constexpr int64_t kMaxExpertsInAll = 1 << 18;
  if (num_experts * num_hidden_layers > kMaxExpertsInAll)
    fields.fail("num_experts", fmt::format("{} in {} layers are more than {} experts in all", num_experts,
                                           num_hidden_layers, kMaxExpertsInAll));
}

}  // namespace calandra
