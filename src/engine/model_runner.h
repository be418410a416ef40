// ModelRunner: turns sequences into a Batch and runs the model. Owns the caches, the workspace and the batch's memory.
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "cache/page_pool.h"
#include "cache/slot_pool.h"
#include "engine/sequence.h"
#include "models/causal_lm.h"
#include "ops/backend.h"

namespace calandra {

struct RunnerLimits {
  int64_t max_num_seqs = 8;              // sequences of one step
  int64_t max_num_batched_tokens = 512;  // rows of one step
  int64_t max_model_len = 4096;          // tokens of one sequence
  int64_t block_size = 16;               // tokens of a page
  int64_t num_blocks = 0;                // pages; 0: as many as max_num_seqs sequences of max_model_len need
  int64_t num_state_slots = 0;           // 0: max_num_seqs
  int64_t pending_capacity = 0;          // drafts of one sequence
  int64_t max_cuts = 0;                  // states written inside the prompts of one step
  int64_t hidden_ring = 0;               // last hidden rows of each sequence that are kept for the drafter; 0: none
  bool taps = false;  // forwards may be given taps: ops then run part by part and need more workspace
};

// Bytes of everything that is allocated at start, and of what one sequence takes.
struct MemoryPlan {
  int64_t pages = 0, page_bytes = 0;
  int64_t slots = 0, slot_bytes = 0;
  int64_t workspace_bytes = 0;
  int64_t batch_bytes = 0;  // the batch, and hidden rows between the launches of a step
  int64_t ring_bytes = 0;   // hidden rows between steps
  int64_t total() const { return pages * page_bytes + slots * slot_bytes + workspace_bytes + batch_bytes + ring_bytes; }
};

class ModelRunner {
 public:
  // Throws LoadError when the memory for these limits is not there.
  ModelRunner(const CausalLM& model, Backend& backend, const RunnerLimits& limits);

  // The plan for these limits without allocating it (the workspace is measured by a dry run).
  static MemoryPlan plan_memory(const CausalLM& model, Backend& backend, const RunnerLimits& limits);

  // Pages and a slot for `tokens` tokens of the sequence. False, and nothing taken, when there are not enough.
  bool reserve(Sequence& sequence, int64_t tokens);
  // Gives back what the sequence holds.
  void release(Sequence& sequence);

  // The state after the first `end` tokens of a sequence goes to `slot` as well.
  struct Cut {
    int64_t end;
    int32_t slot;
  };
  // The next `rows` tokens of a sequence, from sequence.computed on, all of them known; behind them drafts, which
  // become pending updates of its slot. Pages must be reserved for all of them.
  struct Part {
    Sequence* sequence;
    int64_t rows;
    std::span<const int32_t> drafts = {};
    std::span<const Cut> cuts = {};  // ascending, computed < end < computed + rows
  };
  // Runs one step: model, state, caches. Reads sequence.source, writes sequence.slot; afterwards source = slot,
  // accepted = 0 and `computed` has grown by the rows.
  //   returns [T, D] after the final norm, rows in order of the parts, drafts included; valid until the next forward
  Tensor forward(std::span<const Part> parts, Taps* taps = nullptr);
  // Keeps the first `count` drafts of the sequence's last step.
  void accept(Sequence& sequence, int32_t count);
  // The model's MTP layers over entries of sequences (models/causal_lm.h, Drafter): entry e is the pair (hidden row of
  // token e - 1, token e). Pages must be reserved up to the last entry.
  struct DraftPart {
    Sequence* sequence;
    int64_t first_entry;                 // at least 1
    std::span<const int32_t> token_ids;  // of first_entry and the entries after it
  };
  //   hidden [T, D] from keep_hidden, one row per entry   returns [T, D], as forward does
  Tensor draft(std::span<const DraftPart> parts, const Tensor& hidden, int64_t step, Taps* taps = nullptr);
  // Copies rows of a result out of the workspace, so that they outlive it. Valid until the next call.
  Tensor keep_hidden(const Tensor& hidden);
  // Hidden rows of tokens [begin, end) of sequences, out of the last forward or the ring: inputs of a draft pass.
  // Every one must be there (Sequence::ring_begin). Valid as keep_hidden.
  struct HiddenRows {
    const Sequence* sequence;
    int64_t begin, end;
  };
  Tensor gather_hidden(std::span<const HiddenRows> parts);
  // Puts the hidden row of token computed - 1 into the ring, out of the slot that the sequence continues from.
  void load_hidden(Sequence& sequence);
  // Copies the rows that `from` has in the ring to `to`, which continues the same tokens.
  void copy_ring(const Sequence& from, Sequence& to);

  // Logits of some rows of the last forward or draft, [N, V] f32 on the device; at most kLogitRows at once. Valid until
  // the next call.
  static constexpr int64_t kLogitRows = 256;
  Tensor logits(const Tensor& hidden, std::span<const int32_t> rows);
  // One token for each row of logits.
  void sample(const Tensor& logits, const ops::SamplingBatch& batch, ops::SamplingResult& result);

  const CausalLM& model() const { return model_; }
  Backend& backend() { return backend_; }
  const RunnerLimits& limits() const { return limits_; }
  const MemoryPlan& memory() const { return memory_; }
  const PagePool& pages() const { return *pages_; }
  const SlotPool& slots() const { return *slots_; }

 private:
  struct Rows;  // what both kinds of batch are built from
  Batch build(std::span<const Rows> parts, bool mtp);
  ExecContext context(Taps* taps);
  void remember_hidden(std::span<const Part> parts, const Tensor& hidden);
  std::byte* ring_row(const Sequence& sequence, int64_t token);

  const CausalLM& model_;
  Backend& backend_;
  RunnerLimits limits_;
  MemoryPlan memory_;
  OneRank communicator_;
  std::unique_ptr<PagePool> pages_;
  std::unique_ptr<SlotPool> slots_;
  ModelCaches caches_;
  Workspace workspace_;
  std::vector<int32_t> host_batch_;
  Buffer device_batch_;
  Buffer logit_rows_;
  Buffer image_embeds_;  // rows of one step that images replace
  Buffer hidden_;        // of keep_hidden and gather_hidden
  Buffer step_hidden_;   // of the last forward
  Buffer ring_;          // [lanes, hidden_ring, D]
  std::vector<int32_t> free_lanes_;
  struct StepRows {  // where the rows of a sequence stand in step_hidden_
    const Sequence* sequence;
    int64_t begin, end, row;
  };
  std::vector<StepRows> step_rows_;
  size_t after_forward_ = 0;  // workspace mark: logits of the same step are allocated from here again
};

}  // namespace calandra
