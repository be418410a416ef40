// WeightNote: one stored tensor, or one matrix of it, and where it is to go. Between WeightReader and WeightStore.
#pragma once

#include <string>
#include <vector>

#include "weights/weight_files.h"
#include "weights/weight_reader.h"

namespace calandra {

// Of the name of an F8_E4M3 matrix's scales, behind the matrix's.
inline const std::string kScaleSuffix = "_scale_inv";

struct WeightNote {
  std::string name;
  std::vector<std::string> axes;  // names of the axes of the stored tensor, for errors
  std::vector<int64_t> shape;     // of the stored tensor: [.., N, K] for a matrix
  bool flattened = false;         // a matrix whose stored tensor is [N, ..]; the later axes are one
  int64_t element = 0;            // of a stored [E, N, K]: which matrix
  RowBlocks rows;                 // of a matrix: which rows
  std::vector<int32_t> kept;      // of a matrix: these alone, ascending, rounded to 8 bits; empty: all as they are

  // The destination is one of these.
  Tensor* small = nullptr;  // f32, of shape `view`
  Shape view;
  PackedWeight* matrix = nullptr;
  GroupedWeight* group = nullptr;  // its matrix `expert`, or, with `move`, all of it
  int64_t expert = 0;
  MoveNumbers move;

  // Where the checkpoint has it, and the scales of an F8_E4M3 matrix; none for dummy weights.
  WeightFiles::Place place{};
  WeightFiles::Place scales{};

  bool is_matrix() const { return small == nullptr; }
  int64_t stored_N() const { return flattened ? shape.front() : shape[shape.size() - 2]; }
  int64_t K() const {
    if (!flattened) return shape.back();
    int64_t product = 1;
    for (size_t axis = 1; axis < shape.size(); ++axis) product *= shape[axis];
    return product;
  }
  int64_t N() const { return kept.empty() ? stored_N() / rows.step * rows.rows : std::ssize(kept); }
  Shape wanted() const { return is_matrix() ? Shape{N(), K()} : view; }  // what it takes of the stored tensor
};

}  // namespace calandra
