// safetensors files: strict reading (every rule of the format is checked before a byte of data is used) and writing.
// Files are read with pread, never mapped: a file that is cut while the program runs is an error, not a signal.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "tensor/tensor.h"
#include "weights/safetensors_header.h"

namespace calandra {

class SafetensorsFile {
 public:
  using Entry = SafetensorsEntry;

  // Opens and checks the file. Throws LoadError naming the file and, where there is one, the tensor.
  explicit SafetensorsFile(std::filesystem::path path);
  ~SafetensorsFile();
  SafetensorsFile(SafetensorsFile&& other) noexcept;
  SafetensorsFile& operator=(SafetensorsFile&&) = delete;

  const std::filesystem::path& path() const { return path_; }
  const std::vector<Entry>& entries() const { return header_.entries; }  // by offset
  const Entry* find(std::string_view name) const;
  const std::map<std::string, std::string>& metadata() const { return header_.metadata; }

  // Bytes [offset, offset + bytes) of the entry's data into `to`. Thread-safe. Throws LoadError when the file has
  // become shorter.
  void read(const Entry& entry, int64_t offset, int64_t bytes, void* to) const;
  // Throws LoadError when the opened file has been written to since it was opened: called after the last read.
  void check_unchanged() const;

 private:
  // Identity and state of the file when it was opened.
  struct Version {
    uint64_t device = 0, inode = 0;
    int64_t bytes = 0, seconds = 0, nanoseconds = 0;
    bool operator==(const Version&) const = default;
  };
  Version current_version() const;
  void read_at(int64_t at, int64_t bytes, void* to, std::string_view what) const;
  [[noreturn]] void fail(const std::string& problem) const;

  std::filesystem::path path_;
  int fd_ = -1;
  Version opened_;
  SafetensorsHeader header_;
  std::unordered_map<std::string_view, const Entry*> by_name_;
};

// "BF16" -> kBF16; nothing for types that calandra does not compute with.
std::optional<DType> dtype_of_safetensors(std::string_view name);
std::string_view safetensors_name(DType dtype);

// Writes dense host tensors with distinct names through a temporary file that is renamed at the end, so that `path` is
// never half written. Throws LoadError, also when `path` is something else than a file.
struct NamedTensor {
  std::string name;
  Tensor tensor;
};
void write_safetensors(const std::filesystem::path& path, std::vector<NamedTensor> tensors,
                       const std::map<std::string, std::string>& metadata = {});

}  // namespace calandra
