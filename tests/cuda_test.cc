// What only a device shows: its errors, its memory, and sizes at which its kernels take other paths. Skipped without
// one.
#include "backends/cpu/experts_for_test.h"
#include "backends/cuda/plugin_loader.h"
#include "base/error.h"
#include "tests/cuda_fixture.h"

namespace calandra {
namespace {

using Results = std::vector<Tensor>;

class Cuda : public CudaTest {
 protected:
  Batch batch_with_pages(const std::vector<SequenceStep>& steps, int64_t page, int64_t& pages) {
    Batch batch = batch_of(pool, steps);
    const int64_t each = (batch.max_seq_len + page - 1) / page, B = batch.sequences();
    pages = each * B;
    batch.block_table = pool.zeros(DType::kI32, {B, each});
    for (int64_t i = 0; i < pages; ++i) batch.block_table.as<int32_t>()[i] = static_cast<int32_t>(pages - 1 - i);
    return batch;
  }

  OpRunner reference{std::make_unique<ReferenceBackend>()};
};

// The stream writes a buffer again and again; copies beside it take every content away, and put it elsewhere.
TEST_F(Cuda, CopiesBesideTheStreamKeepTheOrder) {
  constexpr size_t kBytes = size_t{32} << 20;
  constexpr int kTimes = 6;
  Backend& backend = device->backend();
  const Buffer source = backend.allocate(kBytes), back = backend.allocate(kBytes),
               inputs = backend.allocate_host(kTimes * kBytes), taken = backend.allocate_host(kTimes * kBytes),
               result = backend.allocate_host(kBytes);
  const auto piece = [&](const Buffer& of, int i) { return static_cast<std::byte*>(of.data()) + i * kBytes; };
  Workspace workspace;
  OneRank rank;
  ExecContext ctx{.backend = backend, .workspace = workspace, .communicator = rank, .stream = backend.stream()};
  std::vector<Backend::CopyId> copies;
  for (int i = 0; i < kTimes; ++i) {
    std::memset(piece(inputs, i), i + 1, kBytes);
    backend.upload(ctx, source.data(), piece(inputs, i), kBytes);
    const Backend::UploadId behind = backend.uploads();
    std::vector<Backend::CopyBeside> halves;
    for (const size_t begin : {size_t{0}, kBytes / 2})
      halves.push_back({piece(taken, i) + begin, static_cast<std::byte*>(source.data()) + begin, kBytes / 2});
    copies.push_back(backend.copy_beside(halves, behind));
    backend.follow_copies();
  }
  const Backend::CopyBeside put{back.data(), piece(taken, kTimes - 1), kBytes};
  backend.copy_beside({&put, 1}, backend.uploads());
  backend.follow_copies();
  backend.copy_bytes(result.data(), back.data(), kBytes);  // in the order of the stream
  for (int i = 0; i < kTimes; ++i) {
    backend.wait_for_copies(copies[static_cast<size_t>(i)]);
    for (const size_t at : {size_t{0}, kBytes / 2 - 1, kBytes / 2, kBytes - 1})
      ASSERT_EQ(piece(taken, i)[at], static_cast<std::byte>(i + 1)) << "copy " << i << " at " << at;
  }
  EXPECT_EQ(std::memcmp(result.data(), piece(taken, kTimes - 1), kBytes), 0);
}

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

TEST_F(Cuda, MemoryThatWasGivenBackIsZeroAgain) {
  constexpr size_t kBytes = (size_t{5} << 20) + 3;
  const std::unique_ptr<Backend> backend = open_cuda_backend({.gives_back = true}).backend;
  const Buffer memory = backend->allocate(kBytes), beside = backend->allocate(1);
  const Tensor all = memory.tensor(DType::kU8, {kBytes});
  const std::vector<std::byte> ones(kBytes, std::byte{1}), zeros(kBytes);
  std::vector<std::byte> found = ones;
  for (int round = 0; round < 2; ++round) {
    backend->copy_bytes(found.data(), all.data(), kBytes);
    EXPECT_EQ(found, zeros);
    backend->copy_bytes(all.data(), ones.data(), kBytes);
    backend->take_back(all);  // it is there
    backend->copy_bytes(found.data(), all.data(), kBytes);
    EXPECT_EQ(found, ones);
    for (int times = 0; times < 2; ++times) backend->give_back(all);
    EXPECT_THROW(backend->allocate(size_t{1} << 40), LoadError);
    backend->take_back(all);
  }
  backend->give_back(beside.tensor(DType::kU8, {1}));  // and is freed so
}

using CudaDeathTest = Cuda;

TEST_F(CudaDeathTest, AFailedCallOfMemoryIsNamed) {
  testing::FLAGS_gtest_death_test_style = "threadsafe";
  const auto use = [](int64_t fail_call) {
    const std::unique_ptr<Backend> backend = open_cuda_backend({.gives_back = true, .fail_call = fail_call}).backend;
    const Buffer memory = backend->allocate(1);
    backend->give_back(memory.tensor(DType::kU8, {1}));
  };
  use(1'000'000);
  EXPECT_DEATH(use(2), "cuMemAddressReserve.*cudaErrorUnknown");
  EXPECT_DEATH(use(4), "cuMemCreate.*cudaErrorUnknown");
  EXPECT_DEATH(use(5), "cuMemMap.*cudaErrorUnknown");
  EXPECT_DEATH(use(7), "cuMemSetAccess.*cudaErrorUnknown");
  EXPECT_DEATH(use(12), "unmap.*cudaErrorUnknown");
}

// Every call of an op is checked: whichever fails ends the process with the name of its op.
TEST_F(CudaDeathTest, AFailedCallNamesItsOp) {
  testing::FLAGS_gtest_death_test_style = "threadsafe";
  const Tensor x = random(pool, DType::kBF16, {3, 64}, 1), w = random(pool, DType::kF32, {64}, 2);
  const auto norm = [&](int64_t fail_call) {
    OpRunner on(open_cuda_backend({.synchronous = true, .fail_call = fail_call}).backend);
    on.run([&](ExecContext& ctx) { return ops::rms_norm(ctx, x, w, 1e-6f, 0); });
  };
  norm(1'000'000);  // none of its calls, nor of those that give back what the backend holds
  EXPECT_DEATH(norm(1), "cudaErrorUnknown(.|\n)*in rms_norm");
  EXPECT_DEATH(norm(2), "cudaStreamSynchronize(.|\n)*in rms_norm");
}

TEST_F(Cuda, PlansWithTheMemoryOfTheDevice) {
  EXPECT_GT(device->backend().memory_bytes(), size_t{1} << 30);
  EXPECT_LT(device->backend().memory_bytes(), size_t{1} << 40);
}

// Logits of a release's vocabulary stay on the device: one launch, and what the reference says. Those of a larger one
// than the sampler's shared memory holds go to the host.
TEST_F(Cuda, SamplesOnTheDevice) {
  constexpr int64_t kRows = 3;
  for (const int64_t V : {248320, 320000, 320001}) {
    const Tensor logits = random(pool, DType::kF32, {kRows, V}, 1, 12);
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
    EXPECT_EQ(device->backend().launches(), before + (V > 320000 ? 0 : 1)) << V;
    for (size_t r = 0; r < want.size(); ++r) {
      EXPECT_EQ(got[r].token, want[r].token) << r;
      EXPECT_EQ(std::bit_cast<uint32_t>(got[r].logprobs.logprob), std::bit_cast<uint32_t>(want[r].logprobs.logprob))
          << r;
    }
  }
}

// More rows than blocks that run at once, which have several then, one behind the other: at most 8 blocks of a
// multiprocessor, each with 8 heads or one row.
TEST_F(Cuda, NormsOfMoreRowsThanRunAtOnce) {
  const struct {
    int64_t T, D;
  } sizes[] = {{9001, 40}, {9001, 129}, {9001, 255}, {5000, 256}, {5000, 264}, {2500, 1031}, {2500, 2050}};
  for (const DType dtype : {DType::kF32, DType::kBF16})
    for (const auto& [T, D] : sizes) {
      const Tensor weight = random(pool, DType::kF32, {D}, 1), x = random(pool, dtype, {T, D}, 2, 3),
                   y = random(pool, dtype, {T, D}, 3);
      const auto norms = [&](OpRunner& on) {
        return on.run([&](ExecContext& ctx) {
          const auto [sum, norm] = ops::add_rms_norm(ctx, x, y, weight, 1e-6f, 1);
          return Results{sum, norm, ops::rms_norm(ctx, x, weight, 1e-6f, 1),
                         ops::gated_rms_norm(ctx, x.view({T, 1, D}), y.view({T, 1, D}), weight, 1e-6f,
                                             ops::GateActivation::kSilu)};
        });
      };
      const Results got = norms(*device), want = norms(reference);
      for (size_t i = 0; i < want.size(); ++i)
        EXPECT_TRUE(close_to(got[i], want[i], {.reduction = D, .roundings = i == 1 ? 2.0 : 1.0},
                             "norm " + std::to_string(i) + " of " + std::to_string(D), "cuda"));
    }
}

// Sizes of released models and ragged ones; rows on both sides of every border between kernels. Up to 16 rows have one
// order of sums, more of them another.
TEST_F(Cuda, LinearOfReleasedSizes) {
  for (const auto& [N, K] :
       {std::pair<int64_t, int64_t>{1024, 1024}, {48, 5120}, {512, 3584}, {257, 1000}, {520, 72}, {9, 4104}}) {
    const Tensor w = random(pool, DType::kBF16, {N, K}, 2, 0.05f), all = random(pool, DType::kBF16, {300, K}, 1);
    const Tensor residual = random(pool, DType::kBF16, {300, N}, 3);
    const PackedWeight got = device->weight(w), want = reference.weight(w);
    const auto linear = [&](OpRunner& on, const PackedWeight& weight, int64_t T) {
      return on.run([&](ExecContext& ctx) { return ops::linear(ctx, all.slice(0, 0, T), weight, DType::kF32); });
    };
    const Tensor few = linear(*device, got, 16), many = linear(*device, got, 300), truth = linear(reference, want, 300);
    EXPECT_TRUE(close_to(few, truth.slice(0, 0, 16), {.reduction = K}, "linear of few rows", "cuda"));
    EXPECT_TRUE(close_to(many, truth, {.reduction = K}, "linear of many rows", "cuda"));
    for (const int64_t T : {1, 7, 8, 9, 16, 17, 31, 33, 64, 65, 127, 129, 257})
      EXPECT_EQ(row_bytes(linear(*device, got, T)), row_bytes(T <= 16 ? few : many, 0, T))
          << "rows " << T << " of K " << K;
    const auto add = [&](OpRunner& on, const PackedWeight& weight) {
      return on.run([&](ExecContext& ctx) { return ops::linear_add(ctx, all, weight, residual); });
    };
    EXPECT_TRUE(
        close_to(add(*device, got), add(reference, want), {.reduction = K, .roundings = 2}, "linear_add", "cuda"));
  }
}

// Rows sorted by expert: experts with no row, with one, and with more than a tile; choices that name no expert.
TEST_F(Cuda, ExpertsOfManyRows) {
  constexpr int64_t kRows = 333, kChoices = 4, kExperts = 12, kN = 136, kK = 192;
  const Tensor w = random(pool, DType::kBF16, {kExperts, kN, kK}, 2, 0.05f);
  Buffer storage[2];
  const GroupedWeight got = group(device->backend(), w, storage[0]), want = group(reference.backend(), w, storage[1]);
  const Tensor chosen = pool.zeros(DType::kI32, {kRows, kChoices});
  for (int i = 0; i < kRows * kChoices; ++i)
    chosen.as<int32_t>()[i] = i % 3 == 0 ? 5 : i == 7 ? 0 : i % 11 == 0 ? -1 : 2 + i % 9;
  for (const bool each : {false, true}) {
    const Tensor x =
        each ? random(pool, DType::kBF16, {kRows, kChoices, kK}, 1) : random(pool, DType::kBF16, {kRows, kK}, 1);
    for (const int64_t T : {33, 333}) {
      const auto run = [&](OpRunner& on, const GroupedWeight& weight) {
        return on.run([&](ExecContext& ctx) {
          return ops::grouped_linear(ctx, x.slice(0, 0, T), weight, chosen.slice(0, 0, T));
        });
      };
      EXPECT_TRUE(close_to(run(*device, got), run(reference, want), {.reduction = kK}, "grouped_linear", "cuda"));
    }
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
    // Up to 16 rows are computed one by one; bf16 rows of a longer chunk share tensor core tiles, which round the
    // weights too: one of the roundings to bf16 for each way to the result.
    const Tolerance tolerance{.reduction = kDh + 1800};
    for (const std::vector<int32_t>& first_key : {std::vector<int32_t>{}, {700}}) {
      const Tensor whole = attend(*device, 0, kRows, first_key), few = attend(*device, 30, 40, first_key),
                   part = attend(*device, 21, 100, first_key);
      EXPECT_EQ(row_bytes(part), row_bytes(whole, 21, 100)) << "cut";
      // Beside many rows, few walk their ranges in one block each.
      Batch mixed = batch_of(pool, {{.stream = 1, .first = kFirst + 30, .segments = {10}, .slots = {}},
                                    {.stream = 1, .first = kFirst, .segments = {kRows}, .slots = {}}});
      mixed.block_table = pool.zeros(DType::kI32, {2, pages});
      for (int64_t i = 0; i < 2 * pages; ++i)
        mixed.block_table.as<int32_t>()[i] = storing.block_table.as<int32_t>()[i % pages];
      const Tensor rows = pool.zeros(dtype, {10 + kRows, kH, kDh});
      std::memcpy(rows.data(), q.slice(0, 30, 40).data(), row_bytes(few).size());
      std::memcpy(rows.slice(0, 10, 10 + kRows).data(), q.data(), row_bytes(whole).size());
      const Tensor starts = first_key.empty() ? Tensor() : pool.ints({first_key[0], first_key[0]});
      const Tensor both =
          device->run([&](ExecContext& ctx) { return ops::paged_attention(ctx, rows, kv, mixed, 0.06f, starts); });
      EXPECT_EQ(row_bytes(both, 0, 10), row_bytes(few));
      EXPECT_EQ(row_bytes(both, 10, 10 + kRows), row_bytes(whole));
      for (const int64_t row : {30, 35, 39})
        EXPECT_EQ(row_bytes(attend(*device, row, row + 1, first_key)), row_bytes(few, row - 30, row - 29)) << row;
      if (dtype == DType::kF32) {
        for (const int64_t row : {0, 35, 36, 37, 319})
          EXPECT_EQ(row_bytes(attend(*device, row, row + 1, first_key)), row_bytes(whole, row, row + 1)) << row;
        EXPECT_EQ(row_bytes(few), row_bytes(whole, 30, 40));
      }
      EXPECT_TRUE(close_to(few, attend(reference, 30, 40, first_key), tolerance, "paged_attention", "cuda"));
      EXPECT_TRUE(close_to(part, attend(reference, 21, 100, first_key), tolerance, "paged_attention", "cuda"));
    }
  }
}

// Sequences of many rows beside such of few, idle ones and grouped heads of every width of tile; keys that nobody may
// read are NaN.
TEST_F(Cuda, AttentionOfChunksInOneBatch) {
  const DType dtype = DType::kBF16;
  for (const auto& [H, Hkv, Dh] : {std::array<int64_t, 3>{4, 2, 64}, {3, 1, 72}, {6, 1, 128}, {8, 2, 256}, {4, 4, 120}})
    for (const int64_t page : {1, 16}) {
      const auto tokens = [](int first, int rows, int active = 1) {
        return SequenceStep{.stream = 1, .first = first, .segments = {rows}, .slots = {}, .active = active};
      };
      const std::vector<SequenceStep> steps = {tokens(0, 35),   tokens(60, 90), tokens(40, 4), tokens(3, 20, 0),
                                               tokens(130, 17), tokens(90, 1),  tokens(0, 0),  tokens(65, 65)};
      const std::vector<int32_t> first_key = {0, 70, 3, 0, 128, 0, 0, 64};
      int64_t pages = 0;
      const Batch batch = batch_with_pages(steps, page, pages);
      KvPages kv{random(pool, dtype, {pages, Hkv, page, Dh}, 1), random(pool, dtype, {pages, Hkv, page, Dh}, 2)};
      const int64_t each = batch.block_table.size(1);
      for (int64_t i = 0; i < pages * page; ++i) {  // token i % (each page) of sequence b
        const int64_t b = i / (each * page), token = i % (each * page),
                      row = batch.block_table.as<int32_t>()[b * each + token / page];
        if (token >= first_key[b] && token < steps[b].first + steps[b].rows()) continue;
        for (const Tensor& x : {kv.k, kv.v})
          for (int64_t n = 0; n < Hkv * Dh; ++n)
            put(x, ((row * Hkv + n / Dh) * page + token % page) * Dh + n % Dh, NAN);
      }
      const Tensor q = random(pool, dtype, {batch.rows(), H, Dh}, 3), first = pool.ints(first_key);
      const auto attend = [&](OpRunner& on) {
        return on.run([&](ExecContext& ctx) { return ops::paged_attention(ctx, q, kv, batch, 0.3f, first); });
      };
      EXPECT_TRUE(close_to(attend(*device), attend(reference), {.reduction = Dh + 150},
                           "paged_attention of heads of " + std::to_string(Dh), "cuda"));
    }
}

// The same over latents.
TEST_F(Cuda, LatentAttentionOverManyKeys) {
  constexpr int64_t kH = 8, kL = 512, kR = 64, kD = 128, kFirst = 1100, kRows = 300;
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
  // Up to 16 rows one by one, more of them on tensor cores.
  const Tensor whole = attend(*device, 0, kRows), few = attend(*device, 0, 10), part = attend(*device, 100, 170);
  for (const int64_t row : {0, 9})
    EXPECT_EQ(row_bytes(attend(*device, row, row + 1)), row_bytes(few, row, row + 1)) << row;
  EXPECT_EQ(row_bytes(part), row_bytes(whole, 100, 170));
  const Tensor want = attend(reference, 0, 2);
  for (const Tensor& got : {whole, few})
    EXPECT_TRUE(
        close_to(got.slice(0, 0, 2), want, {.c = 16, .reduction = kD + kL + kR + 1400}, "latent_attention", "cuda"));
  EXPECT_TRUE(close_to(part.slice(0, 68, 70), attend(reference, 168, 170), {.c = 16, .reduction = kD + kL + kR + 1400},
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

// Prompts go in chunks of 64 rows through tensor cores: segments, drafts, accepted pending inputs and short or idle
// sequences beside them, keys that look in one direction, and the same bits wherever a prompt is cut at a chunk's end.
TEST_F(Cuda, DeltaRuleOfPrompts) {
  constexpr int64_t kHk = 1, kHv = 2, kD = 128, kSlots = 8, kM = 4;
  const DType dtype = DType::kBF16;
  struct Run {
    Tensor y;
    DeltaState state;
  };
  const auto run = [&](OpRunner& on, const std::vector<std::vector<SequenceStep>>& all, float alike) {
    Run result{
        {},
        {random(pool, DType::kF32, {kSlots, kHv, kD, kD}, 1), random(pool, DType::kF32, {kSlots, kM, kHk, kD}, 2, 0.1f),
         random(pool, DType::kF32, {kSlots, kM, kHv, kD}, 3),
         random(pool, DType::kF32, {kSlots, kM, kHv}, 4, 0.2f, -0.2f),
         random(pool, DType::kF32, {kSlots, kM, kHv}, 5, 0.5f, 0.5f)}};
    for (const std::vector<SequenceStep>& steps : all) {
      const Batch batch = batch_of(pool, steps);
      const int64_t T = batch.rows();
      const Tensor x = pool.zeros(dtype, {T, (2 * kHk + kHv) * kD}), g = pool.zeros(DType::kF32, {T, kHv}),
                   beta = pool.zeros(DType::kF32, {T, kHv});
      int64_t row = 0;
      for (const SequenceStep& s : steps)
        for (int t = s.first; t < s.first + s.rows(); ++t, ++row) {
          for (int64_t i = 0; i < x.size(1); ++i)
            set_element(x, row, i, noise(s.stream, t * 1024 + i) + (i < 2 * kHk * kD ? alike * noise(9, i % kD) : 0));
          for (int64_t h = 0; h < kHv; ++h) {
            set_element(g, row, h, 0.05f * (noise(s.stream + 20, t * 8 + h) - 1));
            set_element(beta, row, h, 0.5f + 0.5f * noise(s.stream + 40, t * 8 + h));
          }
        }
      const auto part = [&](int64_t begin, int64_t heads) {
        return x.slice(1, begin * kD, (begin + heads) * kD).view({T, heads, kD});
      };
      const Tensor accepted = pool.ints({2, 1, 3, 0, 3, 1, 3, 0});
      result.y = on.run([&](ExecContext& ctx) {
        return ops::gated_delta_rule(ctx, part(0, kHk), part(kHk, kHk), part(2 * kHk, kHv), g, beta, result.state,
                                     accepted, batch);
      });
    }
    return result;
  };
  const std::vector<SequenceStep> rich = {
      {.stream = 1, .first = 0, .segments = {70, 5, 90}, .drafts = 3, .slots = {0, 2, 4, 0}},
      {.stream = 2, .first = 0, .segments = {5}, .drafts = 2, .slots = {1, 1}},
      {.stream = 3, .first = 0, .segments = {20}, .slots = {5, 5}, .active = 0},
      {.stream = 4, .first = 0, .segments = {64}, .slots = {-1, 3}},
      {.stream = 5, .first = 0, .segments = {18}, .drafts = 2, .slots = {6, 6}}};
  for (const float alike : {0.0f, 1.0f, 3.0f}) {
    const Run got = run(*device, {rich}, alike), want = run(reference, {rich}, alike);
    const Tolerance tolerance{.c = 16, .reduction = 165 + kD};
    EXPECT_TRUE(close_to(got.y, want.y, tolerance, "gated_delta_rule", "cuda")) << alike;
    EXPECT_TRUE(close_to(got.state.S, want.state.S, tolerance, "S", "cuda")) << alike;
    EXPECT_TRUE(close_to(got.state.pending_k, want.state.pending_k, tolerance, "pending", "cuda"));
    EXPECT_EQ(row_bytes(got.state.pending_v), row_bytes(want.state.pending_v));
  }
  const auto rows = [](int first, int count, int from, int to) {
    return std::vector<SequenceStep>{{.stream = 1, .first = first, .segments = {count}, .slots = {from, to}}};
  };
  const Run whole = run(*device, {rows(0, 300, -1, 0)}, 0);
  for (const int cut : {64, 128, 256}) {
    const Run parts = run(*device, {rows(0, cut, -1, 7), rows(cut, 300 - cut, 7, 0)}, 0);
    EXPECT_EQ(row_bytes(parts.y), row_bytes(whole.y, cut, 300)) << cut;
    EXPECT_EQ(row_bytes(parts.state.S, 0, 1), row_bytes(whole.state.S, 0, 1)) << cut;
    const Run segments =
        run(*device, {{{.stream = 1, .first = 0, .segments = {cut, 300 - cut}, .slots = {-1, 7, 0}}}}, 0);
    EXPECT_EQ(row_bytes(segments.y), row_bytes(whole.y)) << cut;
    EXPECT_EQ(row_bytes(segments.state.S, 7, 8), row_bytes(parts.state.S, 7, 8)) << cut;
  }
}

// The same of lightning attention, whose inputs and results are f32: by tensor cores in a model of bf16, and as exactly
// as f32 allows in one of f32.
TEST_F(Cuda, LightningAttentionOfPrompts) {
  constexpr int64_t kH = 2, kD = 128, kSlots = 8, kM = 4;
  const Tensor slope = pool.zeros(DType::kF32, {kH});
  set_element(slope, 0, 0, 0.84f), set_element(slope, 1, 0, 0.004f);
  const auto run = [&](OpRunner& on, const std::vector<SequenceStep>& steps, DType activations) {
    LightningState state{random(pool, DType::kF32, {kSlots, kH, kD, kD}, 1),
                         random(pool, DType::kF32, {kSlots, kM, kH, kD}, 2),
                         random(pool, DType::kF32, {kSlots, kM, kH, kD}, 3)};
    const Batch batch = batch_of(pool, steps);
    const Tensor x = pool.zeros(DType::kF32, {batch.rows(), 3 * kH * kD}),
                 accepted = pool.ints({2, 1, 3, 0, 3, 1, 3, 0});
    int64_t row = 0;
    for (const SequenceStep& s : steps)
      for (int t = s.first; t < s.first + s.rows(); ++t, ++row)
        for (int64_t i = 0; i < x.size(1); ++i) set_element(x, row, i, noise(s.stream, t * 1024 + i));
    const auto part = [&](int i) { return x.slice(1, i * kH * kD, (i + 1) * kH * kD).view({batch.rows(), kH, kD}); };
    const Tensor y = on.run([&](ExecContext& ctx) {
      return ops::lightning_attention(ctx, part(0), part(1), part(2), slope, state, accepted, batch, activations);
    });
    return Results{y, state.S, state.pending_k, state.pending_v};
  };
  const std::vector<SequenceStep> rich = {
      {.stream = 1, .first = 0, .segments = {70, 5, 90}, .drafts = 3, .slots = {0, 2, 4, 0}},
      {.stream = 2, .first = 0, .segments = {5}, .drafts = 2, .slots = {1, 1}},
      {.stream = 3, .first = 0, .segments = {20}, .slots = {5, 5}, .active = 0},
      {.stream = 4, .first = 0, .segments = {64}, .slots = {-1, 3}},
      {.stream = 5, .first = 0, .segments = {18}, .drafts = 2, .slots = {6, 6}}};
  for (const auto& [activations, c] : {std::pair(DType::kBF16, 16.0), {DType::kF32, 4.0}}) {
    const Results got = run(*device, rich, activations), want = run(reference, rich, activations);
    for (size_t i = 0; i < got.size(); ++i)
      EXPECT_TRUE(close_to(got[i], want[i], {.c = c, .reduction = 165 + kD}, "lightning_attention", "cuda")) << i;
    const std::vector<SequenceStep> all = {{.stream = 1, .first = 0, .segments = {300}, .slots = {-1, 0}}};
    const Results whole = run(*device, all, activations);
    for (const int cut : {64, 128, 256}) {
      const Results parts =
          run(*device, {{.stream = 1, .first = 0, .segments = {cut, 300 - cut}, .slots = {-1, 7, 0}}}, activations);
      EXPECT_EQ(row_bytes(parts[0]), row_bytes(whole[0])) << cut;
      EXPECT_EQ(row_bytes(parts[1], 0, 1), row_bytes(whole[1], 0, 1)) << cut;
    }
  }
}

}  // namespace
}  // namespace calandra
