// HashRig: the hash model with its own pools, driven by batches that are built by hand.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "backends/reference/reference.h"
#include "tests/hashsim/hash_model.h"
#include "tests/hashsim/hash_shadow.h"

namespace calandra::hashsim {

struct RigSizes {
  int64_t pages = 256, page_tokens = 16, slots = 64, pending_capacity = 4, rows = 512;
};

// Rows of one sequence in a step: text from token index `begin` on, rotary positions alike.
struct RigPart {
  std::vector<int32_t> table;
  int64_t begin = 0;
  std::vector<int32_t> tokens;
  struct Segment {
    int64_t rows;
    int32_t src, dst;
  };
  std::vector<Segment> segments;
  int32_t drafts = 0;
  bool active = true;
};

// Entries of one sequence in a draft pass, from index `begin` on: tokens and the rows before them.
struct RigEntries {
  std::vector<int32_t> table;
  int64_t begin = 1;
  std::vector<int32_t> tokens;
  std::vector<HiddenRow> hidden;
  int32_t first_key = 1;
  bool active = true;
};

class HashRig {
 public:
  HashRig(const HashModelConfig& config, const RigSizes& sizes);

  // Results of all rows in order. `change` may meddle with the batch before it runs.
  using Change = std::function<void(Batch&)>;
  std::vector<HiddenRow> step(const std::vector<RigPart>& parts, const Change& change = {});
  std::vector<HiddenRow> draft(const std::vector<RigEntries>& parts, int64_t pass, const Change& change = {});
  int32_t greedy(const HiddenRow& row) const;

  void accept(int32_t slot, int32_t count) { slots->accepted().as<int32_t>()[slot] = count; }

  HashModel model;
  std::unique_ptr<PagePool> pages;
  std::unique_ptr<SlotPool> slots;

 private:
  Batch begin_batch(size_t parts, int64_t rows, int64_t segments, int64_t table, bool mtp);
  std::vector<HiddenRow> rows_of(const Tensor& hidden) const;

  ReferenceBackend backend_;
  OneRank communicator_;
  Workspace workspace_;
  ModelCaches caches_;
  std::vector<int32_t> block_;
  std::vector<float> hidden_;
};

}  // namespace calandra::hashsim
