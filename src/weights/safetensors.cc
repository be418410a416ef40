// The rules are those of the reference reader (safetensors 0.8, tensor.rs), made stricter where it lets broken files pass: duplicate
// keys, names with control characters, values of the wrong kind.
#include "weights/safetensors.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <boost/json/basic_parser_impl.hpp>
#include <cerrno>
#include <cstring>
#include <set>

#include "base/error.h"
#include "base/json.h"

namespace calandra {
namespace {

constexpr uint64_t kMaxHeaderBytes = 100'000'000;
constexpr size_t kMaxTensors = 200'000;
constexpr size_t kMaxNameBytes = 1024;
constexpr size_t kMaxRank = 8;

struct Format {
  const char* name;
  int bits;
};
constexpr Format kFormats[] = {{"BOOL", 8},        {"F4", 4},           {"F6_E2M3", 6},      {"F6_E3M2", 6}, {"U8", 8},
                               {"I8", 8},          {"F8_E5M2", 8},      {"F8_E4M3", 8},      {"F8_E8M0", 8}, {"F8_E4M3FNUZ", 8},
                               {"F8_E5M2FNUZ", 8}, {"I16", 16},         {"U16", 16},         {"F16", 16},    {"BF16", 16},
                               {"I32", 32},        {"U32", 32},         {"F32", 32},         {"C64", 64},    {"F64", 64},
                               {"I64", 64},        {"U64", 64}};

const Format* find_format(std::string_view name) {
  for (const Format& format : kFormats)
    if (name == format.name) return &format;
  return nullptr;
}

// Finds the first key that occurs twice in one object, at any depth; the JSON reader itself keeps the last and says nothing.
struct DuplicateKeys {
  constexpr static size_t max_object_size = size_t(-1), max_array_size = size_t(-1), max_key_size = size_t(-1),
                          max_string_size = size_t(-1);
  using error_code = json::error_code;
  std::vector<std::set<std::string>> open;
  std::string key, duplicate;

  bool on_document_begin(error_code&) { return true; }
  bool on_document_end(error_code&) { return true; }
  bool on_object_begin(error_code&) {
    open.emplace_back();
    return true;
  }
  bool on_object_end(size_t, error_code&) {
    open.pop_back();
    return true;
  }
  bool on_array_begin(error_code&) { return true; }
  bool on_array_end(size_t, error_code&) { return true; }
  bool on_key_part(json::string_view part, size_t, error_code&) {
    key.append(part.data(), part.size());
    return true;
  }
  bool on_key(json::string_view part, size_t, error_code& error) {
    key.append(part.data(), part.size());
    if (!open.back().insert(key).second) {
      duplicate = key;
      error = json::error::syntax;
      return false;
    }
    key.clear();
    return true;
  }
  bool on_string_part(json::string_view, size_t, error_code&) { return true; }
  bool on_string(json::string_view, size_t, error_code&) { return true; }
  bool on_number_part(json::string_view, error_code&) { return true; }
  bool on_int64(int64_t, json::string_view, error_code&) { return true; }
  bool on_uint64(uint64_t, json::string_view, error_code&) { return true; }
  bool on_double(double, json::string_view, error_code&) { return true; }
  bool on_bool(bool, error_code&) { return true; }
  bool on_null(error_code&) { return true; }
  bool on_comment_part(json::string_view, error_code&) { return true; }
  bool on_comment(json::string_view, error_code&) { return true; }
};

std::string find_duplicate_key(std::string_view text) {
  json::parse_options options;
  options.max_depth = 256;
  json::basic_parser<DuplicateKeys> parser(options);
  json::error_code error;
  parser.write_some(false, text.data(), text.size(), error);
  return parser.handler().duplicate;
}

// A non-negative integer that fits int64, or nothing.
std::optional<int64_t> size_of_json(const json::value& value) {
  if (value.is_int64() && value.get_int64() >= 0) return value.get_int64();
  return std::nullopt;
}

}  // namespace

std::optional<DType> dtype_of_safetensors(std::string_view name) {
  if (name == "F32") return DType::kF32;
  if (name == "BF16") return DType::kBF16;
  if (name == "F16") return DType::kF16;
  if (name == "I32") return DType::kI32;
  if (name == "I64") return DType::kI64;
  if (name == "F64") return DType::kF64;
  if (name == "U8") return DType::kU8;
  if (name == "I8") return DType::kI8;
  if (name == "F8_E4M3") return DType::kF8E4M3;
  return std::nullopt;
}

std::string_view safetensors_name(DType dtype) {
  switch (dtype) {
    case DType::kF32: return "F32";
    case DType::kBF16: return "BF16";
    case DType::kF16: return "F16";
    case DType::kF8E4M3: return "F8_E4M3";
    case DType::kI8: return "I8";
    case DType::kU8: return "U8";
    case DType::kI32: return "I32";
    case DType::kI64: return "I64";
    case DType::kF64: return "F64";
  }
  return "?";
}

void SafetensorsFile::fail(const std::string& problem) const { throw LoadError(path_.string() + ": " + problem); }

SafetensorsFile::SafetensorsFile(std::filesystem::path path) : path_(std::move(path)) {
  fd_ = open(path_.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd_ < 0) fail(fmt::format("cannot be opened: {}", std::strerror(errno)));
  try {
    struct stat status {};
    if (fstat(fd_, &status) != 0 || !S_ISREG(status.st_mode)) fail("is not a regular file");
    const int64_t file_bytes = status.st_size;
    if (file_bytes < 8) fail(fmt::format("has {} bytes; a safetensors file begins with the 8-byte length of its header", file_bytes));
    unsigned char prefix[8];
    if (pread(fd_, prefix, 8, 0) != 8) fail("cannot be read");
    uint64_t header_bytes = 0;
    for (int i = 7; i >= 0; --i) header_bytes = header_bytes << 8 | prefix[i];
    if (header_bytes > kMaxHeaderBytes)
      fail(fmt::format("claims a header of {} bytes, at most {} are allowed", header_bytes, kMaxHeaderBytes));
    if (header_bytes > static_cast<uint64_t>(file_bytes) - 8)
      fail(fmt::format("claims a header of {} bytes, the file has {}: it is cut or no safetensors file", header_bytes, file_bytes));
    std::string header(header_bytes, '\0');
    if (pread(fd_, header.data(), header_bytes, 8) != static_cast<ssize_t>(header_bytes)) fail("the header cannot be read");
    parse_header(header, 8 + static_cast<int64_t>(header_bytes), file_bytes);
  } catch (...) {
    close(fd_);
    throw;
  }
}

SafetensorsFile::SafetensorsFile(SafetensorsFile&& other) noexcept
    : path_(std::move(other.path_)),
      fd_(std::exchange(other.fd_, -1)),
      entries_(std::move(other.entries_)),
      by_name_(std::move(other.by_name_)),
      metadata_(std::move(other.metadata_)) {}

SafetensorsFile::~SafetensorsFile() {
  if (fd_ >= 0) close(fd_);
}

void SafetensorsFile::parse_header(std::string_view header, int64_t data_begin, int64_t file_bytes) {
  json::value root;
  try {
    root = parse_json(header, "the header");
  } catch (const LoadError& error) {
    fail(error.what());
  }
  if (!root.is_object()) fail("the header must be a JSON object, found " + to_json(root).substr(0, 40));
  if (const std::string key = find_duplicate_key(header); !key.empty()) fail("the header has the key " + key + " twice");
  const json::object& object = root.get_object();
  if (object.size() > kMaxTensors + 1) fail(fmt::format("the header lists {} tensors, at most {} are allowed", object.size(), kMaxTensors));

  for (const auto& member : object) {
    const std::string name(member.key());
    if (name == "__metadata__") {
      if (!member.value().is_object()) fail("__metadata__ in the header must be an object");
      for (const auto& item : member.value().get_object()) {
        if (!item.value().is_string()) fail("__metadata__ in the header must hold strings");
        metadata_[std::string(item.key())] = std::string(item.value().get_string());
      }
      continue;
    }
    if (name.size() > kMaxNameBytes || std::any_of(name.begin(), name.end(), [](unsigned char c) { return c < 0x20; }))
      fail("the header has a tensor name that is too long or has control characters: " + to_json(json::string(name.substr(0, 80))));
    if (!member.value().is_object()) fail("tensor " + name + " must be described by an object");
    const json::object& fields = member.value().get_object();
    const json::value* dtype = fields.if_contains("dtype");
    const json::value* shape = fields.if_contains("shape");
    const json::value* offsets = fields.if_contains("data_offsets");
    if (dtype == nullptr || !dtype->is_string()) fail("tensor " + name + ": dtype must be a string");
    const Format* format = find_format(dtype->get_string());
    if (format == nullptr) fail(fmt::format("tensor {}: dtype {} is unknown", name, std::string_view(dtype->get_string())));
    if (shape == nullptr || !shape->is_array() || shape->get_array().size() > kMaxRank)
      fail(fmt::format("tensor {}: shape must be a list of at most {} sizes", name, kMaxRank));
    if (offsets == nullptr || !offsets->is_array() || offsets->get_array().size() != 2)
      fail("tensor " + name + ": data_offsets must hold two offsets");

    Entry entry{name, format->name, {}, 0, 0};
    int64_t numel = 1;
    bool overflow = false;
    for (const json::value& size : shape->get_array()) {
      const auto n = size_of_json(size);
      if (!n) fail(fmt::format("tensor {}: shape {} must hold non-negative integers", name, to_json(*shape)));
      entry.shape.push_back(*n);
      overflow |= __builtin_mul_overflow(numel, *n, &numel);
    }
    int64_t bits = 0;
    overflow |= __builtin_mul_overflow(numel, static_cast<int64_t>(format->bits), &bits);
    if (overflow) fail(fmt::format("tensor {}: the size of shape {} overflows", name, to_json(*shape)));
    if (bits % 8 != 0) fail(fmt::format("tensor {}: {} bits are no whole number of bytes", name, bits));
    const auto begin = size_of_json(offsets->get_array()[0]), end = size_of_json(offsets->get_array()[1]);
    if (!begin || !end || *begin > *end)
      fail(fmt::format("tensor {}: data_offsets {} must be two ascending, non-negative integers", name, to_json(*offsets)));
    if (*end > file_bytes - data_begin)
      fail(fmt::format("tensor {}: its data ends at byte {} of {}: the file is cut or the header is wrong", name, *end,
                       file_bytes - data_begin));
    if (*end - *begin != bits / 8)
      fail(fmt::format("tensor {}: {} of shape {} takes {} bytes, data_offsets give {}", name, format->name, to_json(*shape), bits / 8,
                       *end - *begin));
    entry.begin = data_begin + *begin;
    entry.bytes = *end - *begin;
    entries_.push_back(std::move(entry));
  }

  std::sort(entries_.begin(), entries_.end(),
            [](const Entry& a, const Entry& b) { return std::pair(a.begin, a.bytes) < std::pair(b.begin, b.bytes); });
  int64_t at = data_begin;
  for (size_t i = 0; i < entries_.size(); ++i) {
    const Entry& entry = entries_[i];
    if (entry.begin < at) fail("tensor " + entry.name + " begins inside its predecessor");
    if (entry.begin > at) fail(fmt::format("{} unused bytes stand before tensor {}", entry.begin - at, entry.name));
    at += entry.bytes;
    by_name_[entry.name] = i;
  }
  if (at != file_bytes) fail(fmt::format("{} bytes follow the last tensor", file_bytes - at));
}

const SafetensorsFile::Entry* SafetensorsFile::find(std::string_view name) const {
  const auto it = by_name_.find(name);
  return it == by_name_.end() ? nullptr : &entries_[it->second];
}

void SafetensorsFile::read(const Entry& entry, int64_t offset, int64_t bytes, void* to) const {
  auto* out = static_cast<char*>(to);
  int64_t at = entry.begin + offset;
  while (bytes > 0) {
    const ssize_t n = pread(fd_, out, bytes, at);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0)
      fail(fmt::format("tensor {} cannot be read at byte {}: {}", entry.name, at,
                       n == 0 ? "the file has become shorter" : std::strerror(errno)));
    out += n;
    at += n;
    bytes -= n;
  }
}

void write_safetensors(const std::filesystem::path& path, std::vector<NamedTensor> tensors) {
  // Wider types first, so that every tensor is aligned in the file; then by name.
  std::sort(tensors.begin(), tensors.end(), [](const NamedTensor& a, const NamedTensor& b) {
    return std::pair(-static_cast<int>(size_of(a.tensor.dtype())), std::string_view(a.name)) <
           std::pair(-static_cast<int>(size_of(b.tensor.dtype())), std::string_view(b.name));
  });
  json::object header;
  int64_t offset = 0;
  for (const NamedTensor& t : tensors) {
    CHECK(t.tensor.is_dense());
    json::array shape;
    for (int axis = 0; axis < t.tensor.rank(); ++axis) shape.push_back(t.tensor.size(axis));
    header[t.name] = {{"dtype", safetensors_name(t.tensor.dtype())},
                      {"shape", std::move(shape)},
                      {"data_offsets", {offset, offset + t.tensor.bytes()}}};
    offset += t.tensor.bytes();
  }
  std::string text = json::serialize(header);
  text.resize((text.size() + 7) / 8 * 8, ' ');

  const std::filesystem::path temporary = path.string() + ".partial";
  FILE* file = std::fopen(temporary.c_str(), "wb");
  if (file == nullptr) throw LoadError("cannot write " + temporary.string() + ": " + std::strerror(errno));
  unsigned char prefix[8];
  for (int i = 0; i < 8; ++i) prefix[i] = static_cast<unsigned char>(static_cast<uint64_t>(text.size()) >> (8 * i));
  bool good = std::fwrite(prefix, 1, 8, file) == 8 && std::fwrite(text.data(), 1, text.size(), file) == text.size();
  for (const NamedTensor& t : tensors)
    good = good && std::fwrite(t.tensor.data(), 1, t.tensor.bytes(), file) == static_cast<size_t>(t.tensor.bytes());
  good = (std::fclose(file) == 0) && good;
  if (!good || std::rename(temporary.c_str(), path.c_str()) != 0) {
    const std::string reason = std::strerror(errno);
    std::remove(temporary.c_str());
    throw LoadError("cannot write " + path.string() + ": " + reason);
  }
}

}  // namespace calandra
