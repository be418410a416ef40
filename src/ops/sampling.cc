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

}  // namespace

void SamplingBatch::clear() {
  rows.clear();
  counts.clear();
  bias.clear();
  ids.clear();
  grammar.clear();
  token_ids = {};
}

void sample(ExecContext& ctx, const Tensor& logits, const SamplingBatch& batch, SamplingResult& result) {
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
    if (row.grammar >= 0) CHECK_LE(row.grammar + mask_words, static_cast<int64_t>(batch.grammar.size()));
  }
  result.rows.resize(batch.rows.size());
  if (ctx.dry_run) return;
  ctx.backend.sample(ctx, logits, batch, result);
}

}  // namespace calandra::ops
