#include "engine/vision_runner.h"

#include "parallel/communicator.h"

namespace calandra {

ImageEmbeds encode_patches(const VisionEncoder& encoder, Backend& backend, std::span<const float> patches,
                           std::span<const PatchGrid> grids, Taps* taps) {
  int64_t P = 0;
  for (const PatchGrid& grid : grids) P += grid.patches();
  CHECK_GT(P, 0);
  CHECK_EQ(static_cast<int64_t>(patches.size()) % P, 0);
  const Shape shape{P, static_cast<int64_t>(patches.size()) / P};

  OneRank communicator;
  Workspace measured;
  ExecContext dry{backend, measured, communicator};
  dry.dry_run = true;
  dry.taps = taps;
  encoder.forward(dry, Tensor(nullptr, DType::kF32, shape, backend.device()), grids);

  Workspace workspace(measured, backend.allocate(measured.bytes()));
  ExecContext ctx{backend, workspace, communicator};
  ctx.taps = taps;
  Buffer input = backend.allocate(patches.size_bytes());
  backend.copy_bytes(input.data(), patches.data(), patches.size_bytes());
  const Tensor rows = encoder.forward(ctx, input.tensor(DType::kF32, shape), grids);
  ImageEmbeds embeds{backend.allocate(rows.bytes()), {}};
  backend.copy_bytes(embeds.memory.data(), rows.data(), rows.bytes());
  embeds.rows = embeds.memory.tensor(rows.dtype(), rows.shape());
  return embeds;
}

}  // namespace calandra
