#include "weights/safetensors.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstring>
#include <fstream>

#include "base/error.h"
#include "weights/checkpoint.h"

namespace calandra {
namespace {

namespace fs = std::filesystem;

class Folder {
 public:
  Folder() {
    std::string name = (fs::temp_directory_path() / "calandra_XXXXXX").string();
    path_ = mkdtemp(name.data());
  }
  ~Folder() { fs::remove_all(path_); }
  fs::path write(const std::string& name, const std::string& bytes) const {
    std::ofstream(path_ / name, std::ios::binary) << bytes;
    return path_ / name;
  }
  const fs::path& path() const { return path_; }

 private:
  fs::path path_;
};

std::string length_prefix(uint64_t n) {
  std::string prefix(8, '\0');
  for (int i = 0; i < 8; ++i) prefix[i] = static_cast<char>(n >> (8 * i));
  return prefix;
}

std::string file_of(const std::string& header, size_t data_bytes) {
  return length_prefix(header.size()) + header + std::string(data_bytes, '\1');
}

// The message of the error, or "" when the file is accepted.
std::string message_of(const std::string& bytes) {
  const Folder folder;
  try {
    SafetensorsFile file(folder.write("model.safetensors", bytes));
  } catch (const LoadError& error) {
    EXPECT_NE(std::string(error.what()).find("model.safetensors"), std::string::npos);
    return error.what();
  }
  return "";
}

constexpr const char* kGood = R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})";

TEST(Safetensors, AcceptsWhatTheFormatAllows) {
  EXPECT_EQ(message_of(file_of(kGood, 8)), "");
  EXPECT_EQ(message_of(file_of(std::string("  \n") + kGood + "\t \r\n", 8)), "");
  EXPECT_EQ(message_of(file_of("{}", 0)), "");
  EXPECT_EQ(message_of(file_of(R"({"__metadata__":{"format":"pt"},"s":{"dtype":"BF16","shape":[],"data_offsets":[0,2]}})", 2)), "");
  // an empty tensor shares its offset with a neighbour; the order of the names is free; further fields are ignored
  EXPECT_EQ(message_of(file_of(
                R"({"b":{"dtype":"U8","shape":[3],"data_offsets":[4,7],"x":1},"e":{"dtype":"F32","shape":[0,5],"data_offsets":[4,4]},)"
                R"("a":{"dtype":"F16","shape":[1,2],"data_offsets":[0,4]}})",
                7)),
            "");
  EXPECT_EQ(message_of(file_of(R"({"q":{"dtype":"F4","shape":[2],"data_offsets":[0,1]}})", 1)), "");
}

TEST(Safetensors, RefusesEveryBrokenRule) {
  const struct {
    const char* what;
    std::string bytes;
    const char* word;
  } cases[] = {
      {"no bytes", "", "0 bytes"},
      {"shorter than the length", "12345", "5 bytes"},
      {"header too large", length_prefix(100'000'001), "header"},
      {"header of 2^63", length_prefix(uint64_t{1} << 63), "header"},
      {"header beyond the end", length_prefix(100) + "{}", "header"},
      {"no JSON", file_of("{\"a\"", 0), "header"},
      {"no bytes of header", file_of("", 0), "header"},
      {"two values", file_of("{} {}", 0), "header"},
      {"NUL padding", file_of(std::string(kGood) + std::string(1, '\0'), 8), "header"},
      {"not UTF-8", file_of("{\"\xff\":1}", 0), "header"},
      {"overlong UTF-8", file_of("{\"\xc0\xaf\":1}", 0), "header"},
      {"a surrogate", file_of("{\"\xed\xa0\x80\":1}", 0), "header"},
      {"a list", file_of("[]", 0), "object"},
      {"metadata no object", file_of(R"({"__metadata__":[]})", 0), "__metadata__"},
      {"metadata no strings", file_of(R"({"__metadata__":{"a":1}})", 0), "__metadata__"},
      {"tensor no object", file_of(R"({"a":1})", 0), "tensor a"},
      {"no dtype", file_of(R"({"a":{"shape":[2],"data_offsets":[0,8]}})", 8), "dtype"},
      {"dtype null", file_of(R"({"a":{"dtype":null,"shape":[2],"data_offsets":[0,8]}})", 8), "dtype"},
      {"unknown dtype", file_of(R"({"a":{"dtype":"BF17","shape":[2],"data_offsets":[0,4]}})", 4), "BF17"},
      {"no shape", file_of(R"({"a":{"dtype":"F32","data_offsets":[0,8]}})", 8), "shape"},
      {"negative size", file_of(R"({"a":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}})", 8), "shape"},
      {"size no integer", file_of(R"({"a":{"dtype":"F32","shape":[2.0],"data_offsets":[0,8]}})", 8), "shape"},
      {"nine axes", file_of(R"({"a":{"dtype":"U8","shape":[1,1,1,1,1,1,1,1,1],"data_offsets":[0,1]}})", 1), "shape"},
      {"overflow of the shape", file_of(R"({"a":{"dtype":"U8","shape":[4294967296,4294967296],"data_offsets":[0,0]}})", 0), "overflow"},
      {"overflow of the bits", file_of(R"({"a":{"dtype":"F32","shape":[2305843009213693952],"data_offsets":[0,0]}})", 0), "overflow"},
      {"no offsets", file_of(R"({"a":{"dtype":"F32","shape":[2]}})", 8), "data_offsets"},
      {"three offsets", file_of(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8,9]}})", 8), "data_offsets"},
      {"offsets as text", file_of(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":["0","8"]}})", 8), "data_offsets"},
      {"reversed", file_of(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}})", 8), "data_offsets"},
      {"negative offset", file_of(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[-8,0]}})", 8), "data_offsets"},
      {"beyond the data", file_of(kGood, 4), "cut"},
      {"shape and bytes disagree", file_of(R"({"a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}})", 8), "12 bytes"},
      {"half a byte", file_of(R"({"a":{"dtype":"F4","shape":[1],"data_offsets":[0,0]}})", 0), "bits"},
      {"hole", file_of(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}})", 12), "unused"},
      {"overlap", file_of(R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[4],"data_offsets":[2,6]}})", 6), "inside"},
      {"trailing bytes", file_of(kGood, 9), "follow"},
      {"duplicate", file_of(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})", 1), "twice"},
      {"duplicate inside", file_of(R"({"a":{"dtype":"U8","dtype":"U8","shape":[1],"data_offsets":[0,1]}})", 1), "twice"},
      {"control character", file_of("{\"a\\u0001\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1), "name"},
      {"deep nesting", file_of(std::string(5000, '['), 0), "header"},
  };
  for (const auto& c : cases) {
    const std::string message = message_of(c.bytes);
    EXPECT_NE(message, "") << c.what << " was accepted";
    EXPECT_NE(message.find(c.word), std::string::npos) << c.what << ": " << message;
  }
  std::printf("safetensors: %zu broken files refused\n", std::size(cases));
}

TEST(Safetensors, WritesWhatItReads) {
  const Folder folder;
  std::vector<float> floats = {1, -2, 3.5f};
  std::vector<int64_t> ids = {7, -1};
  std::vector<uint8_t> bytes = {1, 2, 3};
  write_safetensors(folder.path() / "x.safetensors", {{"bytes", Tensor(bytes.data(), DType::kU8, {3})},
                                                      {"floats", Tensor(floats.data(), DType::kF32, {1, 3})},
                                                      {"ids", Tensor(ids.data(), DType::kI64, {2})},
                                                      {"none", Tensor(nullptr, DType::kF32, {0})}});
  const SafetensorsFile file(folder.path() / "x.safetensors");
  ASSERT_EQ(file.entries().size(), 4u);
  float got[3];
  file.read(*file.find("floats"), 0, 12, got);
  EXPECT_EQ(std::memcmp(got, floats.data(), 12), 0);
  EXPECT_EQ(file.find("floats")->shape, (std::vector<int64_t>{1, 3}));
  int64_t id = 0;
  file.read(*file.find("ids"), 8, 8, &id);
  EXPECT_EQ(id, -1);
  EXPECT_EQ(file.find("absent"), nullptr);
  EXPECT_FALSE(fs::exists(folder.path() / "x.safetensors.partial"));
}

TEST(Safetensors, AFileThatShrinksIsAnError) {
  const Folder folder;
  const fs::path path = folder.write("model.safetensors", file_of(kGood, 8));
  const SafetensorsFile file(path);
  fs::resize_file(path, fs::file_size(path) - 4);
  float values[2];
  EXPECT_THROW(file.read(*file.find("a"), 0, 8, values), LoadError);
}

std::string checkpoint_error(const fs::path& folder) {
  try {
    Checkpoint checkpoint(folder);
  } catch (const LoadError& error) {
    return error.what();
  }
  return "";
}

TEST(Checkpoint, Shards) {
  const Folder folder;
  EXPECT_NE(checkpoint_error(folder.path()).find("neither"), std::string::npos);
  folder.write("one.safetensors", file_of(kGood, 8));
  folder.write("two.safetensors", file_of(R"({"b":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})", 8));
  const auto with_index = [&](const std::string& index) {
    folder.write("model.safetensors.index.json", index);
    return checkpoint_error(folder.path());
  };
  EXPECT_EQ(with_index(R"({"weight_map":{"a":"one.safetensors","b":"two.safetensors"}})"), "");
  EXPECT_EQ(with_index(R"({"weight_map":{"a":"two.safetensors","b":"one.safetensors"}})"), "");  // a warning
  EXPECT_NE(with_index(R"({"weight_map":{"a":"../one.safetensors"}})").find("../"), std::string::npos);
  EXPECT_NE(with_index(R"({"weight_map":{"a":"/etc/passwd"}})").find("inside the folder"), std::string::npos);
  EXPECT_NE(with_index(R"({"weight_map":{"a":".."}})").find("inside the folder"), std::string::npos);
  EXPECT_NE(with_index(R"({"weight_map":{"a":"three.safetensors"}})").find("three.safetensors"), std::string::npos);
  EXPECT_NE(with_index(R"({"weight_map":{"a":1}})").find("weight_map"), std::string::npos);
  EXPECT_NE(with_index(R"({})").find("weight_map"), std::string::npos);
  EXPECT_NE(with_index(R"({"weight_)"), "");
  folder.write("two.safetensors", file_of(kGood, 8));
  EXPECT_NE(with_index(R"({"weight_map":{"a":"one.safetensors","b":"two.safetensors"}})").find("another shard"), std::string::npos);
}

}  // namespace
}  // namespace calandra
