// The filters and tests of jinja2, by name.
#pragma once

#include "text/jinja/objects.h"

namespace calandra::jinja {

struct FilterEntry {
  const char* name;
  Value (*code)(Interpreter& in, const Value& value, Arguments arguments);
};
struct TestEntry {
  const char* name;
  bool (*code)(Interpreter& in, const Value& value, Arguments arguments);
};

const FilterEntry* find_filter(std::string_view name);  // null if unknown
const TestEntry* find_test(std::string_view name);

// The filters are grouped by what they work on; each group lists its entries.
using FilterGroup = std::vector<FilterEntry>;
FilterGroup text_filters();
FilterGroup layout_filters();
FilterGroup sequence_filters();
FilterGroup selection_filters();
FilterGroup value_filters();

// The getter of `attribute=` arguments: "a.b.0" goes through item() part by part; missing value: the item itself.
Value attribute_path(Interpreter& in, const Value& item, const Value& path, const Value& fallback);
// Lower case for strings, so that sorting and grouping ignore case; other values as they are.
Value without_case(Interpreter& in, const Value& value);

}  // namespace calandra::jinja
