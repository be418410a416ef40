// WeightStore: reads, converts and packs what the WeightReaders noted, and owns the memory.
#pragma once

#include <functional>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "ops/backend.h"
#include "weights/checkpoint.h"
#include "weights/weight_reader.h"

namespace calandra {

class WeightStore {
 public:
  // Weights of `checkpoint`; null: random weights, a fixed function of each tensor's name (--load-format dummy).
  WeightStore(Backend& backend, const Checkpoint* checkpoint) : backend_(backend), checkpoint_(checkpoint) {}
  WeightStore(const WeightStore&) = delete;

  WeightReader reader() { return WeightReader(*this, ""); }

  // Carries out all that was noted, on `threads` threads, in the order of the files. Throws LoadError: missing tensors (all of them
  // by name), a shape or type that does not fit, tensors that nothing read and that `unused` does not name; the unused ones are
  // listed in one warning, and so is every tensor with NaN or infinity.
  using Progress = std::function<void(int64_t bytes_done, int64_t bytes_total)>;  // called from several threads
  void load(std::span<const UnusedTensors> unused, int threads, const Progress& progress = {});

  // What load would read, without reading: for the memory plan.
  struct Summary {
    int64_t tensors = 0;
    int64_t parameters = 0;
    int64_t packed_bytes = 0;  // in the backend's memory
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
    RowBlocks rows;
    Shape view;  // of a small tensor
    Checkpoint::Place place{};
  };
  void resolve();
  void account_for_the_rest(std::span<const UnusedTensors> unused) const;
  void carry_out(const Note& note, std::vector<std::byte>& staging);
  Tensor stored_values(const Note& note, std::vector<std::byte>& staging) const;
  void keep(Buffer buffer);

  Backend& backend_;
  const Checkpoint* checkpoint_;
  std::vector<Note> notes_;
  std::mutex mutex_;
  std::vector<Buffer> buffers_;
};

}  // namespace calandra
