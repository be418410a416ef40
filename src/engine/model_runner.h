// ModelRunner: turns sequences into a Batch and runs the model. Owns the caches, the workspace and the batch's memory.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "cache/page_pool.h"
#include "cache/slot_pool.h"
#include "engine/batch_layout.h"
#include "engine/checkpoint_store.h"
#include "engine/clock.h"
#include "engine/draft_time.h"
#include "engine/recorded_steps.h"
#include "engine/sequence.h"
#include "engine/upload_ring.h"
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
  int64_t recorded_sizes = 4;            // numbers of rows, and of sequences, in recorded steps, to each doubling
  int64_t upload_bytes = 0;              // host memory of inputs on their way to the device; 0: those of two steps
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
  // Lets a sequence that holds nothing go on from a checkpoint of the device tier, with pages for `tokens` tokens: full
  // pages and the slot are shared, the partial page is copied. False, and nothing taken, when there is no room.
  bool resume(Sequence& sequence, const Checkpoint& checkpoint, int64_t tokens);
  // Lets a sequence that holds nothing go on from where `from` stands, likewise. `from` must not write its slot any
  // more (separate).
  bool fork(Sequence& from, Sequence& sequence);
  // The next step writes another slot than the one it reads, so that others can keep that one.
  void separate(Sequence& sequence, int32_t fresh_slot);
  // The state after the first P tokens of a sequence, in `slot`, for the PrefixCache: one reference to each page is
  // added, the slot's goes over. MTP entries below P that were not written are never written.
  Checkpoint checkpoint(Sequence& sequence, int64_t P, int32_t slot);

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
    std::span<const Cut> cuts = {};           // ascending, computed < end < computed + rows
    std::span<const int32_t> drafts_at = {};  // sampled_at of each draft, when the host does not know them yet
    int64_t draft_count() const { return std::ssize(drafts) + std::ssize(drafts_at); }
  };
  // Runs one step: model, state, caches. Reads sequence.source, writes sequence.slot; afterwards source = slot,
  // accepted = 0 and `computed` has grown by the rows.
  //   returns [T, D] after the final norm, rows in order of the parts, drafts included; valid until the next forward
  Tensor forward(std::span<const Part> parts, Taps* taps = nullptr);
  // Launches behind a step whose tokens the host does not know yet (engine/look_ahead.h). First, once its sampler was
  // started, what its rows verify: it goes to the device with the next pass, before which that knows how many drafts
  // each sequence keeps, and who ends.
  static constexpr int64_t kStopIds = 32;  // of a sequence, on average
  struct VerifiedPart {
    const Sequence* sequence;
    int32_t sampled;  // sampled_at of the row of its last known token; those of its drafts follow
    std::span<const int32_t> drafts;
    std::span<const int32_t> stop_ids;
    int64_t most;           // accepted drafts with which it is as long as it may get
    int64_t entry_row = 0;  // row of the first draft pass behind, of the entry of the first token that is not known
  };
  void accept_ahead(std::span<const VerifiedPart> parts);
  // How many drafts the first `count` sequences of accept_ahead keep, on the device, for SamplingBatch::moves.
  Tensor accepted_ahead(int64_t count) const { return verified_.accepted.slice(0, 0, count); }
  // forward for the token that each of those sequences goes on with, one row, and further drafts. The row of one that
  // ends is inactive and its state stays. The host counts the row in `computed` all the same.
  struct AheadPart {
    Sequence* sequence;
    int64_t verified;                    // drafts that it may keep of the step before
    std::span<const int32_t> drafts_at;  // sampled_at
  };
  Tensor forward_ahead(std::span<const AheadPart> parts);
  // Once the host knows how many drafts were kept of the step before: the last rows in the ring are those of the token
  // computed - 1 and of `drafts` drafts.
  void ring_written(Sequence& sequence, int64_t drafts) const;
  // Its hidden rows where another pass does not overwrite them; until the next forward.
  Tensor set_aside(const Tensor& hidden);
  // Keeps the first `count` drafts of the sequence's last step.
  void accept(Sequence& sequence, int32_t count);
  // The model's MTP layers over entries of sequences (models/causal_lm.h, Drafter): entry e is the pair (hidden row of
  // token e - 1, token e). Pages must be reserved up to the last entry.
  struct DraftPart {
    Sequence* sequence;
    int64_t first_entry;                      // at least 1
    std::span<const int32_t> token_ids;       // of first_entry and the entries after it
    std::span<const int32_t> tokens_at = {};  // sampled_at of the last ones, where the host does not know them yet
    // Behind a step whose tokens it does not know yet: drafts that may be kept of that, so first_entry is meant for
    // none. The parts are the first sequences of accept_ahead. -1: not so.
    int64_t verified = -1;
  };
  //   hidden [T, D] from keep_hidden, one row per entry   returns [T, D], as forward does
  Tensor draft(std::span<const DraftPart> parts, const Tensor& hidden, int64_t step, Taps* taps = nullptr);
  // Copies rows of a result out of the workspace, so that they outlive it. Valid until the next call.
  Tensor keep_hidden(const Tensor& hidden, std::span<const int32_t> rows);
  Tensor keep_hidden(const Tensor& hidden);  // all of them
  // The rows of the last tokens of the first `count` sequences of accept_ahead, out of the first draft pass behind.
  struct LastEntries {
    int64_t count;
  };
  Tensor keep_hidden(const Tensor& hidden, LastEntries rows);
  // Hidden rows of tokens [begin, end) of sequences, out of the last forward or the ring: inputs of a draft pass.
  // Every one must be there (first_hidden); those of drafts are there behind `computed`. Valid as keep_hidden.
  struct HiddenRows {
    const Sequence* sequence;
    int64_t begin, end;
  };
  Tensor gather_hidden(std::span<const HiddenRows> parts);
  // The first token from which on the hidden rows up to `computed` are there.
  int64_t first_hidden(const Sequence& sequence) const;
  // A hidden row [D] on the host. Valid until the next call.
  std::span<const float> read_row(const Tensor& row);
  // Puts the hidden row of token computed - 1 into the ring, out of the slot that the sequence continues from.
  void load_hidden(Sequence& sequence);
  // Copies the rows that `from` has in the ring to `to`, which continues the same tokens.
  void copy_ring(const Sequence& from, Sequence& to);

  // Logits of some rows of the last forward or draft, [N, V] f32 on the device; at most kLogitRows at once. Valid until
  // the next call.
  static constexpr int64_t kLogitRows = 256;
  Tensor logits(const Tensor& hidden, std::span<const int32_t> rows);
  // The same through the drafter's head, [N, columns] (Drafter::token_ids).
  Tensor draft_logits(const Tensor& hidden, std::span<const int32_t> rows);
  Tensor draft_logits(const Tensor& hidden, LastEntries rows);
  // One token for each row of logits.
  void sample(const Tensor& logits, const ops::SamplingBatch& batch, ops::SamplingResult& result);
  // The same in two halves (ops/look_ahead.h). What is launched in between finds the token of row r at
  // sampled_at(flight, r).
  bool start_sample(const Tensor& logits, const ops::SamplingBatch& batch, int flight);
  void finish_sample(const ops::SamplingBatch& batch, int flight, ops::SamplingResult& result);
  static int32_t sampled_at(int flight, int64_t row) { return static_cast<int32_t>(flight * kLogitRows + row); }

  // Where steps can be recorded: runs one as large as a prompt's, so that its kernels are there, and runs and records
  // those that decoding begins with, the likeliest first, until `seconds` are over by `clock`; others are recorded when
  // they have come. They are steps of no sequence and change nothing.
  void record_steps(double seconds, const Clock& clock);
  int64_t recorded_steps() const { return recorded_.recordings(); }
  // Sequences of one step, with those that fill recorded steps up: they have what is added to the rows.
  static int64_t most_sequences(const Backend& backend, const RunnerLimits& limits);
  // Passes so far that took longer than the next ones of their shape will.
  int64_t first_runs() const { return recorded_.first_runs(); }
  // Called before every pass, recorded or not, with what it runs but its logits: RecordedSteps::kForward, or the
  // number of the drafter's pass. For benches.
  using Watch = std::function<void(int64_t pass, const StepShape& shape)>;
  void watch(Watch watch) { watch_ = std::move(watch); }

  // While no sequence holds anything: the memory of pages, slots, rows and workspace goes back to the system, and is
  // there again before the next step. take_back_memory throws LoadError when there is not enough.
  void give_back_memory();
  void take_back_memory();

  const CausalLM& model() const { return model_; }
  Backend& backend() { return backend_; }
  const RunnerLimits& limits() const { return limits_; }
  const MemoryPlan& memory() const { return memory_; }
  PagePool& pages() { return *pages_; }
  SlotPool& slots() { return *slots_; }

 private:
  template <class F>
  void for_each_memory(const F& visit) const;  // that is given back
  // What both kinds of batch are built from: tokens [begin, begin + tokens.size()) of a sequence, then drafts.
  struct Rows {
    const Sequence& sequence;
    int64_t begin;
    std::span<const int32_t> tokens;
    std::span<const int32_t> drafts = {};
    std::span<const Cut> cuts = {};
    std::span<const int32_t> sampled_at = {};  // of the last tokens, where the host does not know them
    // Behind a step whose tokens the host does not know yet: drafts that may be kept of that, so that it may stand so
    // much further. The parts are the first sequences of accept_ahead. -1: not so.
    int64_t verified = -1;
    int64_t certain_end() const { return begin + std::ssize(tokens); }
    int64_t end() const { return certain_end() + std::ssize(drafts); }
    int32_t token(int64_t index) const {
      return index < certain_end() ? tokens[index - begin] : drafts[index - certain_end()];
    }
    int32_t place(int64_t index) const {  // of Batch::Ahead
      const int64_t at = index - end() + std::ssize(sampled_at);
      return at < 0 ? -1 : sampled_at[at];
    }
  };
  bool take_lane_and_slot(Sequence& sequence);
  bool share_pages(Sequence& sequence, std::span<const int32_t> pages, int64_t P, int64_t tokens);
  // Sizes of a batch, and the bounds of its lengths.
  struct Bounds {
    BatchSizes sizes;
    int64_t max_query_len = 0, max_seq_len = 0, max_drafts = 0;
    // Steps of these shapes come again and again: sizes and bounds are rounded up, so that they are equal. What is more
    // than the parts have are inactive sequences, which change nothing.
    bool repeats = false;
  };
  struct Step {
    Batch batch;
    bool repeats;
    int64_t rows;  // of the parts; the batch may have more
    StepShape shape;
  };
  Bounds bounds_of(std::span<const Rows> parts, bool mtp) const;
  void round_up(Bounds& bounds) const;
  Step build(std::span<const Rows> parts, bool mtp) { return build(parts, bounds_of(parts, mtp)); }
  Step build(std::span<const Rows> parts, const Bounds& bounds);
  template <class Visit>
  static void visit_images(std::span<const Rows> parts, const Visit& visit);
  template <class F>
  Tensor run(ExecContext& ctx, const Step& step, int64_t pass, const void* input, const F& work);
  Tensor run_forward(const Step& step, Taps* taps);
  Tensor run_draft(const Step& step, int64_t pass, Taps* taps);
  ExecContext context(Taps* taps);
  Tensor gather_rows(ExecContext& ctx, const Tensor& hidden, std::span<const int32_t> rows);
  void keep_step_rows(const Sequence& sequence, int64_t begin, int64_t count, int64_t row);
  void list_step_rows(const Sequence& sequence);
  Tensor all_sampled() const;
  Tensor last_entries(int64_t count) const { return verified_.entry_row.slice(0, 0, count); }
  // Places in kept_rows_.
  int32_t ring_row(const Sequence& sequence, int64_t token) const;
  int32_t row_before(const Sequence& sequence) const;
  int32_t step_row(int64_t row) const;
  void copy_listed_rows(const Tensor& from, Tensor to);

  const CausalLM& model_;
  Backend& backend_;
  RunnerLimits limits_;
  MemoryPlan memory_;
  OneRank communicator_;
  std::unique_ptr<PagePool> pages_;
  std::unique_ptr<SlotPool> slots_;
  ModelCaches caches_;
  Workspace workspace_;
  Tensor workspace_memory_;
  RecordedSteps recorded_;
  std::optional<UploadRing> uploads_;
  Buffer device_batch_;
  Buffer sampled_;                // tokens by sampled_at
  Buffer verified_memory_;        // of verified_
  ops::VerifiedTokens verified_;  // of accept_ahead, [max_num_seqs]
  struct {
    int32_t sequences = 0;
    std::vector<int32_t> lists;     // Batch::Ahead
  } to_accept_;                     // of accept_ahead, until a batch takes it along
  std::vector<int32_t> unknown_;    // as many as a sequence may have drafts
  std::vector<int32_t> tokens_at_;  // of the rows of forward_ahead
  Buffer logit_rows_;
  std::vector<int32_t> held_logit_rows_;  // what logit_rows_ has
  Buffer image_embeds_;                   // rows of one step that images replace
  Buffer hidden_;                         // of keep_hidden and gather_hidden
  // [lanes, hidden_ring + 1, D]: the last rows of each, and the one before those of the last step. Then those of the
  // last forward, [max_num_batched_tokens, D].
  Buffer kept_rows_;
  Tensor kept_;                               // all of them
  Tensor ring_;                               // [lanes, hidden_ring, D] of them
  std::vector<int32_t> from_rows_, to_rows_;  // of copy_listed_rows, filled before it
  Buffer lists_;
  std::vector<int32_t> free_lanes_;
  struct StepRows {  // which rows of the last forward are the tokens [begin, end) of a lane's sequence
    uint64_t step = 0;
    int64_t begin = 0, end = 0, row = 0;
    bool row_before = false;  // that of token begin - 1 is there
  };
  const StepRows* step_rows(const Sequence& sequence) const;
  std::vector<StepRows> step_rows_;  // of each lane; of the last step where it had more rows than the ring holds
  uint64_t steps_ = 0;
  std::vector<Rows> rows_;           // of one batch; kept for its memory
  std::vector<std::byte> host_row_;  // of read_row
  std::vector<float> row_values_;
  Watch watch_;
  size_t after_forward_ = 0;  // workspace mark: logits of the same step are allocated from here again
};

}  // namespace calandra
