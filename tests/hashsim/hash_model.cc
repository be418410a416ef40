#include "tests/hashsim/hash_model.h"

#include <algorithm>
#include <limits>

#include "tests/hashsim/hash_layout.h"

namespace calandra::hashsim {
namespace {

const int32_t* ints(const Tensor& tensor) { return tensor.as<int32_t>(); }

// One word per row, in the workspace.
class Words {
 public:
  Words(ExecContext& ctx, int64_t rows) : words_(ctx.workspace.alloc(DType::kI64, {rows})) {}
  uint64_t* data() const { return reinterpret_cast<uint64_t*>(words_.as<int64_t>()); }

 private:
  Tensor words_;
};

// tau of every row
void token_hashes(const HashModelConfig& config, const Batch& batch, uint64_t* tau) {
  const int64_t T = batch.rows();
  std::fill_n(tau, T, 0);
  if (batch.image_rows) {
    const int64_t D = batch.image_embeds.size(1);
    for (int64_t i = 0; i < batch.image_rows.size(0); ++i)
      tau[ints(batch.image_rows)[i]] = image_hash(batch.image_embeds.as<float>() + i * D, D);
  }
  for (int64_t t = 0; t < T; ++t)
    tau[t] = token_hash(config.seed, ints(batch.token_ids)[t], ints(batch.token_index)[t], tau[t]);
}

uint64_t position_of(const Tensor& positions, int64_t t) {
  const int32_t* p = ints(positions);
  const int64_t T = positions.size(1);
  return position_hash(p[t], p[T + t], p[2 * T + t]);
}

// Stores the key of every row, then gives each row A: the rolling sum of the entries [first_key, its token index] of
// its sequence, read from the pages.
void store_and_attend(PageWords pages, const Batch& batch, const Tensor& first_key, const uint64_t* key, uint64_t* A) {
  const int64_t page_tokens = pages.page_tokens(), P = batch.block_table.size(1);
  const int32_t* index = ints(batch.token_index);
  const auto for_active = [&](auto&& run) {
    for (int64_t b = 0; b < batch.sequences(); ++b)
      if (ints(batch.active)[b])
        run(b, ints(batch.block_table) + b * P, ints(batch.query_start)[b], ints(batch.query_start)[b + 1]);
  };
  for_active([&](int64_t, const int32_t* table, int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      CHECK_LT(index[t], P * page_tokens);
      pages.put(table[index[t] / page_tokens], index[t] % page_tokens, key[t]);
    }
  });
  for_active([&](int64_t b, const int32_t* table, int64_t begin, int64_t end) {
    const int64_t first = first_key ? ints(first_key)[b] : 0;
    int64_t next = first;  // the first key that is not in the sum
    uint64_t sum = 0;
    for (int64_t t = begin; t < end; ++t) {
      if (index[t] + 1 < next) next = first, sum = 0;
      while (next <= index[t]) {
        const int32_t page = table[next / page_tokens];
        const int64_t from = next % page_tokens;
        const int64_t to = std::min(page_tokens, from + index[t] + 1 - next);
        for (int64_t slot = from; slot < to; ++slot)
          sum = roll(sum, entry_word(pages.key(page, slot), pages.value(page, slot)));
        next += to - from;
      }
      A[t] = sum;
    }
  });
}

// One recurrent layer over all segments: reads tau, rho, key and A of each row, gives R, and the window after the row
// if it is wanted.
struct RecurrentRows {
  const uint64_t *tau, *rho, *key, *A;
  uint64_t* R;
  float* hidden;  // null but in the first block
};

void run_recurrence(SlotWords slots, const Tensor& accepted, const Batch& batch, const RecurrentRows& rows) {
  const int64_t S = batch.segments();
  const int32_t *sequence = ints(batch.segment_sequence), *start = ints(batch.segment_start);
  for (int64_t s = 0; s < S; ++s) {
    const int32_t b = sequence[s];
    if (!ints(batch.active)[b] || ints(batch.query_start)[b] == ints(batch.query_start)[b + 1]) continue;
    const bool first = s == 0 || sequence[s - 1] != b, last = s + 1 == S || sequence[s + 1] != b;
    const int32_t src = ints(batch.state_src)[s], dst = ints(batch.state_dst)[s];
    const int64_t drafts = start[s + 1] - (last ? ints(batch.draft_count)[b] : 0);
    CHECK_GE(drafts, start[s]);

    RecurrentState state;
    if (src >= 0) state = slots.load(src);
    const int64_t folded = first && src >= 0 ? ints(accepted)[src] : 0;
    CHECK_LE(folded, slots.capacity());
    for (int64_t j = 0; j < folded; ++j) state.fold(slots.pending_tau(src, j), slots.pending(src, j));

    for (int64_t t = start[s]; t <= start[s + 1]; ++t) {
      if (t == drafts) slots.store(dst, state);  // what follows are drafts
      if (t == start[s + 1]) break;
      const uint64_t difference = rows.A[t] - state.next_X(rows.key[t]);
      const RecurrentInput input{convolve(state.window, rows.tau[t]) + difference * kDifference, rows.rho[t],
                                 rows.key[t]};
      rows.R[t] = state.fold(rows.tau[t], input);
      if (t >= drafts) slots.store_pending(dst, t - drafts, rows.tau[t], input);
      if (rows.hidden != nullptr)
        for (int i = 0; i < kWindow; ++i) put_word(rows.hidden + t * kHiddenSize + 4 * (3 + i), state.window[i]);
    }
  }
}

}  // namespace

// The MTP layers: their entries, and results that go on from row to row.
class HashModel::MtpLayers final : public Drafter {
 public:
  explicit MtpLayers(const HashModel& model) : model_(model) {}

  int64_t num_layers() const override { return model_.config_.mtp_layers; }
  std::vector<CacheSpec> cache_specs() const override {
    return std::vector<CacheSpec>(num_layers(), PageWords::spec());
  }
  Tensor logits(ExecContext& ctx, const Tensor& hidden) const override { return model_.logits(ctx, hidden); }
  std::span<const int32_t> token_ids() const override { return {}; }
  StepCost step_cost() const override { return model_.config_.draft_cost; }
  Tensor forward(ExecContext& ctx, const Batch& given, ModelCaches& caches, const Tensor& hidden,
                 int64_t step) const override {
    const HashModelConfig& config = model_.config_;
    Batch batch = given;
    if (model_.before_draft_ && !ctx.dry_run) model_.before_draft_(batch);
    const int64_t T = batch.rows();
    const Tensor out = ctx.workspace.alloc(DType::kF32, {T, kHiddenSize});
    const Words tau(ctx, T), begin(ctx, T), key(ctx, T), A(ctx, T);
    if (ctx.dry_run) return out;
    CHECK_EQ(hidden.size(0), T);
    CHECK_EQ(hidden.size(1), kHiddenSize);
    const Tensor& entries = caches.layers[mtp_layer(config, 0)].paged[0];
    model_.contract_.check_draft(batch, entries.size(0), entries.size(2));

    token_hashes(config, batch, tau.data());
    float* rows = out.as<float>();
    for (int64_t t = 0; t < T; ++t) {
      HiddenRow row = get_hidden(hidden.as<float>() + t * hidden.stride(0));
      begin.data()[t] = entry_begin(row, tau.data()[t], position_of(batch.mtp.positions, t));
      put_hidden(rows + t * kHiddenSize, row);
    }
    for (int64_t layer = 0; layer < num_layers(); ++layer) {
      for (int64_t t = 0; t < T; ++t) key.data()[t] = entry_key(begin.data()[t], layer);
      const PageWords pages(caches.layers[mtp_layer(config, layer)].paged);
      store_and_attend(pages, batch, batch.mtp.first_key, key.data(), A.data());
      if (layer != step % num_layers()) continue;
      for (int64_t t = 0; t < T; ++t) {
        float* to = rows + t * kHiddenSize;
        HiddenRow row = get_hidden(to);
        entry_result(config, row, A.data()[t], layer);
        put_hidden(to, ints(batch.active)[ints(batch.row_sequence)[t]] ? row : HiddenRow{});
      }
    }
    return out;
  }

 private:
  const HashModel& model_;
};

// Every row is the hash of its patches, of their place and of the shape of the image.
class HashModel::VisionTower final : public VisionEncoder {
 public:
  explicit VisionTower(const HashModelConfig& config) : config_(config) {}
  int64_t patch_size() const override { return config_.patch_size; }
  int64_t temporal_patch_size() const override { return config_.temporal_patch_size; }
  int64_t spatial_merge_size() const override { return 2; }
  Tensor forward(ExecContext& ctx, const Tensor& patches, std::span<const PatchGrid> grids) const override {
    const int64_t merged = spatial_merge_size() * spatial_merge_size();
    const Tensor out = ctx.workspace.alloc(DType::kF32, {patches.size(0) / merged, kHiddenSize});
    if (ctx.dry_run) return out;
    const int64_t values = merged * patches.size(1);
    int64_t row = 0;
    for (const PatchGrid& grid : grids) {
      const uint64_t shape =
          mix(mix(static_cast<uint64_t>(grid.t), static_cast<uint64_t>(grid.h)), static_cast<uint64_t>(grid.w));
      for (int64_t i = 0; i < grid.patches() / merged; ++i, ++row) {
        const uint64_t content = image_hash(patches.as<float>() + row * values, values);
        float* to = out.as<float>() + row * kHiddenSize;
        for (int word = 0; word < kHiddenWords; ++word)
          put_word(to + 4 * word, mix(mix(shape, static_cast<uint64_t>(i)), content + static_cast<uint64_t>(word)));
      }
    }
    CHECK_EQ(row, out.size(0));
    return out;
  }

 private:
  const HashModelConfig& config_;
};

HashModel::HashModel(const HashModelConfig& config) : config_(config) {
  CHECK_GT(config.blocks, 0);
  if (config.mtp_layers > 0) drafter_ = std::make_unique<MtpLayers>(*this);
  if (config.vision) vision_ = std::make_unique<VisionTower>(config_);
}

HashModel::~HashModel() = default;

std::vector<CacheSpec> HashModel::cache_specs() const {
  std::vector<CacheSpec> specs;
  for (int64_t block = 0; block < config_.blocks; ++block) {
    specs.push_back(PageWords::spec());
    specs.push_back(SlotWords::spec());
  }
  return specs;
}

Tensor HashModel::forward(ExecContext& ctx, const Batch& given, ModelCaches& caches) const {
  Batch batch = given;
  if (before_forward_ && !ctx.dry_run) before_forward_(batch);
  const int64_t T = batch.rows();
  const Tensor hidden = ctx.workspace.alloc(DType::kF32, {T, kHiddenSize});
  const Words tau_words(ctx, T), rho_words(ctx, T), stream_words(ctx, T), key_words(ctx, T), A_words(ctx, T),
      R_words(ctx, T), first_R_words(ctx, T), difference_words(ctx, T);
  if (ctx.dry_run) return hidden;
  const Tensor& pages = caches.layers[attention_layer(0)].paged[0];
  contract_.check_forward(batch, caches.slots, pages.size(0), pages.size(2));

  uint64_t *tau = tau_words.data(), *rho = rho_words.data(), *stream = stream_words.data(), *key = key_words.data(),
           *A = A_words.data(), *R = R_words.data(), *first_R = first_R_words.data(),
           *differences = difference_words.data();
  for (uint64_t* words : {A, R, differences}) std::fill_n(words, T, 0);
  std::fill_n(hidden.as<float>(), hidden.numel(), 0.0f);
  token_hashes(config_, batch, tau);
  for (int64_t t = 0; t < T; ++t) {
    rho[t] = position_of(batch.positions, t);
    stream[t] = stream_begin(tau[t], rho[t]);
  }
  for (int64_t block = 0; block < config_.blocks; ++block) {
    const Scope scope("block", static_cast<int>(block));
    for (int64_t t = 0; t < T; ++t) key[t] = attention_key(stream[t], block);
    store_and_attend(PageWords(caches.layers[attention_layer(block)].paged), batch, Tensor(), key, A);
    run_recurrence(SlotWords(caches.layers[recurrent_layer(block)].slotted, block), caches.slots.accepted, batch,
                   {tau, rho, key, A, R, block == 0 ? hidden.as<float>() : nullptr});
    if (block == 0) std::copy_n(R, T, first_R);
    for (int64_t t = 0; t < T; ++t) {
      // All layers have the same R; one that has not changes the choice.
      differences[t] = roll(differences[t], R[t] - first_R[t]);
      stream[t] = stream_after(stream[t], A[t], R[t]);
    }
  }
  for (int64_t t = 0; t < T; ++t) {
    if (!ints(batch.active)[ints(batch.row_sequence)[t]]) continue;
    float* to = hidden.as<float>() + t * kHiddenSize;
    const uint64_t choice = differences[t] == 0 ? first_R[t] : mix(first_R[t], differences[t]);
    put_word(to, choice);
    put_word(to + 4, choice);
    put_word(to + 8, stream[t]);
    if (ints(batch.token_ids)[t] == config_.nan_token) to[0] = std::numeric_limits<float>::quiet_NaN();
  }
  return hidden;
}

Tensor HashModel::logits(ExecContext& ctx, const Tensor& hidden) const {
  const int64_t N = hidden.size(0), V = config_.vocab_size;
  const Tensor out = ctx.workspace.alloc(DType::kF32, {N, V});
  if (ctx.dry_run) return out;
  for (int64_t n = 0; n < N; ++n) {
    const float* row = hidden.as<float>() + n * hidden.stride(0);
    const std::span<float> to(out.as<float>() + n * V, static_cast<size_t>(V));
    if (row[0] != row[0])
      std::fill(to.begin(), to.end(), std::numeric_limits<float>::quiet_NaN());
    else
      logits_of(config_, get_word(row), to);
  }
  return out;
}

}  // namespace calandra::hashsim
