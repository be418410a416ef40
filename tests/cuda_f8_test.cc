// Weights in 8 bits on a device, in sizes at which its kernels take other paths. Skipped without a device.
#include "backends/cpu/experts_for_test.h"
#include "tests/cuda_fixture.h"

namespace calandra {
namespace {

class CudaF8 : public CudaTest {
 protected:
  OpRunner reference{std::make_unique<ReferenceBackend>()};
};

// Weights in 8 bits, dense and as experts.
TEST_F(CudaF8, WeightsOfManyRows) {
  for (const auto& [N, K] : {std::pair<int64_t, int64_t>{136, 1024}, {257, 200}, {64, 4104}}) {
    constexpr int64_t kRows = 290, kChoices = 3;
    const F8Experts source(4, N, K, 128, 128, 7);
    Buffer storage[2];
    const GroupedWeight got = group(device->backend(), source.matrices, storage[0]),
                        want = group(reference.backend(), source.matrices, storage[1]);
    const Tensor x = random(pool, DType::kBF16, {kRows, K}, 1), chosen = pool.zeros(DType::kI32, {kRows, kChoices});
    for (int i = 0; i < kRows * kChoices; ++i) chosen.as<int32_t>()[i] = i % 7 == 0 ? 3 : i % 3;
    const auto linear = [&](OpRunner& on, const GroupedWeight& weight) {
      return on.run([&](ExecContext& ctx) { return ops::linear(ctx, x, weight.expert(1), DType::kF32); });
    };
    EXPECT_TRUE(close_to(linear(*device, got), linear(reference, want), {.reduction = K}, "linear", "cuda"));
    const auto experts = [&](OpRunner& on, const GroupedWeight& weight) {
      return on.run([&](ExecContext& ctx) { return ops::grouped_linear(ctx, x, weight, chosen); });
    };
    EXPECT_TRUE(close_to(experts(*device, got), experts(reference, want), {.reduction = K}, "grouped_linear", "cuda"));
  }
}

// Weights in 8 bits with rows on both sides of every border between kernels; two weights of one launch, ragged sizes.
TEST_F(CudaF8, WeightsOfSomeRows) {
  for (const auto& [N, K] : {std::pair<int64_t, int64_t>{136, 1024}, {257, 200}, {64, 4104}, {640, 2304}}) {
    const F8Experts source(2, N, K, 128, 128, 7);
    const Tensor x = random(pool, DType::kBF16, {129, K}, 1), residual = random(pool, DType::kBF16, {129, N}, 2);
    for (const int64_t T : {1, 8, 9, 16, 17, 32, 33, 64, 65, 128, 129}) {
      const auto run = [&](OpRunner& on, bool add) {
        LinearPack pack(2);
        pack.part(0) = on.weight(source.matrices[0]), pack.part(1) = on.weight(source.matrices[1]);
        return on.run([&](ExecContext& ctx) {
          if (add) return ops::linear_add(ctx, x.slice(0, 0, T), pack.parts()[0], residual.slice(0, 0, T));
          return ops::linear(ctx, x.slice(0, 0, T), pack, DType::kF32)[1];
        });
      };
      const std::string rows = " of " + std::to_string(T) + " rows";
      EXPECT_TRUE(close_to(run(*device, false), run(reference, false), {.reduction = K}, "linear" + rows, "cuda"));
      EXPECT_TRUE(close_to(run(*device, true), run(reference, true), {.reduction = K, .roundings = 2},
                           "linear_add" + rows, "cuda"));
    }
  }
}

// Up to 16 rows of weights with so many outputs that a block has other tiles of them: borders are 396, 528 and 660
// tiles of 8. Last blocks are ragged in the first tile and in the second. Every output has scales of its own. A row has
// one order of sums, whatever its place and the rows beside it, and with a weight of the other format in the launch.
TEST_F(CudaF8, WeightsOfManyOutputs) {
  constexpr int64_t kRows = 16;
  for (const auto& [N, K] :
       {std::pair<int64_t, int64_t>{4100, 256}, {4300, 640}, {5400, 5120}, {7190, 640}, {12317, 256}}) {
    const F8Experts source(1, N, K, 1, 128, 7);
    const Tensor x = random(pool, DType::kBF16, {kRows, K}, 1), residual = random(pool, DType::kBF16, {kRows, N}, 2);
    LinearPack pack(3);
    pack.part(0) = device->weight(random(pool, DType::kBF16, {48, K}, 3, 0.05f));
    pack.part(1) = device->weight(source.matrices[0]);
    pack.part(2) = device->weight(random(pool, DType::kBF16, {5, K}, 4, 0.05f));
    // Of the last T rows.
    const auto linear = [&](OpRunner& on, const PackedWeight& weight, int64_t T) {
      return on.run(
          [&](ExecContext& ctx) { return ops::linear(ctx, x.slice(0, kRows - T, kRows), weight, DType::kF32); });
    };
    std::vector<Tensor> all;
    for (const PackedWeight& weight : pack.parts()) all.push_back(linear(*device, weight, kRows));
    EXPECT_TRUE(close_to(all[1], linear(reference, reference.weight(source.matrices[0]), kRows), {.reduction = K},
                         "linear of " + std::to_string(N) + " outputs", "cuda"));
    const Tensor sum = device->run(
        [&](ExecContext& ctx) { return ops::add(ctx, residual, ops::linear(ctx, x, pack.parts()[1], DType::kBF16)); });
    for (int64_t T = 1; T <= kRows; ++T) {
      const std::string label = std::to_string(T) + " rows of " + std::to_string(N) + " outputs";
      const int64_t first = kRows - T;
      EXPECT_TRUE(row_bytes(linear(*device, pack.parts()[1], T)) == row_bytes(all[1], first, kRows)) << label;
      const auto parts =
          device->run([&](ExecContext& ctx) { return ops::linear(ctx, x.slice(0, first, kRows), pack, DType::kF32); });
      for (size_t i = 0; i < all.size(); ++i)
        EXPECT_TRUE(row_bytes(parts[i]) == row_bytes(all[i], first, kRows)) << label << ", part " << i;
      const Tensor added = device->run([&](ExecContext& ctx) {
        return ops::linear_add(ctx, x.slice(0, first, kRows), pack.parts()[1], residual.slice(0, first, kRows));
      });
      EXPECT_TRUE(row_bytes(added) == row_bytes(sum, first, kRows)) << "linear_add, " << label;
    }
  }
}

}  // namespace
}  // namespace calandra
