// Files of one folder for clients who name them as file:///FOLDER/…, and no file outside of it.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <variant>

#include "base/error.h"

namespace calandra::net {

class LocalFolder {
 public:
  LocalFolder() = default;  // no file may be read
  // Throws UsageError naming `flag` when it is no folder.
  LocalFolder(const std::string& flag, const std::filesystem::path& folder);

  // The content of the regular file that a file: URL names, of at most `max_bytes`. Links that lead out of the folder
  // are not followed, by the kernel's own rule (openat2).
  std::variant<std::string, RequestError> read(std::string_view url, int64_t max_bytes) const;

 private:
  std::filesystem::path folder_;  // canonical; empty: none
};

}  // namespace calandra::net
