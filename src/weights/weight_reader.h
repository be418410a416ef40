// WeightReader: a position in a checkpoint. A model's constructors note what they need; WeightStore::load then reads,
// converts and packs everything in parallel, and fills the destinations in.
#pragma once

#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "ops/weight.h"

namespace calandra {

class WeightStore;
struct WeightNote;

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

// Values that share a scale in FP8 matrices: quantization_config.weight_block_size.
struct Fp8Blocks {
  int64_t N = 128, K = 128;
};

// Puts numbers of a stored matrix into matrix `e` of a group, both dense and row-major. Numbers may only be moved: the
// group is packed in the stored format.
using MoveNumbers = std::function<void(const float* stored, int64_t e, float* out)>;

// Tensors that a checkpoint may hold although nothing reads them.
struct UnusedTensors {
  std::string pattern;     // "mtp.*"; * stands for anything
  std::string reason;      // "multi-token prediction: not used yet"
  int64_t from_layer = 0;  // > 0: only where * begins with a number of at least this ("layers.*" beyond the last layer)
  bool asked = false;      // a part that the caller left out: nothing to warn about
};

class WeightReader {
 public:
  // The position `prefix` ("model.layers.3", without a dot at the end; empty: the top) of the store's checkpoint.
  WeightReader(WeightStore& store, std::string prefix) : store_(&store), prefix_(std::move(prefix)) {}
  WeightReader child(std::string_view name) const;

  // Whether the checkpoint holds a tensor, for those that it may lack; `when_random` is the answer for random weights.
  bool has(std::string_view name, bool when_random = false) const;

  // What follows notes a tensor below this position, with exactly the shape that is named. Destinations must stay where
  // they are until WeightStore::load has returned.
  //
  // A matrix may be stored as F32, BF16, F16, or F8_E4M3 with scales beside it: NAME_scale_inv, one number (F32, BF16,
  // F16) for each block of the size that the config names. It is packed in its stored format, whatever the config says
  // of it.

  // A matrix [N, K], packed for the backend. `shape` is that of the stored tensor; `rows` selects of it.
  void linear(PackedWeight& destination, std::string_view name, const MatrixShape& shape, RowBlocks rows = {}) const;
  // The rows `kept` of a matrix, ascending, rounded to F8_E4M3 with a scale for each row and 128 inputs: for what may
  // be approximate.
  void rounded_rows(PackedWeight& destination, std::string_view name, const MatrixShape& shape,
                    std::vector<int32_t> kept) const;
  // A tensor [N, ..] as the matrix of N rows: the kernel of a convolution whose stride is its size.
  void flattened(PackedWeight& destination, std::string_view name, const std::vector<Axis>& axes) const;
  // E matrices stored one by one; {e} in `pattern` stands for the number ("experts.{e}.up_proj.weight"). If they are
  // stored in several formats, all are widened to f32.
  void experts(GroupedWeight& destination, std::string_view pattern, int64_t E, const MatrixShape& shape) const;
  // E matrices stored as one tensor [E, N, K]; `rows` selects of each.
  void fused_experts(GroupedWeight& destination, std::string_view name, const Axis& E, const MatrixShape& shape,
                     RowBlocks rows = {}) const;
  // E matrices [N, K] made of one stored matrix; what was F8_E4M3 becomes f32.
  void rearranged(GroupedWeight& destination, std::string_view name, const MatrixShape& stored, int64_t E, int64_t N,
                  int64_t K, MoveNumbers move) const;

  // A small tensor of F32, BF16 or F16, converted to f32: a vector, or a tensor viewed as `view` (same number of
  // elements).
  void vector(Tensor& destination, std::string_view name, const Axis& axis) const;
  void tensor(Tensor& destination, std::string_view name, const std::vector<Axis>& axes, Shape view) const;
  // A vector that no file holds since it follows from the config. It is there at once.
  void computed(Tensor& destination, std::span<const float> values) const;

 private:
  std::string full_name(std::string_view name) const;
  WeightNote note(std::string_view name, const std::vector<Axis>& axes, RowBlocks rows = {}) const;

  WeightStore* store_;
  std::string prefix_;
};

}  // namespace calandra
