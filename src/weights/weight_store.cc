#include "weights/weight_store.h"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <charconv>
#include <cstring>
#include <exception>
#include <set>
#include <thread>

#include "base/error.h"
#include "base/log.h"
#include "weights/dummy_weights.h"

namespace calandra {
namespace {

constexpr size_t kNamesInMessage = 20;

std::string list(const std::vector<std::string>& names) {
  std::string text;
  for (size_t i = 0; i < std::min(names.size(), kNamesInMessage); ++i) text += (i > 0 ? ", " : "") + names[i];
  if (names.size() > kNamesInMessage) text += fmt::format(" and {} more", names.size() - kNamesInMessage);
  return text;
}

// "*" matches anything.
bool glob(std::string_view pattern, std::string_view text) {
  const size_t star = pattern.find('*');
  if (star == std::string_view::npos) return pattern == text;
  if (!text.starts_with(pattern.substr(0, star))) return false;
  pattern.remove_prefix(star + 1);
  for (size_t from = star; from <= text.size(); ++from)
    if (glob(pattern, text.substr(from))) return true;
  return false;
}

bool covers(const UnusedTensors& unused, std::string_view name) {
  if (!glob(unused.pattern, name)) return false;
  if (unused.from_layer == 0) return true;
  const std::string_view rest = name.substr(unused.pattern.find('*'));
  int64_t layer = -1;
  std::from_chars(rest.data(), rest.data() + rest.size(), layer);
  return layer >= unused.from_layer;
}

// Values that no computation survives, by bit patterns of the exponent.
bool has_nan_or_infinity(const Tensor& t) {
  const int64_t n = t.numel();
  bool found = false;
  if (t.dtype() == DType::kF32) {
    const auto* x = static_cast<const uint32_t*>(t.data());
    for (int64_t i = 0; i < n; ++i) found |= (x[i] & 0x7f800000u) == 0x7f800000u;
  } else {
    const uint16_t mask = t.dtype() == DType::kBF16 ? 0x7f80 : 0x7c00;
    const auto* x = static_cast<const uint16_t*>(t.data());
    for (int64_t i = 0; i < n; ++i) found |= (x[i] & mask) == mask;
  }
  return found;
}

template <class T>
void widen(const T* from, float* to, int64_t n) {
  for (int64_t i = 0; i < n; ++i) to[i] = static_cast<float>(from[i]);
}

}  // namespace

void WeightStore::resolve() {
  std::vector<std::string> missing;
  for (Note& note : notes_) {
    note.place = checkpoint_->find(note.name);
    if (note.place.file == nullptr) {
      missing.push_back(note.name);
      continue;
    }
    const SafetensorsFile::Entry& entry = *note.place.entry;
    const std::string where = note.place.file->path().string() + ": tensor " + note.name;
    if (entry.shape != note.shape) {
      std::string expected;
      for (size_t i = 0; i < note.shape.size(); ++i)
        expected += fmt::format("{}{} = {}", i > 0 ? ", " : "", note.axes[i], note.shape[i]);
      throw LoadError(fmt::format("{} has shape [{}], the config asks for [{}]", where, fmt::join(entry.shape, ", "), expected));
    }
    const auto dtype = dtype_of_safetensors(entry.dtype);
    if (!dtype || (*dtype != DType::kF32 && *dtype != DType::kBF16 && *dtype != DType::kF16))
      throw LoadError(fmt::format("{} is stored as {}, which is not supported; it must be F32, BF16 or F16", where, entry.dtype));
  }
  if (!missing.empty()) {
    std::sort(missing.begin(), missing.end());
    missing.erase(std::unique(missing.begin(), missing.end()), missing.end());
    throw LoadError(fmt::format("{}: {} tensor{} of the model {} missing: {}", checkpoint_->folder().string(), missing.size(),
                                missing.size() == 1 ? "" : "s", missing.size() == 1 ? "is" : "are", list(missing)));
  }
}

void WeightStore::account_for_the_rest(std::span<const UnusedTensors> unused) const {
  std::set<std::string_view> read;
  for (const Note& note : notes_) read.insert(note.name);
  std::vector<std::vector<std::string>> not_used(unused.size());
  std::vector<std::string> unknown;
  for (const SafetensorsFile& file : checkpoint_->files()) {
    for (const SafetensorsFile::Entry& entry : file.entries()) {
      if (read.contains(entry.name)) continue;
      const auto it = std::find_if(unused.begin(), unused.end(), [&](const UnusedTensors& u) { return covers(u, entry.name); });
      if (it == unused.end()) {
        unknown.push_back(entry.name);
      } else {
        not_used[it - unused.begin()].push_back(entry.name);
      }
    }
  }
  if (!unknown.empty())
    throw LoadError(fmt::format("{}: {} tensors of the files belong to no part of the model: {}", checkpoint_->folder().string(),
                                unknown.size(), list(unknown)));
  std::string text;
  for (size_t i = 0; i < unused.size(); ++i) {
    if (not_used[i].empty()) continue;
    text += fmt::format("{}{} tensor{} like {} ({})", text.empty() ? "" : "; ", not_used[i].size(), not_used[i].size() == 1 ? "" : "s",
                        not_used[i].front(), unused[i].reason);
  }
  if (!text.empty()) log_warning("not read: {}", text);
}

void WeightStore::keep(Buffer buffer) {
  const std::lock_guard lock(mutex_);
  buffers_.push_back(std::move(buffer));
}

Tensor WeightStore::stored_values(const Note& note, std::vector<std::byte>& staging) const {
  Shape shape;
  if (note.matrix != nullptr) {
    shape = {note.shape[0], note.shape[1]};
  } else {
    shape = note.view;
  }
  if (checkpoint_ == nullptr) {
    const DType dtype = note.matrix != nullptr ? DType::kBF16 : DType::kF32;
    staging.resize(shape.numel() * size_of(dtype));
    Tensor values(staging.data(), dtype, shape);
    fill_dummy(note.name, values);
    return values;
  }
  staging.resize(note.place.entry->bytes);
  note.place.file->read(*note.place.entry, 0, note.place.entry->bytes, staging.data());
  const Tensor values(staging.data(), *dtype_of_safetensors(note.place.entry->dtype), shape);
  if (has_nan_or_infinity(values)) log_warning("tensor {} holds NaN or infinity", note.name);
  return values;
}

void WeightStore::carry_out(const Note& note, std::vector<std::byte>& staging) {
  Tensor values = stored_values(note, staging);
  if (note.small != nullptr) {
    std::vector<float> wide(values.numel());
    switch (values.dtype()) {
      case DType::kBF16: widen(values.as<bf16>(), wide.data(), values.numel()); break;
      case DType::kF16: widen(values.as<f16>(), wide.data(), values.numel()); break;
      default: widen(values.as<float>(), wide.data(), values.numel()); break;
    }
    Buffer buffer = backend_.allocate(wide.size() * sizeof(float));
    backend_.copy_bytes(buffer.data(), wide.data(), wide.size() * sizeof(float));
    *note.small = buffer.tensor(DType::kF32, note.view);
    keep(std::move(buffer));
    return;
  }
  const RowBlocks& rows = note.rows;
  if (rows.rows != rows.step) {  // move the chosen rows together, in place
    const int64_t row_bytes = note.shape[1] * static_cast<int64_t>(size_of(values.dtype()));
    const int64_t blocks = note.shape[0] / rows.step;
    for (int64_t b = 0; b < blocks; ++b)
      std::memmove(staging.data() + b * rows.rows * row_bytes, staging.data() + (b * rows.step + rows.first) * row_bytes,
                   rows.rows * row_bytes);
    values = Tensor(staging.data(), values.dtype(), {blocks * rows.rows, note.shape[1]});
  }
  PreparedWeight prepared = backend_.prepare_weight(values);
  *note.matrix = prepared.weight;
  keep(std::move(prepared.storage));
}

void WeightStore::load(std::span<const UnusedTensors> unused, int threads, const Progress& progress) {
  if (checkpoint_ != nullptr) {
    resolve();
    account_for_the_rest(unused);
    std::stable_sort(notes_.begin(), notes_.end(), [](const Note& a, const Note& b) {
      return std::pair(a.place.file, a.place.entry->begin) < std::pair(b.place.file, b.place.entry->begin);
    });
  }
  const auto bytes_of = [&](const Note& note) {
    int64_t n = checkpoint_ != nullptr ? note.place.entry->bytes : 2;
    if (checkpoint_ == nullptr)
      for (const int64_t size : note.shape) n *= size;
    return n;
  };
  int64_t total = 0;
  for (const Note& note : notes_) total += bytes_of(note);

  std::atomic<size_t> next{0};
  std::atomic<int64_t> done{0};
  std::exception_ptr failure;
  const auto work = [&] {
    std::vector<std::byte> staging;
    for (size_t i = next++; i < notes_.size(); i = next++) {
      try {
        carry_out(notes_[i], staging);
      } catch (...) {
        const std::lock_guard lock(mutex_);
        if (!failure) failure = std::current_exception();
        next = notes_.size();
      }
      done += bytes_of(notes_[i]);
      if (progress) progress(done, total);
    }
  };
  std::vector<std::thread> team;
  for (int i = 1; i < threads; ++i) team.emplace_back(work);
  work();
  for (std::thread& thread : team) thread.join();
  if (failure) std::rethrow_exception(failure);
}

WeightStore::Summary WeightStore::summary() const {
  Summary summary;
  for (const Note& note : notes_) {
    int64_t numel = 1;
    for (const int64_t size : note.shape) numel *= size;
    if (note.matrix != nullptr) {
      numel = numel / note.rows.step * note.rows.rows;
      DType dtype = DType::kBF16;
      if (checkpoint_ != nullptr) {
        const Checkpoint::Place place = checkpoint_->find(note.name);
        if (place.entry != nullptr) dtype = dtype_of_safetensors(place.entry->dtype).value_or(DType::kBF16);
      }
      summary.packed_bytes += static_cast<int64_t>(backend_.packed_bytes(dtype, note.shape[0] / note.rows.step * note.rows.rows, note.shape[1]));
    } else {
      summary.packed_bytes += numel * static_cast<int64_t>(sizeof(float));
    }
    ++summary.tensors;
    summary.parameters += numel;
  }
  return summary;
}

}  // namespace calandra
