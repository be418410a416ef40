// The workspace: a dry run measures exactly, too small a part aborts by its name, and undefined content is NaN where
// bugs should show.
#include "ops/workspace.h"

#include <gtest/gtest.h>

#include <algorithm>
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

// As RecordedSteps do for a step whose allocations were made by an earlier one.
TEST(Workspace, GoesToAPlaceOfAnEarlierStep) {
  if (CALANDRA_STAMPS) GTEST_SKIP() << "skipped: builds with stamps have no recordings";
  Workspace measured;
  const auto rest = [](Workspace& workspace) {
    std::vector<void*> at;
    for (int i = 0; i < 2; ++i, workspace.flip())
      at.push_back(workspace.alloc(DType::kU8, {64}).data()),
          at.push_back(workspace.alloc_step(DType::kU8, {8}).data());
    return at;
  };
  step(measured);
  rest(measured);
  Workspace workspace(measured, Buffer::host(measured.bytes()));
  step(workspace);
  const Workspace::Place place = workspace.place();
  const std::vector<void*> want = rest(workspace);
  workspace.reset();
  EXPECT_NE(rest(workspace), want);
  workspace.reset();
  workspace.go_to(place);
  EXPECT_EQ(rest(workspace), want);
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

TEST(WorkspaceDeathTest, ATensorUsedTooLateAborts) {
  if (!CALANDRA_STAMPS) GTEST_SKIP() << "skipped: builds for speed do not stamp tensors";
  Workspace measured;
  step(measured);
  Workspace workspace(measured, Buffer::host(measured.bytes()));
  const Tensor kept = workspace.alloc_step(DType::kI32, {2, 4}), below = workspace.alloc(DType::kF32, {4});
  const size_t mark = workspace.mark();
  const Tensor above = workspace.alloc(DType::kF32, {4});
  above.as<float>()[0] = 1;
  workspace.release(mark);
  EXPECT_DEATH(above.as<float>(), "tensor lives.*\\[4\\], allocation 2 of workspace half 0, is used after its memory");
  const Tensor again = workspace.alloc(DType::kF32, {4});  // in the same place
  again.as<float>()[0] = below.as<float>()[0] = 2;
  EXPECT_DEATH(above.data(), "tensor lives");
  workspace.flip();
  below.as<float>()[0] = again.as<float>()[1] = 3;  // the other half is untouched
  workspace.flip();
  EXPECT_DEATH(below.view({2, 2})[1].bytes_at(0), "tensor lives");
  EXPECT_DEATH(again.slice(0, 1, 3), "tensor lives");
  EXPECT_EQ(below.size(0), 4) << "its shape is not memory";
  const Tensor view = kept.view({8}), row = kept[1];
  view.as<int32_t>()[7] = row.as<int32_t>()[0] = 4;
  workspace.reset();
  workspace.alloc_step(DType::kI32, {2, 4});
  EXPECT_DEATH(kept.as<int32_t>(), "workspace step part");
  EXPECT_DEATH(view.as<int32_t>(), "workspace step part");
  EXPECT_DEATH(row.as<int32_t>(), "workspace step part");
}

TEST(Workspace, UndefinedContentIsNaN) {
  if (!CALANDRA_STAMPS) GTEST_SKIP() << "skipped: builds for speed do not poison";
  Workspace measured;
  measured.alloc(DType::kF32, {32});
  Workspace workspace(measured, Buffer::host(measured.bytes()));
  float* x = workspace.alloc(DType::kF32, {32}).as<float>();
  const auto poisoned = [&] { return std::all_of(x, x + 32, [](float value) { return std::isnan(value); }); };
  const auto clean = [&] { std::fill_n(x, 32, 1.0f); };
  EXPECT_TRUE(poisoned()) << "allocated";
  clean(), workspace.release(0);
  EXPECT_TRUE(poisoned()) << "released";
  workspace.alloc(DType::kF32, {32}), clean(), workspace.reset();
  EXPECT_TRUE(poisoned()) << "a new step";
}

}  // namespace
}  // namespace calandra
