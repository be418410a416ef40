// What only a device shows: its errors, its memory, and sizes at which its kernels take other paths. Skipped without
// one.
#include "backends/cuda/plugin_loader.h"
#include "base/error.h"
#include "tests/ops/op_setting.h"

namespace calandra {
namespace {

using Results = std::vector<Tensor>;

class Cuda : public testing::Test {
 protected:
  void SetUp() override {
    (void)backends_under_test();  // memory of tests that the device reaches
    OpenedCuda opened = open_cuda_backend({.synchronous = true});
    if (opened.backend == nullptr) GTEST_SKIP() << "skipped: " << opened.why_not;
    device = std::make_unique<OpRunner>(std::move(opened.backend));
  }
  Batch batch_with_pages(const std::vector<SequenceStep>& steps, int64_t page, int64_t& pages) {
    Batch batch = batch_of(pool, steps);
    const int64_t each = (batch.max_seq_len + page - 1) / page, B = batch.sequences();
    pages = each * B;
    batch.block_table = pool.zeros(DType::kI32, {B, each});
    for (int64_t i = 0; i < pages; ++i) batch.block_table.as<int32_t>()[i] = static_cast<int32_t>(pages - 1 - i);
    return batch;
  }

  TensorPool pool;
  std::unique_ptr<OpRunner> device;
  OpRunner reference{std::make_unique<ReferenceBackend>()};
};

TEST_F(Cuda, MemoryOfTheDeviceIsZeroedAndCopied) {
  Backend& backend = device->backend();
  const Buffer a = backend.allocate(1 << 20), b = backend.allocate(1 << 20), pinned = backend.allocate_host(1 << 20);
  EXPECT_EQ(a.device().kind, DeviceKind::kCuda);
  EXPECT_EQ(pinned.device().kind, DeviceKind::kCpu);
  std::vector<std::byte> out(1 << 20, std::byte{1}), in(1 << 20);
  backend.copy_bytes(out.data(), a.data(), out.size());
  EXPECT_EQ(out, std::vector<std::byte>(1 << 20));
  for (size_t i = 0; i < in.size(); ++i) in[i] = static_cast<std::byte>(i * 2654435761u >> 13);
  backend.copy_bytes(a.data(), in.data(), in.size());
  backend.copy_bytes(b.data(), a.data(), in.size());
  backend.copy_bytes(pinned.data(), b.data(), in.size());
  backend.copy_bytes(out.data(), pinned.data(), in.size());
  EXPECT_EQ(out, in);
}

TEST_F(Cuda, TooMuchMemoryIsALoadErrorAndNothingBreaks) {
  for (int i = 0; i < 2; ++i) {
    try {
      device->backend().allocate(size_t{1} << 50);
      FAIL();
    } catch (const LoadError& error) {
      EXPECT_NE(std::string(error.what()).find("out of memory on CUDA device"), std::string::npos) << error.what();
    }
    EXPECT_EQ(device->backend().allocate(4096).bytes(), 4096u);
  }
}

using CudaDeathTest = Cuda;

// Every call of an op is checked: whichever fails ends the process with the name of its op.
TEST_F(CudaDeathTest, AFailedCallNamesItsOp) {
  testing::FLAGS_gtest_death_test_style = "threadsafe";
  const Tensor x = random(pool, DType::kBF16, {3, 64}, 1), w = random(pool, DType::kF32, {64}, 2);
  const auto norm = [&](int64_t fail_call) {
    OpRunner on(open_cuda_backend({.synchronous = true, .fail_call = fail_call}).backend);
    on.run([&](ExecContext& ctx) { return ops::rms_norm(ctx, x, w, 1e-6f, 0); });
  };
  norm(100);  // none of its calls
  EXPECT_DEATH(norm(1), "cudaErrorUnknown(.|\n)*in rms_norm");
  EXPECT_DEATH(norm(2), "cudaStreamSynchronize(.|\n)*in rms_norm");
}

TEST_F(Cuda, PlansWithTheMemoryOfTheDevice) {
  EXPECT_GT(device->backend().memory_bytes(), size_t{1} << 30);
  EXPECT_LT(device->backend().memory_bytes(), size_t{1} << 40);
}

// Logits of a release's vocabulary stay on the device: one launch, and what the reference says.
TEST_F(Cuda, SamplesOnTheDevice) {
  constexpr int64_t kRows = 3, kV = 248320;
  const Tensor logits = random(pool, DType::kF32, {kRows, kV}, 1, 12);
  ops::SamplingBatch batch;
  for (int i = 0; i < 48; ++i) {
    ops::SamplingRow row;
    row.logit_row = i % kRows;
    row.seed = static_cast<uint64_t>(i);
    row.temperature = i % 4 == 0 ? 0.0f : 0.6f;
    row.top_k = i % 2 == 0 ? 20 : 0;
    row.top_p = i % 3 == 0 ? 1.0f : 0.95f;
    row.num_logprobs = i % 5 == 0 ? 20 : ops::kNoLogprobs;
    batch.rows.push_back(row);
  }
  const auto sample = [&](OpRunner& on) {
    return on.run([&](ExecContext& ctx) {
      ops::SamplingResult result;
      ops::sample(ctx, logits, batch, result);
      return result.rows;
    });
  };
  const uint32_t before = device->backend().launches();
  const auto got = sample(*device), want = sample(reference);
  EXPECT_EQ(device->backend().launches(), before + 1);
  for (size_t r = 0; r < want.size(); ++r) {
    EXPECT_EQ(got[r].token, want[r].token) << r;
    EXPECT_EQ(std::bit_cast<uint32_t>(got[r].logprobs.logprob), std::bit_cast<uint32_t>(want[r].logprobs.logprob)) << r;
  }
}

// Sizes of released models; rows on both sides of every border between kernels.
TEST_F(Cuda, LinearOfReleasedSizes) {
  for (const auto& [N, K] : {std::pair<int64_t, int64_t>{1024, 1024}, {48, 5120}, {512, 3584}}) {
    const Tensor w = random(pool, DType::kBF16, {N, K}, 2, 0.05f), all = random(pool, DType::kBF16, {200, K}, 1);
    const PackedWeight got = device->weight(w), want = reference.weight(w);
    const auto linear = [&](OpRunner& on, const PackedWeight& weight, int64_t T) {
      return on.run([&](ExecContext& ctx) { return ops::linear(ctx, all.slice(0, 0, T), weight, DType::kF32); });
    };
    const Tensor whole = linear(*device, got, 200), truth = linear(reference, want, 200);
    EXPECT_TRUE(close_to(whole, truth, {.reduction = K}, "linear", "cuda"));
    for (const int64_t T : {1, 7, 8, 9, 16, 17, 31, 33, 64, 65, 127, 129})
      EXPECT_EQ(row_bytes(linear(*device, got, T)), row_bytes(whole, 0, T)) << "rows " << T << " of K " << K;
  }
}

// More keys than one range: few rows have a block for each, many rows one for all of them.
TEST_F(Cuda, AttentionOverManyKeys) {
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    constexpr int64_t kH = 4, kHkv = 1, kDh = 256, kFirst = 1500, kRows = 320;
    const SequenceStep store{.stream = 1, .first = 0, .segments = {kFirst + kRows}, .slots = {}};
    int64_t pages = 0;
    const Batch storing = batch_with_pages({store}, 16, pages);
    const Tensor k = random(pool, dtype, {kFirst + kRows, kHkv, kDh}, 1),
                 v = random(pool, dtype, {kFirst + kRows, kHkv, kDh}, 2), q = random(pool, dtype, {kRows, kH, kDh}, 3);
    KvPages kv{pool.zeros(dtype, {pages, kHkv, 16, kDh}), pool.zeros(dtype, {pages, kHkv, 16, kDh})};
    device->run([&](ExecContext& ctx) {
      ops::store_kv(ctx, k, v, kv, storing);
      return 0;
    });
    const auto attend = [&](OpRunner& on, int64_t begin, int64_t end, const std::vector<int32_t>& first_key) {
      Batch batch = batch_of(pool, {{.stream = 1,
                                     .first = static_cast<int>(kFirst + begin),
                                     .segments = {static_cast<int>(end - begin)},
                                     .slots = {}}});
      batch.block_table = storing.block_table;
      const Tensor first = first_key.empty() ? Tensor() : pool.ints(first_key);
      return on.run(
          [&](ExecContext& ctx) { return ops::paged_attention(ctx, q.slice(0, begin, end), kv, batch, 0.06f, first); });
    };
    for (const std::vector<int32_t>& first_key : {std::vector<int32_t>{}, {700}}) {
      const Tensor whole = attend(*device, 0, kRows, first_key);
      for (const int64_t row : {0, 35, 36, 37, 319})
        EXPECT_EQ(row_bytes(attend(*device, row, row + 1, first_key)), row_bytes(whole, row, row + 1)) << row;
      const Tensor few = attend(*device, 30, 40, first_key);
      EXPECT_EQ(row_bytes(few), row_bytes(whole, 30, 40));
      EXPECT_TRUE(
          close_to(few, attend(reference, 30, 40, first_key), {.reduction = kDh + 1800}, "paged_attention", "cuda"));
    }
  }
}

// The same over latents.
TEST_F(Cuda, LatentAttentionOverManyKeys) {
  constexpr int64_t kH = 8, kL = 512, kR = 64, kD = 32, kFirst = 1100, kRows = 300;
  const DType dtype = DType::kBF16;
  const SequenceStep store{.stream = 1, .first = 0, .segments = {kFirst + kRows}, .slots = {}};
  int64_t count = 0;
  const Batch storing = batch_with_pages({store}, 16, count);
  const Tensor latent = random(pool, dtype, {kFirst + kRows, kL}, 1),
               k_pe = random(pool, dtype, {kFirst + kRows, kR}, 2), q_nope = random(pool, dtype, {kRows, kH, kD}, 3),
               q_pe = random(pool, dtype, {kRows, kH, kR}, 4);
  LatentPages pages{pool.zeros(dtype, {count, 16, kL}), pool.zeros(dtype, {count, 16, kR})};
  device->run([&](ExecContext& ctx) {
    ops::store_latent(ctx, latent, k_pe, pages, storing);
    return 0;
  });
  const auto grouped = [&](OpRunner& on, int64_t N, int64_t K, int seed) {
    const Tensor all = random(pool, dtype, {kH * N, K}, seed, 0.1f);
    const PackedWeight packed = on.weight(all);
    return GroupedWeight{.E = kH, .N = N, .K = K, .dtype = dtype, .packed = packed.packed.view({kH, -1}), .block_k = 0};
  };
  const auto attend = [&](OpRunner& on, int64_t begin, int64_t end) {
    Batch batch = batch_of(pool, {{.stream = 1,
                                   .first = static_cast<int>(kFirst + begin),
                                   .segments = {static_cast<int>(end - begin)},
                                   .slots = {}}});
    batch.block_table = storing.block_table;
    const ops::LatentUpProjection up{grouped(on, kL, kD, 5), grouped(on, kD, kL, 6)};
    return on.run([&](ExecContext& ctx) {
      return ops::latent_attention(ctx, q_nope.slice(0, begin, end), q_pe.slice(0, begin, end), up, pages, batch, 0.1f);
    });
  };
  const Tensor whole = attend(*device, 0, kRows);
  for (const int64_t row : {0, 299})
    EXPECT_EQ(row_bytes(attend(*device, row, row + 1)), row_bytes(whole, row, row + 1)) << row;
  EXPECT_TRUE(close_to(whole.slice(0, 0, 2), attend(reference, 0, 2), {.c = 16, .reduction = kD + kL + kR + 1400},
                       "latent_attention", "cuda"));
}

// State heads of the releases, over more rows than are staged at once.
TEST_F(Cuda, DeltaRuleOfReleasedSizes) {
  constexpr int64_t kT = 70, kHk = 2, kHv = 4, kD = 128;
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    const Tensor q = random(pool, dtype, {kT, kHk, kD}, 1), k = random(pool, dtype, {kT, kHk, kD}, 2),
                 v = random(pool, dtype, {kT, kHv, kD}, 3), g = random(pool, DType::kF32, {kT, kHv}, 4, 0.2f, -0.2f),
                 beta = random(pool, DType::kF32, {kT, kHv}, 5, 0.5f, 0.5f), accepted = pool.ints({0});
    const auto run = [&](OpRunner& on) {
      DeltaState state{pool.zeros(DType::kF32, {1, kHv, kD, kD}), pool.zeros(DType::kF32, {1, 1, kHk, kD}),
                       pool.zeros(DType::kF32, {1, 1, kHv, kD}), pool.zeros(DType::kF32, {1, 1, kHv}),
                       pool.zeros(DType::kF32, {1, 1, kHv})};
      const Batch batch = batch_of(pool, {{.stream = 1, .first = 0, .segments = {kT}, .slots = {-1, 0}}});
      const Tensor y = on.run(
          [&](ExecContext& ctx) { return ops::gated_delta_rule(ctx, q, k, v, g, beta, state, accepted, batch); });
      return Results{y, state.S};
    };
    const Results got = run(*device), want = run(reference);
    for (size_t i = 0; i < got.size(); ++i)
      EXPECT_TRUE(close_to(got[i], want[i], {.c = 16, .reduction = kT + kD}, "gated_delta_rule", "cuda")) << i;
  }
}

}  // namespace
}  // namespace calandra
