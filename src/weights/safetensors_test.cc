#include "weights/safetensors.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <cstring>
#include <random>

#include "base/error.h"
#include "weights/safetensors_for_test.h"

namespace calandra {
namespace {

namespace fs = std::filesystem;

// The message of the error, or "" when the file is accepted. Accepted files are read completely.
std::string message_of(const fs::path& path) {
  try {
    const SafetensorsFile file(path);
    std::string bytes;
    for (const SafetensorsFile::Entry& entry : file.entries()) {
      bytes.resize(entry.bytes);
      file.read(entry, 0, entry.bytes, bytes.data());
    }
    file.check_unchanged();
  } catch (const LoadError& error) {
    EXPECT_NE(std::string(error.what()).find(path.filename().string()), std::string::npos) << error.what();
    return error.what();
  }
  return "";
}

std::string message_of_bytes(std::string_view bytes) {
  static const MemoryFileForTest file;
  return message_of(file.write(bytes));
}

// A header with one tensor "a".
std::string one(std::string_view dtype, std::string_view shape, std::string_view offsets) {
  return fmt::format(R"({{"a":{{"dtype":{},"shape":{},"data_offsets":{}}}}})", dtype, shape, offsets);
}
const std::string kGood = one(R"("F32")", "[2]", "[0,8]");

struct Case {
  const char* what;
  std::string bytes;
  const char* word = "";  // in the message; "" when the file must be accepted
};

std::vector<Case> broken_files() {
  const std::string u8 = R"({"dtype":"U8","shape":[1],"data_offsets":[0,1]})";
  std::vector<Case> cases = {
      {"R1 no bytes", "", "0 bytes"},
      {"R1 shorter than the length", "12345", "5 bytes"},
      {"R1 seven bytes", std::string(7, '\0'), "7 bytes"},
      {"R3 header too large", length_prefix(100'000'001), "header"},
      {"R2 header of 2^63", length_prefix(uint64_t{1} << 63), "header"},
      {"R2 header of 2^64 - 1", length_prefix(~uint64_t{0}), "header"},
      {"R2 header of 2^64 - 8", length_prefix(~uint64_t{7}), "header"},
      {"R4 header beyond the end", length_prefix(100) + "{}", "header"},
      {"R4 one byte beyond the end", length_prefix(3) + "{}", "header"},
      {"R2 big-endian length", std::string("\0\0\0\0\0\0\0\2{}", 10), "header"},
      {"R5 not UTF-8", file_of("{\"\xff\":1}", 0), "header"},
      {"R5 overlong UTF-8", file_of("{\"\xc0\xaf\":1}", 0), "header"},
      {"R5 a surrogate", file_of("{\"\xed\xa0\x80\":1}", 0), "header"},
      {"R5 an escaped surrogate", file_of(R"({"\ud800":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})", 1),
       "header"},
      {"R5 cut UTF-8", file_of("{\"\xe2\x82\":1}", 0), "header"},
      {"R5 beyond U+10FFFF", file_of("{\"\xf4\x90\x80\x80\":1}", 0), "header"},
      {"R5 byte order mark", file_of("\xef\xbb\xbf{}", 0), "header"},
      {"R6 no JSON", file_of("{\"a\"", 0), "header"},
      {"R6 no bytes of header", file_of("", 0), "header"},
      {"R6 only blanks", file_of("        ", 0), "header"},
      {"R6 two values", file_of("{} {}", 0), "header"},
      {"R6 text behind", file_of("{}x", 0), "header"},
      {"R6 NUL padding", file_of(kGood + std::string(1, '\0'), 8), "header"},
      {"R6 NUL before", file_of(std::string(1, '\0') + kGood, 8), "header"},
      {"R6 vertical tab", file_of("\v{}", 0), "header"},
      {"R6 form feed", file_of("{}\f", 0), "header"},
      {"R6 a comment", file_of("{}//x", 0), "header"},
      {"R6 trailing comma", file_of(R"({"a":)" + u8 + ",}", 1), "header"},
      {"R6 raw line feed in a name", file_of("{\"a\n\":{}}", 0), "header"},
      {"R6 NaN", file_of(R"({"a":NaN})", 0), "header"},
      {"R6 deep nesting", file_of(R"({"a":{"x":)" + std::string(5000, '['), 0), "header"},
      {"R7 a list", file_of("[]", 0), "header must be a JSON object"},
      {"R7 a number", file_of("1", 0), "header must be a JSON object"},
      {"R7 a fraction", file_of("1.5", 0), "header must be a JSON object"},
      {"R7 a string", file_of("\"a\"", 0), "header must be a JSON object"},
      {"R7 null", file_of("null", 0), "header must be a JSON object"},
      {"R8 duplicate", file_of(R"({"a":)" + u8 + R"(,"a":)" + u8 + "}", 1), "key a twice"},
      {"R8 duplicate by escape", file_of(R"({"a":)" + u8 + R"(,"\u0061":)" + u8 + "}", 1), "key a twice"},
      {"R8 conflicting duplicate",
       file_of(R"({"a":)" + u8 + R"(,"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}})", 2), "twice"},
      {"R8 duplicate dtype", file_of(R"({"a":{"dtype":"U8","dtype":"U8","shape":[1],"data_offsets":[0,1]}})", 1),
       "twice in tensor a"},
      {"R8 duplicate shape", file_of(R"({"a":{"dtype":"U8","shape":[1],"shape":[1],"data_offsets":[0,1]}})", 1),
       "twice in tensor a"},
      {"R8 duplicate offsets",
       file_of(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1],"data_offsets":[0,1]}})", 1),
       "twice in tensor a"},
      {"R8 duplicate further field", file_of(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1],"x":1,"x":1}})", 1),
       "twice"},
      {"R8 duplicate far inside",
       file_of(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1],"x":[{"y":1,"y":2}]}})", 1), "twice"},
      {"R8 duplicate metadata", file_of(R"({"__metadata__":{},"__metadata__":{}})", 0), "twice"},
      {"R8 duplicate in the metadata", file_of(R"({"__metadata__":{"k":"1","k":"2"}})", 0), "twice"},
      {"R9 metadata no object", file_of(R"({"__metadata__":[]})", 0), "__metadata__"},
      {"R9 metadata null", file_of(R"({"__metadata__":null})", 0), "__metadata__"},
      {"R9 metadata of numbers", file_of(R"({"__metadata__":{"a":1}})", 0), "__metadata__"},
      {"R9 metadata of objects", file_of(R"({"__metadata__":{"a":{}}})", 0), "__metadata__"},
      {"R9 metadata of lists", file_of(R"({"__metadata__":{"a":["x"]}})", 0), "__metadata__"},
      {"R9 metadata of null", file_of(R"({"__metadata__":{"a":null}})", 0), "__metadata__"},
      {"R10 tensor no object", file_of(R"({"a":1})", 0), "tensor a"},
      {"R10 tensor null", file_of(R"({"a":null})", 0), "tensor a"},
      {"R10 tensor a list", file_of(R"({"a":["U8",[1],[0,1]]})", 1), "tensor a"},
      {"R10 tensor a string", file_of(R"({"a":"U8"})", 1), "tensor a"},
      {"R10 empty object", file_of(R"({"a":{}})", 0), "tensor a"},
      {"R10 no dtype", file_of(R"({"a":{"shape":[2],"data_offsets":[0,8]}})", 8), "dtype"},
      {"R10 no shape", file_of(R"({"a":{"dtype":"F32","data_offsets":[0,8]}})", 8), "shape"},
      {"R10 no offsets", file_of(R"({"a":{"dtype":"F32","shape":[2]}})", 8), "data_offsets"},
      {"R10 the second lacks what the first has",
       file_of(R"({"a":)" + u8 + R"(,"b":{"shape":[1],"data_offsets":[1,2]}})", 2), "tensor b"},
      {"R15 product of two", file_of(one(R"("U8")", "[4294967296,4294967296]", "[0,0]"), 0), "overflow"},
      {"R15 wraps to four", file_of(one(R"("U8")", "[4611686018427387905,4]", "[0,4]"), 4), "overflow"},
      {"R15 bits", file_of(one(R"("F32")", "[2305843009213693952]", "[0,0]"), 0), "overflow"},
      {"R15 bits wrap to 0", file_of(one(R"("U8")", "[1152921504606846976]", "[0,0]"), 0), "overflow"},
      {"R15 before a zero", file_of(one(R"("U8")", "[4294967296,4294967296,0]", "[0,0]"), 0), "overflow"},
      {"R14 hole at the start", file_of(one(R"("F32")", "[2]", "[4,12]"), 12), "unused"},
      {"R14 hole", file_of(R"({"a":)" + u8 + R"(,"b":{"dtype":"U8","shape":[1],"data_offsets":[2,3]}})", 3),
       "unused bytes stand before tensor b"},
      {"R14 overlap",
       file_of(
           R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[4],"data_offsets":[2,6]}})",
           6),
       "tensor b begins inside"},
      {"R14 two tensors on one range", file_of(R"({"k_proj":)" + u8 + R"(,"v_proj":)" + u8 + "}", 1), "inside"},
      {"R14 one inside another",
       file_of(
           R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}})",
           4),
       "inside"},
      {"R14 an empty tensor inside another",
       file_of(
           R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[0],"data_offsets":[2,2]}})",
           4),
       "inside"},
      {"R18 cut by one", file_of(kGood, 7), "cut"},
      {"R18 no data", file_of(kGood, 0), "cut"},
      {"R18 trailing byte", file_of(kGood, 9), "follow"},
      {"R18 trailing zip", file_of(kGood, 8) + "PK\3\4", "follow"},
      {"R18 data without tensors", file_of("{}", 1), "follow"},
      {"R17 shape and bytes disagree", file_of(one(R"("F32")", "[3]", "[0,8]"), 8), "12 bytes"},
      {"R17 scalar of 8 bytes", file_of(one(R"("F32")", "[]", "[0,8]"), 8), "4 bytes"},
      {"R17 empty tensor with bytes", file_of(one(R"("F32")", "[0]", "[0,4]"), 4), "0 bytes"},
      {"R16 half a byte", file_of(one(R"("F4")", "[1]", "[0,0]"), 0), "bits"},
      {"R16 three half bytes", file_of(one(R"("F4")", "[3]", "[0,2]"), 2), "bits"},
      {"R16 six bits", file_of(one(R"("F6_E2M3")", "[1]", "[0,1]"), 1), "bits"},
      {"E3 control character", file_of("{\"a\\u0001\":" + u8 + "}", 1), "name"},
      {"E3 NUL", file_of("{\"a\\u0000b\":" + u8 + "}", 1), "name"},
      {"E3 escape sequence", file_of("{\"\\u001b[31m\":" + u8 + "}", 1), "name"},
      {"E3 delete", file_of("{\"\\u007f\":" + u8 + "}", 1), "name"},
      {"E3 long name", file_of("{\"" + std::string(1025, 'n') + "\":" + u8 + "}", 1), "name"},
  };
  for (const char* dtype : {"BF17", "f32", "F32 ", "", "FP8", "float32", "BOOL8", "F8", "U4", "Q4_0"})
    cases.push_back(
        {"R11 unknown dtype", file_of(one(fmt::format("\"{}\"", dtype), "[1]", "[0,4]"), 4), "tensor a: dtype"});
  for (const char* dtype : {"null", "1", "true", "[\"F32\"]", "{\"F32\":1}", "2.5"})
    cases.push_back({"R11 dtype no string", file_of(one(dtype, "[1]", "[0,4]"), 4), "tensor a: dtype"});
  for (const char* shape :
       {"[-2]", "[2.0]", "[2e0]", "[\"2\"]", "[null]", "[[2]]", "[{}]", "[true]", "[-0]", "[9223372036854775808]",
        "[1e400]", "[18446744073709551616]", "2", "null", "\"2\"", "{\"2\":2}", "true", "[1,1,1,1,1,1,1,1,2]"})
    cases.push_back({"R12 shape", file_of(one(R"("F32")", shape, "[0,8]"), 8), "tensor a: shape"});
  for (const char* offsets : {"[8,0]",
                              "[-8,0]",
                              "[0,-8]",
                              "[0,8,8]",
                              "[8]",
                              "[]",
                              "[0,8.0]",
                              "[0.0,8]",
                              "[\"0\",\"8\"]",
                              "[null,8]",
                              "[[0],8]",
                              "[-0,8]",
                              "[0,8e0]",
                              "[0,18446744073709551616]",
                              "[0,9223372036854775808]",
                              "[18446744073709551608,0]",
                              "8",
                              "null",
                              "{\"0\":8}",
                              "\"08\""})
    cases.push_back({"R13 offsets", file_of(one(R"("F32")", "[2]", offsets), 8), "tensor a: data_offsets"});
  for (const char* offsets :
       {"[0,9223372036854775807]", "[9223372036854775799,9223372036854775807]", "[8,16]", "[1,9]"})
    cases.push_back({"R13 offsets past the end", file_of(one(R"("F32")", "[2]", offsets), 8), "tensor a"});
  return cases;
}

constexpr struct {
  const char* name;
  int bits;
} kFormats[] = {{"BOOL", 8},    {"F4", 4},      {"F6_E2M3", 6}, {"F6_E3M2", 6},    {"U8", 8},          {"I8", 8},
                {"F8_E5M2", 8}, {"F8_E4M3", 8}, {"F8_E8M0", 8}, {"I16", 16},       {"U16", 16},        {"F16", 16},
                {"BF16", 16},   {"I32", 32},    {"U32", 32},    {"F32", 32},       {"F8_E4M3FNUZ", 8}, {"C64", 64},
                {"F64", 64},    {"I64", 64},    {"U64", 64},    {"F8_E5M2FNUZ", 8}};

std::vector<Case> whole_files() {
  std::vector<Case> cases = {
      {"R6 blanks around", file_of("  \n" + kGood + "\t \r\n", 8)},
      {"R22 a page of blanks before", file_of(std::string(4096, ' ') + kGood, 8)},
      {"no tensors", file_of("{}", 0)},
      {"R9 metadata",
       file_of(
           R"({"__metadata__":{"format":"pt","":"","long \u20ac":"\n"},"s":{"dtype":"BF16","shape":[],"data_offsets":[0,2]}})",
           2)},
      {"R9 only metadata", file_of(R"({"__metadata__":{}})", 0)},
      {"R10 further fields",
       file_of(
           R"({"a":{"x":[{"dtype":1}],"dtype":"U8","y":{"shape":null},"shape":[3],"data_offsets":[0,3],"z":1.5,"n":null,"t":true,"s":"x"}})",
           3)},
      {"R12 scalar", file_of(one(R"("F32")", "[]", "[0,4]"), 4)},
      {"R12 eight axes", file_of(one(R"("U8")", "[1,1,1,1,1,1,1,2]", "[0,2]"), 2)},
      {"R12 empty", file_of(one(R"("F32")", "[0,5]", "[0,0]"), 0)},
      {"R19 free order",
       file_of(
           R"({"b":{"dtype":"U8","shape":[3],"data_offsets":[4,7]},"a":{"dtype":"F16","shape":[1,2],"data_offsets":[0,4]}})",
           7)},
      {"R24 empty between",
       file_of(
           R"({"b":{"dtype":"U8","shape":[3],"data_offsets":[4,7]},"e":{"dtype":"F32","shape":[0],"data_offsets":[4,4]},)"
           R"("a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}})",
           7)},
      {"R24 two empties at the end",
       file_of(
           R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"e":{"dtype":"F32","shape":[0],"data_offsets":[1,1]},)"
           R"("f":{"dtype":"I8","shape":[2,0],"data_offsets":[1,1]}})",
           1)},
      {"R16 two half bytes", file_of(one(R"("F4")", "[2]", "[0,1]"), 1)},
      {"R16 four times six bits", file_of(one(R"("F6_E3M2")", "[4]", "[0,3]"), 3)},
      {"R21 any values", length_prefix(kGood.size()) + kGood + std::string("\xff\xff\xff\x7f\0\0\x80\xff", 8)},
      {"R22 odd offset",
       file_of(
           R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"b":{"dtype":"F64","shape":[1],"data_offsets":[1,9]}})",
           9)},
      {"E3 longest name",
       file_of("{\"" + std::string(1024, 'n') + R"(":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})", 1)},
      {"E3 letters of the world", file_of(R"({"слой.重み.\"\\/":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})", 1)},
      {"an empty name", file_of(R"({"":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})", 1)},
  };
  for (const auto& format : kFormats)
    cases.push_back(
        {format.name,
         file_of(one(fmt::format("\"{}\"", format.name), "[2,4]", fmt::format("[0,{}]", format.bits)), format.bits)});
  return cases;
}

TEST(Safetensors, AcceptsWhatTheFormatAllows) {
  int accepted = 0;
  for (const Case& c : whole_files()) {
    EXPECT_EQ(message_of_bytes(c.bytes), "") << c.what;
    ++accepted;
  }
  std::printf("safetensors: %d files accepted\n", accepted);
}

TEST(Safetensors, RefusesEveryBrokenRule) {
  std::vector<Case> cases = broken_files();
  for (const auto& format : kFormats) {  // every format's size is checked, also of those that nothing computes with
    const std::string dtype = fmt::format("\"{}\"", format.name);
    cases.push_back({format.name, file_of(one(dtype, "[2,4]", fmt::format("[0,{}]", format.bits + 1)), format.bits + 1),
                     "tensor a"});
    cases.push_back(
        {format.name, file_of(one(dtype, "[2,4]", fmt::format("[0,{}]", format.bits)), format.bits - 1), "tensor a"});
  }
  for (const Case& c : cases) {
    const std::string message = message_of_bytes(c.bytes);
    EXPECT_NE(message, "") << c.what << " was accepted";
    EXPECT_NE(message.find(c.word), std::string::npos) << c.what << ": " << message;
    EXPECT_LE(message.size(), 4096u) << c.what;
    for (const char ch : message) EXPECT_GE(static_cast<unsigned char>(ch), 0x20) << c.what;
  }
  std::printf("safetensors: %zu files refused\n", cases.size());
}

TEST(Safetensors, CountsAreLimited) {
  const auto many = [](size_t tensors) {
    std::string header = "{";
    for (size_t i = 0; i < tensors; ++i)
      header += fmt::format(R"({}"t{}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}})", i > 0 ? "," : "", i);
    return file_of(header + "}", 0);
  };
  EXPECT_EQ(message_of_bytes(many(200'000)), "");
  EXPECT_NE(message_of_bytes(many(200'001)).find("200000 tensors"), std::string::npos);
  std::string keys = R"({"a":{"x":{)";
  for (size_t i = 0; i < 1'000'001; ++i) keys += fmt::format("{}\"{}\":0", i > 0 ? "," : "", i);
  EXPECT_NE(message_of_bytes(file_of(keys + "}}}", 0)).find("1000000 keys"), std::string::npos);
}

// A file with several tensors and metadata.
std::string sample() {
  static const FolderForTest folder;
  static const std::string bytes = [] {
    std::vector<float> floats(40, 0.5f);
    std::vector<int64_t> ids = {7, -1, 9};
    std::vector<uint8_t> few = {1, 2, 3};
    write_safetensors(folder.path() / "sample.safetensors",
                      {{"bytes", Tensor(few.data(), DType::kU8, {3})},
                       {"floats", Tensor(floats.data(), DType::kF32, {5, 8})},
                       {"ids", Tensor(ids.data(), DType::kI64, {3})},
                       {"none", Tensor(nullptr, DType::kF32, {0})}},
                      {{"format", "pt"}});
    return read_text_file(folder.path() / "sample.safetensors");
  }();
  return bytes;
}

TEST(Safetensors, EveryTruncationIsRefused) {
  const std::string whole = sample();
  ASSERT_EQ(message_of_bytes(whole), "");
  for (size_t n = 0; n < whole.size(); ++n) EXPECT_NE(message_of_bytes(std::string_view(whole).substr(0, n)), "") << n;
  for (size_t n = 1; n < 64; ++n) EXPECT_NE(message_of_bytes(whole + std::string(n, ' ')), "") << n;
  std::printf("safetensors: %zu truncations refused\n", whole.size());
}

TEST(Safetensors, WhatSurvivesBitFlipsKeepsTheRules) {
  const std::string whole = sample();
  const size_t header_end = whole.size() - (5 * 8 * 4 + 3 * 8 + 3);
  std::mt19937 random(7);
  int accepted = 0, refused = 0;
  const MemoryFileForTest memory;
  for (int i = 0; i < 10'000; ++i) {
    std::string bytes = whole;
    for (int flips = 1 + i % 3; flips > 0; --flips)
      bytes[random() % (i % 4 == 0 ? bytes.size() : header_end)] ^= static_cast<char>(1 << random() % 8);
    const fs::path path = memory.write(bytes);
    try {
      const SafetensorsFile file(path);
      EXPECT_EQ(broken_rule(bytes, file.entries()), "") << i;
      ++accepted;
    } catch (const LoadError&) {
      ++refused;
    }
  }
  EXPECT_GT(accepted, 500);
  EXPECT_GT(refused, 5000);
  std::printf("safetensors: 10000 bit flips, %d refused, %d accepted with all rules kept\n", refused, accepted);
}

TEST(Safetensors, WritesWhatItReads) {
  const FolderForTest folder;
  std::vector<float> floats = {1, -2, 3.5f};
  std::vector<int64_t> ids = {7, -1};
  std::vector<uint8_t> bytes = {1, 2, 3};
  const fs::path path = folder.path() / "x.safetensors";
  write_safetensors(path,
                    {{"bytes", Tensor(bytes.data(), DType::kU8, {3})},
                     {"floats \"quoted\"", Tensor(floats.data(), DType::kF32, {1, 3})},
                     {"ids", Tensor(ids.data(), DType::kI64, {2})},
                     {"none", Tensor(nullptr, DType::kF32, {0})}},
                    {{"format", "pt"}, {"made by", "a test"}});
  const SafetensorsFile file(path);
  ASSERT_EQ(file.entries().size(), 4u);
  EXPECT_EQ(file.metadata().at("made by"), "a test");
  EXPECT_EQ(file.metadata().size(), 2u);
  for (const auto& entry : file.entries())
    EXPECT_EQ(entry.begin % static_cast<int64_t>(size_of(*dtype_of_safetensors(entry.dtype))), 0) << entry.name;
  float got[3];
  file.read(*file.find("floats \"quoted\""), 0, 12, got);
  EXPECT_EQ(std::memcmp(got, floats.data(), 12), 0);
  EXPECT_EQ(file.find("floats \"quoted\"")->shape, (std::vector<int64_t>{1, 3}));
  int64_t id = 0;
  file.read(*file.find("ids"), 8, 8, &id);
  EXPECT_EQ(id, -1);
  EXPECT_EQ(file.find("absent"), nullptr);
  EXPECT_EQ(broken_rule(read_text_file(path), file.entries()), "");

  // Overwriting leaves who has the old file open with the old content; nothing else stays in the folder.
  write_safetensors(path, {{"ids", Tensor(ids.data(), DType::kI64, {1})}});
  file.read(*file.find("ids"), 8, 8, &id);
  EXPECT_EQ(id, -1);
  file.check_unchanged();
  EXPECT_EQ(SafetensorsFile(path).entries().size(), 1u);
  EXPECT_EQ(std::distance(fs::directory_iterator(folder.path()), fs::directory_iterator()), 1);
}

TEST(Safetensors, WritingFailsInWords) {
  const FolderForTest folder;
  std::vector<float> x(4);
  const std::vector<NamedTensor> tensors = {{"x", Tensor(x.data(), DType::kF32, {4})}};
  EXPECT_THROW(write_safetensors(folder.path() / "absent" / "x.safetensors", tensors), LoadError);
  EXPECT_THROW(write_safetensors(folder.path(), tensors), LoadError);
  EXPECT_THROW(write_safetensors("/dev/null", tensors), LoadError);  // a rename would replace the device
  EXPECT_TRUE(fs::is_character_file("/dev/null"));
}

TEST(Safetensors, AFileThatChangesIsAnError) {
  const FolderForTest folder;
  const fs::path path = folder.write("model.safetensors", file_of(kGood, 8));
  const auto message_after = [&](const auto& change) -> std::string {
    folder.write("model.safetensors", file_of(kGood, 8));
    fs::last_write_time(path, fs::file_time_type(std::chrono::seconds(1)));
    const SafetensorsFile file(path);
    change();
    try {
      float values[2];
      file.read(*file.find("a"), 0, 8, values);
      file.check_unchanged();
    } catch (const LoadError& error) {
      return error.what();
    }
    return "";
  };
  EXPECT_EQ(message_after([] {}), "");
  EXPECT_NE(message_after([&] { fs::resize_file(path, fs::file_size(path) - 4); }).find("shorter"), std::string::npos);
  EXPECT_NE(message_after([&] { fs::resize_file(path, 0); }).find("shorter"), std::string::npos);
  EXPECT_NE(message_after([&] { fs::resize_file(path, 5000); }).find("changed"), std::string::npos);
  EXPECT_NE(message_after([&] { folder.write("model.safetensors", file_of(kGood, 8)); }).find("changed"),
            std::string::npos);
  EXPECT_EQ(message_after([&] { fs::remove(path); }), "");  // the opened file stays whole
  EXPECT_EQ(message_after([&] { fs::rename(folder.write("new", "x"), path); }), "");
  EXPECT_EQ(message_after([&] { fs::permissions(path, fs::perms::none); }), "");
}

TEST(Safetensors, OnlyRegularFilesAreOpened) {
  const FolderForTest folder;
  ASSERT_EQ(mkfifo((folder.path() / "fifo").c_str(), 0600), 0);
  EXPECT_NE(message_of(folder.path() / "fifo").find("regular"), std::string::npos);  // and does not wait for a writer
  EXPECT_NE(message_of(folder.path()).find("regular"), std::string::npos);
  EXPECT_NE(message_of("/dev/zero").find("regular"), std::string::npos);
  EXPECT_NE(message_of(folder.path() / "absent").find("No such file"), std::string::npos);
}

}  // namespace
}  // namespace calandra
