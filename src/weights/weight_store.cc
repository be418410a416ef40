#include "weights/weight_store.h"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <charconv>
#include <cstring>
#include <exception>
#include <thread>

#include "base/error.h"
#include "base/log.h"
#include "weights/dummy_weights.h"
#include "weights/stored_values.h"

namespace calandra {
namespace {

constexpr size_t kNamesInMessage = 20;
constexpr size_t kStagingBytes = size_t{256} << 20, kStagingBytesPerThread = size_t{64} << 20;

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

}  // namespace

Shape WeightStore::Note::wanted() const {
  return matrix != nullptr ? Shape{shape[0] / rows.step * rows.rows, shape[1]} : view;
}

// The tensor that stands for NAME.weight in a quantised checkpoint, or "".
std::string WeightStore::quantised_form(const std::string& name) const {
  constexpr std::string_view kWeight = ".weight";
  if (!name.ends_with(kWeight)) return "";
  const std::string module = name.substr(0, name.size() - kWeight.size());
  for (const char* form : {".qweight", ".weight_packed", ".weight_quantized", ".blocks"})
    if (checkpoint_->find(module + form).file != nullptr) return module + form;
  return "";
}

void WeightStore::resolve() {
  std::vector<std::string> missing;
  for (Note& note : notes_) {
    note.place = checkpoint_->find(note.name);
    if (note.place.file == nullptr) {
      if (const std::string form = quantised_form(note.name); !form.empty())
        throw LoadError(fmt::format(
            "{}: tensor {} is missing, {} stands for it: this quantised format is not supported yet by this version; "
            "use a checkpoint in BF16, F16 or F32",
            checkpoint_->folder().string(), note.name, form));
      missing.push_back(note.name);
      continue;
    }
    const SafetensorsFile::Entry& entry = *note.place.entry;
    const std::string where = note.place.file->path().string() + ": tensor " + note.name;
    const auto dtype = dtype_of_safetensors(entry.dtype);
    if (!dtype || (*dtype != DType::kF32 && *dtype != DType::kBF16 && *dtype != DType::kF16))
      throw LoadError(
          fmt::format("{} is stored as {}, which is not supported yet by this version; it must be F32, BF16 or F16",
                      where, entry.dtype));
    if (entry.shape != note.shape) {
      std::string expected;
      for (size_t i = 0; i < note.shape.size(); ++i) {
        expected += fmt::format("{}{}", i > 0 ? ", " : "", note.axes[i]);
        if (note.axes[i] != std::to_string(note.shape[i])) expected += fmt::format(" = {}", note.shape[i]);
      }
      throw LoadError(
          fmt::format("{} has shape [{}], the config asks for [{}]", where, fmt::join(entry.shape, ", "), expected));
    }
  }
  if (!missing.empty()) {
    std::sort(missing.begin(), missing.end());
    missing.erase(std::unique(missing.begin(), missing.end()), missing.end());
    throw LoadError(fmt::format("{}: {} tensor{} of the model {} missing: {}", checkpoint_->folder().string(),
                                missing.size(), missing.size() == 1 ? "" : "s", missing.size() == 1 ? "is" : "are",
                                list(missing)));
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
      const auto it =
          std::find_if(unused.begin(), unused.end(), [&](const UnusedTensors& u) { return covers(u, entry.name); });
      if (it == unused.end()) {
        unknown.push_back(entry.name);
      } else {
        not_used[it - unused.begin()].push_back(entry.name);
      }
    }
  }
  if (!unknown.empty())
    throw LoadError(fmt::format("{}: {} tensors of the files belong to no part of the model: {}",
                                checkpoint_->folder().string(), unknown.size(), list(unknown)));
  std::string text;
  for (size_t i = 0; i < unused.size(); ++i) {
    if (not_used[i].empty()) continue;
    text += fmt::format("{}{} tensor{} like {} ({})", text.empty() ? "" : "; ", not_used[i].size(),
                        not_used[i].size() == 1 ? "" : "s", not_used[i].front(), unused[i].reason);
  }
  if (!text.empty()) log_warning("not read: {}", text);
}

void WeightStore::keep(Buffer buffer) {
  const std::lock_guard lock(mutex_);
  buffers_.push_back(std::move(buffer));
}

DType WeightStore::stored_type(const Note& note) const {
  if (checkpoint_ == nullptr) return note.matrix != nullptr ? DType::kBF16 : DType::kF32;
  return *dtype_of_safetensors(note.place.entry->dtype);
}

// The rows that the note takes, one after another.
void WeightStore::read_rows(const Note& note, std::byte* to) const {
  const SafetensorsFile::Entry& entry = *note.place.entry;
  if (note.matrix == nullptr || note.rows.rows == note.rows.step) {
    note.place.file->read(entry, 0, entry.bytes, to);
    return;
  }
  const int64_t row_bytes = note.shape[1] * static_cast<int64_t>(size_of(stored_type(note)));
  const int64_t block_bytes = note.rows.rows * row_bytes;
  for (int64_t row = note.rows.first; row < note.shape[0]; row += note.rows.step, to += block_bytes)
    note.place.file->read(entry, row * row_bytes, block_bytes, to);
}

void WeightStore::carry_out(const Note& note, StagingBudget& staging) {
  const DType dtype = stored_type(note);
  const Shape shape = note.wanted();
  const StagingBudget::Loan loan = staging.borrow(shape.numel() * size_of(dtype));
  const Tensor values(loan.data(), dtype, shape);
  if (checkpoint_ == nullptr) {
    fill_dummy(note.name, note.rows.first, values);
  } else {
    read_rows(note, loan.data());
    if (has_nan_or_infinity(values)) {
      const std::lock_guard lock(mutex_);
      not_finite_.insert(note.name);
    }
  }
  if (note.matrix != nullptr) {
    PreparedWeight prepared = backend_.prepare_weight(values);
    *note.matrix = prepared.weight;
    keep(std::move(prepared.storage));
    return;
  }
  const std::vector<float> wide = to_f32(values);
  Buffer buffer = backend_.allocate(wide.size() * sizeof(float));
  backend_.copy_bytes(buffer.data(), wide.data(), wide.size() * sizeof(float));
  *note.small = buffer.tensor(DType::kF32, shape);
  keep(std::move(buffer));
}

void WeightStore::carry_out_all(int threads, const Progress& progress) {
  const auto bytes_of = [&](const Note& note) {
    return note.wanted().numel() * static_cast<int64_t>(size_of(stored_type(note)));
  };
  int64_t total = 0;
  for (const Note& note : notes_) total += bytes_of(note);

  StagingBudget staging(std::max(kStagingBytes, kStagingBytesPerThread * std::max(threads, 1)));
  std::atomic<size_t> next{0};
  std::atomic<int64_t> done{0};
  std::exception_ptr failure;
  const auto work = [&] {
    for (size_t i = next++; i < notes_.size(); i = next++) {
      try {
        carry_out(notes_[i], staging);
      } catch (...) {
        const std::lock_guard lock(mutex_);
        if (!failure) failure = std::current_exception();
        next = notes_.size();
        return;
      }
      done += bytes_of(notes_[i]);
      if (progress) progress(done, total);
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
  if (checkpoint_ == nullptr) {
    carry_out_all(threads, progress);
    return;
  }
  resolve();
  account_for_the_rest(unused);
  std::stable_sort(notes_.begin(), notes_.end(), [](const Note& a, const Note& b) {
    return std::pair(a.place.file, a.place.entry->begin) < std::pair(b.place.file, b.place.entry->begin);
  });
  carry_out_all(threads, progress);
  for (const SafetensorsFile& file : checkpoint_->files()) file.check_unchanged();
  if (!not_finite_.empty())
    log_warning("{}: {} tensor{} NaN or infinite values: {}", checkpoint_->folder().string(), not_finite_.size(),
                not_finite_.size() == 1 ? " holds" : "s hold", list({not_finite_.begin(), not_finite_.end()}));
}

WeightStore::Summary WeightStore::summary() const {
  Summary summary;
  std::set<std::string_view> names;
  for (const Note& note : notes_) {
    const Shape shape = note.wanted();
    std::string stored = checkpoint_ == nullptr ? std::string(safetensors_name(stored_type(note))) : "";
    if (checkpoint_ != nullptr) {
      if (const Checkpoint::Place place = checkpoint_->find(note.name); place.entry != nullptr)
        stored = place.entry->dtype;
    }
    const DType dtype = dtype_of_safetensors(stored).value_or(DType::kBF16);
    summary.packed_bytes += static_cast<int64_t>(
        note.matrix != nullptr ? backend_.packed_bytes(dtype, shape[0], shape[1]) : shape.numel() * sizeof(float));
    summary.parameters += shape.numel();
    if (!stored.empty()) summary.parameters_by_type[stored] += shape.numel();
    names.insert(note.name);
  }
  summary.tensors = static_cast<int64_t>(names.size());
  return summary;
}

}  // namespace calandra
