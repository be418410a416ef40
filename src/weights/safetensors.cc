#include "weights/safetensors.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>

#include "base/error.h"
#include "base/json.h"

namespace calandra {
namespace {

constexpr uint64_t kMaxHeaderBytes = 100'000'000;
constexpr std::string_view kLfsPointer = "version https://git-lfs.github.com/spec/";

struct FormatName {
  std::string_view name;
  DType dtype;
};
constexpr FormatName kFormatNames[] = {{"F32", DType::kF32}, {"BF16", DType::kBF16}, {"F16", DType::kF16},
                                       {"I32", DType::kI32}, {"I64", DType::kI64},   {"F64", DType::kF64},
                                       {"U8", DType::kU8},   {"I8", DType::kI8},     {"F8_E4M3", DType::kF8E4M3}};

}  // namespace

std::optional<DType> dtype_of_safetensors(std::string_view name) {
  for (const FormatName& format : kFormatNames)
    if (format.name == name) return format.dtype;
  return std::nullopt;
}

std::string_view safetensors_name(DType dtype) {
  for (const FormatName& format : kFormatNames)
    if (format.dtype == dtype) return format.name;
  CHECK_MSG(false, "a type without a name in safetensors");
  return "";
}

void SafetensorsFile::fail(const std::string& problem) const { throw LoadError(path_.string() + ": " + problem); }

SafetensorsFile::SafetensorsFile(std::filesystem::path path) : path_(std::move(path)) {
  // Without O_NONBLOCK the opening of a named pipe would wait for its writer.
  fd_ = open(path_.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
  if (fd_ < 0) fail(fmt::format("cannot be opened: {}", std::strerror(errno)));
  try {
    opened_ = current_version();
    const int64_t file_bytes = opened_.bytes;
    if (file_bytes < 8)
      fail(fmt::format("has {} bytes; a safetensors file begins with the 8-byte length of its header", file_bytes));
    unsigned char prefix[8];
    read_at(0, 8, prefix, "the length of the header");
    uint64_t header_bytes = 0;
    for (int i = 7; i >= 0; --i) header_bytes = header_bytes << 8 | prefix[i];
    if (std::string start(kLfsPointer.size(), '\0'); file_bytes >= std::ssize(start)) {
      read_at(0, std::ssize(start), start.data(), "its beginning");
      if (start == kLfsPointer) fail("is a Git LFS pointer, not the weights; fetch them with `git lfs pull`");
    }
    if (header_bytes > kMaxHeaderBytes)
      fail(fmt::format("claims a header of {} bytes, at most {} are allowed", header_bytes, kMaxHeaderBytes));
    if (header_bytes > static_cast<uint64_t>(file_bytes) - 8)
      fail(fmt::format("claims a header of {} bytes, the file has {}: it is cut or no safetensors file", header_bytes,
                       file_bytes));
    std::string text(header_bytes, '\0');
    read_at(8, static_cast<int64_t>(header_bytes), text.data(), "the header");
    try {
      header_ = parse_safetensors_header(text, file_bytes);
    } catch (const LoadError& error) {
      fail(error.what());
    }
    for (const Entry& entry : header_.entries) by_name_.emplace(entry.name, &entry);
  } catch (...) {
    close(fd_);
    throw;
  }
}

SafetensorsFile::SafetensorsFile(SafetensorsFile&& other) noexcept
    : path_(std::move(other.path_)),
      fd_(std::exchange(other.fd_, -1)),
      opened_(other.opened_),
      header_(std::move(other.header_)),
      by_name_(std::move(other.by_name_)) {}  // its pointers lead into the vector's memory, which moved along

SafetensorsFile::~SafetensorsFile() {
  if (fd_ >= 0) close(fd_);
}

SafetensorsFile::Version SafetensorsFile::current_version() const {
  struct stat status {};
  if (fstat(fd_, &status) != 0) fail(fmt::format("cannot be examined: {}", std::strerror(errno)));
  if (!S_ISREG(status.st_mode)) fail("is not a regular file");
  return {status.st_dev, status.st_ino, status.st_size, status.st_mtim.tv_sec, status.st_mtim.tv_nsec};
}

void SafetensorsFile::check_unchanged() const {
  if (current_version() != opened_) fail("was changed while it was read; load again when nothing writes to it");
}

const SafetensorsFile::Entry* SafetensorsFile::find(std::string_view name) const {
  const auto it = by_name_.find(name);
  return it == by_name_.end() ? nullptr : it->second;
}

void SafetensorsFile::read(const Entry& entry, int64_t offset, int64_t bytes, void* to) const {
  CHECK_LE(0, offset);
  CHECK_LE(offset + bytes, entry.bytes);
  read_at(entry.begin + offset, bytes, to, "tensor " + entry.name);
}

void SafetensorsFile::read_at(int64_t at, int64_t bytes, void* to, std::string_view what) const {
  auto* out = static_cast<char*>(to);
  while (bytes > 0) {
    const ssize_t n = pread(fd_, out, bytes, at);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0)
      fail(fmt::format("{} cannot be read at byte {}: {}", what, at,
                       n == 0 ? "the file has become shorter" : std::strerror(errno)));
    out += n;
    at += n;
    bytes -= n;
  }
}

void write_safetensors(const std::filesystem::path& path, std::vector<NamedTensor> tensors,
                       const std::map<std::string, std::string>& metadata) {
  std::error_code ignored;
  if (const auto status = std::filesystem::status(path, ignored); exists(status) && !is_regular_file(status))
    throw LoadError("cannot write " + path.string() + ": it exists and is no regular file");
  // Wider types first, so that every tensor is aligned in the file; then by name.
  std::sort(tensors.begin(), tensors.end(), [](const NamedTensor& a, const NamedTensor& b) {
    return std::pair(-static_cast<int>(size_of(a.tensor.dtype())), std::string_view(a.name)) <
           std::pair(-static_cast<int>(size_of(b.tensor.dtype())), std::string_view(b.name));
  });
  json::object header;
  if (!metadata.empty()) {
    json::object& members = header["__metadata__"].emplace_object();
    for (const auto& [key, value] : metadata) members[key] = value;
  }
  int64_t offset = 0;
  for (const NamedTensor& t : tensors) {
    CHECK(t.tensor.is_dense());
    CHECK_MSG(!header.contains(t.name) && t.name != "__metadata__", "two tensors named " + t.name);
    json::array shape;
    for (int axis = 0; axis < t.tensor.rank(); ++axis) shape.push_back(t.tensor.size(axis));
    header[t.name] = {{"dtype", safetensors_name(t.tensor.dtype())},
                      {"shape", std::move(shape)},
                      {"data_offsets", {offset, offset + t.tensor.bytes()}}};
    offset += t.tensor.bytes();
  }
  std::string text = json::serialize(header);
  text.resize((text.size() + 7) / 8 * 8, ' ');

  const std::filesystem::path temporary = path.string() + fmt::format(".partial-{}", getpid());
  FILE* file = std::fopen(temporary.c_str(), "wb");
  if (file == nullptr) throw LoadError("cannot write " + temporary.string() + ": " + std::strerror(errno));
  const auto put = [&](const void* bytes, size_t n) { return n == 0 || std::fwrite(bytes, 1, n, file) == n; };
  unsigned char prefix[8];
  for (int i = 0; i < 8; ++i) prefix[i] = static_cast<unsigned char>(static_cast<uint64_t>(text.size()) >> (8 * i));
  bool good = put(prefix, 8) && put(text.data(), text.size());
  for (const NamedTensor& t : tensors) good = good && put(t.tensor.data(), t.tensor.bytes());
  int reason = good ? 0 : errno;
  if (std::fclose(file) != 0 && reason == 0) reason = errno;
  if (reason == 0 && std::rename(temporary.c_str(), path.c_str()) != 0) reason = errno;
  if (reason != 0) {
    std::remove(temporary.c_str());
    throw LoadError("cannot write " + path.string() + ": " + std::strerror(reason));
  }
}

}  // namespace calandra
