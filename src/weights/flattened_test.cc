// Matrices with a bias, and matrices that are stored with more than two axes.
#include <gtest/gtest.h>

#include <deque>

#include "backends/reference/reference.h"
#include "base/error.h"
#include "weights/safetensors_for_test.h"
#include "weights/weight_store.h"

namespace calandra {
namespace {

std::vector<float> numbers(int64_t n, float first) {
  std::vector<float> values(static_cast<size_t>(n));
  for (size_t i = 0; i < values.size(); ++i) values[i] = first + static_cast<float>(i);
  return values;
}

TEST(FlattenedWeights, TheLaterAxesAreOne) {
  std::vector<float> kernel = numbers(4 * 3 * 2 * 5, 0), bias = numbers(4, 100);
  const FolderForTest folder;
  write_safetensors(folder.path() / "model.safetensors",
                    {{"conv.weight", Tensor(kernel.data(), DType::kF32, {4, 3, 2, 5})},
                     {"conv.bias", Tensor(bias.data(), DType::kF32, {4})}});
  ReferenceBackend backend;
  const WeightFiles checkpoint(folder.path());
  WeightStore store(backend, &checkpoint);
  PackedWeight weight;
  store.reader().flattened(weight, "conv.weight", {{"out", 4}, {"in", 3}, {"height", 2}, {"width", 5}});
  store.reader().vector(weight.bias, "conv.bias", {"out", 4});
  EXPECT_EQ(weight.N, 4);  // known before the values
  EXPECT_EQ(weight.K, 30);
  EXPECT_EQ(weight.bias.size(0), 4);
  store.load({}, 1);
  ASSERT_EQ(weight.packed.bytes(), static_cast<int64_t>(kernel.size() * sizeof(float)));
  EXPECT_EQ(std::memcmp(weight.packed.data(), kernel.data(), kernel.size() * sizeof(float)), 0);

  PackedWeight other;
  WeightStore refused(backend, &checkpoint);
  refused.reader().flattened(other, "conv.weight", {{"out", 4}, {"in", 3}, {"height", 5}, {"width", 2}});
  try {
    refused.load({}, 1);
    ADD_FAILURE() << "loaded";
  } catch (const LoadError& error) {
    EXPECT_NE(std::string(error.what()).find("height = 5"), std::string::npos) << error.what();
  }
}

// Matrix and bias are read by different threads in either order.
TEST(FlattenedWeights, MatrixAndBiasDoNotOverwriteEachOther) {
  constexpr int kPairs = 40;
  std::deque<std::vector<float>> values;
  std::vector<NamedTensor> tensors;
  for (int i = 0; i < kPairs; ++i) {
    const std::string name = "m." + std::to_string(i);
    const NamedTensor matrix{name + ".weight", Tensor(values.emplace_back(numbers(6, i)).data(), DType::kF32, {2, 3})},
        bias{name + ".bias", Tensor(values.emplace_back(numbers(2, -i)).data(), DType::kF32, {2})};
    tensors.push_back(i % 2 == 0 ? matrix : bias);
    tensors.push_back(i % 2 == 0 ? bias : matrix);
  }
  const FolderForTest folder;
  write_safetensors(folder.path() / "model.safetensors", tensors);
  ReferenceBackend backend;
  const WeightFiles checkpoint(folder.path());
  for (const int threads : {1, 2, 7}) {
    WeightStore store(backend, &checkpoint);
    std::deque<PackedWeight> weights(kPairs);
    for (int i = 0; i < kPairs; ++i) {
      const WeightReader reader = store.reader().child("m").child(std::to_string(i));
      if (i % 3 != 0) reader.linear(weights[i], "weight", {{"N", 2}, {"K", 3}});
      reader.vector(weights[i].bias, "bias", {"N", 2});
      if (i % 3 == 0) reader.linear(weights[i], "weight", {{"N", 2}, {"K", 3}});
    }
    store.load({}, threads);
    for (int i = 0; i < kPairs; ++i) {
      ASSERT_TRUE(weights[i].bias && weights[i].packed) << i;
      EXPECT_EQ(weights[i].bias.as<float>()[1], static_cast<float>(1 - i));
      float first;
      std::memcpy(&first, weights[i].packed.data(), sizeof first);
      EXPECT_EQ(first, static_cast<float>(i));
    }
  }
}

}  // namespace
}  // namespace calandra
