// WeightReader: a position in a checkpoint. A model's constructors note what they need; WeightStore::load then reads,
// converts and packs everything in parallel, and fills the destinations in.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "ops/weight.h"

namespace calandra {

class WeightStore;

// A named size, for errors: {"vocab_size", 248320}.
struct Axis {
  std::string_view name;
  int64_t size;
};
struct MatrixShape {
  Axis N, K;
};

// Which rows of a stored matrix belong to a weight: of every `step` rows, `rows` from `first` on. Default: all rows.
struct RowBlocks {
  int64_t first = 0;
  int64_t rows = 0;  // 0: all rows
  int64_t step = 0;
};

// Tensors that a checkpoint may hold although nothing reads them.
struct UnusedTensors {
  std::string pattern;     // "mtp.*"; * stands for anything
  std::string reason;      // "multi-token prediction: not used yet"
  int64_t from_layer = 0;  // > 0: only where * begins with a number of at least this ("layers.*" beyond the last layer)
};

class WeightReader {
 public:
  // The position `prefix` ("model.layers.3", without a dot at the end; empty: the top) of the store's checkpoint.
  WeightReader(WeightStore& store, std::string prefix) : store_(&store), prefix_(std::move(prefix)) {}
  WeightReader child(std::string_view name) const;

  // What follows notes a tensor below this position, stored as F32, BF16 or F16, with exactly the shape that is named.
  // Destinations must stay where they are until WeightStore::load has returned.

  // A matrix [N, K], packed for the backend. `shape` is that of the stored tensor; `rows` selects of it.
  void linear(PackedWeight& destination, std::string_view name, const MatrixShape& shape, RowBlocks rows = {}) const;
  // A small tensor, converted to f32: a vector, or a tensor viewed as `view` (same number of elements).
  void vector(Tensor& destination, std::string_view name, const Axis& axis) const;
  void tensor(Tensor& destination, std::string_view name, const std::vector<Axis>& axes, Shape view) const;

 private:
  std::string full_name(std::string_view name) const;

  WeightStore* store_;
  std::string prefix_;
};

}  // namespace calandra
