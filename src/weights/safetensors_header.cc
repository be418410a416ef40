// The rules are those of the reference reader (safetensors 0.8, tensor.rs), made stricter where it lets broken files
// pass: duplicate keys, names with control characters, numbers written as -0 or 2.0, and limits on counts and lengths.
#include "weights/safetensors_header.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <boost/json/basic_parser_impl.hpp>
#include <optional>
#include <unordered_set>

#include "base/error.h"
#include "base/json.h"

namespace calandra {
namespace {

constexpr size_t kMaxTensors = 200'000;
constexpr size_t kMaxKeys = 1'000'000;  // at all depths: bounds the memory of the search for duplicates
constexpr size_t kMaxNameBytes = 1024;
constexpr size_t kMaxRank = 8;

struct Format {
  const char* name;
  int bits;
};
constexpr Format kFormats[] = {{"BOOL", 8},        {"F4", 4},          {"F6_E2M3", 6}, {"F6_E3M2", 6}, {"U8", 8},
                               {"I8", 8},          {"F8_E5M2", 8},     {"F8_E4M3", 8}, {"F8_E8M0", 8}, {"F16", 16},
                               {"F8_E4M3FNUZ", 8}, {"F8_E5M2FNUZ", 8}, {"I16", 16},    {"U16", 16},    {"BF16", 16},
                               {"I32", 32},        {"U32", 32},        {"F32", 32},    {"C64", 64},    {"F64", 64},
                               {"I64", 64},        {"U64", 64}};

const Format* find_format(std::string_view name) {
  for (const Format& format : kFormats)
    if (name == format.name) return &format;
  return nullptr;
}

// Foreign text for a message: escaped and of bounded length.
std::string shown(std::string_view text) {
  return json::serialize(json::string(text.size() <= kMaxNameBytes ? text : text.substr(0, 80)));
}

// Takes the parser's events. `open_` says in which kind of container the next value stands.
class HeaderEvents {
 public:
  using error_code = json::error_code;
  static constexpr size_t max_object_size = size_t(-1), max_array_size = size_t(-1), max_key_size = size_t(-1),
                          max_string_size = size_t(-1);

  bool on_document_begin(error_code&) { return true; }
  bool on_document_end(error_code&) { return true; }
  bool on_object_begin(error_code&) {
    begin(Kind::kObject);
    keys_.emplace_back();
    return true;
  }
  bool on_object_end(size_t, error_code&) {
    keys_.pop_back();
    end();
    return true;
  }
  bool on_array_begin(error_code&) {
    begin(Kind::kArray);
    return true;
  }
  bool on_array_end(size_t, error_code&) {
    end();
    return true;
  }
  bool on_key_part(json::string_view part, size_t, error_code&) { return append(part); }
  bool on_key(json::string_view part, size_t, error_code&) {
    append(part);
    key(std::exchange(text_, {}));
    return true;
  }
  bool on_string_part(json::string_view part, size_t, error_code&) { return append(part); }
  bool on_string(json::string_view part, size_t, error_code&) {
    append(part);
    string(std::exchange(text_, {}));
    return true;
  }
  bool on_number_part(json::string_view part, error_code&) { return append(part); }
  bool on_int64(int64_t value, json::string_view part, error_code&) {
    append(part);
    const bool negative = text_.starts_with('-');  // also -0
    text_.clear();
    size(negative ? std::nullopt : std::optional(value));
    return true;
  }
  bool on_uint64(uint64_t, json::string_view, error_code&) { return size_too_large(); }
  bool on_double(double, json::string_view, error_code&) { return size_too_large(); }
  bool on_bool(bool, error_code&) { return scalar(); }
  bool on_null(error_code&) { return scalar(); }
  bool on_comment_part(json::string_view, error_code&) { return true; }
  bool on_comment(json::string_view, error_code&) { return true; }

  SafetensorsHeader header;

 private:
  enum class In { kFile, kTensors, kMetadata, kTensor, kShape, kOffsets, kSkipped };
  enum class Kind { kObject, kArray };

  [[noreturn]] static void fail(const std::string& problem) { throw LoadError(problem); }
  SafetensorsEntry& tensor() { return header.entries.back(); }
  [[noreturn]] void fail_tensor(const std::string& problem) { fail("tensor " + tensor().name + ": " + problem); }

  bool append(json::string_view part) {
    text_.append(part.data(), part.size());
    return true;
  }

  // What a value of the wrong kind means where it stands.
  [[noreturn]] void wrong_value() {
    switch (open_.back()) {
      case In::kFile:
        fail("the header must be a JSON object");
      case In::kTensors:
        fail(metadata_ ? "__metadata__ in the header must be an object"
                       : "tensor " + tensor().name + " must be described by an object");
      case In::kMetadata:
        fail("__metadata__ in the header must hold strings, " + shown(field_) + " is none");
      case In::kShape:
        fail_tensor("shape must hold non-negative integers below 2^63");
      case In::kOffsets:
        fail_tensor("data_offsets must hold non-negative integers below 2^63");
      default:
        fail_tensor(field_ + (field_ == "dtype" ? " must be a string" : " must be a list"));
    }
  }
  bool expected_field() const { return field_ == "dtype" || field_ == "shape" || field_ == "data_offsets"; }

  void begin(Kind kind) {
    const bool object = kind == Kind::kObject;
    switch (open_.back()) {
      case In::kFile:
        if (!object) wrong_value();
        open_.push_back(In::kTensors);
        return;
      case In::kTensors:
        if (!object) wrong_value();
        has_dtype_ = has_shape_ = has_offsets_ = false;
        offsets_.clear();
        open_.push_back(metadata_ ? In::kMetadata : In::kTensor);
        return;
      case In::kTensor:
        if (!expected_field()) break;
        if (object || field_ == "dtype") wrong_value();
        (field_ == "shape" ? has_shape_ : has_offsets_) = true;
        open_.push_back(field_ == "shape" ? In::kShape : In::kOffsets);
        return;
      case In::kSkipped:
        break;
      default:
        wrong_value();
    }
    open_.push_back(In::kSkipped);
  }

  void end() {
    const In closed = open_.back();
    open_.pop_back();
    if (closed != In::kTensor) return;
    if (!has_dtype_) fail_tensor("dtype is missing");
    if (!has_shape_) fail_tensor("shape is missing");
    if (!has_offsets_) fail_tensor("data_offsets is missing");
    if (offsets_.size() != 2) fail_tensor("data_offsets must hold two offsets");
    if (offsets_[0] > offsets_[1]) fail_tensor(fmt::format("data_offsets [{}] must ascend", fmt::join(offsets_, ", ")));
    tensor().begin = offsets_[0];
    tensor().bytes = offsets_[1] - offsets_[0];
  }

  void key(std::string name) {
    if (++key_count_ > kMaxKeys) fail(fmt::format("the header has more than {} keys", kMaxKeys));
    if (!keys_.back().insert(name).second) {
      const bool in_tensor = open_.back() == In::kTensor || (open_.back() == In::kSkipped && !metadata_);
      fail(fmt::format("the header has the key {} twice{}", open_.back() == In::kTensors ? name : shown(name),
                       in_tensor ? " in tensor " + tensor().name : ""));
    }
    if (open_.back() != In::kTensors) {
      if (open_.back() != In::kSkipped) field_ = std::move(name);
      return;
    }
    metadata_ = name == "__metadata__";
    if (metadata_) return;
    if (header.entries.size() == kMaxTensors) fail(fmt::format("the header lists more than {} tensors", kMaxTensors));
    if (name.size() > kMaxNameBytes ||
        std::any_of(name.begin(), name.end(), [](unsigned char c) { return c < 0x20 || c == 0x7f; }))
      fail(fmt::format("the header has a tensor name that has control characters or more than {} bytes: {}",
                       kMaxNameBytes, shown(name.substr(0, 80))));
    header.entries.push_back({std::move(name), {}, {}, 0, 0});
  }

  void string(std::string text) {
    switch (open_.back()) {
      case In::kSkipped:
        return;
      case In::kMetadata:
        header.metadata[field_] = std::move(text);
        return;
      case In::kTensor: {
        if (!expected_field()) return;
        if (field_ != "dtype") wrong_value();
        const Format* format = find_format(text);
        if (format == nullptr) fail_tensor("dtype " + shown(text.substr(0, 80)) + " is unknown");
        tensor().dtype = format->name;
        has_dtype_ = true;
        return;
      }
      default:
        wrong_value();
    }
  }

  // An integer, or nothing for a number that cannot be a size.
  void size(std::optional<int64_t> value) {
    const In in = open_.back();
    if (in != In::kShape && in != In::kOffsets) {
      scalar();
      return;
    }
    if (!value) wrong_value();
    std::vector<int64_t>& sizes = in == In::kShape ? tensor().shape : offsets_;
    if (sizes.size() == kMaxRank) fail_tensor(fmt::format("{} has more than {} values", field_, kMaxRank));
    sizes.push_back(*value);
  }
  bool size_too_large() {
    text_.clear();
    size(std::nullopt);
    return true;
  }

  bool scalar() {
    if (open_.back() == In::kSkipped || (open_.back() == In::kTensor && !expected_field())) return true;
    wrong_value();
  }

  std::vector<In> open_{In::kFile};
  std::vector<std::unordered_set<std::string>> keys_;  // of the open objects
  size_t key_count_ = 0;
  std::string text_;   // parts of the key, string or number that is being read
  std::string field_;  // last key in a tensor or in the metadata
  bool metadata_ = false;
  bool has_dtype_ = false, has_shape_ = false, has_offsets_ = false;
  std::vector<int64_t> offsets_;
};

// Bytes that dtype and shape ask for.
int64_t expected_bytes(const SafetensorsEntry& entry) {
  int64_t numel = 1, bits = 0;
  bool overflow = false;
  for (const int64_t size : entry.shape) overflow |= __builtin_mul_overflow(numel, size, &numel);
  overflow |= __builtin_mul_overflow(numel, static_cast<int64_t>(find_format(entry.dtype)->bits), &bits);
  if (overflow)
    throw LoadError(
        fmt::format("tensor {}: the size of shape [{}] overflows", entry.name, fmt::join(entry.shape, ", ")));
  if (bits % 8 != 0) throw LoadError(fmt::format("tensor {}: {} bits are no whole number of bytes", entry.name, bits));
  return bits / 8;
}

}  // namespace

SafetensorsHeader parse_safetensors_header(std::string_view text, int64_t file_bytes) {
  json::parse_options options;
  options.max_depth = 256;
  json::basic_parser<HeaderEvents> parser(options);
  json::error_code error;
  const size_t read = parser.write_some(false, text.data(), text.size(), error);
  if (!error && read < text.size()) error = json::error::extra_data;
  if (error) throw LoadError(fmt::format("the header is not valid JSON: {} at byte {}", error.message(), read));

  SafetensorsHeader header = std::move(parser.handler().header);
  std::vector<SafetensorsEntry>& entries = header.entries;
  const int64_t data_begin = 8 + static_cast<int64_t>(text.size());
  const int64_t data_bytes = file_bytes - data_begin;
  for (const SafetensorsEntry& entry : entries) {
    const int64_t bytes = expected_bytes(entry);
    if (entry.begin > data_bytes - entry.bytes || entry.bytes > data_bytes)
      throw LoadError(
          fmt::format("tensor {}: the header places its {} bytes at {}, the file has {} bytes of data: it is cut, or "
                      "the header is wrong",
                      entry.name, entry.bytes, entry.begin, data_bytes));
    if (entry.bytes != bytes)
      throw LoadError(fmt::format("tensor {}: {} of shape [{}] takes {} bytes, data_offsets give {}", entry.name,
                                  entry.dtype, fmt::join(entry.shape, ", "), bytes, entry.bytes));
  }
  std::sort(entries.begin(), entries.end(), [](const SafetensorsEntry& a, const SafetensorsEntry& b) {
    return std::tie(a.begin, a.bytes, a.name) < std::tie(b.begin, b.bytes, b.name);
  });
  int64_t at = 0;
  for (SafetensorsEntry& entry : entries) {
    if (entry.begin < at) throw LoadError("tensor " + entry.name + " begins inside its predecessor");
    if (entry.begin > at)
      throw LoadError(fmt::format("{} unused bytes stand before tensor {}", entry.begin - at, entry.name));
    at += entry.bytes;
    entry.begin += data_begin;
  }
  if (at != data_bytes) throw LoadError(fmt::format("{} bytes follow the last tensor", data_bytes - at));
  return header;
}

}  // namespace calandra
