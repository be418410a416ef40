// The header of a safetensors file: which tensors it has and where their bytes are. Checked in one pass, in memory that
// is proportional to the number of tensors: content that nobody asked for is skipped, never stored.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace calandra {

struct SafetensorsEntry {
  std::string name;
  std::string dtype;           // as in the file: "BF16"
  std::vector<int64_t> shape;  // [] is a scalar
  int64_t begin = 0;           // first byte, counted from the start of the file
  int64_t bytes = 0;
};

struct SafetensorsHeader {
  std::vector<SafetensorsEntry> entries;  // by offset
  std::map<std::string, std::string> metadata;
};

// Reads and checks the JSON text of a header. `file_bytes` is the length of the whole file, 8 + text.size() + data.
// Throws LoadError with what is wrong, without the file's name: the header itself, or one tensor by name.
SafetensorsHeader parse_safetensors_header(std::string_view text, int64_t file_bytes);

}  // namespace calandra
