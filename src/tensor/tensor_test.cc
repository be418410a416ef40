#include "tensor/tensor.h"

#include <gtest/gtest.h>

#include <vector>

#include "tensor/buffer.h"

namespace calandra {
namespace {

TEST(Tensor, ViewsAndSlicesShareMemory) {
  std::vector<float> values(24);
  for (int i = 0; i < 24; ++i) values[i] = static_cast<float>(i);
  const Tensor t(values.data(), DType::kF32, {4, 6});
  const Tensor right = t.slice(1, 2, 6);  // [4, 4], row stride 6
  EXPECT_FALSE(right.is_dense());
  EXPECT_EQ(right.as<float>()[right.stride(0)], 8);
  const Tensor heads = right.view({4, 2, -1});
  EXPECT_EQ(heads.size(2), 2);
  EXPECT_EQ(heads[1][1].as<float>()[0], 10);
  EXPECT_EQ(t.view({-1}).size(0), 24);
}

TEST(StampLedger, AnAllocationLivesUntilItsMemoryIsGivenBack) {
  StampLedger ledger("a stack");
  const uint64_t bottom = ledger.next(), middle = ledger.next(), top = ledger.next();  // at 0, 64, 128
  const auto lives = [&](size_t offset, uint64_t number) { return ledger.lives(offset, number); };
  EXPECT_TRUE(lives(0, bottom) && lives(64, middle) && lives(128, top));
  ledger.end_from(128);
  EXPECT_TRUE(lives(0, bottom) && lives(64, middle));
  EXPECT_FALSE(lives(128, top));
  const uint64_t next = ledger.next();  // at 128
  EXPECT_TRUE(lives(128, next));
  EXPECT_FALSE(lives(128, top)) << "its successor does not revive it";
  ledger.end_from(64);
  EXPECT_TRUE(lives(0, bottom));
  EXPECT_FALSE(lives(64, middle) || lives(128, next));
  const uint64_t wide = ledger.next(), higher = ledger.next();  // at 64, 256
  ledger.end_from(256);
  EXPECT_TRUE(lives(64, wide) && lives(0, bottom));
  EXPECT_FALSE(lives(256, higher) || lives(128, next) || lives(64, middle));
  ledger.end_from(0);
  EXPECT_FALSE(lives(0, bottom) || lives(64, wide));
  EXPECT_TRUE(lives(0, ledger.next()));
}

TEST(Tensor, EmptyAndAbsent) {
  EXPECT_FALSE(Tensor());
  EXPECT_EQ(Tensor().numel(), 0);
  EXPECT_TRUE(Tensor(nullptr, DType::kF32, {0, 3}).empty());
}

TEST(TensorDeathTest, WrongTypeAndViewAbort) {
  float x[6] = {};
  const Tensor t(x, DType::kF32, {2, 3});
  EXPECT_DEATH(t.as<int32_t>(), "float32");
  EXPECT_DEATH(t.view({4, 2}), "viewed as");
  EXPECT_DEATH(t.slice(1, 0, 2).view({-1}), "strided");
}

TEST(Buffer, HostMemoryIsZeroedAndAligned) {
  const Buffer buffer = Buffer::host(1000);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(buffer.data()) % 64, 0u);
  for (int i = 0; i < 1000; ++i) EXPECT_EQ(static_cast<char*>(buffer.data())[i], 0);
  EXPECT_DEATH(buffer.tensor(DType::kF32, {251}), "");
}

}  // namespace
}  // namespace calandra
