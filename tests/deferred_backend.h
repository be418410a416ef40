// A device with a stream, on the CPU: what it is given to do stands in a queue and is done when the host waits for it,
// or a little earlier, as drawn. So a host that reads a result, or changes an input, without waiting is found out.
//   DeferredBackend   the ops that the engine calls itself, uploads, and the sampler in two halves
//   DeferredModel     a model's forward and logits as one piece of work each: their results have their places at once,
//                     by a dry run, and their contents later; its drafter's likewise
// With an odd seed it records steps too: the pieces of work of one, which are put into the queue again.
// A vision tower waits for the queue and runs at once.
#pragma once

#include <algorithm>
#include <array>
#include <deque>
#include <functional>
#include <optional>
#include <utility>
#include <vector>

#include "models/causal_lm.h"
#include "ops/backend.h"

namespace calandra {

class WorkQueue {
 public:
  using Ticket = int64_t;

  // `seed` 0: nothing is done before the host waits.
  explicit WorkQueue(uint64_t seed) : state_(seed), draws_(seed != 0) {}

  Ticket add(std::function<void()> work) {
    if (recording_) {
      recorded_.push_back(std::move(work));
      return done_ + std::ssize(work_);
    }
    work_.push_back(std::move(work));
    const Ticket ticket = done_ + std::ssize(work_);
    if (draws_)
      run_until(done_ + static_cast<Ticket>(draw() % 4 == 0 ? draw() % static_cast<uint64_t>(work_.size() + 1) : 0));
    return ticket;
  }
  Ticket next() const { return done_ + std::ssize(work_) + 1; }
  void run_until(Ticket ticket) {
    emptied_ += done_ < ticket && ticket == done_ + std::ssize(work_);
    while (done_ < ticket && !work_.empty()) {
      const std::function<void()> work = std::move(work_.front());
      work_.pop_front();
      ++done_;
      running_ = true;
      work();
      running_ = false;
    }
  }
  // Done at once, behind all that stands in the queue.
  void run_now(const std::function<void()>& work) {
    run_all();
    running_ = true;
    work();
    running_ = false;
  }
  void run_all() { run_until(done_ + std::ssize(work_)); }
  // All there is to do, for somebody else to do.
  std::deque<std::function<void()>> take_all() {
    done_ += std::ssize(work_);
    return std::exchange(work_, {});
  }
  // Drawn; never with seed 0.
  bool one_in(uint64_t n) { return draws_ && draw() % n == 0; }
  // What `work` adds, instead of adding it.
  std::vector<std::function<void()>> record(const std::function<void()>& work) {
    recording_ = true;
    work();
    recording_ = false;
    return std::exchange(recorded_, {});
  }
  int64_t emptied() const { return emptied_; }  // times that all there was to do was waited for
  bool empty() const { return work_.empty(); }
  bool running() const { return running_; }  // a piece of work: what it calls is done at once

 private:
  uint64_t draw() { return (state_ = state_ * 6364136223846793005u + 1442695040888963407u) >> 33; }

  std::deque<std::function<void()>> work_;
  Ticket done_ = 0;
  int64_t emptied_ = 0;
  bool running_ = false, recording_ = false;
  std::vector<std::function<void()>> recorded_;
  uint64_t state_;
  const bool draws_;
};

// Planted faults.
struct DeferredFaults {
  bool reads_early = false;         // tokens are read before they are there
  bool reads_drafts_early = false;  // those of drafts
  bool reuses_early = false;        // the memory of an upload is written before it was read
  bool puts_early = false;          // the device reads tokens of drafts before they were chosen
  bool always_active = false;       // the row of a sequence that ended runs
  bool copies_early = false;        // a checkpoint is copied before the steps that wrote it
  bool reads_copies_early = false;  // copies of checkpoints are read on the host before they are there
  bool follows_late = false;        // steps do not wait for the copies of checkpoints before them
  bool loses_drafts = false;        // rows of drafts have no token, now and then, as if their logits were not finite
  // Of steps that are launched before the tokens of the one before were read, with drafts:
  bool keeps_count = false;    // the slot's count is the one before the step
  bool first_token = false;    // the sequence goes on with the first token of the step
  bool first_entry = false;    // the first draft is chosen from the row of the first entry
  bool stays_behind = false;   // a pass is where no draft was kept
  bool noise_behind = false;   // a draft has the noise of that place
  bool ended_entries = false;  // passes write the entries of a sequence that ended, where it stood
};

template <class Base>
class DeferredBackend : public Base {
 public:
  template <class... Args>
  explicit DeferredBackend(uint64_t seed, DeferredFaults faults, const Args&... args)
      : Base(args...), queue_(seed), beside_(seed == 0 ? 0 : seed * 3 + 1), faults_(faults), records_(seed % 2 == 1) {}

  WorkQueue& queue() { return queue_; }
  WorkQueue& beside() { return beside_; }

  void* stream() const override { return const_cast<WorkQueue*>(&queue_); }
  void copy_bytes(void* to, const void* from, size_t bytes) override {
    if (!queue_.running()) queue_.run_all();
    Base::copy_bytes(to, from, bytes);
  }
  Backend::UploadId upload(ExecContext&, void* to, const void* from, size_t bytes) override {
    return queue_.add([this, to, from, bytes] { Base::copy_bytes(to, from, bytes); });
  }
  void wait_for_upload(Backend::UploadId id) override {
    if (!faults_.reuses_early) queue_.run_until(id);
  }
  Backend::UploadId uploads() const override { return queue_.next(); }
  Backend::CopyId copy_beside(std::span<const Backend::CopyBeside> copies, Backend::UploadId behind) override {
    return beside_.add([this, list = std::vector(copies.begin(), copies.end()), before = behind - 1] {
      if (!faults_.copies_early) queue_.run_until(before);
      for (const Backend::CopyBeside& copy : list) Base::copy_bytes(copy.to, copy.from, copy.bytes);
    });
  }
  void wait_for_copies(Backend::CopyId id) override {
    if (!faults_.reads_copies_early) beside_.run_until(id);
  }
  void follow_copies() override {
    if (!faults_.follows_late) queue_.add([this, all = beside_.next() - 1] { beside_.run_until(all); });
  }
  bool records() const override { return records_; }
  std::unique_ptr<Backend::Recording> record(ExecContext&, const std::function<void()>& work) override {
    return std::make_unique<Again>(queue_, queue_.record(work));
  }
  void gather_rows(ExecContext& ctx, const Tensor& x, const Tensor& rows, Tensor& out) override {
    later([this, ctx, x, rows, out]() mutable { Base::gather_rows(ctx, x, rows, out); });
  }
  void copy_rows(ExecContext& ctx, const Tensor& from, const Tensor& from_rows, Tensor& to,
                 const Tensor& to_rows) override {
    later([=, this]() mutable { Base::copy_rows(ctx, from, from_rows, to, to_rows); });
  }
  void commit_slots(ExecContext& ctx, const Tensor& hidden, SlotCounts& slots, Tensor& ring,
                    const Batch& batch) override {
    later([=, this]() mutable { Base::commit_slots(ctx, hidden, slots, ring, batch); });
  }
  void sample(ExecContext& ctx, const Tensor& logits, const ops::SamplingBatch& batch,
              ops::SamplingResult& out) override {
    queue_.run_all();
    Base::sample(ctx, logits, batch, out);
  }
  bool start_sample(ExecContext& ctx, const Tensor& logits, const ops::SamplingBatch& batch, int flight,
                    Tensor& tokens) override {
    if (queue_.one_in(16)) return false;  // as if there were no memory for it
    Flight& f = flights_[static_cast<size_t>(flight)];
    const bool lost = faults_.loses_drafts && flight > 0 && queue_.one_in(4);
    f.sampled = queue_.add([=, this, &f, batch = batch]() mutable {
      for (ops::SamplingRow& row : batch.rows)
        if (faults_.noise_behind) row.moved_by = -1;
      f.result.rows.resize(batch.rows.size());
      Base::sample(ctx, logits, batch, f.result);
      for (size_t r = 0; lost && r < batch.rows.size(); r += 2)
        f.result.rows[r].token = -1, f.result.rows[r].status = ops::RowStatus::kNotFinite;
      for (size_t r = 0; r < batch.rows.size(); ++r) tokens.as<int32_t>()[r] = f.result.rows[r].token;
    });
    return true;
  }
  void finish_sample(ExecContext&, const ops::SamplingBatch&, int flight, ops::SamplingResult& out) override {
    Flight& f = flights_[static_cast<size_t>(flight)];
    if (!(flight == 0 ? faults_.reads_early : faults_.reads_drafts_early)) queue_.run_until(f.sampled);
    f.result.rows.resize(out.rows.size());
    out.rows = f.result.rows;
  }
  void complete_batch(ExecContext& ctx, const Tensor& sampled, const Batch& batch, SlotCounts& slots,
                      ops::VerifiedTokens& verified) override {
    const auto ints = [](const Tensor& tensor) { return tensor.template as<int32_t>(); };
    std::vector<int32_t> early;
    if (faults_.puts_early) early.assign(ints(sampled), ints(sampled) + sampled.size(0));
    later([=, this]() mutable {
      const std::vector<int32_t> index(ints(batch.token_index), ints(batch.token_index) + batch.rows());
      const std::vector<int32_t> kept(ints(slots.accepted), ints(slots.accepted) + slots.accepted.numel());
      Base::complete_batch(ctx, sampled, batch, slots, verified);
      if (faults_.keeps_count) std::copy(kept.begin(), kept.end(), ints(slots.accepted));
      const auto* rows = reinterpret_cast<const ops::VerifiedRow*>(ints(batch.ahead.lists));
      for (int32_t b = 0; b < ints(batch.ahead.counts)[0]; ++b) {
        if (faults_.first_token && ints(verified.active)[b]) ints(verified.last)[b] = ints(sampled)[rows[b].row];
        if (faults_.first_entry) ints(verified.entry_row)[b] = rows[b].entry_row;
      }
      for (int64_t t = 0; t < batch.rows(); ++t)
        if (const int32_t at = ints(batch.ahead.sampled_at)[t]; at >= 0)
          ints(batch.token_ids)[t] = std::max(0, faults_.puts_early ? early[at] : ints(sampled)[at]);
      if (ints(batch.ahead.counts)[1] == 0) return;
      if (batch.mtp.positions)
        for (int64_t t = 0; t < batch.rows(); ++t) {
          int32_t& active = ints(batch.active)[ints(batch.row_sequence)[t]];
          if (faults_.stays_behind || (faults_.ended_entries && !active)) ints(batch.token_index)[t] = index[t];
          if (faults_.ended_entries) active = 1;
        }
      for (int64_t b = 0; faults_.always_active && b < batch.sequences(); ++b) ints(batch.active)[b] = 1;
    });
  }

 private:
  class Again final : public Backend::Recording {
   public:
    Again(WorkQueue& queue, std::vector<std::function<void()>> pieces) : queue_(queue), pieces_(std::move(pieces)) {}
    void run(ExecContext&) override {
      for (const std::function<void()>& piece : pieces_) queue_.add(piece);
    }

   private:
    WorkQueue& queue_;
    std::vector<std::function<void()>> pieces_;
  };

  void later(std::function<void()> work) {
    if (queue_.running()) return work();
    queue_.add(std::move(work));
  }

  WorkQueue queue_, beside_;  // the stream; copies of checkpoints
  const DeferredFaults faults_;
  const bool records_;
  struct Flight {
    WorkQueue::Ticket sampled = 0;
    ops::SamplingResult result;
  };
  std::array<Flight, ops::kSamplesAtOnce> flights_;
};

class DeferredModel final : public CausalLM {
 public:
  DeferredModel(const CausalLM& model, WorkQueue& queue) : model_(model), queue_(queue) {
    if (model.vision() != nullptr) vision_.emplace(*model.vision(), queue);
    if (model.drafter() != nullptr) drafter_.emplace(*model.drafter(), *this);
  }

  int64_t vocab_size() const override { return model_.vocab_size(); }
  int64_t hidden_size() const override { return model_.hidden_size(); }
  int64_t max_position_embeddings() const override { return model_.max_position_embeddings(); }
  DType dtype() const override { return model_.dtype(); }
  std::vector<CacheSpec> cache_specs() const override { return model_.cache_specs(); }
  StepCost step_cost() const override { return model_.step_cost(); }
  const Drafter* drafter() const override { return drafter_ ? &*drafter_ : nullptr; }
  const VisionEncoder* vision() const override { return vision_ ? &*vision_ : nullptr; }

  Tensor forward(ExecContext& ctx, const Batch& batch, ModelCaches& caches) const override {
    return later(ctx, [this, batch, &caches](ExecContext& at) { return model_.forward(at, batch, caches); });
  }
  Tensor logits(ExecContext& ctx, const Tensor& hidden) const override {
    return later(ctx, [this, hidden](ExecContext& at) { return model_.logits(at, hidden); });
  }

 private:
  class Draft final : public Drafter {
   public:
    Draft(const Drafter& drafter, const DeferredModel& model) : drafter_(drafter), model_(model) {}
    int64_t num_layers() const override { return drafter_.num_layers(); }
    std::vector<CacheSpec> cache_specs() const override { return drafter_.cache_specs(); }
    StepCost step_cost() const override { return drafter_.step_cost(); }
    std::span<const int32_t> token_ids() const override { return drafter_.token_ids(); }
    Tensor forward(ExecContext& ctx, const Batch& batch, ModelCaches& caches, const Tensor& hidden,
                   int64_t step) const override {
      return model_.later(ctx, [this, batch, &caches, hidden, step](ExecContext& at) {
        return drafter_.forward(at, batch, caches, hidden, step);
      });
    }
    Tensor logits(ExecContext& ctx, const Tensor& hidden) const override {
      return model_.later(ctx, [this, hidden](ExecContext& at) { return drafter_.logits(at, hidden); });
    }

   private:
    const Drafter& drafter_;
    const DeferredModel& model_;
  };
  class Vision final : public VisionEncoder {
   public:
    Vision(const VisionEncoder& tower, WorkQueue& queue) : tower_(tower), queue_(queue) {}
    int64_t patch_size() const override { return tower_.patch_size(); }
    int64_t temporal_patch_size() const override { return tower_.temporal_patch_size(); }
    int64_t spatial_merge_size() const override { return tower_.spatial_merge_size(); }
    Tensor forward(ExecContext& ctx, const Tensor& patches, std::span<const PatchGrid> grids) const override {
      Tensor rows;
      queue_.run_now([&] { rows = tower_.forward(ctx, patches, grids); });
      return rows;
    }

   private:
    const VisionEncoder& tower_;
    WorkQueue& queue_;
  };

  template <class F>
  Tensor later(ExecContext& ctx, const F& work) const {
    if (ctx.dry_run) return work(ctx);
    const Workspace::Place begin = ctx.workspace.place();
    ExecContext dry = ctx;
    dry.dry_run = true;
    const Tensor promised = work(dry);
    queue_.add([ctx, begin, work, promised]() mutable {
      const Workspace::Place now = ctx.workspace.place();
      ctx.workspace.go_to(begin);
      CHECK(work(ctx).data() == promised.data());
      ctx.workspace.go_to(now);
    });
    return promised;
  }

  const CausalLM& model_;
  WorkQueue& queue_;
  std::optional<Vision> vision_;
  std::optional<Draft> drafter_;
};

}  // namespace calandra
