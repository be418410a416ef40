// safetensors files: strict reading (every rule of the format is checked before a byte of data is used) and writing.
// Files are read with pread, never mapped: a file that is cut while the program runs is an error, not a signal.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "tensor/tensor.h"

namespace calandra {

class SafetensorsFile {
 public:
  struct Entry {
    std::string name;
    std::string dtype;           // as in the file: "BF16"
    std::vector<int64_t> shape;  // [] is a scalar
    int64_t begin = 0;           // first byte in the file
    int64_t bytes = 0;
  };

  // Opens and checks the file. Throws LoadError naming the file and, where there is one, the tensor.
  explicit SafetensorsFile(std::filesystem::path path);
  ~SafetensorsFile();
  SafetensorsFile(SafetensorsFile&& other) noexcept;
  SafetensorsFile& operator=(SafetensorsFile&&) = delete;

  const std::filesystem::path& path() const { return path_; }
  const std::vector<Entry>& entries() const { return entries_; }  // by offset
  const Entry* find(std::string_view name) const;
  const std::map<std::string, std::string>& metadata() const { return metadata_; }

  // Bytes [offset, offset + bytes) of the entry's data into `to`. Thread-safe. Throws LoadError when the file has become shorter.
  void read(const Entry& entry, int64_t offset, int64_t bytes, void* to) const;

 private:
  void parse_header(std::string_view header, int64_t data_begin, int64_t file_bytes);
  [[noreturn]] void fail(const std::string& problem) const;

  std::filesystem::path path_;
  int fd_ = -1;
  std::vector<Entry> entries_;
  std::map<std::string, size_t, std::less<>> by_name_;
  std::map<std::string, std::string> metadata_;
};

// "BF16" -> kBF16; nothing for types that calandra does not compute with.
std::optional<DType> dtype_of_safetensors(std::string_view name);
std::string_view safetensors_name(DType dtype);

// Writes dense host tensors, sorted by name, through a temporary file that is renamed at the end. Throws LoadError.
struct NamedTensor {
  std::string name;
  Tensor tensor;
};
void write_safetensors(const std::filesystem::path& path, std::vector<NamedTensor> tensors);

}  // namespace calandra
