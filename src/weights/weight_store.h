// WeightStore: reads, converts and packs what the WeightReaders noted, and owns the memory.
#pragma once

#include <functional>
#include <map>
#include <mutex>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "ops/backend.h"
#include "weights/checkpoint.h"
#include "weights/staging.h"
#include "weights/weight_reader.h"

namespace calandra {

class WeightStore {
 public:
  // Weights of `checkpoint`; null: random weights, a fixed function of each tensor's name (--load-format dummy).
  WeightStore(Backend& backend, const Checkpoint* checkpoint) : backend_(backend), checkpoint_(checkpoint) {}
  WeightStore(const WeightStore&) = delete;

  WeightReader reader() { return WeightReader(*this, ""); }

  // Carries out all that was noted, on `threads` threads, in the order of the files; the result does not depend on
  // their number. Beside the packed weights it takes the memory of the largest tensor and 256 MiB (64 MiB per thread,
  // if that is more). Throws LoadError: missing tensors (by name), a shape or type that does not fit, tensors that
  // nothing read and that `unused` does not name, a file that changed meanwhile. The unused tensors are listed in one
  // warning, those that hold NaN or infinity in another.
  using Progress = std::function<void(int64_t bytes_done, int64_t bytes_total)>;  // called from several threads
  void load(std::span<const UnusedTensors> unused, int threads, const Progress& progress = {});

  // What load would read or has read, for the memory plan.
  struct Summary {
    int64_t tensors = 0;  // distinct names
    int64_t parameters = 0;
    int64_t packed_bytes = 0;                           // in the backend's memory
    std::map<std::string, int64_t> parameters_by_type;  // as stored: "BF16"; tensors that are missing do not count
  };
  Summary summary() const;

 private:
  friend class WeightReader;
  struct Note {
    PackedWeight* matrix = nullptr;  // one of the two is the destination
    Tensor* small = nullptr;
    std::string name;
    std::vector<std::string> axes;  // names of the axes, for errors
    std::vector<int64_t> shape;     // of the stored tensor
    RowBlocks rows;                 // of a matrix
    Shape view;                     // of a small tensor
    Checkpoint::Place place{};

    Shape wanted() const;  // what the note takes of the stored tensor
  };
  void resolve();
  std::string quantised_form(const std::string& name) const;
  void account_for_the_rest(std::span<const UnusedTensors> unused) const;
  DType stored_type(const Note& note) const;
  void carry_out(const Note& note, StagingBudget& staging);
  void read_rows(const Note& note, std::byte* to) const;
  void carry_out_all(int threads, const Progress& progress);
  void keep(Buffer buffer);

  Backend& backend_;
  const Checkpoint* checkpoint_;
  std::vector<Note> notes_;
  std::mutex mutex_;
  std::vector<Buffer> buffers_;
  std::set<std::string> not_finite_;  // tensors with NaN or infinity
};

}  // namespace calandra
