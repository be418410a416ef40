// For tests and fuzzing: files in memory and on disk, and a second opinion on the rules of the format that shares
// nothing with the reader but the JSON library's document model.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <string>

#include "base/check.h"
#include "base/json.h"
#include "weights/safetensors_header.h"

namespace calandra {

// A temporary folder.
class FolderForTest {
 public:
  FolderForTest() {
    std::string name = (std::filesystem::temp_directory_path() / "calandra_XXXXXX").string();
    path_ = mkdtemp(name.data());
  }
  ~FolderForTest() { std::filesystem::remove_all(path_); }
  FolderForTest(const FolderForTest&) = delete;

  std::filesystem::path write(const std::string& name, std::string_view bytes) const {
    std::ofstream(path_ / name, std::ios::binary).write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
    return path_ / name;
  }
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

// A file in memory, for many small files in a row.
class MemoryFileForTest {
 public:
  MemoryFileForTest() : fd_(memfd_create("test", MFD_CLOEXEC)), path_("/proc/self/fd/" + std::to_string(fd_)) {}
  ~MemoryFileForTest() { close(fd_); }
  MemoryFileForTest(const MemoryFileForTest&) = delete;

  const std::filesystem::path& write(std::string_view bytes) const {
    CHECK_EQ(ftruncate(fd_, 0), 0);
    CHECK_EQ(pwrite(fd_, bytes.data(), bytes.size(), 0), static_cast<ssize_t>(bytes.size()));
    return path_;
  }

 private:
  const int fd_;
  const std::filesystem::path path_;
};

inline std::string length_prefix(uint64_t n) {
  std::string prefix(8, '\0');
  for (int i = 0; i < 8; ++i) prefix[i] = static_cast<char>(n >> (8 * i));
  return prefix;
}

inline std::string file_of(std::string_view header, size_t data_bytes) {
  return length_prefix(header.size()) + std::string(header) + std::string(data_bytes, '\1');
}

// The first rule that an accepted file breaks, or "".
inline std::string broken_rule(std::string_view file, const std::vector<SafetensorsEntry>& entries) {
  static const std::map<std::string_view, int> bits_of = {
      {"BOOL", 8},    {"F4", 4},      {"F6_E2M3", 6}, {"F6_E3M2", 6},    {"U8", 8},          {"I8", 8},
      {"F8_E5M2", 8}, {"F8_E4M3", 8}, {"F8_E8M0", 8}, {"I16", 16},       {"U16", 16},        {"F16", 16},
      {"BF16", 16},   {"I32", 32},    {"U32", 32},    {"F32", 32},       {"F8_E4M3FNUZ", 8}, {"C64", 64},
      {"F64", 64},    {"I64", 64},    {"U64", 64},    {"F8_E5M2FNUZ", 8}};
  if (file.size() < 8) return "R1";
  uint64_t n = 0;
  for (int i = 7; i >= 0; --i) n = n << 8 | static_cast<unsigned char>(file[i]);
  if (n > 100'000'000) return "R3";
  if (n > file.size() - 8) return "R4";
  json::parse_options options;
  options.max_depth = 256;
  json::error_code error;
  const json::value root = json::parse(file.substr(8, n), error, {}, options);
  if (error) return "R6";
  if (!root.is_object()) return "R7";
  const json::object& object = root.get_object();
  if (object.size() != entries.size() + object.contains("__metadata__")) return "R8";
  int64_t at = 8 + static_cast<int64_t>(n);
  for (const SafetensorsEntry& entry : entries) {
    const json::value* fields = object.if_contains(entry.name);
    if (entry.name.size() > 1024) return "E3";
    if (fields == nullptr || !fields->is_object()) return "R10 " + entry.name;
    const json::object& f = fields->get_object();
    if (f.at("dtype") != json::value(entry.dtype) || !bits_of.contains(entry.dtype)) return "R11 " + entry.name;
    if (f.at("shape") != json::value_from(entry.shape)) return "R12 " + entry.name;
    const int64_t data = 8 + static_cast<int64_t>(n);
    if (f.at("data_offsets") != json::value{entry.begin - data, entry.begin - data + entry.bytes})
      return "R13 " + entry.name;
    if (entry.begin != at) return "R14 " + entry.name;
    // The product by division, so that it cannot overflow.
    const auto most = static_cast<int64_t>(file.size()) * 8;
    int64_t bits = bits_of.at(entry.dtype);
    for (const int64_t size : entry.shape) {
      if (size < 0) return "R12 " + entry.name;
      if (size == 0) bits = 0;
      if (size > 0 && bits > most / size) return "R15 " + entry.name;
      bits *= size;
    }
    if (bits % 8 != 0) return "R16 " + entry.name;
    if (bits / 8 != entry.bytes) return "R17 " + entry.name;
    at += entry.bytes;
  }
  return at == static_cast<int64_t>(file.size()) ? "" : "R18";
}

}  // namespace calandra
