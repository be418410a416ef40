// Reading JSON configuration strictly: every value knows its place in the file, every mistake names it.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"

namespace calandra {

class JsonField {
 public:
  // `value` must outlive this. `where` is the file.
  JsonField(const json::value& value, std::string where) : value_(&value), where_(std::move(where)) {}

  const std::string& where() const { return where_; }
  [[noreturn]] void refuse(std::string_view reason) const;  // throws LoadError "WHERE: REASON"
  [[noreturn]] void expected(std::string_view what) const;  // "WHERE: expected WHAT, found VALUE"

  bool is_null() const { return value_->is_null(); }
  bool is_string() const { return value_->is_string(); }
  bool is_array() const { return value_->is_array(); }
  bool is_object() const { return value_->is_object(); }

  // Throw LoadError when the value is of another kind.
  std::string_view string() const;
  bool boolean() const;
  int64_t integer(int64_t least, int64_t most) const;
  const json::object& object() const;
  const json::array& array() const;

  // An object without keys other than these.
  void only_keys(std::initializer_list<std::string_view> keys) const;
  bool has(std::string_view key) const;                   // present and not null
  JsonField operator[](std::string_view key) const;       // null if absent
  JsonField at(std::string_view key) const;               // LoadError if absent
  JsonField item(size_t index) const;                     // of an array
  bool flag(std::string_view key, bool otherwise) const;  // a boolean; `otherwise` if absent or null

 private:
  const json::value* value_;
  std::string where_;
};

}  // namespace calandra
