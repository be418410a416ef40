#include "ops/sampling.h"

#include "ops/backend.h"
#include "ops/shapes.h"

namespace calandra::ops {
namespace {

void check_range(ListRange range, size_t size) {
  CHECK_GE(range.begin, 0);
  CHECK_LE(range.begin, range.end);
  CHECK_LE(static_cast<size_t>(range.end), size);
}

void check_rows(const Tensor& logits, const SamplingBatch& batch) {
  const Dims d = match_shapes("sample", {{logits, "N V", DType::kF32}});
  const int64_t V = d["V"];
  if (!batch.token_ids.empty()) CHECK_EQ(static_cast<int64_t>(batch.token_ids.size()), V);
  const int64_t ids = batch.token_ids.empty() ? V : batch.token_ids.back() + int64_t{1};
  const int64_t mask_words = (ids + 31) / 32;
  for (const SamplingRow& row : batch.rows) {
    CHECK_GE(row.logit_row, 0);
    CHECK_LT(row.logit_row, d["N"]);
    check_range(row.counts, batch.counts.size());
    check_range(row.bias, batch.bias.size());
    check_range(row.allowed, batch.ids.size());
    check_range(row.forbidden, batch.ids.size());
    check_range(row.logprob_ids, batch.ids.size());
    if (row.moved_by >= 0) CHECK_LT(row.moved_by, batch.moves.size(0));
    if (row.grammar >= 0) CHECK_LE(row.grammar + mask_words, static_cast<int64_t>(batch.grammar.size()));
  }
}

}  // namespace

void SamplingBatch::clear() {
  rows.clear();
  counts.clear();
  bias.clear();
  ids.clear();
  grammar.clear();
  token_ids = {};
  moves = {};
}

void sample(ExecContext& ctx, const Tensor& logits, const SamplingBatch& batch, SamplingResult& result) {
  check_rows(logits, batch);
  CHECK(!batch.moves);
  result.rows.resize(batch.rows.size());
  if (ctx.dry_run) return;
  ctx.backend.sample(ctx, logits, batch, result);
}

bool start_sample(ExecContext& ctx, const Tensor& logits, const SamplingBatch& batch, int flight, Tensor& tokens) {
  check_rows(logits, batch);
  match_shapes("start_sample", {{tokens, "R", DType::kI32}});
  CHECK_EQ(tokens.size(0), std::ssize(batch.rows));
  CHECK(flight >= 0 && flight < kSamplesAtOnce);
  return ctx.backend.start_sample(ctx, logits, batch, flight, tokens);
}

void finish_sample(ExecContext& ctx, const SamplingBatch& batch, int flight, SamplingResult& result) {
  result.rows.resize(batch.rows.size());
  ctx.backend.finish_sample(ctx, batch, flight, result);
}

void complete_batch(ExecContext& ctx, const Tensor& sampled, const Batch& batch, SlotCounts& slots,
                    VerifiedTokens& verified) {
  const Scope scope("complete_batch");
  match_shapes("complete_batch", {{sampled, "R", DType::kI32},
                                  {batch.token_ids, "T", DType::kI32},
                                  {batch.token_index, "T", DType::kI32},
                                  {batch.row_sequence, "T", DType::kI32},
                                  {batch.positions, "3 T", DType::kI32},
                                  {batch.seq_len, "all", DType::kI32},
                                  {batch.active, "all", DType::kI32},
                                  {batch.ahead.sampled_at, "T", DType::kI32},
                                  {batch.ahead.counts, "2", DType::kI32},
                                  {batch.ahead.lists, "L", DType::kI32},
                                  {slots.accepted, "slots", DType::kI32},
                                  {verified.accepted, "B", DType::kI32},
                                  {verified.active, "B", DType::kI32},
                                  {verified.last, "most", DType::kI32},
                                  {verified.entry_row, "B", DType::kI32}});
  if (batch.mtp.positions) match_shapes("complete_batch", {{batch.mtp.positions, "3 T", DType::kI32}});
  if (!ctx.dry_run && batch.rows() > 0) ctx.backend.complete_batch(ctx, sampled, batch, slots, verified);
}

}  // namespace calandra::ops
