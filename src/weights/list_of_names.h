// Names of tensors for a message: the first few.
#pragma once

#include <fmt/format.h>

#include <algorithm>
#include <string>
#include <vector>

namespace calandra {

inline std::string list_of_names(const std::vector<std::string>& names) {
  constexpr size_t kNames = 20;
  std::string text;
  for (size_t i = 0; i < std::min(names.size(), kNames); ++i) text += (i > 0 ? ", " : "") + names[i];
  if (names.size() > kNames) text += fmt::format(" and {} more", names.size() - kNames);
  return text;
}

}  // namespace calandra
