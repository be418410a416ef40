// The workspace: a dry run measures exactly, too small a part aborts by its name, and undefined content is NaN where
// bugs should show.
#include "ops/workspace.h"

#include <gtest/gtest.h>

#include <cmath>

namespace calandra {
namespace {

// 64-byte steps: half 0 needs 128, half 1 needs 64, the step part 192.
void step(Workspace& workspace) {
  workspace.reset();
  workspace.alloc_step(DType::kF32, {33});
  workspace.alloc(DType::kF32, {16});
  const size_t mark = workspace.mark();
  workspace.alloc(DType::kU8, {1});
  workspace.release(mark);
  workspace.alloc(DType::kBF16, {32});
  workspace.flip();
  workspace.alloc(DType::kU8, {64});
  workspace.flip();
  workspace.alloc(DType::kU8, {128});
}

TEST(Workspace, ADryRunMeasuresExactly) {
  Workspace measured;
  EXPECT_TRUE(measured.counting());
  step(measured);
  EXPECT_EQ(measured.bytes(), 128u + 64u + 192u);
  step(measured);
  EXPECT_EQ(measured.bytes(), 384u) << "a second step needs no more";
  Workspace workspace(measured, Buffer::host(measured.bytes()));
  EXPECT_FALSE(workspace.counting());
  step(workspace);
  step(workspace);
  EXPECT_EQ(workspace.bytes(), 384u);
}

TEST(Workspace, PartsDoNotOverlapAndFlipKeepsTheOtherHalf) {
  Workspace measured;
  step(measured);
  Workspace workspace(measured, Buffer::host(measured.bytes()));
  const Tensor kept = workspace.alloc_step(DType::kI32, {48}), first = workspace.alloc(DType::kI32, {32});
  for (int i = 0; i < 48; ++i) kept.as<int32_t>()[i] = 1000 + i;
  for (int i = 0; i < 32; ++i) first.as<int32_t>()[i] = i;
  workspace.flip();
  const Tensor second = workspace.alloc(DType::kI32, {16});
  for (int i = 0; i < 16; ++i) second.as<int32_t>()[i] = -1;
  for (int i = 0; i < 32; ++i) EXPECT_EQ(first.as<int32_t>()[i], i);
  for (int i = 0; i < 48; ++i) EXPECT_EQ(kept.as<int32_t>()[i], 1000 + i);
  for (const Tensor& x : {kept, first, second}) EXPECT_EQ(reinterpret_cast<uintptr_t>(x.data()) % 64, 0u);
}

TEST(WorkspaceDeathTest, AnExhaustedPartAbortsByItsName) {
  Workspace measured;
  step(measured);
  Workspace workspace(measured, Buffer::host(measured.bytes()));
  EXPECT_DEATH(workspace.alloc(DType::kU8, {129}), "workspace half 0 needs 192 bytes, measured 128");
  EXPECT_DEATH(workspace.alloc_step(DType::kU8, {193}), "workspace step part needs 256 bytes, measured 192");
  workspace.flip();
  EXPECT_DEATH(workspace.alloc(DType::kU8, {65}), "workspace half 1 needs 128 bytes, measured 64");
  EXPECT_DEATH(workspace.release(64), "");
  EXPECT_DEATH(Workspace(measured, Buffer::host(64)), "");
}

TEST(Workspace, UndefinedContentIsNaN) {
#if !defined(CALANDRA_HOSTILE)
  GTEST_SKIP() << "skipped: only hostile builds poison for certain";
#endif
  Workspace measured;
  measured.alloc(DType::kF32, {32});
  Workspace workspace(measured, Buffer::host(measured.bytes()));
  const Tensor x = workspace.alloc(DType::kF32, {32});
  const auto poisoned = [&] {
    for (int i = 0; i < 32; ++i)
      if (!std::isnan(x.as<float>()[i])) return false;
    return true;
  };
  const auto clean = [&] { std::fill_n(x.as<float>(), 32, 1.0f); };
  EXPECT_TRUE(poisoned()) << "allocated";
  clean(), workspace.release(0);
  EXPECT_TRUE(poisoned()) << "released";
  workspace.alloc(DType::kF32, {32}), clean(), workspace.reset();
  EXPECT_TRUE(poisoned()) << "a new step";
}

}  // namespace
}  // namespace calandra
