#include "weights/weight_files.h"

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include "base/error.h"
#include "weights/safetensors_for_test.h"

namespace calandra {
namespace {

namespace fs = std::filesystem;

std::string tensor_file(const std::string& name) {
  return file_of(fmt::format(R"({{"{}":{{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}}})", name), 8);
}

struct Outcome {
  std::string error, warnings;
};
Outcome open_checkpoint(const fs::path& folder) {
  Outcome outcome;
  testing::internal::CaptureStderr();
  try {
    WeightFiles checkpoint(folder);
  } catch (const LoadError& error) {
    outcome.error = error.what();
  }
  outcome.warnings = testing::internal::GetCapturedStderr();
  return outcome;
}

#define EXPECT_HAS(text, word) EXPECT_NE((text).find(word), std::string::npos) << (text)

class Shards : public testing::Test {
 protected:
  Shards() {
    folder.write("one.safetensors", tensor_file("a"));
    folder.write("two.safetensors", tensor_file("b"));
  }
  Outcome with_index(const std::string& index) {
    folder.write("model.safetensors.index.json", index);
    return open_checkpoint(folder.path());
  }
  FolderForTest folder;
};

TEST_F(Shards, AreFoundByTheIndex) {
  const Outcome outcome =
      with_index(R"({"metadata":{"total_size":16},"weight_map":{"a":"one.safetensors","b":"two.safetensors"}})");
  EXPECT_EQ(outcome.error, "");
  EXPECT_EQ(outcome.warnings, "");
  const WeightFiles checkpoint(folder.path());
  ASSERT_EQ(checkpoint.files().size(), 2u);
  EXPECT_EQ(checkpoint.find("b").file->path().filename(), "two.safetensors");
  EXPECT_EQ(checkpoint.find("b").entry->name, "b");
  EXPECT_EQ(checkpoint.find("c").file, nullptr);
}

TEST_F(Shards, AnIndexThatDisagreesIsOneWarning) {
  const Outcome swapped = with_index(R"({"weight_map":{"a":"two.safetensors","b":"one.safetensors"}})");
  EXPECT_EQ(swapped.error, "");
  EXPECT_HAS(swapped.warnings, "tensor a is mapped to two.safetensors");
  EXPECT_EQ(std::count(swapped.warnings.begin(), swapped.warnings.end(), '\n'), 1);
  EXPECT_HAS(
      with_index(R"({"weight_map":{"a":"one.safetensors","b":"two.safetensors","c":"one.safetensors"}})").warnings,
      "tensor c");
  folder.write(
      "one.safetensors",
      file_of(
          R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"x":{"dtype":"F32","shape":[0],"data_offsets":[8,8]}})",
          8));
  EXPECT_HAS(with_index(R"({"weight_map":{"a":"one.safetensors","b":"two.safetensors"}})").warnings,
             "tensor x of one.safetensors is not listed");
}

TEST_F(Shards, NamesStayInsideTheFolder) {
  int refused = 0;
  for (const char* name :
       {"../one.safetensors", "/etc/passwd", "..", ".", "", "sub/one.safetensors", "./one.safetensors",
        "one.safetensors/", "one.safetensors\\u0000", "..\\u0000", "/", "//", "~/x/y", "../../../../dev/zero"}) {
    const Outcome outcome = with_index(fmt::format(R"({{"weight_map":{{"a":"{}"}}}})", name));
    EXPECT_HAS(outcome.error, "inside the folder");
    ++refused;
  }
  EXPECT_HAS(with_index(R"({"weight_map":{"a":"../one.safetensors"}})").error, "../");
  std::printf("index: %d paths refused\n", refused);
}

TEST_F(Shards, LinksStayInsideTheFolder) {
  const FolderForTest outside;
  const std::string index = R"({"weight_map":{"a":"one.safetensors","b":"link.safetensors"}})";
  fs::create_symlink(outside.write("b.safetensors", tensor_file("b")), folder.path() / "link.safetensors");
  EXPECT_HAS(with_index(index).error, "leaves the folder");
  fs::remove(folder.path() / "link.safetensors");
  fs::create_symlink("two.safetensors", folder.path() / "link.safetensors");
  EXPECT_EQ(with_index(index).error, "");
  fs::remove(folder.path() / "link.safetensors");
  fs::create_symlink("absent.safetensors", folder.path() / "link.safetensors");
  EXPECT_HAS(with_index(index).error, "link.safetensors is missing");
  fs::remove(folder.path() / "link.safetensors");
  fs::create_symlink("link.safetensors", folder.path() / "link.safetensors");  // a cycle
  EXPECT_HAS(with_index(index).error, "link.safetensors is missing");
  fs::remove(folder.path() / "link.safetensors");
  ASSERT_EQ(mkfifo((folder.path() / "link.safetensors").c_str(), 0600), 0);
  EXPECT_HAS(with_index(index).error, "regular file");

  // The cache of huggingface_hub: snapshots/<commit>/name -> ../../blobs/<hash>.
  const fs::path snapshot = outside.path() / "snapshots" / "0123";
  fs::create_directories(snapshot);
  fs::create_directories(outside.path() / "blobs");
  fs::rename(outside.path() / "b.safetensors", outside.path() / "blobs" / "cafe");
  fs::create_symlink("../../blobs/cafe", snapshot / "b.safetensors");
  outside.write("snapshots/0123/model.safetensors.index.json", R"({"weight_map":{"b":"b.safetensors"}})");
  EXPECT_EQ(open_checkpoint(snapshot).error, "");
}

TEST_F(Shards, BrokenIndexesAreRefused) {
  EXPECT_HAS(with_index(R"({"weight_map":{"a":"three.safetensors"}})").error, "three.safetensors is missing");
  EXPECT_HAS(with_index(R"({"weight_map":{"a":1}})").error, "weight_map");
  EXPECT_HAS(with_index(R"({"weight_map":{"a":null}})").error, "weight_map");
  EXPECT_HAS(with_index(R"({"weight_map":[]})").error, "weight_map");
  EXPECT_HAS(with_index(R"({})").error, "weight_map");
  EXPECT_HAS(with_index(R"([])").error, "weight_map");
  EXPECT_HAS(with_index(R"({"weight_)").error, "not valid JSON");
  EXPECT_HAS(with_index("").error, "model.safetensors.index.json");
  std::string large = R"({"weight_map":{)";
  for (int i = 0; i < 1'000'000; ++i) large += fmt::format(R"({}"{}":"x")", i > 0 ? "," : "", i);
  EXPECT_HAS(with_index(large + "}}").error, "1000000 entries");
  folder.write("two.safetensors", tensor_file("a"));
  EXPECT_HAS(with_index(R"({"weight_map":{"a":"one.safetensors","b":"two.safetensors"}})").error, "another shard");
}

TEST(WeightFiles, OfOneFile) {
  const FolderForTest folder;
  EXPECT_HAS(open_checkpoint(folder.path()).error, "neither");
  EXPECT_HAS(open_checkpoint(folder.path() / "absent").error, "no folder");
  folder.write("model.safetensors", tensor_file("a"));
  EXPECT_EQ(open_checkpoint(folder.path()).error, "");
  folder.write("model.safetensors.index.json",
               R"({"weight_map": {"a": "model.safetensors", "b": "lost.safetensors"}})");
  EXPECT_HAS(open_checkpoint(folder.path()).error, "lost.safetensors");  // an index beside it is believed
  EXPECT_HAS(open_checkpoint(folder.path() / "model.safetensors").error, "no folder");
}

// The cases of the corpus whose defect is in the container: everything else needs the model.
TEST(WeightFiles, MalformedCorpus) {
  const fs::path corpus = CALANDRA_SOURCE_DIR "/tests/oracle/qwen3_5/malformed";
  const std::set<std::string_view> container = {"empty_file",
                                                "shorter_than_length_field",
                                                "truncated_header",
                                                "truncated_data",
                                                "trailing_bytes",
                                                "header_length_zero",
                                                "header_length_too_large",
                                                "header_not_json",
                                                "header_not_utf8",
                                                "header_length_past_end",
                                                "header_is_a_list",
                                                "hole_between_tensors",
                                                "duplicate_tensor",
                                                "reversed_offsets",
                                                "overlapping_offsets",
                                                "offsets_past_end",
                                                "missing_dtype_value",
                                                "negative_offset",
                                                "unknown_dtype",
                                                "shape_disagrees_with_bytes",
                                                "shape_overflow",
                                                "index_names_missing_file",
                                                "negative_shape",
                                                "missing_shard",
                                                "index_disagrees_with_shard",
                                                "index_leaves_the_folder",
                                                "index_without_weight_map",
                                                "index_not_json"};
  int rejected = 0, warned = 0, intact = 0;
  const json::value cases = read_json_file(corpus / "malformed.json");
  for (const json::value& item : cases.as_array()) {
    const std::string name(item.at("case").as_string());
    const Outcome outcome = open_checkpoint(corpus / name);
    if (!container.contains(name)) {
      EXPECT_EQ(outcome.error + outcome.warnings, "") << name;
      ++intact;
      continue;
    }
    const bool reject = item.at("expect") == "reject";
    EXPECT_EQ(outcome.error.empty(), !reject) << name;
    for (const json::value& word : item.at("words").as_array())
      EXPECT_HAS(outcome.error + outcome.warnings, std::string(word.as_string()));
    ++(reject ? rejected : warned);
  }
  EXPECT_EQ(rejected + warned, static_cast<int>(container.size()));
  EXPECT_EQ(open_checkpoint(corpus / "intact").error, "");
  RecordProperty("containers_refused", rejected);
  RecordProperty("containers_warned_about", warned);
  std::printf("malformed corpus: %d containers refused, %d with a warning, %d whole\n", rejected, warned, intact + 1);
}

}  // namespace
}  // namespace calandra
