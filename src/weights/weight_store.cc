#include "weights/weight_store.h"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <exception>
#include <thread>

#include "base/error.h"
#include "base/log.h"
#include "tensor/give_back.h"
#include "weights/dummy_weights.h"
#include "weights/list_of_names.h"
#include "weights/stored_values.h"

namespace calandra {
namespace {

constexpr size_t kStagingBytes = size_t{256} << 20, kStagingBytesPerThread = size_t{64} << 20;

size_t aligned(size_t bytes) { return (bytes + kWeightAlignment - 1) / kWeightAlignment * kWeightAlignment; }
int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Calls visit(first stored row, rows, row of the note's matrix) for every run of rows that a matrix takes.
template <class Visit>
void for_each_run(const WeightNote& note, const Visit& visit) {
  if (!note.kept.empty()) {
    for (size_t i = 0, next; i < note.kept.size(); i = next) {
      for (next = i + 1; next < note.kept.size() && note.kept[next] == note.kept[next - 1] + 1;) ++next;
      visit(note.kept[i], static_cast<int64_t>(next - i), static_cast<int64_t>(i));
    }
    return;
  }
  if (note.rows.rows == note.rows.step) return visit(0, note.stored_N(), 0);
  int64_t at = 0;
  for (int64_t row = note.rows.first; row < note.stored_N(); row += note.rows.step, at += note.rows.rows)
    visit(row, note.rows.rows, at);
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
      all.push_back({DType::kF32, take(note.view.numel() * sizeof(float))});
    } else if (!note.kept.empty()) {
      all.push_back({DType::kF8E4M3, take(backend_.packed_bytes(rounded_form(note.N(), note.K(), nullptr, nullptr)))});
    } else if (note.matrix != nullptr) {
      const DType dtype = stored_type(note);
      all.push_back({dtype, take(backend_.packed_bytes(form(dtype, note.N(), note.K(), nullptr)))});
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

// Gives the destinations their memory. What the backend says of a packed matrix is added when it is packed.
void WeightStore::place(const std::vector<Target>& targets) {
  for (size_t i = 0; i < notes_.size(); ++i) {
    const WeightNote& note = notes_[i];
    const Target& target = targets[i];
    if (note.small != nullptr) *note.small = memory_.tensor(DType::kF32, note.view, target.offset);
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

// The values that the note takes, its rows one after another.
void WeightStore::read(const WeightNote& note, const Tensor& to) {
  if (checkpoint_ == nullptr) {
    const int64_t row = note.is_matrix() ? note.element * note.stored_N() + note.rows.first : 0;
    fill_dummy(note.name, row, to);
    return;
  }
  const SafetensorsFile::Entry& entry = *note.place.entry;
  if (!note.is_matrix()) {
    note.place.file->read(entry, 0, entry.bytes, to.data());
  } else {
    const int64_t row_bytes = note.K() * static_cast<int64_t>(size_of(to.dtype()));
    const int64_t begin = note.element * note.stored_N() * row_bytes;
    for_each_run(note, [&](int64_t first, int64_t count, int64_t at) {
      note.place.file->read(entry, begin + first * row_bytes, count * row_bytes,
                            static_cast<std::byte*>(to.data()) + at * row_bytes);
    });
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

void WeightStore::pack_rounded(const WeightNote& note, const Target& target, const Tensor& values) {
  const int64_t N = note.N(), K = note.K(), blocks = ceil_div(K, kRoundedBlock);
  std::vector<float> wide = to_f32(values);
  if (values.dtype() == DType::kF8E4M3) {
    const std::vector<float> stored = read_scales(note);
    const int64_t columns = ceil_div(K, blocks_.K);
    for (int64_t n = 0; n < N; ++n)
      for (int64_t k = 0; k < K; ++k) wide[n * K + k] *= stored[note.kept[n] / blocks_.N * columns + k / blocks_.K];
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
  *note.matrix = backend_.pack_weight(rounded_form(N, K, rounded.data(), scales.data()), at(target.offset));
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

void WeightStore::carry_out(const WeightNote& note, const Target& target, StagingBudget& staging) {
  const DType dtype = stored_type(note);
  const Shape shape = note.wanted();
  const StagingBudget::Loan loan = staging.borrow(shape.numel() * size_of(dtype));
  const Tensor values(loan.data(), dtype, shape);
  read(note, values);
  if (!note.is_matrix()) {
    const std::vector<float> wide = to_f32(values);
    backend_.copy_bytes(at(target.offset), wide.data(), wide.size() * sizeof(float));
    return;
  }
  if (!note.kept.empty()) return pack_rounded(note, target, values);
  StoredMatrix matrix = form(dtype, note.N(), note.K(), loan.data());
  std::vector<float> scales, wide;
  if (dtype == DType::kF8E4M3) {
    scales = read_scales(note);
    if (note.rows.rows != note.rows.step) matrix.block_n = 1;
    matrix.scales = Tensor(scales.data(), DType::kF32, {ceil_div(matrix.N(), matrix.block_n), matrix.scales.size(1)});
  }
  if (note.move) return pack_rearranged(note, target, matrix);
  if (target.dtype != dtype) {  // of a mixed group
    wide = to_f32(matrix);
    matrix = form(DType::kF32, note.N(), note.K(), wide.data());
  }
  if (note.matrix == nullptr) {
    backend_.pack_weight(matrix, at(target.offset + note.expert * target.stride));
    return;
  }
  const PackedWeight packed = backend_.pack_weight(matrix, at(target.offset));
  note.matrix->dtype = packed.dtype;
  note.matrix->packed = packed.packed;
  note.matrix->block_k = packed.block_k;  // its bias belongs to another note
}

void WeightStore::carry_out_all(const std::vector<Target>& targets, int threads, const Progress& progress) {
  std::vector<size_t> order(notes_.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = i;
  if (checkpoint_ != nullptr)
    std::stable_sort(order.begin(), order.end(), [&](size_t i, size_t j) {
      const WeightNote &a = notes_[i], &b = notes_[j];
      return std::tuple(a.place.file, a.place.entry->begin, a.element) <
             std::tuple(b.place.file, b.place.entry->begin, b.element);
    });
  const auto bytes_of = [&](const WeightNote& note) {
    return note.wanted().numel() * static_cast<int64_t>(size_of(stored_type(note)));
  };
  int64_t total = 0;
  for (const WeightNote& note : notes_) total += bytes_of(note);

  StagingBudget staging(std::max(kStagingBytes, kStagingBytesPerThread * std::max(threads, 1)));
  std::atomic<size_t> next{0};
  std::atomic<int64_t> done{0};
  std::exception_ptr failure;
  const auto work = [&] {
    for (size_t i = next++; i < order.size(); i = next++) {
      const WeightNote& note = notes_[order[i]];
      try {
        carry_out(note, targets[order[i]], staging);
        done += bytes_of(note);
        if (progress) progress(done, total);
      } catch (...) {
        const std::lock_guard lock(mutex_);
        if (!failure) failure = std::current_exception();
        next = order.size();
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
  if (memory_.bytes() == 0) memory_ = backend_.allocate(bytes);
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

void WeightStore::give_back() {
  if (memory_.bytes() > 0) calandra::give_back(memory_.tensor(DType::kU8, {static_cast<int64_t>(memory_.bytes())}));
}

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
