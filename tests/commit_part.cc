#include "tests/commit_part.h"

#include <cstdio>
#include <cstdlib>
#include <string>

#include "base/check.h"

namespace calandra::testing {

TablePart table_part(uint64_t of) {
  const char* value = std::getenv("CALANDRA_MATRIX");
  if (value == nullptr) return {false, number_of_commit() % of, of};
  unsigned long long number = 1, parts = 1;
  if (std::string_view(value) != "all" && std::sscanf(value, "%llu/%llu", &number, &parts) != 2) parts = 0;
  CHECK_MSG(1 <= number && number <= parts, std::string("CALANDRA_MATRIX is all or like 3/16, not ") + value);
  return {true, number - 1, parts};
}

uint64_t number_of_commit() {
  static const uint64_t number = [] {
    uint64_t n = 1;
    if (FILE* git = popen("git -C '" CALANDRA_SOURCE_DIR "' rev-parse HEAD 2>/dev/null", "r")) {
      char hash[64] = {};
      if (std::fgets(hash, sizeof hash, git) != nullptr) n = std::strtoull(std::string(hash, 8).c_str(), nullptr, 16);
      pclose(git);
    }
    return n;
  }();
  return number;
}

}  // namespace calandra::testing
