#include "weights/weight_store.h"

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <atomic>
#include <cmath>
#include <cstring>
#include <deque>

#include "backends/reference/reference.h"
#include "base/error.h"
#include "weights/safetensors_for_test.h"

namespace calandra {
namespace {

namespace fs = std::filesystem;

// A folder with a checkpoint of given tensors.
class Model {
 public:
  explicit Model(const std::vector<NamedTensor>& tensors) { write_safetensors(file(), tensors); }
  WeightFiles checkpoint() const { return WeightFiles(folder_.path()); }
  fs::path file() const { return folder_.path() / "model.safetensors"; }

 private:
  FolderForTest folder_;
};

std::string error_of(const Model& model, const std::function<void(WeightReader)>& note,
                     std::vector<UnusedTensors> unused = {}) {
  ReferenceBackend backend;
  const WeightFiles checkpoint = model.checkpoint();
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
  const Model model(
      {{"m.weight", Tensor(matrix.data(), DType::kBF16, {8, 2})}, {"deep.v", Tensor(vector.data(), DType::kF16, {2})}});
  ReferenceBackend backend;
  const WeightFiles checkpoint = model.checkpoint();
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
  const std::string transposed = error_of(model, [&](WeightReader r) {
    r.linear(w, "a", {{"vocab_size", 4}, {"hidden_size", 3}});
  });
  for (const char* word : {"tensor a", "[3, 4]", "vocab_size = 4", "hidden_size = 3"})
    EXPECT_NE(transposed.find(word), std::string::npos) << transposed;
  const std::string integer = error_of(model, [&](WeightReader r) { r.vector(t, "b", {"n", 3}); });
  for (const char* word : {"tensor b", "I64"}) EXPECT_NE(integer.find(word), std::string::npos) << integer;
  const std::string missing = error_of(model, [&](WeightReader r) {
    r.vector(t, "c.d", {"n", 3});
    r.child("e").vector(t, "f", {"n", 3});
  });
  for (const char* word : {"c.d", "e.f", "2 tensors"}) EXPECT_NE(missing.find(word), std::string::npos) << missing;
}

TEST(WeightStore, UnsupportedFormatsAreNamed) {
  std::vector<uint8_t> bytes(8);
  std::vector<float> x(8);
  const Model model({{"int8.weight", Tensor(bytes.data(), DType::kI8, {2, 4})},
                     {"gptq.qweight", Tensor(bytes.data(), DType::kI32, {1, 2})},
                     {"packed.weight_packed", Tensor(bytes.data(), DType::kU8, {2, 4})},
                     {"doubles", Tensor(x.data(), DType::kF64, {4})}});
  PackedWeight w;
  Tensor t;
  const MatrixShape shape{{"N", 2}, {"K", 4}};
  for (const auto& [name, found] :
       {std::pair("int8.weight", "I8"), {"gptq.weight", "gptq.qweight"}, {"packed.weight", "packed.weight_packed"}}) {
    const std::string error = error_of(model, [&](WeightReader r) { r.linear(w, name, shape); });
    for (const char* word : {name, found, "not supported yet"}) EXPECT_NE(error.find(word), std::string::npos) << error;
  }
  EXPECT_NE(error_of(model, [&](WeightReader r) { r.vector(t, "doubles", {"n", 4}); }).find("F64"), std::string::npos);
}

TEST(WeightStore, ListsOfNamesAreBounded) {
  std::vector<float> x(4);
  std::vector<NamedTensor> tensors;
  for (int i = 0; i < 25; ++i) tensors.push_back({fmt::format("extra.{:02}", i), Tensor(x.data(), DType::kF32, {4})});
  const Model model(tensors);
  const std::string unread = error_of(model, [](WeightReader) {});
  for (const char* word : {"25 tensors", "extra.00", "extra.19", "and 5 more"})
    EXPECT_NE(unread.find(word), std::string::npos) << unread;
  EXPECT_EQ(unread.find("extra.20"), std::string::npos);
  std::deque<Tensor> destinations(23);
  const std::string missing = error_of(model, [&](WeightReader r) {
    for (int i = 0; i < 23; ++i) r.child("layers").child(std::to_string(10 + i)).vector(destinations[i], "w", {"n", 4});
  });
  for (const char* word : {"23 tensors", "layers.10.w", "layers.29.w", "and 3 more"})
    EXPECT_NE(missing.find(word), std::string::npos) << missing;
  EXPECT_EQ(missing.find("layers.30.w"), std::string::npos);
}

TEST(WeightStore, ValuesThatAreNotFiniteAreOneWarning) {
  std::vector<float> nan = {1, NAN}, inf = {-INFINITY, 0}, fine = {3.4e38f, -3.4e38f};
  std::vector<bf16> bnan = {bf16(NAN), bf16(1)}, bfine = {bf16(3e38f), bf16(-0.0f)};
  std::vector<f16> finf = {f16(1), f16(-INFINITY)}, ffine = {f16(65504), f16(-6e-8f)};
  std::vector<NamedTensor> tensors = {
      {"nan32", Tensor(nan.data(), DType::kF32, {2})},      {"inf32", Tensor(inf.data(), DType::kF32, {2})},
      {"fine32", Tensor(fine.data(), DType::kF32, {2})},    {"nan16", Tensor(bnan.data(), DType::kBF16, {2})},
      {"fine16", Tensor(bfine.data(), DType::kBF16, {2})},  {"inf_half", Tensor(finf.data(), DType::kF16, {2})},
      {"fine_half", Tensor(ffine.data(), DType::kF16, {2})}};
  const Model model(tensors);
  std::deque<Tensor> destinations(tensors.size());
  testing::internal::CaptureStderr();
  EXPECT_EQ(error_of(model,
                     [&](WeightReader r) {
                       for (size_t i = 0; i < tensors.size(); ++i) r.vector(destinations[i], tensors[i].name, {"n", 2});
                     }),
            "");
  const std::string warning = testing::internal::GetCapturedStderr();
  EXPECT_NE(warning.find("4 tensors hold NaN or infinite values: inf32, inf_half, nan16, nan32\n"), std::string::npos)
      << warning;
  EXPECT_EQ(std::count(warning.begin(), warning.end(), '\n'), 1);
}

TEST(WeightStore, OneBadValueAnywhereIsFound) {
  for (const int at : {0, 63, 64, 100, 127, 128, 129}) {
    std::vector<bf16> x(130, bf16(-3e38f));
    x[at] = bf16(-INFINITY);
    const Model model({{"w", Tensor(x.data(), DType::kBF16, {10, 13})}});
    PackedWeight w;
    testing::internal::CaptureStderr();
    EXPECT_EQ(error_of(model, [&](WeightReader r) { r.linear(w, "w", {{"N", 10}, {"K", 13}}); }), "");
    EXPECT_NE(testing::internal::GetCapturedStderr().find("infinite values: w"), std::string::npos) << at;
  }
}

TEST(WeightStore, ThreadsDoNotChangeTheResult) {
  std::deque<std::vector<bf16>> values;
  std::vector<NamedTensor> tensors;
  for (int i = 0; i < 60; ++i) {
    const int64_t N = 8 * (1 + i % 5), K = 16 + i;
    values.emplace_back(N * K);
    for (int64_t j = 0; j < N * K; ++j) values.back()[j] = bf16(static_cast<float>(i * 1000 + j % 251));
    tensors.push_back({fmt::format("m.{}", i), Tensor(values.back().data(), DType::kBF16, {N, K})});
  }
  const Model model(tensors);
  ReferenceBackend backend;
  const WeightFiles checkpoint = model.checkpoint();
  for (const int threads : {1, 2, 7}) {
    WeightStore store(backend, &checkpoint);
    std::deque<PackedWeight> weights;
    for (int round = 0; round < 2; ++round)  // once whole, once the odd blocks of four rows
      for (const NamedTensor& t : tensors)
        store.reader().linear(weights.emplace_back(), t.name, {{"N", t.tensor.size(0)}, {"K", t.tensor.size(1)}},
                              round == 0 ? RowBlocks{} : RowBlocks{.first = 4, .rows = 4, .step = 8});
    std::atomic<int64_t> most{0}, total{0};
    store.load({}, threads, [&](int64_t done, int64_t all) {
      total = all;
      for (int64_t seen = most; seen < done && !most.compare_exchange_weak(seen, done);) {
      }
    });
    EXPECT_EQ(most, total);
    for (size_t i = 0; i < tensors.size(); ++i) {
      const Tensor& whole = tensors[i].tensor;
      ASSERT_EQ(weights[i].packed.bytes(), whole.bytes());
      EXPECT_EQ(std::memcmp(weights[i].packed.data(), whole.data(), whole.bytes()), 0) << i;
      const PackedWeight& odd = weights[tensors.size() + i];
      ASSERT_EQ(odd.N * 2, whole.size(0));
      const int64_t block = 4 * whole.size(1) * 2;
      for (int64_t b = 0; b < odd.N / 4; ++b)
        EXPECT_EQ(std::memcmp(odd.packed.bytes_at(b * block),
                              static_cast<std::byte*>(whole.data()) + (2 * b + 1) * block, block),
                  0)
            << i;
    }
    const WeightStore::Summary summary = store.summary();
    EXPECT_EQ(summary.tensors, 60);
    EXPECT_GE(summary.packed_bytes, total.load());
    EXPECT_LT(summary.packed_bytes, total.load() + static_cast<int64_t>(weights.size() * kWeightAlignment));
    EXPECT_EQ(summary.parameters_by_type, (std::map<std::string, int64_t>{{"BF16", summary.parameters}}));
  }
}

TEST(WeightStore, AFileThatIsWrittenToDuringTheLoadIsAnError) {
  std::vector<float> x(4);
  const Model model({{"a", Tensor(x.data(), DType::kF32, {4})}, {"b", Tensor(x.data(), DType::kF32, {4})}});
  ReferenceBackend backend;
  for (const bool shrink : {true, false}) {
    write_safetensors(model.file(),
                      {{"a", Tensor(x.data(), DType::kF32, {4})}, {"b", Tensor(x.data(), DType::kF32, {4})}});
    const WeightFiles checkpoint = model.checkpoint();
    WeightStore store(backend, &checkpoint);
    Tensor a, b;
    store.reader().vector(a, "a", {"n", 4});
    store.reader().vector(b, "b", {"n", 4});
    const auto meanwhile = [&](int64_t, int64_t) { fs::resize_file(model.file(), shrink ? 100 : 10'000); };
    try {
      store.load({}, 1, meanwhile);
      ADD_FAILURE() << "loaded";
    } catch (const LoadError& error) {
      EXPECT_NE(std::string(error.what()).find(shrink ? "tensor b" : "changed"), std::string::npos) << error.what();
    }
  }
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
  WeightStore halves(backend, nullptr);
  PackedWeight q, gate;
  halves.reader().linear(q, "w", {{"N", 64}, {"K", 128}}, {.first = 0, .rows = 8, .step = 16});
  halves.reader().linear(gate, "w", {{"N", 64}, {"K", 128}}, {.first = 8, .rows = 8, .step = 16});
  halves.load({}, 2);
  EXPECT_EQ(q.N, 32);
  EXPECT_NE(std::memcmp(q.packed.data(), gate.packed.data(), q.packed.bytes()), 0);
  double squares = 0;
  for (const uint16_t b : w) squares += std::pow(static_cast<double>(static_cast<float>(bf16::from_bits(b))), 2);
  EXPECT_NEAR(squares / static_cast<double>(w.size()) * 128, 1.0, 0.1);  // variance 1 / K
}

}  // namespace
}  // namespace calandra
