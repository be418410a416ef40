#include "text/json_fields.h"

#include <algorithm>

#include "base/error.h"

namespace calandra {

void JsonField::refuse(std::string_view reason) const { throw LoadError(where_ + ": " + std::string(reason)); }

void JsonField::expected(std::string_view what) const {
  constexpr size_t kShown = 60;
  std::string found;
  if (is_object()) {
    found = "an object";
  } else if (is_array()) {
    found = "an array";
  } else {
    found = to_json(*value_);
  }
  if (found.size() > kShown) found = found.substr(0, kShown) + "…";
  refuse("expected " + std::string(what) + ", found " + found);
}

std::string_view JsonField::string() const {
  if (!value_->is_string()) expected("a string");
  return value_->get_string();
}

bool JsonField::boolean() const {
  if (!value_->is_bool()) expected("true or false");
  return value_->get_bool();
}

int64_t JsonField::integer(int64_t least, int64_t most) const {
  if (!value_->is_int64() || value_->get_int64() < least || value_->get_int64() > most)
    expected("an integer from " + std::to_string(least) + " to " + std::to_string(most));
  return value_->get_int64();
}

const json::object& JsonField::object() const {
  if (!value_->is_object()) expected("an object");
  return value_->get_object();
}

const json::array& JsonField::array() const {
  if (!value_->is_array()) expected("an array");
  return value_->get_array();
}

void JsonField::only_keys(std::initializer_list<std::string_view> keys) const {
  for (const auto& member : object()) {
    const std::string_view key = member.key();
    if (std::find(keys.begin(), keys.end(), key) == keys.end()) refuse("unknown key \"" + std::string(key) + "\"");
  }
}

JsonField JsonField::operator[](std::string_view key) const {
  static const json::value null;
  const json::value* found = object().if_contains(key);
  return {found == nullptr ? null : *found, where_ + (where_.ends_with("json") ? ": " : ".") + std::string(key)};
}

bool JsonField::has(std::string_view key) const { return !(*this)[key].is_null(); }

JsonField JsonField::at(std::string_view key) const {
  if (object().if_contains(key) == nullptr) refuse("the key \"" + std::string(key) + "\" is missing");
  return (*this)[key];
}

JsonField JsonField::item(size_t index) const {
  return {array().at(index), where_ + "[" + std::to_string(index) + "]"};
}

bool JsonField::flag(std::string_view key, bool otherwise) const {
  return has(key) ? (*this)[key].boolean() : otherwise;
}

}  // namespace calandra
