#include "weights/weight_reader.h"

#include <algorithm>

#include "weights/weight_note.h"
#include "weights/weight_store.h"

namespace calandra {

std::string WeightReader::full_name(std::string_view name) const {
  return prefix_.empty() ? std::string(name) : prefix_ + "." + std::string(name);
}

WeightReader WeightReader::child(std::string_view name) const { return WeightReader(*store_, full_name(name)); }

bool WeightReader::has(std::string_view name, bool when_random) const {
  return store_->has(full_name(name), when_random);
}

WeightNote WeightReader::note(std::string_view name, const std::vector<Axis>& axes, RowBlocks rows) const {
  WeightNote note;
  note.name = full_name(name);
  for (const Axis& axis : axes) {
    note.axes.emplace_back(axis.name);
    note.shape.push_back(axis.size);
  }
  if (axes.size() < 2) return note;
  const int64_t N = note.stored_N();
  if (rows.rows == 0) rows = {0, N, N};
  CHECK_EQ(N % rows.step, 0);
  CHECK_LE(rows.first + rows.rows, rows.step);
  note.rows = rows;
  return note;
}

void WeightReader::linear(PackedWeight& destination, std::string_view name, const MatrixShape& shape,
                          RowBlocks rows) const {
  WeightNote matrix = note(name, {shape.N, shape.K}, rows);
  matrix.matrix = &destination;
  destination.N = matrix.N();  // known before the values: a dry run needs the shapes
  destination.K = matrix.K();
  store_->notes_.push_back(std::move(matrix));
}

void WeightReader::rounded_rows(PackedWeight& destination, std::string_view name, const MatrixShape& shape,
                                std::vector<int32_t> kept) const {
  CHECK(!kept.empty() && kept.front() >= 0 && kept.back() < shape.N.size);
  CHECK(std::is_sorted(kept.begin(), kept.end()));
  WeightNote matrix = note(name, {shape.N, shape.K});
  matrix.kept = std::move(kept);
  matrix.matrix = &destination;
  destination.N = matrix.N();
  destination.K = matrix.K();
  store_->notes_.push_back(std::move(matrix));
}

void WeightReader::flattened(PackedWeight& destination, std::string_view name, const std::vector<Axis>& axes) const {
  WeightNote matrix = note(name, axes);
  matrix.flattened = true;
  matrix.rows = {0, matrix.stored_N(), matrix.stored_N()};
  matrix.matrix = &destination;
  destination.N = matrix.N();
  destination.K = matrix.K();
  store_->notes_.push_back(std::move(matrix));
}

void WeightReader::experts(GroupedWeight& destination, std::string_view pattern, int64_t E,
                           const MatrixShape& shape) const {
  constexpr std::string_view kNumber = "{e}";
  const size_t at = pattern.find(kNumber);
  CHECK_NE(at, std::string_view::npos);
  for (int64_t e = 0; e < E; ++e) {
    std::string name(pattern);
    WeightNote matrix = note(name.replace(at, kNumber.size(), std::to_string(e)), {shape.N, shape.K});
    matrix.group = &destination;
    matrix.expert = e;
    store_->notes_.push_back(std::move(matrix));
  }
  destination.E = E;
  destination.N = shape.N.size;
  destination.K = shape.K.size;
}

void WeightReader::fused_experts(GroupedWeight& destination, std::string_view name, const Axis& E,
                                 const MatrixShape& shape, RowBlocks rows) const {
  WeightNote matrix = note(name, {E, shape.N, shape.K}, rows);
  matrix.group = &destination;
  destination.E = E.size;
  destination.N = matrix.N();
  destination.K = matrix.K();
  for (int64_t e = 0; e < E.size; ++e) {
    matrix.element = matrix.expert = e;
    store_->notes_.push_back(matrix);
  }
}

void WeightReader::rearranged(GroupedWeight& destination, std::string_view name, const MatrixShape& stored, int64_t E,
                              int64_t N, int64_t K, MoveNumbers move) const {
  WeightNote matrix = note(name, {stored.N, stored.K});
  matrix.group = &destination;
  matrix.move = std::move(move);
  destination.E = E;
  destination.N = N;
  destination.K = K;
  store_->notes_.push_back(std::move(matrix));
}

void WeightReader::vector(Tensor& destination, std::string_view name, const Axis& axis) const {
  tensor(destination, name, {axis}, {axis.size});
}

void WeightReader::tensor(Tensor& destination, std::string_view name, const std::vector<Axis>& axes, Shape view) const {
  WeightNote small = note(name, axes);
  small.small = &destination;
  small.view = view;
  int64_t numel = 1;
  for (const Axis& axis : axes) numel *= axis.size;
  CHECK_EQ(numel, view.numel());
  destination = Tensor(nullptr, DType::kF32, view);
  store_->notes_.push_back(std::move(small));
}

void WeightReader::computed(Tensor& destination, std::span<const float> values) const {
  store_->computed_.push_back(store_->backend_.allocate(values.size_bytes()));
  destination = store_->computed_.back().tensor(DType::kF32, {static_cast<int64_t>(values.size())});
  store_->backend_.copy_bytes(destination.data(), values.data(), values.size_bytes());
}

}  // namespace calandra
