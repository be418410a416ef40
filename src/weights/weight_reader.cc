#include "weights/weight_reader.h"

#include "weights/weight_store.h"

namespace calandra {

std::string WeightReader::full_name(std::string_view name) const {
  return prefix_.empty() ? std::string(name) : prefix_ + "." + std::string(name);
}

WeightReader WeightReader::child(std::string_view name) const { return WeightReader(*store_, full_name(name)); }

void WeightReader::linear(PackedWeight& destination, std::string_view name, const MatrixShape& shape,
                          RowBlocks rows) const {
  WeightStore::Note note;
  note.matrix = &destination;
  note.name = full_name(name);
  note.axes = {std::string(shape.N.name), std::string(shape.K.name)};
  note.shape = {shape.N.size, shape.K.size};
  if (rows.rows == 0) rows = {0, shape.N.size, shape.N.size};
  CHECK_EQ(shape.N.size % rows.step, 0);
  CHECK_LE(rows.first + rows.rows, rows.step);
  note.rows = rows;
  destination.N = shape.N.size / rows.step * rows.rows;  // known before the values: a dry run needs the shapes
  destination.K = shape.K.size;
  store_->notes_.push_back(std::move(note));
}

void WeightReader::vector(Tensor& destination, std::string_view name, const Axis& axis) const {
  tensor(destination, name, {axis}, {axis.size});
}

void WeightReader::tensor(Tensor& destination, std::string_view name, const std::vector<Axis>& axes, Shape view) const {
  WeightStore::Note note;
  note.small = &destination;
  note.name = full_name(name);
  int64_t numel = 1;
  for (const Axis& axis : axes) {
    note.axes.emplace_back(axis.name);
    note.shape.push_back(axis.size);
    numel *= axis.size;
  }
  CHECK_EQ(numel, view.numel());
  note.view = view;
  destination = Tensor(nullptr, DType::kF32, view);
  store_->notes_.push_back(std::move(note));
}

}  // namespace calandra
