#include "layers/rotary_embedding.h"

#include <gtest/gtest.h>

#include <cmath>

#include "backends/reference/reference.h"

namespace calandra {
namespace {

// Interleaved M-RoPE of the releases, [11, 11, 10]: H turns 1, 4, …, 31; W turns 2, 5, …, 29; T the rest.
TEST(RotaryEmbedding, AxesOfTheReleases) {
  ReferenceBackend backend;
  RopeParameters p;
  p.rope_theta = 1e7;
  p.rotary_dim = 64;
  p.mrope_section = {11, 11, 10};
  const RotaryEmbedding rotary(p, backend);
  Workspace measured;
  OneRank one;
  ExecContext dry{backend, measured, one};
  dry.dry_run = true;
  int32_t positions[3] = {5, 7, 11};  // [3, 1]
  const Tensor at(positions, DType::kI32, {3, 1});
  rotary.table(dry, at, DType::kF32);
  Workspace workspace(measured, Buffer::host(measured.bytes()));
  ExecContext ctx{backend, workspace, one};
  const Tensor table = rotary.table(ctx, at, DType::kF32);
  int height = 0, width = 0;
  for (int i = 0; i < 32; ++i) {
    const int axis = i % 3 == 1 && i < 33 ? 1 : i % 3 == 2 && i < 30 ? 2 : 0;
    height += axis == 1;
    width += axis == 2;
    const double angle = positions[axis] * std::pow(1e7, -2.0 * i / 64);
    EXPECT_EQ(table.as<float>()[i], static_cast<float>(std::cos(angle))) << i;
    EXPECT_EQ(table.as<float>()[32 + i], static_cast<float>(std::sin(angle))) << i;
  }
  EXPECT_EQ(height, 11);
  EXPECT_EQ(width, 10);
}

TEST(RotaryEmbedding, YarnKeepsFastAndStretchesSlowFrequencies) {
  ReferenceBackend backend;
  RopeParameters p;
  p.rope_type = RopeParameters::Type::kYarn;
  p.rope_theta = 1e7;
  p.rotary_dim = 64;
  p.factor = 4;
  p.original_max_position_embeddings = 262144;
  const RotaryEmbedding rotary(p, backend);
  EXPECT_NEAR(rotary.scale(), 0.1 * std::log(4.0) + 1, 1e-12);
  EXPECT_DOUBLE_EQ(rotary.inv_freq().front(), 1.0);
  EXPECT_DOUBLE_EQ(rotary.inv_freq().back(), std::pow(1e7, -62.0 / 64) / 4);
}

}  // namespace
}  // namespace calandra
