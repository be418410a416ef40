// Fields of a config.json with their checks. Every error names the file, the key, what was expected and what was found.
#pragma once

#include <optional>
#include <set>
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

  // Notes the names of all keys that this thread asks for in `keys`, of any object; null ends it.
  static void note_keys(std::set<std::string, std::less<>>* keys);

 private:
  const json::value& required(std::string_view key) const;

  const json::object& object_;
  std::string where_;
};

// Bounds of what a config may say, above any release by a factor of eight or more: what is larger is a broken file.
// Products of the sizes of one tensor stay below 2^63 bytes; sums over tensors are checked where they are made.
constexpr int64_t kMaxHeads = 1 << 14;
constexpr int64_t kMaxHeadDim = 1 << 12;
constexpr int64_t kMaxWidth = 1 << 20;
constexpr int64_t kMaxLayers = 1024;
constexpr int64_t kMaxExperts = 4096;
constexpr double kMinEps = 1e-30;  // a row of zeros is divided by its root

// Refuses num_experts in so many layers: every expert is noted before a file is read.
void check_experts_in_all(const ConfigFields& fields, int64_t num_experts, int64_t num_hidden_layers);

}  // namespace calandra
