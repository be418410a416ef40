#include "weights/weight_store.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <cstring>

#include "backends/reference/reference.h"
#include "base/error.h"

namespace calandra {
namespace {

namespace fs = std::filesystem;

// A folder with a checkpoint of given tensors.
class Model {
 public:
  explicit Model(const std::vector<NamedTensor>& tensors) {
    std::string name = (fs::temp_directory_path() / "calandra_XXXXXX").string();
    path_ = mkdtemp(name.data());
    write_safetensors(path_ / "model.safetensors", tensors);
  }
  ~Model() { fs::remove_all(path_); }
  Checkpoint checkpoint() const { return Checkpoint(path_); }

 private:
  fs::path path_;
};

std::string error_of(const Model& model, const std::function<void(WeightReader)>& note, std::vector<UnusedTensors> unused = {}) {
  ReferenceBackend backend;
  const Checkpoint checkpoint = model.checkpoint();
  WeightStore store(backend, &checkpoint);
  note(store.reader());
  try {
    store.load(unused, 2);
  } catch (const LoadError& error) {
    return error.what();
  }
  return "";
}

TEST(WeightStore, LoadsConvertsAndSelectsRows) {
  std::vector<bf16> matrix(8 * 2);
  for (int i = 0; i < 16; ++i) matrix[i] = bf16(static_cast<float>(i));
  std::vector<f16> vector = {f16(0.5f), f16(-2.0f)};
  const Model model({{"m.weight", Tensor(matrix.data(), DType::kBF16, {8, 2})}, {"deep.v", Tensor(vector.data(), DType::kF16, {2})}});
  ReferenceBackend backend;
  const Checkpoint checkpoint = model.checkpoint();
  for (const int threads : {1, 3}) {
    WeightStore store(backend, &checkpoint);
    PackedWeight even, odd;
    Tensor v;
    const MatrixShape shape{{"rows", 8}, {"columns", 2}};
    store.reader().linear(even, "m.weight", shape, {.first = 0, .rows = 2, .step = 4});  // rows 0 1, 4 5
    store.reader().linear(odd, "m.weight", shape, {.first = 2, .rows = 2, .step = 4});   // rows 2 3, 6 7
    store.reader().child("deep").vector(v, "v", {"n", 2});
    int64_t last_done = 0;
    store.load({}, threads, [&](int64_t done, int64_t total) { last_done = std::max(last_done, done * 100 / total); });
    EXPECT_EQ(last_done, 100);
    EXPECT_EQ(even.N, 4);
    EXPECT_EQ(odd.K, 2);
    EXPECT_EQ(v.as<float>()[1], -2.0f);
    std::vector<float> out(8);
    Tensor rows(out.data(), DType::kF32, {4, 2});
    std::vector<int32_t> ids = {0, 1, 2, 3};
    Workspace workspace;
    OneRank one;
    ExecContext ctx{backend, workspace, one};
    backend.embedding(ctx, Tensor(ids.data(), DType::kI32, {4}), odd, rows);
    EXPECT_EQ(out, (std::vector<float>{4, 5, 6, 7, 12, 13, 14, 15}));
  }
}

TEST(WeightStore, ErrorsNameTensorExpectedAndFound) {
  std::vector<float> x(12);
  std::vector<int64_t> ids(3);
  const Model model({{"a", Tensor(x.data(), DType::kF32, {3, 4})}, {"b", Tensor(ids.data(), DType::kI64, {3})}});
  PackedWeight w;
  Tensor t;
  const std::string transposed = error_of(model, [&](WeightReader r) { r.linear(w, "a", {{"vocab_size", 4}, {"hidden_size", 3}}); });
  for (const char* word : {"tensor a", "[3, 4]", "vocab_size = 4", "hidden_size = 3"}) EXPECT_NE(transposed.find(word), std::string::npos) << transposed;
  const std::string integer = error_of(model, [&](WeightReader r) { r.vector(t, "b", {"n", 3}); });
  for (const char* word : {"tensor b", "I64"}) EXPECT_NE(integer.find(word), std::string::npos) << integer;
  const std::string missing = error_of(model, [&](WeightReader r) {
    r.vector(t, "c.d", {"n", 3});
    r.child("e").vector(t, "f", {"n", 3});
  });
  for (const char* word : {"c.d", "e.f", "2 tensors"}) EXPECT_NE(missing.find(word), std::string::npos) << missing;
}

TEST(WeightStore, UnreadTensorsAreErrorsUnlessNamed) {
  std::vector<float> x(4);
  const Tensor t(x.data(), DType::kF32, {4});
  const Model model({{"a", t}, {"mtp.fc", t}, {"layers.1.w", t}, {"layers.12.w", t}});
  Tensor a;
  const auto read_a = [&](WeightReader r) { r.vector(a, "a", {"n", 4}); };
  EXPECT_NE(error_of(model, read_a).find("mtp.fc"), std::string::npos);
  const std::string one_left = error_of(model, read_a, {{"mtp.*", "later"}, {"layers.*", "beyond", 2}});
  EXPECT_NE(one_left.find("layers.1.w"), std::string::npos);
  EXPECT_EQ(one_left.find("layers.12.w"), std::string::npos);
  EXPECT_EQ(error_of(model, read_a, {{"mtp.*", "later"}, {"layers.*", "beyond", 1}}), "");
}

TEST(WeightStore, DummyWeightsAreAFunctionOfTheName) {
  ReferenceBackend backend;
  const auto make = [&](const char* name, int threads) {
    WeightStore store(backend, nullptr);
    PackedWeight w, other;
    store.reader().linear(other, "other", {{"N", 64}, {"K", 128}});
    store.reader().linear(w, name, {{"N", 64}, {"K", 128}});
    store.load({}, threads);
    std::vector<uint16_t> bits(64 * 128);
    std::memcpy(bits.data(), w.packed.data(), bits.size() * 2);
    return bits;
  };
  const auto w = make("w", 1);
  EXPECT_EQ(w, make("w", 2));
  EXPECT_NE(w, make("v", 1));
  double squares = 0;
  for (const uint16_t b : w) squares += std::pow(static_cast<double>(static_cast<float>(bf16::from_bits(b))), 2);
  EXPECT_NEAR(squares / static_cast<double>(w.size()) * 128, 1.0, 0.1);  // variance 1 / K
}

}  // namespace
}  // namespace calandra
