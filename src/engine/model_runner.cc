#include "engine/model_runner.h"

#include <algorithm>

#include "engine/batch_layout.h"

namespace calandra {
namespace {

constexpr size_t kSmallUploads = 1 << 17;  // of two steps: logit rows, counts

RunnerLimits complete(RunnerLimits limits) {
  CHECK_GT(limits.max_num_seqs, 0);
  CHECK_GT(limits.block_size, 0);
  CHECK(limits.hidden_ring == 0 || limits.hidden_ring > limits.pending_capacity);
  limits.max_num_batched_tokens = std::max(limits.max_num_batched_tokens, limits.max_num_seqs);
  if (limits.num_blocks == 0)
    limits.num_blocks = limits.max_num_seqs * pages_for(limits.max_model_len, limits.block_size);
  if (limits.num_state_slots == 0) limits.num_state_slots = limits.max_num_seqs;
  return limits;
}

// What accept_ahead is told of the sequences.
int64_t accept_ints(const RunnerLimits& limits) {
  constexpr auto kRowInts = static_cast<int64_t>(sizeof(ops::VerifiedRow) / sizeof(int32_t));
  return limits.max_num_seqs * (kRowInts + limits.pending_capacity + ModelRunner::kStopIds);
}

BatchSizes largest_batch(const CausalLM& model, const Backend& backend, const RunnerLimits& limits) {
  const int64_t sequences = ModelRunner::most_sequences(backend, limits);
  return {.rows = limits.max_num_batched_tokens,
          .sequences = sequences,
          .segments = sequences + limits.max_cuts,
          .pages_per_sequence = pages_for(limits.max_model_len, limits.block_size),
          .image_rows = model.vision() != nullptr ? limits.max_num_batched_tokens : 0,
          .mtp = model.drafter() != nullptr,
          .ahead = backend.stream() != nullptr,
          .lists = backend.stream() != nullptr ? accept_ints(limits) : 0};
}

// Of the decoder layers, then of the MTP layers.
std::vector<CacheSpec> cache_specs(const CausalLM& model) {
  std::vector<CacheSpec> specs = model.cache_specs();
  if (model.drafter() != nullptr)
    for (CacheSpec& spec : model.drafter()->cache_specs()) specs.push_back(std::move(spec));
  return specs;
}

int64_t row_bytes(const CausalLM& model) { return model.hidden_size() * static_cast<int64_t>(size_of(model.dtype())); }

// Which rows are copied where, of one copy of hidden rows.
int64_t list_bytes(const CausalLM& model, const RunnerLimits& limits) {
  const bool copies = model.drafter() != nullptr || limits.hidden_ring > 0;
  return copies ? 2 * limits.max_num_batched_tokens * static_cast<int64_t>(sizeof(int32_t)) : 0;
}

// Tokens that launches read on the device: of all flights, then those that accept_ahead found.
int64_t sampled_bytes(const Backend& backend) {
  if (backend.stream() == nullptr) return 0;
  return (ops::kSamplesAtOnce + 1) * ModelRunner::kLogitRows * static_cast<int64_t>(sizeof(int32_t));
}
int64_t batch_bytes(const CausalLM& model, const Backend& backend, const RunnerLimits& limits) {
  return batch_ints(largest_batch(model, backend, limits)) * static_cast<int64_t>(sizeof(int32_t));
}
int64_t verified_bytes(const Backend& backend, const RunnerLimits& limits) {
  return backend.stream() == nullptr ? 0 : 3 * limits.max_num_seqs * static_cast<int64_t>(sizeof(int32_t));
}

// Rows of one step that images replace, the hidden rows that a draft pass reads, and those of the last forward.
int64_t kept_bytes(const CausalLM& model, const RunnerLimits& limits) {
  const int64_t buffers = (model.vision() != nullptr) + (model.drafter() != nullptr) + (limits.hidden_ring > 0);
  return buffers * limits.max_num_batched_tokens * row_bytes(model) + list_bytes(model, limits);
}

int64_t ring_bytes(const CausalLM& model, const RunnerLimits& limits) {
  return limits.hidden_ring == 0 ? 0 : limits.max_num_seqs * (limits.hidden_ring + 1) * row_bytes(model);
}

// From now on others may read the pages below P: entries that were not written there are never written.
void seal_entries(Sequence& s, int64_t P) {
  if (s.mtp_end < P) s.mtp_begin = s.mtp_end = P;
}

// Rotary position of text that would follow the first P tokens, minus its index.
int32_t position_delta(const Sequence& s, int64_t P) {
  if (P >= std::ssize(s.positions)) return s.position_delta;
  const auto& last = s.positions[P - 1];
  return *std::max_element(last.begin(), last.end()) + 1 - static_cast<int32_t>(P);
}

// The workspace that the largest batch needs, found by running it without computing.
Workspace measure(const CausalLM& model, Backend& backend, const RunnerLimits& limits, ModelCaches& caches) {
  Workspace workspace;
  OneRank communicator;
  ExecContext ctx{backend, workspace, communicator};
  ctx.dry_run = true;
  struct NoTaps final : Taps {
    void tap(int, const char*, const Tensor&) override {}
  } no_taps;
  if (limits.taps) ctx.taps = &no_taps;
  BatchSizes sizes = largest_batch(model, backend, limits);
  sizes.image_rows = 0;  // replaced in place
  Batch batch = lay_out(nullptr, sizes, backend.device());
  batch.max_query_len = limits.max_num_batched_tokens;
  batch.max_seq_len = limits.max_model_len;
  batch.max_drafts = limits.pending_capacity;
  backend.plan(ctx, batch);
  const Tensor hidden = model.forward(ctx, batch, caches);
  Tensor ring;
  ops::commit_slots(ctx, hidden, caches.slots, ring, batch);
  const int64_t rows = std::min(ModelRunner::kLogitRows, limits.max_num_batched_tokens);
  const Tensor index(nullptr, DType::kI32, {rows}, backend.device());
  model.logits(ctx, ops::gather_rows(ctx, hidden, index));
  if (model.drafter() != nullptr) {  // a launch of its own
    workspace.reset();
    const Tensor kept(nullptr, model.dtype(), {limits.max_num_batched_tokens, model.hidden_size()}, backend.device());
    const Tensor drafted = model.drafter()->forward(ctx, batch, caches, kept, 0);
    model.logits(ctx, ops::gather_rows(ctx, drafted, index));
  }
  return workspace;
}

// Caches without memory, for the dry run.
ModelCaches shapes_only(const CausalLM& model, const RunnerLimits& limits) {
  const auto no_memory = [](size_t bytes) { return Buffer(nullptr, bytes, Device{}, [](void*, size_t) {}); };
  const std::vector<CacheSpec> specs = cache_specs(model);
  const PagePool pages(specs, 1, limits.block_size, no_memory);
  const SlotPool slots(specs, model.hidden_size(), model.dtype(), 1, limits.pending_capacity, no_memory);
  ModelCaches caches;
  for (size_t layer = 0; layer < specs.size(); ++layer)
    caches.layers.push_back({pages.layer(static_cast<int>(layer)), slots.layer(static_cast<int>(layer))});
  caches.slots = {slots.N(), slots.accepted(), slots.hidden()};
  return caches;
}

}  // namespace

MemoryPlan ModelRunner::plan_memory(const CausalLM& model, Backend& backend, const RunnerLimits& given) {
  const RunnerLimits limits = complete(given);
  ModelCaches caches = shapes_only(model, limits);
  const std::vector<CacheSpec> specs = cache_specs(model);
  MemoryPlan plan;
  plan.pages = limits.num_blocks;
  for (const CacheSpec& spec : specs) plan.page_bytes += spec.bytes_per_token() * limits.block_size;
  plan.slots = limits.num_state_slots;
  plan.slot_bytes = SlotPool::bytes_per_slot(specs, model.hidden_size(), model.dtype(), limits.pending_capacity);
  plan.workspace_bytes = static_cast<int64_t>(measure(model, backend, limits, caches).bytes());
  plan.batch_bytes = batch_bytes(model, backend, limits) + kept_bytes(model, limits) + sampled_bytes(backend) +
                     verified_bytes(backend, limits);
  plan.ring_bytes = ring_bytes(model, limits);
  return plan;
}

ModelRunner::ModelRunner(const CausalLM& model, Backend& backend, const RunnerLimits& limits)
    : model_(model), backend_(backend), limits_(complete(limits)) {
  const Allocate allocate = [&](size_t bytes) { return backend.allocate(bytes); };
  const std::vector<CacheSpec> specs = cache_specs(model);
  pages_ = std::make_unique<PagePool>(specs, limits_.num_blocks, limits_.block_size, allocate);
  slots_ = std::make_unique<SlotPool>(specs, model.hidden_size(), model.dtype(), limits_.num_state_slots,
                                      limits_.pending_capacity, allocate);
  for (size_t layer = 0; layer < specs.size(); ++layer)
    caches_.layers.push_back({pages_->layer(static_cast<int>(layer)), slots_->layer(static_cast<int>(layer))});
  caches_.slots = {slots_->N(), slots_->accepted(), slots_->hidden()};

  const Workspace measured = measure(model, backend, limits_, caches_);
  Buffer workspace = backend.allocate(measured.bytes());
  workspace_memory_ = workspace.tensor(DType::kU8, {static_cast<int64_t>(measured.bytes())});
  workspace_ = Workspace(measured, std::move(workspace));
  device_batch_ = backend.allocate(batch_bytes(model, backend, limits_));
  logit_rows_ = backend.allocate(kLogitRows * sizeof(int32_t));
  const size_t kept = limits_.max_num_batched_tokens * row_bytes(model);
  if (model.vision() != nullptr) image_embeds_ = backend.allocate(kept);
  if (model.drafter() != nullptr) hidden_ = backend.allocate(kept);
  if (limits_.hidden_ring > 0) {
    kept_rows_ = backend.allocate(ring_bytes(model, limits_) + kept);
    kept_ = kept_rows_.tensor(model.dtype(),
                              {static_cast<int64_t>(kept_rows_.bytes()) / row_bytes(model), model.hidden_size()});
    const int64_t lanes = limits_.max_num_seqs, R = limits_.hidden_ring;
    ring_ = kept_.slice(0, 0, lanes * (R + 1)).view({lanes, R + 1, model.hidden_size()}).slice(1, 0, R);
  }
  if (list_bytes(model, limits_) > 0) {
    lists_ = backend.allocate(list_bytes(model, limits_));
    from_rows_.reserve(limits_.max_num_batched_tokens);
    to_rows_.reserve(limits_.max_num_batched_tokens);
  }
  if (backend.stream() != nullptr) {
    sampled_ = backend.allocate(sampled_bytes(backend));
    to_accept_.lists.reserve(accept_ints(limits_));
    verified_memory_ = backend.allocate(verified_bytes(backend, limits_));
    const int64_t B = limits_.max_num_seqs, last = sampled_at(ops::kSamplesAtOnce, 0);
    const Tensor three = verified_memory_.tensor(DType::kI32, {3 * B});
    verified_ = {three.slice(0, 0, B), three.slice(0, B, 2 * B),
                 sampled_.tensor(DType::kI32, {last + kLogitRows}).slice(0, last, last + kLogitRows),
                 three.slice(0, 2 * B, 3 * B)};
    tokens_at_.reserve(limits_.max_num_batched_tokens);
  }
  unknown_.resize(limits_.pending_capacity + 1);
  const size_t largest = std::max({device_batch_.bytes(), logit_rows_.bytes(), lists_.bytes()});
  const size_t of_two_steps =
      backend.stream() == nullptr ? largest : 2 * (device_batch_.bytes() + lists_.bytes()) + kSmallUploads;
  const auto wanted = static_cast<size_t>(limits_.upload_bytes);
  uploads_.emplace(backend, std::max(largest, wanted > 0 ? wanted : of_two_steps));
  for (int64_t lane = limits_.max_num_seqs - 1; lane >= 0; --lane) free_lanes_.push_back(static_cast<int32_t>(lane));
  step_rows_.resize(limits_.max_num_seqs);
  rows_.reserve(limits_.max_num_seqs);
  held_logit_rows_.reserve(kLogitRows);
  memory_ = {limits_.num_blocks,
             pages_->bytes_per_page(),
             limits_.num_state_slots,
             slots_->bytes_per_slot(),
             static_cast<int64_t>(workspace_.bytes()),
             static_cast<int64_t>(device_batch_.bytes()) + kept_bytes(model, limits_) + sampled_bytes(backend) +
                 verified_bytes(backend, limits_),
             ring_bytes(model, limits_)};
}

bool ModelRunner::reserve(Sequence& sequence, int64_t tokens) {
  CHECK_LE(tokens, limits_.max_model_len);
  const int64_t missing = pages_for(tokens, limits_.block_size) - static_cast<int64_t>(sequence.block_table.size());
  if (missing > pages_->free_pages() || (sequence.lane < 0 && !take_lane_and_slot(sequence))) return false;
  for (int64_t i = 0; i < missing; ++i) sequence.block_table.push_back(*pages_->take());
  return true;
}

bool ModelRunner::take_lane_and_slot(Sequence& sequence) {
  if (free_lanes_.empty()) return false;
  const auto slot = slots_->take();
  if (!slot) return false;
  sequence.slot = *slot;
  sequence.lane = free_lanes_.back();
  free_lanes_.pop_back();
  step_rows_[sequence.lane] = {};
  sequence.block_table.reserve(pages_for(limits_.max_model_len, limits_.block_size));  // steps do not allocate
  return true;
}

bool ModelRunner::share_pages(Sequence& sequence, std::span<const int32_t> pages, int64_t P, int64_t tokens) {
  CHECK(sequence.block_table.empty());
  CHECK_LE(P, tokens);
  CHECK_LE(tokens, limits_.max_model_len);
  const int64_t shared = P / limits_.block_size;
  if (pages_for(tokens, limits_.block_size) - shared > pages_->free_pages() || !take_lane_and_slot(sequence))
    return false;
  for (int64_t i = 0; i < shared; ++i) {
    pages_->add_reference(pages[i]);
    sequence.block_table.push_back(pages[i]);
  }
  reserve(sequence, tokens);
  const PagePool::CopyBytes copy = [&](void* to, const void* from, size_t bytes) {
    backend_.copy_bytes(to, from, bytes);
  };
  if (P % limits_.block_size > 0)
    pages_->copy(pages[shared], sequence.block_table[shared], P % limits_.block_size, copy);
  return true;
}

bool ModelRunner::resume(Sequence& s, const Checkpoint& checkpoint, int64_t tokens) {
  CHECK(checkpoint.tier == Tier::kDevice);
  if (!share_pages(s, checkpoint.pages, checkpoint.P, tokens)) return false;
  slots_->add_reference(checkpoint.slot);
  s.source = checkpoint.slot;
  s.computed = checkpoint.P;
  backend_.copy_bytes(&s.accepted, &slots_->accepted().as<int32_t>()[s.source], sizeof s.accepted);
  s.mtp_begin = checkpoint.mtp_begin;
  s.mtp_end = s.computed;
  s.ring_begin = s.computed;
  if (limits_.hidden_ring > 0) load_hidden(s);
  return true;
}

bool ModelRunner::fork(Sequence& from, Sequence& s) {
  CHECK_NE(from.source, from.slot);
  seal_entries(from, from.computed);
  if (!share_pages(s, from.block_table, from.computed, from.computed + 1)) return false;
  slots_->add_reference(from.source);
  s.source = from.source;
  s.computed = from.computed;
  s.accepted = from.accepted;
  s.mtp_begin = from.mtp_begin;
  s.mtp_end = from.computed;
  s.ring_begin = from.ring_begin;
  if (limits_.hidden_ring > 0) copy_ring(from, s);
  return true;
}

void ModelRunner::separate(Sequence& sequence, int32_t fresh_slot) {
  CHECK_EQ(sequence.source, sequence.slot);
  sequence.slot = fresh_slot;
}

Checkpoint ModelRunner::checkpoint(Sequence& s, int64_t P, int32_t slot) {
  CHECK_LE(P, s.computed);
  seal_entries(s, P);
  Checkpoint checkpoint{P, slot, {}, std::min(s.mtp_begin, P), position_delta(s, P)};
  checkpoint.pages.assign(s.block_table.begin(), s.block_table.begin() + pages_for(P, limits_.block_size));
  for (const int32_t page : checkpoint.pages) pages_->add_reference(page);
  return checkpoint;
}

void ModelRunner::release(Sequence& sequence) {
  for (const int32_t page : sequence.block_table) pages_->release(page);
  sequence.block_table.clear();
  if (sequence.source >= 0 && sequence.source != sequence.slot) slots_->release(sequence.source);
  if (sequence.slot >= 0) slots_->release(sequence.slot);
  if (sequence.lane >= 0) free_lanes_.push_back(sequence.lane);
  sequence.source = sequence.slot = sequence.lane = -1;
  sequence.computed = sequence.accepted = 0;
  sequence.mtp_begin = sequence.mtp_end = 1;
  sequence.ring_begin = 0;
}

ExecContext ModelRunner::context(Taps* taps) {
  ExecContext ctx{backend_, workspace_, communicator_, backend_.stream()};
  ctx.taps = taps;
  return ctx;
}

// work(), or what it was when a step of these shapes ran before.
template <class F>
Tensor ModelRunner::run(ExecContext& ctx, const Step& step, int64_t pass, const void* input, const F& work) {
  workspace_.reset();
  if (watch_) watch_(pass, step.shape);
  backend_.plan(ctx, step.batch);
  const Batch& b = step.batch;
  const auto all = [&] {
    if (b.ahead.counts) ops::complete_batch(ctx, all_sampled(), b, caches_.slots, verified_);
    return work();
  };
  const Tensor result =
      step.repeats && ctx.taps == nullptr
          ? recorded_.run(ctx, {pass, b.rows(), b.sequences(), b.max_query_len, b.max_seq_len, b.max_drafts, input},
                          all)
          : all();
  after_forward_ = workspace_.mark();
  return step.rows > 0 && step.rows < b.rows() ? result.slice(0, 0, step.rows) : result;
}

Tensor ModelRunner::run_forward(const Step& step, Taps* taps) {
  ExecContext ctx = context(taps);
  return run(ctx, step, RecordedSteps::kForward, nullptr, [&] {
    const Tensor rows = model_.forward(ctx, step.batch, caches_);
    ops::commit_slots(ctx, rows, caches_.slots, ring_, step.batch);
    return rows;
  });
}

Tensor ModelRunner::forward(std::span<const Part> parts, Taps* taps) {
  CHECK(taps == nullptr || limits_.taps);
  rows_.clear();
  for (const Part& part : parts) {
    const Sequence& s = *part.sequence;
    CHECK_LE(s.computed + part.rows, s.size());
    CHECK_EQ(s.source < 0, s.computed == 0);
    const std::span<const int32_t> drafts =
        part.drafts_at.empty() ? part.drafts : std::span<const int32_t>(unknown_).first(part.drafts_at.size());
    rows_.push_back(
        {s, s.computed, std::span(s.tokens).subspan(s.computed, part.rows), drafts, part.cuts, part.drafts_at});
  }
  const Step step = build(rows_, false);
  ++steps_;
  int64_t row = 0;
  for (const Part& part : parts) {
    const int64_t count = part.rows + part.draft_count();
    keep_step_rows(*part.sequence, part.sequence->computed, count, row);
    row += count;
  }
  copy_listed_rows(kept_, kept_);  // which the step overwrites
  const Tensor hidden = run_forward(step, taps);
  for (const Part& part : parts) {
    Sequence& s = *part.sequence;
    list_step_rows(s);
    s.computed += part.rows;
    if (s.source >= 0 && s.source != s.slot) slots_->release(s.source);
    s.source = s.slot;
    s.accepted = 0;
    ring_written(s, part.draft_count());
  }
  copy_listed_rows(hidden, kept_);
  return hidden;
}

void ModelRunner::accept(Sequence& s, int32_t count) {
  CHECK_EQ(s.source, s.slot);
  s.accepted = count;
  s.computed += count;
  *uploads_->take<int32_t>(1) = count;
  ExecContext ctx = context(nullptr);
  uploads_->send(ctx, &slots_->accepted().as<int32_t>()[s.slot]);
}

std::span<const float> ModelRunner::read_row(const Tensor& row) {
  host_row_.resize(static_cast<size_t>(row.bytes()));
  row_values_.resize(static_cast<size_t>(row.size(0)));
  backend_.copy_bytes(host_row_.data(), row.data(), host_row_.size());
  const auto convert = [&]<class T>(const T* values) {
    for (size_t i = 0; i < row_values_.size(); ++i) row_values_[i] = static_cast<float>(values[i]);
  };
  switch (row.dtype()) {
    case DType::kF32:
      convert(reinterpret_cast<const float*>(host_row_.data()));
      break;
    case DType::kBF16:
      convert(reinterpret_cast<const bf16*>(host_row_.data()));
      break;
    default:
      CHECK_MSG(false, "hidden rows are f32 or bf16");
  }
  return row_values_;
}

Tensor ModelRunner::draft(std::span<const DraftPart> parts, const Tensor& hidden, int64_t step, Taps* taps) {
  CHECK(taps == nullptr || limits_.taps);
  CHECK(model_.drafter() != nullptr);
  rows_.clear();
  for (const DraftPart& part : parts) {
    CHECK_GE(part.first_entry, 1);
    rows_.push_back({*part.sequence, part.first_entry, part.token_ids, {}, {}, part.tokens_at, part.verified});
  }
  const Step pass = build(rows_, true);
  CHECK_EQ(hidden.size(0), pass.rows);
  CHECK(hidden.data() == hidden_.data());
  return run_draft(pass, step, taps);
}

// Of the rows in hidden_; behind those of the parts lies what was kept before.
Tensor ModelRunner::run_draft(const Step& step, int64_t pass, Taps* taps) {
  ExecContext ctx = context(taps);
  const Tensor hidden = hidden_.tensor(model_.dtype(), {step.batch.rows(), model_.hidden_size()});
  return run(ctx, step, pass, hidden.data(),
             [&] { return model_.drafter()->forward(ctx, step.batch, caches_, hidden, pass); });
}

// Also of rows that lie one behind the other: without this launch between the recording and the head a step of 0.8B is
// 20 us longer, likely since multiprocessors keep the split of the recording's last kernels
// (bench/results/cuda_small_kernels.md).
Tensor ModelRunner::gather_rows(ExecContext& ctx, const Tensor& hidden, std::span<const int32_t> rows) {
  CHECK_LE(static_cast<int64_t>(rows.size()), kLogitRows);
  if (rows.size() > held_logit_rows_.size() || !std::equal(rows.begin(), rows.end(), held_logit_rows_.begin())) {
    std::copy(rows.begin(), rows.end(), uploads_->take<int32_t>(std::ssize(rows)));
    uploads_->send(ctx, logit_rows_.data());
    held_logit_rows_.assign(rows.begin(), rows.end());
  }
  workspace_.release(after_forward_);
  return ops::gather_rows(ctx, hidden, logit_rows_.tensor(DType::kI32, {std::ssize(rows)}));
}

Tensor ModelRunner::logits(const Tensor& hidden, std::span<const int32_t> rows) {
  ExecContext ctx = context(nullptr);
  return model_.logits(ctx, gather_rows(ctx, hidden, rows));
}

Tensor ModelRunner::draft_logits(const Tensor& hidden, std::span<const int32_t> rows) {
  ExecContext ctx = context(nullptr);
  return model_.drafter()->logits(ctx, gather_rows(ctx, hidden, rows));
}

Tensor ModelRunner::draft_logits(const Tensor& hidden, LastEntries rows) {
  ExecContext ctx = context(nullptr);
  workspace_.release(after_forward_);
  return model_.drafter()->logits(ctx, ops::gather_rows(ctx, hidden, last_entries(rows.count)));
}

void ModelRunner::sample(const Tensor& logits, const ops::SamplingBatch& batch, ops::SamplingResult& result) {
  ExecContext ctx = context(nullptr);
  ops::sample(ctx, logits, batch, result);
}

}  // namespace calandra
