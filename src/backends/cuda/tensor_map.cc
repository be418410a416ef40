#include "backends/cuda/tensor_map.h"

#include <cudaTypedefs.h>

#include "backends/cuda/driver_function.h"
#include "base/check.h"

namespace calandra::cuda {

CUtensorMap encode(const MatrixMap& m) {
  static const auto encode_tiled = driver_function<PFN_cuTensorMapEncodeTiled_v12000>("cuTensorMapEncodeTiled", 12000);
  const cuuint64_t sizes[] = {static_cast<cuuint64_t>(m.columns), static_cast<cuuint64_t>(m.N),
                              static_cast<cuuint64_t>(m.matrices)};
  const cuuint64_t strides[] = {static_cast<cuuint64_t>(m.row_bytes), static_cast<cuuint64_t>(m.matrix_bytes)};
  const cuuint32_t box[] = {static_cast<cuuint32_t>(m.box_columns), static_cast<cuuint32_t>(m.box_rows), 1},
                   steps[] = {1, 1, 1};
  CUtensorMap map;
  const CUresult result = encode_tiled(&map, m.type, m.matrices > 0 ? 3 : 2, const_cast<void*>(m.data), sizes, strides,
                                       box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, m.swizzle,
                                       CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  CHECK_EQ(static_cast<int>(result), 0);
  return map;
}

}  // namespace calandra::cuda
