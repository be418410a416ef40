// Descriptions of matrices for copies of tiles to shared memory (device/wgmma.cuh).
#pragma once

#include <cuda.h>

#include <cstdint>

namespace calandra::cuda {

// Of [matrices, N, columns] numbers; 0 matrices: [N, columns]. Tiles have `box_rows` rows of `box_columns` numbers and
// zeros outside. Addresses and strides are multiples of 16 bytes.
struct MatrixMap {
  const void* data;
  CUtensorMapDataType type;
  int64_t columns, N, row_bytes;
  int box_columns, box_rows;
  CUtensorMapSwizzle swizzle = CU_TENSOR_MAP_SWIZZLE_128B;
  int64_t matrices = 0, matrix_bytes = 0;
};
CUtensorMap encode(const MatrixMap& matrix);

}  // namespace calandra::cuda
