#include "weights/dummy_checkpoint.h"

#include <gtest/gtest.h>

#include <cstring>

#include "backends/reference/reference.h"
#include "base/error.h"
#include "weights/safetensors_for_test.h"

namespace calandra {
namespace {

// Of every kind of note, one of them larger than what is read at a time.
struct Noted {
  PackedWeight plain, even, patches, rounded;
  GroupedWeight experts, fused, moved;
  Tensor vector;

  explicit Noted(WeightReader r) {
    r.linear(plain, "embed.weight", {{"V", 4100}, {"D", 640}});
    r.linear(even, "q_proj.weight", {{"N", 16600}, {"K", 640}}, {.first = 0, .rows = 10, .step = 20});
    r.flattened(patches, "visual.proj.weight", {{"N", 24}, {"C", 3}, {"P", 8}});
    std::vector<int32_t> kept;
    for (int32_t id = 0; id < 3000; id += 1 + (id % 7 == 0)) kept.push_back(id);
    r.rounded_rows(rounded, "lm_head.weight", {{"V", 3000}, {"D", 640}}, kept);
    r.experts(experts, "experts.{e}.up_proj.weight", 3, {{"F", 140}, {"D", 96}});
    r.fused_experts(fused, "experts.down_proj", {"E", 3}, {{"D", 260}, {"F", 130}});
    r.rearranged(moved, "kv_b_proj.weight", {{"N", 4}, {"K", 96}}, 2, 2, 96,
                 [](const float* from, int64_t e, float* to) { std::memcpy(to, from + e * 192, 192 * sizeof(float)); });
    r.vector(vector, "A_log", {"H", 37});
  }
  std::vector<std::vector<std::byte>> packed() const {
    std::vector<std::vector<std::byte>> all;
    for (const Tensor& t : {plain.packed, even.packed, patches.packed, rounded.packed, experts.packed, fused.packed,
                            moved.packed, vector}) {
      const auto* bytes = static_cast<const std::byte*>(t.data());
      all.emplace_back(bytes, bytes + t.bytes());
    }
    return all;
  }
};

// Whatever is read in pieces, by rows or as a whole, by however many threads.
TEST(DummyCheckpoint, LoadsAsTheRandomWeightsThatItHolds) {
  ReferenceBackend backend;
  for (const std::optional<Fp8Blocks> fp8 : {std::optional<Fp8Blocks>(), {Fp8Blocks{128, 128}}, {Fp8Blocks{20, 24}}})
    for (const int64_t shard_bytes : {int64_t{1} << 40, int64_t{1} << 20}) {
      FolderForTest folder;
      WeightStore random(backend, nullptr, fp8);
      const Noted want(random.reader());
      write_dummy_checkpoint(folder.path(), random.stored_tensors(), shard_bytes, 3);
      random.load({}, 3);
      const WeightFiles checkpoint(folder.path());
      EXPECT_EQ(checkpoint.files().size() > 1, shard_bytes < (int64_t{1} << 40));
      for (const int threads : {1, 4}) {
        WeightStore stored(backend, &checkpoint, fp8);
        const Noted got(stored.reader());
        stored.load({}, threads);
        EXPECT_EQ(got.even.dtype, fp8 ? DType::kF8E4M3 : DType::kBF16);
        EXPECT_EQ(got.packed(), want.packed());
        EXPECT_EQ(stored.summary().parameters_by_type, random.summary().parameters_by_type);
      }
    }
}

TEST(DummyCheckpoint, DoesNotDependOnThreads) {
  ReferenceBackend backend;
  WeightStore store(backend, nullptr);
  const Noted noted(store.reader());
  std::vector<std::string> contents;
  for (const int threads : {1, 5}) {
    FolderForTest folder;
    write_dummy_checkpoint(folder.path(), store.stored_tensors(), int64_t{1} << 40, threads);
    std::ifstream file(folder.path() / "model.safetensors", std::ios::binary);
    contents.emplace_back(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
  }
  EXPECT_EQ(contents[0], contents[1]);
}

TEST(DummyCheckpoint, SaysWhatCannotBeWritten) {
  ReferenceBackend backend;
  WeightStore store(backend, nullptr);
  const Noted noted(store.reader());
  try {
    write_dummy_checkpoint("/nowhere", store.stored_tensors(), int64_t{1} << 40, 1);
    FAIL();
  } catch (const LoadError& error) {
    EXPECT_STREQ(error.what(), "cannot write /nowhere/model.safetensors: No such file or directory");
  }
}

}  // namespace
}  // namespace calandra
