#include "weights/weight_store.h"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <exception>
#include <numeric>
#include <thread>

#include "base/error.h"
#include "base/log.h"
#include "weights/dummy_weights.h"
#include "weights/list_of_names.h"
#include "weights/stored_values.h"

namespace calandra {
namespace {

constexpr size_t kStagingBytes = size_t{256} << 20, kStagingBytesPerThread = size_t{64} << 20;
// Read, looked through and packed while a core's caches hold it, and far above what starting a copy costs.
constexpr int64_t kPieceBytes = int64_t{4} << 20;
constexpr int64_t kPieceRows = 128;  // or a multiple of it (Backend::pack_weight)

size_t aligned(size_t bytes) { return (bytes + kWeightAlignment - 1) / kWeightAlignment * kWeightAlignment; }
int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The stored row that is row `row` of the note's matrix.
int64_t stored_row(const WeightNote& note, int64_t row) {
  if (!note.kept.empty()) return note.kept[row];
  return row / note.rows.rows * note.rows.step + note.rows.first + row % note.rows.rows;
}

// Calls visit(first stored row, rows, row of the piece) for every run of stored rows that rows [first, first + rows) of
// a note's matrix are.
template <class Visit>
void for_each_run(const WeightNote& note, int64_t first, int64_t rows, const Visit& visit) {
  for (int64_t row = 0, next; row < rows; row = next) {
    const int64_t stored = stored_row(note, first + row);
    for (next = row + 1; next < rows && stored_row(note, first + next) == stored + next - row;) ++next;
    visit(stored, next - row, row);
  }
}

// A dense matrix rounded to 8 bits, with a scale for each row and so many inputs.
constexpr int64_t kRoundedBlock = 128;
StoredMatrix rounded_form(int64_t N, int64_t K, void* values, void* scales) {
  return {.values = Tensor(values, DType::kF8E4M3, {N, K}),
          .scales = Tensor(scales, DType::kF32, {N, ceil_div(K, kRoundedBlock)}),
          .block_n = 1,
          .block_k = kRoundedBlock};
}

}  // namespace

DType WeightStore::stored_type(const WeightNote& note) const {
  if (checkpoint_ == nullptr) {
    if (!note.is_matrix()) return DType::kF32;
    return fp8_ && released_in_fp8(note.name) ? DType::kF8E4M3 : DType::kBF16;
  }
  const auto* entry = note.place.entry != nullptr ? note.place.entry : checkpoint_->find(note.name).entry;
  return entry == nullptr ? DType::kBF16 : dtype_of_safetensors(entry->dtype).value_or(DType::kBF16);
}

// A dense matrix in this format; without memory when `values` is null.
StoredMatrix WeightStore::form(DType dtype, int64_t N, int64_t K, void* values) const {
  StoredMatrix matrix{.values = Tensor(values, dtype, {N, K})};
  if (dtype != DType::kF8E4M3) return matrix;
  matrix.scales = Tensor(nullptr, DType::kF32, {ceil_div(N, blocks_.N), ceil_div(K, blocks_.K)});
  matrix.block_n = blocks_.N;
  matrix.block_k = blocks_.K;
  return matrix;
}

// One for each note, in their order, and the bytes of all together.
std::vector<WeightStore::Target> WeightStore::targets(size_t& bytes) const {
  std::map<const GroupedWeight*, Target> groups;
  for (const WeightNote& note : notes_) {
    if (note.group == nullptr) continue;
    DType dtype = stored_type(note);
    if (note.move && dtype == DType::kF8E4M3) dtype = DType::kF32;  // the blocks of its scales do not move along
    Target& group = groups.try_emplace(note.group, Target{dtype}).first->second;
    if (group.dtype != dtype) group.dtype = DType::kF32;
  }
  bytes = 0;
  const auto take = [&](size_t size) {
    constexpr size_t kMost = size_t{1} << 62;
    if (size >= kMost || aligned(size) > kMost - bytes)
      throw LoadError("the weights of this config take more than 2^62 bytes: its sizes are broken");
    return std::exchange(bytes, bytes + aligned(size));
  };
  std::vector<Target> all;
  for (const WeightNote& note : notes_) {
    if (note.small != nullptr) {
      const size_t size = note.view.numel() * sizeof(float);
      all.push_back({DType::kF32, take(size), size});
    } else if (!note.kept.empty()) {
      const size_t size = backend_.packed_bytes(rounded_form(note.N(), note.K(), nullptr, nullptr));
      all.push_back({DType::kF8E4M3, take(size), size});
    } else if (note.matrix != nullptr) {
      const DType dtype = stored_type(note);
      const size_t size = backend_.packed_bytes(form(dtype, note.N(), note.K(), nullptr));
      all.push_back({dtype, take(size), size});
    } else {
      Target& group = groups.at(note.group);
      if (group.stride == 0) {
        group.stride = aligned(backend_.packed_bytes(form(group.dtype, note.group->N, note.group->K, nullptr)));
        group.offset = take(group.stride * note.group->E);
      }
      all.push_back(group);
    }
  }
  return all;
}

// Gives the destinations their memory. A matrix's bias belongs to another note.
void WeightStore::place(const std::vector<Target>& targets) {
  for (size_t i = 0; i < notes_.size(); ++i) {
    const WeightNote& note = notes_[i];
    const Target& target = targets[i];
    if (note.small != nullptr) *note.small = memory_.tensor(DType::kF32, note.view, target.offset);
    if (note.matrix != nullptr) {
      note.matrix->dtype = target.dtype;
      note.matrix->packed = memory_.tensor(DType::kU8, {static_cast<int64_t>(target.bytes)}, target.offset);
      note.matrix->block_k = target.dtype != DType::kF8E4M3 ? 0 : note.kept.empty() ? blocks_.K : kRoundedBlock;
    }
    if (note.group != nullptr) {
      note.group->dtype = target.dtype;
      note.group->block_k = target.dtype == DType::kF8E4M3 ? blocks_.K : 0;
      note.group->packed =
          memory_.tensor(DType::kU8, {note.group->E, static_cast<int64_t>(target.stride)}, target.offset);
    }
  }
}

void WeightStore::remember_not_finite(const std::string& name) {
  const std::lock_guard lock(mutex_);
  not_finite_.insert(name);
}

// The values that the piece takes, its rows one after another.
void WeightStore::read(const Piece& piece, const Tensor& to) {
  const WeightNote& note = notes_[piece.note];
  if (!note.is_matrix()) {
    if (checkpoint_ == nullptr) return fill_dummy(note.name, 0, to);
    note.place.file->read(*note.place.entry, 0, note.place.entry->bytes, to.data());
  } else {
    const int64_t row_bytes = note.K() * static_cast<int64_t>(size_of(to.dtype()));
    for_each_run(note, piece.first, piece.rows, [&](int64_t first, int64_t count, int64_t at) {
      const int64_t row = note.element * note.stored_N() + first;
      if (checkpoint_ == nullptr)
        fill_dummy(note.name, row, to.slice(0, at, at + count));
      else
        note.place.file->read(*note.place.entry, row * row_bytes, count * row_bytes,
                              static_cast<std::byte*>(to.data()) + at * row_bytes);
    });
    if (checkpoint_ == nullptr) return;
  }
  if (has_nan_or_infinity(to)) remember_not_finite(note.name);
}

// The scales of the rows that the note takes: of all, in blocks as stored; of some, one row of scales for each.
std::vector<float> WeightStore::read_scales(const WeightNote& note) {
  const int64_t rows = ceil_div(note.stored_N(), blocks_.N), columns = ceil_div(note.K(), blocks_.K);
  std::vector<float> scales(static_cast<size_t>(rows * columns), dummy_scale(note.K()));
  if (checkpoint_ != nullptr) {
    const SafetensorsFile::Entry& entry = *note.scales.entry;
    const DType dtype = *dtype_of_safetensors(entry.dtype);
    std::vector<std::byte> stored(scales.size() * size_of(dtype));
    const auto bytes = static_cast<int64_t>(stored.size());
    note.scales.file->read(entry, note.element * bytes, bytes, stored.data());
    const Tensor values(stored.data(), dtype, {rows, columns});
    if (has_nan_or_infinity(values)) remember_not_finite(entry.name);
    scales = to_f32(values);
  }
  if (note.rows.rows == note.rows.step) return scales;
  std::vector<float> selected;
  for (int64_t first = note.rows.first; first < note.stored_N(); first += note.rows.step)
    for (int64_t row = first; row < first + note.rows.rows; ++row) {
      const auto from = scales.begin() + row / blocks_.N * columns;
      selected.insert(selected.end(), from, from + columns);
    }
  return selected;
}

// The scales of the piece's rows: those of its blocks, or one row of scales for each.
std::vector<float> WeightStore::scales_of(const Piece& piece) {
  const WeightNote& note = notes_[piece.note];
  const std::vector<float> all = read_scales(note);
  const int64_t block = note.rows.rows == note.rows.step ? blocks_.N : 1, columns = ceil_div(note.K(), blocks_.K);
  return {all.begin() + piece.first / block * columns,
          all.begin() + ceil_div(piece.first + piece.rows, block) * columns};
}

void WeightStore::pack_rounded(const Piece& piece, const Target& target, const Tensor& values) {
  const WeightNote& note = notes_[piece.note];
  const int64_t N = piece.rows, K = note.K(), blocks = ceil_div(K, kRoundedBlock);
  std::vector<float> wide = to_f32(values);
  if (values.dtype() == DType::kF8E4M3) {
    const std::vector<float> stored = read_scales(note);
    const int64_t columns = ceil_div(K, blocks_.K);
    for (int64_t n = 0; n < N; ++n)
      for (int64_t k = 0; k < K; ++k)
        wide[n * K + k] *= stored[note.kept[piece.first + n] / blocks_.N * columns + k / blocks_.K];
  }
  std::vector<f8_e4m3> rounded(wide.size());
  std::vector<float> scales(static_cast<size_t>(N * blocks));
  for (int64_t n = 0; n < N; ++n)
    for (int64_t k = 0; k < K; k += kRoundedBlock) {
      const int64_t end = std::min(k + kRoundedBlock, K);
      float largest = 0;
      for (int64_t i = k; i < end; ++i) largest = std::max(largest, std::abs(wide[n * K + i]));
      // Zero, or so small that its scale is: the block is zeros.
      const float scale = largest / 448, factor = scale > 0 ? 1 / scale : 0;
      scales[n * blocks + k / kRoundedBlock] = scale;
      for (int64_t i = k; i < end; ++i) rounded[n * K + i] = f8_e4m3::nearest(wide[n * K + i] * factor);
    }
  const size_t before = backend_.packed_bytes(rounded_form(piece.first, K, nullptr, nullptr));
  backend_.pack_weight(rounded_form(N, K, rounded.data(), scales.data()), at(target.offset + before));
}

void WeightStore::pack_rearranged(const WeightNote& note, const Target& target, const StoredMatrix& stored) {
  const std::vector<float> from = to_f32(stored);
  const int64_t N = note.group->N, K = note.group->K;
  std::vector<float> wide(static_cast<size_t>(N * K));
  std::vector<std::byte> narrow(wide.size() * size_of(target.dtype));
  for (int64_t e = 0; e < note.group->E; ++e) {
    note.move(from.data(), e, wide.data());
    const StoredMatrix matrix = form(target.dtype, N, K, narrow.data());
    from_f32(wide, matrix.values);
    backend_.pack_weight(matrix, at(target.offset + e * target.stride));
  }
}

// In the order of the files.
std::vector<WeightStore::Piece> WeightStore::pieces(const std::vector<Target>& targets) const {
  std::vector<size_t> order(notes_.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = i;
  if (checkpoint_ != nullptr)
    std::stable_sort(order.begin(), order.end(), [&](size_t i, size_t j) {
      const WeightNote &a = notes_[i], &b = notes_[j];
      return std::tuple(a.place.file, a.place.entry->begin, a.element) <
             std::tuple(b.place.file, b.place.entry->begin, b.element);
    });
  // Blocks of scales are not cut.
  const int64_t unit = std::lcm(kPieceRows, blocks_.N);
  std::vector<Piece> all;
  for (const size_t i : order) {
    const WeightNote& note = notes_[i];
    const DType dtype = stored_type(note);
    const bool mixed = note.kept.empty() && targets[i].dtype != dtype;
    if (!note.is_matrix() || note.move || mixed) {
      all.push_back({i, 0, note.is_matrix() ? note.N() : 0});
      continue;
    }
    const int64_t row_bytes = std::max<int64_t>(1, note.K() * static_cast<int64_t>(size_of(dtype)));
    const int64_t rows = std::max<int64_t>(1, kPieceBytes / row_bytes / unit) * unit;
    for (int64_t first = 0; first < note.N(); first += rows)
      all.push_back({i, first, std::min(rows, note.N() - first)});
  }
  return all;
}

// As stored.
int64_t WeightStore::bytes_of(const Piece& piece) const {
  const WeightNote& note = notes_[piece.note];
  const int64_t values = note.is_matrix() ? piece.rows * note.K() : note.view.numel();
  return values * static_cast<int64_t>(size_of(stored_type(note)));
}

void WeightStore::carry_out(const Piece& piece, const Target& target, StagingBudget& staging) {
  const WeightNote& note = notes_[piece.note];
  const DType dtype = stored_type(note);
  // All of one size, so that they are lent again and again.
  const StagingBudget::Loan loan = staging.borrow(std::max(bytes_of(piece), kPieceBytes));
  const Tensor values(loan.data(), dtype, note.is_matrix() ? Shape{piece.rows, note.K()} : note.view);
  read(piece, values);
  if (!note.is_matrix()) {
    const std::vector<float> wide = to_f32(values);
    backend_.copy_bytes(at(target.offset), wide.data(), wide.size() * sizeof(float));
    return;
  }
  if (!note.kept.empty()) return pack_rounded(piece, target, values);
  StoredMatrix matrix = form(dtype, piece.rows, note.K(), loan.data());
  std::vector<float> scales, wide;
  if (dtype == DType::kF8E4M3) {
    scales = scales_of(piece);
    if (note.rows.rows != note.rows.step) matrix.block_n = 1;
    matrix.scales = Tensor(scales.data(), DType::kF32, {ceil_div(matrix.N(), matrix.block_n), matrix.scales.size(1)});
  }
  if (note.move) return pack_rearranged(note, target, matrix);
  if (target.dtype != dtype) {  // of a mixed group
    wide = to_f32(matrix);
    matrix = form(DType::kF32, note.N(), note.K(), wide.data());
  }
  const size_t before = backend_.packed_bytes(form(target.dtype, piece.first, note.K(), nullptr));
  backend_.pack_weight(matrix, at(target.offset + note.expert * target.stride + before));
}

void WeightStore::carry_out_all(const std::vector<Target>& targets, int threads, const Progress& progress) {
  const std::vector<Piece> all = pieces(targets);
  int64_t total = 0;
  for (const Piece& piece : all) total += bytes_of(piece);

  StagingBudget staging(std::max(kStagingBytes, kStagingBytesPerThread * std::max(threads, 1)),
                        [&](size_t bytes) { return backend_.allocate_host(bytes); });
  std::atomic<size_t> next{0};
  std::atomic<int64_t> done{0};
  std::exception_ptr failure;
  const auto work = [&] {
    for (size_t i = next++; i < all.size(); i = next++) {
      try {
        carry_out(all[i], targets[all[i].note], staging);
        done += bytes_of(all[i]);
        if (progress) progress(done, total);
      } catch (...) {
        const std::lock_guard lock(mutex_);
        if (!failure) failure = std::current_exception();
        next = all.size();
        return;
      }
    }
  };
  {
    std::vector<std::jthread> team;  // joined also when a thread cannot be started
    for (int i = 1; i < threads; ++i) team.emplace_back(work);
    work();
  }
  if (failure) std::rethrow_exception(failure);
}

void WeightStore::load(std::span<const UnusedTensors> unused, int threads, const Progress& progress) {
  if (checkpoint_ != nullptr) {
    resolve();
    account_for_the_rest(unused);
  }
  size_t bytes = 0;
  const std::vector<Target> where = targets(bytes);
  if (memory_.bytes() == 0)
    memory_ = backend_.allocate(bytes);
  else
    backend_.take_back(all_memory());
  CHECK_EQ(memory_.bytes(), bytes);
  not_finite_.clear();
  place(where);
  carry_out_all(where, threads, progress);
  if (checkpoint_ == nullptr) return;
  for (const SafetensorsFile& file : checkpoint_->files()) file.check_unchanged();
  if (!not_finite_.empty())
    log_warning("{}: {} tensor{} NaN or infinite values: {}", checkpoint_->folder().string(), not_finite_.size(),
                not_finite_.size() == 1 ? " holds" : "s hold", list_of_names({not_finite_.begin(), not_finite_.end()}));
}

std::vector<WeightStore::StoredTensor> WeightStore::stored_tensors() const {
  std::map<std::string, StoredTensor> all;
  for (const WeightNote& note : notes_) {
    const DType dtype = stored_type(note);
    all[note.name] = {note.name, dtype, note.shape, note.is_matrix() ? note.K() : 0};
    if (dtype != DType::kF8E4M3) continue;
    std::vector<int64_t> shape = note.shape;
    shape[shape.size() - 2] = ceil_div(note.stored_N(), blocks_.N);
    shape.back() = ceil_div(note.K(), blocks_.K);
    all[note.name + kScaleSuffix] = {note.name + kScaleSuffix, DType::kF32, std::move(shape), note.K()};
  }
  std::vector<StoredTensor> tensors;
  for (auto& [name, tensor] : all) tensors.push_back(std::move(tensor));
  return tensors;
}

Tensor WeightStore::all_memory() const { return memory_.tensor(DType::kU8, {static_cast<int64_t>(memory_.bytes())}); }

void WeightStore::give_back() { backend_.give_back(all_memory()); }

WeightStore::Summary WeightStore::summary() const {
  Summary summary;
  std::set<std::string_view> names;
  for (const WeightNote& note : notes_) {
    if (note.is_matrix()) summary.columns = std::max(summary.columns, note.group != nullptr ? note.group->K : note.K());
    const bool again = !names.insert(note.name).second;
    if ((note.move || !note.kept.empty()) && again) continue;  // its parts go to several places
    const int64_t parameters = note.wanted().numel();
    summary.parameters += parameters;
    if (checkpoint_ == nullptr)
      summary.parameters_by_type[std::string(safetensors_name(stored_type(note)))] += parameters;
    else if (const WeightFiles::Place place = checkpoint_->find(note.name); place.entry != nullptr)
      summary.parameters_by_type[place.entry->dtype] += parameters;
  }
  summary.tensors = static_cast<int64_t>(names.size());
  size_t bytes = 0;
  targets(bytes);
  summary.packed_bytes = static_cast<int64_t>(bytes);
  return summary;
}

}  // namespace calandra
