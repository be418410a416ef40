// WeightStore: reads, converts and packs what the WeightReaders noted, and owns the memory.
#pragma once

#include <functional>
#include <map>
#include <mutex>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "ops/backend.h"
#include "weights/staging.h"
#include "weights/weight_files.h"
#include "weights/weight_note.h"
#include "weights/weight_reader.h"

namespace calandra {

class WeightStore {
 public:
  // Weights of `checkpoint`; null: random weights, a fixed function of each tensor's name (--load-format dummy). `fp8`:
  // the config speaks of FP8 weights in these blocks; random weights then take that format where releases have it.
  WeightStore(Backend& backend, const WeightFiles* checkpoint, std::optional<Fp8Blocks> fp8 = {})
      : backend_(backend), checkpoint_(checkpoint), fp8_(fp8), blocks_(fp8.value_or(Fp8Blocks{})) {}
  WeightStore(const WeightStore&) = delete;

  WeightReader reader() { return WeightReader(*this, ""); }

  bool has(std::string_view name, bool when_random) const {
    return checkpoint_ == nullptr ? when_random : checkpoint_->find(name).file != nullptr;
  }

  // Carries out all that was noted, on `threads` threads, in the order of the files; the result does not depend on
  // their number. Each thread reads a few megabytes into memory out of which the backend copies fastest, looks through
  // them and packs them, so that reading, packing and the way to a device overlap, and one large tensor is the work of
  // all. All weights lie in one piece of memory: thousands of experts do not take a mapping each. Beside it it takes
  // the memory of the largest tensor that is not packed in pieces, and 256 MiB (64 MiB per thread, if that is more).
  // Throws LoadError: missing tensors (by name), a shape or type that does not fit, tensors that nothing read and that
  // `unused` does not name, a file that changed meanwhile. The unused tensors are listed in one warning, those that
  // hold NaN or infinity in another.
  using Progress = std::function<void(int64_t bytes_done, int64_t bytes_total)>;  // called from several threads
  void load(std::span<const UnusedTensors> unused, int threads, const Progress& progress = {});

  // The memory of the weights goes back to the system until load() takes it back and fills it again in
  // the same place: views of weights stay.
  void give_back();

  // What load would read or has read, for the memory plan.
  struct Summary {
    int64_t tensors = 0;  // distinct names
    int64_t parameters = 0;
    int64_t packed_bytes = 0;                           // in the backend's memory
    int64_t columns = 0;                                // of the widest matrix
    std::map<std::string, int64_t> parameters_by_type;  // as stored: "BF16"; tensors that are missing do not count
  };
  Summary summary() const;

  // The tensors of a checkpoint that holds all that was noted, as random weights have them: by name, with the scales of
  // FP8 matrices.
  struct StoredTensor {
    std::string name;
    DType dtype;
    std::vector<int64_t> shape;
    int64_t K = 0;  // inputs of the matrix, or of that whose scales these are; 0: a small tensor
  };
  std::vector<StoredTensor> stored_tensors() const;

 private:
  friend class WeightReader;
  // Where the result of a note goes.
  struct Target {
    DType dtype = DType::kF32;  // as it is packed
    size_t offset = 0;
    size_t bytes = 0;   // of a tensor or matrix of its own
    size_t stride = 0;  // of a group
  };
  // What a thread does at a time: so many rows of a note's matrix, or all of a note.
  struct Piece {
    size_t note;
    int64_t first, rows;
  };
  // weight_resolve.cc
  void resolve();
  void check(WeightNote& note) const;
  void check_scales(WeightNote& note) const;
  std::string quantised_form(const std::string& name) const;
  void account_for_the_rest(std::span<const UnusedTensors> unused) const;

  DType stored_type(const WeightNote& note) const;
  StoredMatrix form(DType dtype, int64_t N, int64_t K, void* values) const;
  std::vector<Target> targets(size_t& bytes) const;
  void place(const std::vector<Target>& targets);
  std::vector<Piece> pieces(const std::vector<Target>& targets) const;
  int64_t bytes_of(const Piece& piece) const;
  void carry_out_all(const std::vector<Target>& targets, int threads, const Progress& progress);
  void carry_out(const Piece& piece, const Target& target, StagingBudget& staging);
  void pack_rounded(const Piece& piece, const Target& target, const Tensor& values);
  void pack_rearranged(const WeightNote& note, const Target& target, const StoredMatrix& stored);
  void read(const Piece& piece, const Tensor& to);
  std::vector<float> read_scales(const WeightNote& note);
  std::vector<float> scales_of(const Piece& piece);
  void remember_not_finite(const std::string& name);
  Tensor all_memory() const;
  std::byte* at(size_t offset) const { return static_cast<std::byte*>(memory_.data()) + offset; }

  Backend& backend_;
  const WeightFiles* checkpoint_;
  const std::optional<Fp8Blocks> fp8_;
  const Fp8Blocks blocks_;
  std::vector<WeightNote> notes_;
  Buffer memory_;
  std::vector<Buffer> computed_;  // what WeightReader::computed made
  std::mutex mutex_;
  std::set<std::string> not_finite_;  // tensors with NaN or infinity
};

}  // namespace calandra
