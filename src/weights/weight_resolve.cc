// WeightStore: finds what was noted in the checkpoint and checks it, before anything is read.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>

#include "base/error.h"
#include "base/log.h"
#include "weights/list_of_names.h"
#include "weights/weight_store.h"

namespace calandra {
namespace {

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

bool is_float(DType dtype) { return dtype == DType::kF32 || dtype == DType::kBF16 || dtype == DType::kF16; }

std::string place_of(const WeightFiles::Place& place) {
  return place.file->path().string() + ": tensor " + place.entry->name;
}

}  // namespace

// The tensor that stands for NAME.weight in a quantised checkpoint, or "".
std::string WeightStore::quantised_form(const std::string& name) const {
  constexpr std::string_view kWeight = ".weight";
  if (!name.ends_with(kWeight)) return "";
  const std::string module = name.substr(0, name.size() - kWeight.size());
  for (const char* form : {".qweight", ".weight_packed", ".weight_quantized", ".blocks"})
    if (checkpoint_->find(module + form).file != nullptr) return module + form;
  return "";
}

void WeightStore::check(WeightNote& note) const {
  const SafetensorsFile::Entry& entry = *note.place.entry;
  const auto dtype = dtype_of_safetensors(entry.dtype);
  if (!dtype || !(is_float(*dtype) || (note.is_matrix() && *dtype == DType::kF8E4M3)))
    throw LoadError(
        fmt::format("{} is stored as {}, which is not supported yet by this version; it must be F32, BF16{}",
                    place_of(note.place), entry.dtype, note.is_matrix() ? ", F16 or F8_E4M3 with scales" : " or F16"));
  if (entry.shape != note.shape) {
    std::string expected;
    for (size_t i = 0; i < note.shape.size(); ++i) {
      expected += fmt::format("{}{}", i > 0 ? ", " : "", note.axes[i]);
      if (note.axes[i] != std::to_string(note.shape[i])) expected += fmt::format(" = {}", note.shape[i]);
    }
    throw LoadError(fmt::format("{} has shape [{}], the config asks for [{}]", place_of(note.place),
                                fmt::join(entry.shape, ", "), expected));
  }
  if (note.is_matrix()) check_scales(note);
}

// An F8_E4M3 matrix has scales, another one has none.
void WeightStore::check_scales(WeightNote& note) const {
  const std::string name = note.name + kScaleSuffix, where = place_of(note.place);
  const WeightFiles::Place place = checkpoint_->find(name);
  if (note.place.entry->dtype != safetensors_name(DType::kF8E4M3)) {
    if (place.file != nullptr)
      throw LoadError(fmt::format("{} is stored as {}, but there are scales {}, which belong to F8_E4M3", where,
                                  note.place.entry->dtype, name));
    return;
  }
  std::vector<int64_t> shape = note.shape;
  shape[shape.size() - 2] = (note.stored_N() + blocks_.N - 1) / blocks_.N;
  shape.back() = (note.K() + blocks_.K - 1) / blocks_.K;
  const std::string expected = fmt::format("[{}], one scale for each block of [{}, {}] of the weight's [{}]",
                                           fmt::join(shape, ", "), blocks_.N, blocks_.K, fmt::join(note.shape, ", "));
  if (place.file == nullptr) {
    const bool other = checkpoint_->find(note.name + "_scale").file != nullptr;
    throw LoadError(fmt::format(
        "{} is stored as F8_E4M3, but its scales {} {}", where, name,
        other ? fmt::format("are missing; {}_scale stands for them: this quantised format is not supported yet by this "
                            "version",
                            note.name)
              : fmt::format("of shape {} are missing", expected)));
  }
  const auto dtype = dtype_of_safetensors(place.entry->dtype);
  if (!dtype || !is_float(*dtype))
    throw LoadError(
        fmt::format("{} is stored as {}; scales must be F32, BF16 or F16", place_of(place), place.entry->dtype));
  if (place.entry->shape != shape)
    throw LoadError(
        fmt::format("{} has shape [{}], expected {}", place_of(place), fmt::join(place.entry->shape, ", "), expected));
  note.scales = place;
}

void WeightStore::resolve() {
  std::vector<std::string> missing;
  for (WeightNote& note : notes_) {
    note.place = checkpoint_->find(note.name);
    if (note.place.file != nullptr) {
      check(note);
      continue;
    }
    if (const std::string form = quantised_form(note.name); !form.empty())
      throw LoadError(fmt::format(
          "{}: tensor {} is missing, {} stands for it: this quantised format is not supported yet by this version; "
          "use a checkpoint in BF16, F16 or F32",
          checkpoint_->folder().string(), note.name, form));
    missing.push_back(note.name);
  }
  if (missing.empty()) return;
  std::sort(missing.begin(), missing.end());
  missing.erase(std::unique(missing.begin(), missing.end()), missing.end());
  throw LoadError(fmt::format("{}: {} tensor{} of the model {} missing: {}", checkpoint_->folder().string(),
                              missing.size(), missing.size() == 1 ? "" : "s", missing.size() == 1 ? "is" : "are",
                              list_of_names(missing)));
}

void WeightStore::account_for_the_rest(std::span<const UnusedTensors> unused) const {
  std::set<std::string_view> read;
  for (const WeightNote& note : notes_) {
    read.insert(note.name);
    if (note.scales.entry != nullptr) read.insert(note.scales.entry->name);
  }
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
                                checkpoint_->folder().string(), unknown.size(), list_of_names(unknown)));
  std::string text;
  for (size_t i = 0; i < unused.size(); ++i) {
    if (not_used[i].empty() || unused[i].asked) continue;
    text += fmt::format("{}{} tensor{} like {} ({})", text.empty() ? "" : "; ", not_used[i].size(),
                        not_used[i].size() == 1 ? "" : "s", not_used[i].front(), unused[i].reason);
  }
  if (!text.empty()) log_warning("not read: {}", text);
}

}  // namespace calandra
