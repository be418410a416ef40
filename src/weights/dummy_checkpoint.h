// Checkpoints of random weights in the shapes of real ones, for benches of loading and for tests of it.
#pragma once

#include <filesystem>
#include <functional>
#include <span>

#include "weights/weight_store.h"

namespace calandra {

// Writes model.safetensors, or shards of at most `shard_bytes` with their index, into a folder that exists, on
// `threads` threads. What is written depends on the tensors alone, and equals the random weights of a WeightStore
// without a checkpoint. Throws LoadError: a file cannot be written.
void write_dummy_checkpoint(const std::filesystem::path& folder, std::span<const WeightStore::StoredTensor> tensors,
                            int64_t shard_bytes, int threads, const WeightStore::Progress& progress = {});

}  // namespace calandra
