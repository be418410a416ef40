// Packed weights of the cpu backend as the panels that the kernels take (layout: dense_kernels.h).
#pragma once

#include "backends/cpu/dense_kernels.h"
#include "ops/weight.h"

namespace calandra {

inline int64_t panels_of(int64_t N) { return (N + kPanel - 1) / kPanel; }
inline int64_t blocks_of(int64_t K) { return (K + kBlockK - 1) / kBlockK; }

// Floats of a widened block and of the sums of a row block: scratch of PanelProduct.
constexpr int64_t kWide = int64_t{kBlockK} * kPanel;
constexpr int64_t kSums = int64_t{kRowBlock} * kPanel;

size_t panel_bytes(DType dtype, int64_t K, int64_t block_k);

// The product with a panel of `weight`; x, rows, wide and sums are to be filled in.
PanelProduct panel_product(const PackedWeight& weight, int64_t panel);

}  // namespace calandra
