#include "text/jinja/filters.h"

#include "text/jinja/compare.h"
#include "text/jinja/interpreter.h"
#include "text/jinja/methods.h"

#include <map>

namespace calandra::jinja {

const FilterEntry* find_filter(std::string_view name) {
  static const std::map<std::string_view, FilterEntry> kFilters = [] {
    std::map<std::string_view, FilterEntry> all;
    for (const FilterGroup& group :
         {text_filters(), layout_filters(), sequence_filters(), selection_filters(), value_filters()}) {
      for (const FilterEntry& entry : group) all.emplace(entry.name, entry);
    }
    return all;
  }();
  const auto found = kFilters.find(name);
  return found == kFilters.end() ? nullptr : &found->second;
}

Value attribute_path(Interpreter& in, const Value& item, const Value& path, const Value& fallback) {
  if (path.is_missing() || path.is_none()) return item;
  Value value = item;
  const auto step = [&](const Value& key) {
    value = in.item(value, key);
    if (!fallback.is_missing() && !fallback.is_none() && value.is_undefined()) value = fallback;
  };
  if (!path.is_string()) {
    step(path);
    return value;
  }
  const std::string& text = path.text();
  for (size_t begin = 0; begin <= text.size();) {
    const size_t end = std::min(text.find('.', begin), text.size());
    const std::string part = text.substr(begin, end - begin);
    const bool is_number =
        !part.empty() && part.size() < 18 && part.find_first_not_of("0123456789") == std::string::npos;
    step(is_number ? Value::integer(std::stoll(part)) : in.string(part));
    begin = end + 1;
  }
  return value;
}

Value without_case(Interpreter& in, const Value& value) {
  return value.is_string() ? map_case(in, value, false) : value;
}

}  // namespace calandra::jinja
