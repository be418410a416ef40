// FP8 matrices with block scales, groups of experts, and what goes wrong with them.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <deque>
#include <fstream>

#include "backends/reference/reference.h"
#include "base/error.h"
#include "weights/safetensors_for_test.h"
#include "weights/weight_store.h"

namespace calandra {
namespace {

// Tensors with their memory, and the folder they are written to.
class Files {
 public:
  Tensor add(const std::string& name, DType dtype, std::initializer_list<int64_t> shape, unsigned seed) {
    Shape sizes;
    for (const int64_t size : shape) sizes.append(size);
    auto& bytes = bytes_.emplace_back(static_cast<size_t>(sizes.numel()) * size_of(dtype));
    const Tensor tensor(bytes.data(), dtype, sizes);
    for (int64_t i = 0; i < tensor.numel(); ++i) {
      seed = seed * 1664525 + 1013904223;
      const float value = static_cast<float>(seed >> 16) / 65536 + 0.25f;
      auto code = static_cast<uint8_t>(seed >> 24);
      if ((code & 0x7f) == 0x7f) code = 0x7e;
      if (dtype == DType::kF8E4M3) tensor.as<f8_e4m3>()[i] = f8_e4m3::from_bits(code);
      if (dtype == DType::kF32) tensor.as<float>()[i] = value;
      if (dtype == DType::kBF16) tensor.as<bf16>()[i] = bf16(value);
      if (dtype == DType::kF16) tensor.as<f16>()[i] = f16(value);
    }
    tensors_.push_back({name, tensor});
    return tensor;
  }
  WeightFiles checkpoint() const {
    write_safetensors(folder_.path() / "model.safetensors", tensors_);
    return WeightFiles(folder_.path());
  }
  std::string error_of(const std::function<void(WeightReader)>& note, Fp8Blocks blocks = {}) const {
    const WeightFiles files = checkpoint();
    ReferenceBackend backend;
    WeightStore store(backend, &files, blocks);
    note(store.reader());
    try {
      store.load({}, 2);
    } catch (const LoadError& error) {
      return error.what();
    }
    return "";
  }

 private:
  FolderForTest folder_;
  std::deque<std::vector<std::byte>> bytes_;
  std::vector<NamedTensor> tensors_;
};

float number(const Tensor& x, int64_t i) {
  switch (x.dtype()) {
    case DType::kBF16:
      return static_cast<float>(x.as<bf16>()[i]);
    case DType::kF16:
      return static_cast<float>(x.as<f16>()[i]);
    case DType::kF8E4M3:
      return static_cast<float>(x.as<f8_e4m3>()[i]);
    default:
      return x.as<float>()[i];
  }
}

// What the backend computes with: rows of the matrix, through `embedding`.
std::vector<float> rows_of(ReferenceBackend& backend, const PackedWeight& weight) {
  std::vector<int32_t> ids(weight.N);
  for (size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<int32_t>(i);
  std::vector<float> out(weight.N * weight.K);
  Tensor rows(out.data(), DType::kF32, {weight.N, weight.K});
  Workspace workspace;
  OneRank one;
  ExecContext ctx{backend, workspace, one};
  backend.embedding(ctx, Tensor(ids.data(), DType::kI32, {weight.N}), weight, rows);
  return out;
}

// Row n of values [N, K] with scales for blocks, the rows of `scales` counted from `scale_row`.
std::vector<float> meant(const Tensor& values, const Tensor& scales, Fp8Blocks b, const std::vector<int64_t>& rows,
                         int64_t scale_row = 0) {
  const int64_t K = values.size(-1), columns = scales.size(-1);
  std::vector<float> out;
  for (const int64_t n : rows)
    for (int64_t k = 0; k < K; ++k)
      out.push_back(number(values, n * K + k) * number(scales, (scale_row + n / b.N) * columns + k / b.K));
  return out;
}
std::vector<int64_t> range(int64_t begin, int64_t end) {
  std::vector<int64_t> all;
  for (; begin < end; ++begin) all.push_back(begin);
  return all;
}

TEST(Fp8Weights, EveryCodeHasItsValue) {
  EXPECT_EQ(static_cast<float>(f8_e4m3::from_bits(0x7e)), 448.0f);
  EXPECT_EQ(static_cast<float>(f8_e4m3::from_bits(0x01)), 0x1p-9f);
  EXPECT_EQ(static_cast<float>(f8_e4m3::from_bits(0x87)), -7 * 0x1p-9f);
  EXPECT_EQ(static_cast<float>(f8_e4m3::from_bits(0x08)), 0x1p-6f);
  EXPECT_TRUE(std::signbit(static_cast<float>(f8_e4m3::from_bits(0x80))));
  for (int code = 0; code < 256; ++code) {
    const float value = static_cast<float>(f8_e4m3::from_bits(static_cast<uint8_t>(code)));
    const int exponent = code >> 3 & 15, fraction = code & 7;
    if ((code & 0x7f) == 0x7f) {
      EXPECT_TRUE(std::isnan(value));
      continue;
    }
    const double magnitude = exponent == 0 ? std::ldexp(fraction, -9) : std::ldexp(8 + fraction, exponent - 10);
    EXPECT_EQ(value, (code & 0x80) != 0 ? -magnitude : magnitude) << code;
  }
}

// Rounding to e4m3 changes a number by at most 1/16 of it, or half a step of the subnormal ones: 448 stands for the
// largest of a block.
TEST(Fp8Weights, RoundedRowsAreNearTheirValues) {
  int64_t numbers = 0;
  for (const DType dtype : {DType::kBF16, DType::kF32, DType::kF8E4M3}) {
    Files files;
    const int64_t N = 50, K = 300;
    const Tensor w = files.add("m.weight", dtype, {N, K}, 5);
    if (dtype == DType::kF8E4M3) files.add("m.weight_scale_inv", DType::kF32, {4, 38}, 6);
    if (dtype == DType::kF32) std::fill_n(w.as<float>() + 7 * K, K, 0.0f);
    ReferenceBackend backend;
    const WeightFiles checkpoint = files.checkpoint();
    const Fp8Blocks blocks{16, 8};
    WeightStore store(backend, &checkpoint, blocks);
    PackedWeight all, some;
    const MatrixShape shape{{"N", N}, {"K", K}};
    const std::vector<int32_t> kept = {0, 1, 2, 7, 8, 20, 48, 49};
    store.reader().linear(all, "m.weight", shape);
    store.reader().rounded_rows(some, "m.weight", shape, kept);
    EXPECT_EQ(store.summary().parameters, N * K);
    store.load({}, 2);
    EXPECT_EQ(some.N, std::ssize(kept));
    EXPECT_EQ(some.dtype, DType::kF8E4M3);
    EXPECT_EQ(some.block_k, 128);
    const std::vector<float> exact = rows_of(backend, all), rounded = rows_of(backend, some);
    for (int64_t n = 0; n < some.N; ++n)
      for (int64_t k = 0; k < K; ++k, ++numbers) {
        float largest = 0;
        for (int64_t i = k / 128 * 128; i < std::min(K, k / 128 * 128 + 128); ++i)
          largest = std::max(largest, std::abs(exact[kept[n] * K + i]));
        const float value = exact[kept[n] * K + k], step = largest / 448 * 0x1p-9f;
        ASSERT_LE(std::abs(rounded[n * K + k] - value), std::abs(value) * (1.0f / 16 + 1e-6f) + step / 2)
            << n << ", " << k;
      }
  }
  EXPECT_EQ(numbers, 3 * 8 * 300);
}

TEST(Fp8Weights, RowsKeepTheScalesOfTheirBlocks) {
  int matrices = 0;
  for (const Fp8Blocks b : {Fp8Blocks{}, {16, 8}, {7, 5}, {1, 300}})
    for (const DType scale_type : {DType::kF32, DType::kBF16, DType::kF16}) {
      Files files;
      const int64_t N = 192, K = 150;
      const Tensor w = files.add("m.weight", DType::kF8E4M3, {N, K}, 1),
                   s = files.add("m.weight_scale_inv", scale_type, {(N + b.N - 1) / b.N, (K + b.K - 1) / b.K}, 2);
      ReferenceBackend backend;
      const WeightFiles checkpoint = files.checkpoint();
      WeightStore store(backend, &checkpoint, b);
      PackedWeight all, even, odd, tail;
      const MatrixShape shape{{"N", N}, {"K", K}};
      store.reader().linear(all, "m.weight", shape);
      store.reader().linear(even, "m.weight", shape, {.first = 0, .rows = 12, .step = 24});
      store.reader().linear(odd, "m.weight", shape, {.first = 12, .rows = 12, .step = 24});
      store.reader().linear(tail, "m.weight", shape, {.first = 130, .rows = 62, .step = 192});
      store.load({}, 3);
      EXPECT_EQ(rows_of(backend, all), meant(w, s, b, range(0, N)));
      std::vector<int64_t> of_even, of_odd;
      for (int64_t n = 0; n < N; ++n) (n / 12 % 2 == 0 ? of_even : of_odd).push_back(n);
      EXPECT_EQ(rows_of(backend, even), meant(w, s, b, of_even));
      EXPECT_EQ(rows_of(backend, odd), meant(w, s, b, of_odd));
      EXPECT_EQ(rows_of(backend, tail), meant(w, s, b, range(130, N)));
      EXPECT_EQ(all.block_k, b.K);
      const auto summary = store.summary();
      EXPECT_EQ(summary.parameters_by_type, (std::map<std::string, int64_t>{{"F8_E4M3", summary.parameters}}));
      matrices += 4;
    }
  std::printf("fp8: %d matrices with the scales of their rows\n", matrices);
}

TEST(Fp8Weights, ErrorsNameTensorsShapesAndWhatWasExpected) {
  PackedWeight w;
  const MatrixShape shape{{"N", 200}, {"K", 130}};
  const auto read = [&](WeightReader r) { r.linear(w, "m.weight", shape); };
  const auto expect = [](const std::string& error, std::initializer_list<const char*> words) {
    for (const char* word : words) EXPECT_NE(error.find(word), std::string::npos) << word << " in: " << error;
  };
  {
    Files files;
    files.add("m.weight", DType::kF8E4M3, {200, 130}, 1);
    expect(files.error_of(read),
           {"tensor m.weight", "F8_E4M3", "m.weight_scale_inv", "missing", "[2, 2]", "[128, 128]"});
    files.add("m.weight_scale", DType::kF32, {200, 1}, 1);
    expect(files.error_of(read),
           {"tensor m.weight", "m.weight_scale_inv", "m.weight_scale stands", "not supported yet"});
  }
  {
    Files files;
    files.add("m.weight", DType::kBF16, {200, 130}, 1);
    files.add("m.weight_scale_inv", DType::kF32, {2, 2}, 1);
    expect(files.error_of(read), {"tensor m.weight", "BF16", "m.weight_scale_inv", "F8_E4M3"});
  }
  for (const auto& found : {std::initializer_list<int64_t>{1, 2}, {2, 1}, {3, 2}, {2}, {2, 2, 1}, {4}}) {
    Files files;
    files.add("m.weight", DType::kF8E4M3, {200, 130}, 1);
    files.add("m.weight_scale_inv", DType::kF32, found, 1);
    expect(files.error_of(read),
           {"tensor m.weight_scale_inv has shape [", "expected [2, 2]", "[128, 128]", "[200, 130]"});
  }
  {
    Files files;
    files.add("m.weight", DType::kF8E4M3, {200, 130}, 1);
    files.add("m.weight_scale_inv", DType::kI32, {2, 2}, 1);
    expect(files.error_of(read), {"tensor m.weight_scale_inv", "I32", "F32, BF16 or F16"});
  }
  {
    Files files;
    files.add("m.weight", DType::kF8E4M3, {200, 131}, 1);
    files.add("m.weight_scale_inv", DType::kF32, {2, 2}, 1);
    expect(files.error_of(read), {"tensor m.weight has shape [200, 131]", "N = 200", "K = 130"});
  }
  {
    Files files;
    files.add("m.weight", DType::kF8E4M3, {200, 130}, 1);
    files.add("m.weight_scale_inv", DType::kBF16, {4, 3}, 1);
    EXPECT_EQ(files.error_of(read, {64, 64}), "");
    expect(files.error_of(read), {"[4, 3]", "[2, 2]"});
    files.add("other.weight_scale_inv", DType::kBF16, {4, 3}, 1);
    expect(files.error_of(read, {64, 64}), {"other.weight_scale_inv", "belong to no part"});
  }
  {
    Files files;
    Tensor small;
    files.add("norm.weight", DType::kF8E4M3, {130}, 1);
    expect(files.error_of([&](WeightReader r) {
      r.vector(small, "norm.weight", {"D", 130});
    }),
           {"tensor norm.weight", "F8_E4M3", "F32, BF16 or F16"});
  }
}

TEST(Fp8Weights, NanCodesAndScalesAreOneWarning) {
  for (const uint8_t code : {0x7f, 0xff})
    for (const int64_t at : {0, 63, 64, 129, 259}) {
      Files files;
      const Tensor w = files.add("m.weight", DType::kF8E4M3, {2, 130}, 1);
      const Tensor s = files.add("n.weight_scale_inv", DType::kBF16, {1, 2}, 3);
      files.add("m.weight_scale_inv", DType::kF32, {1, 2}, 2);
      files.add("n.weight", DType::kF8E4M3, {2, 130}, 4);
      w.as<f8_e4m3>()[at].bits = code;
      s.as<bf16>()[1] = bf16(INFINITY);
      PackedWeight m, n;
      testing::internal::CaptureStderr();
      EXPECT_EQ(files.error_of([&](WeightReader r) {
        r.linear(m, "m.weight", {{"N", 2}, {"K", 130}});
        r.linear(n, "n.weight", {{"N", 2}, {"K", 130}});
      }),
                "");
      const std::string warning = testing::internal::GetCapturedStderr();
      EXPECT_NE(warning.find("2 tensors hold NaN or infinite values: m.weight, n.weight_scale_inv\n"),
                std::string::npos)
          << warning;
    }
}

TEST(Experts, AreReadOneByOneOrFused) {
  const int64_t E = 5, F = 24, D = 40;
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF16, DType::kF8E4M3}) {
    const Fp8Blocks b{16, 16};
    const int64_t scale_rows = 2, scale_columns = 3;  // of [24, 40]
    Files files;
    std::vector<Tensor> single, single_scales;
    for (int64_t e = 0; e < E; ++e) {
      const std::string name = fmt::format("mlp.experts.{}.up_proj.weight", e);
      single.push_back(files.add(name, dtype, {F, D}, static_cast<unsigned>(10 + e)));
      if (dtype == DType::kF8E4M3)
        single_scales.push_back(files.add(name + "_scale_inv", DType::kF32, {scale_rows, scale_columns}, 3));
    }
    const Tensor fused = files.add("mlp.experts.gate_up_proj", dtype, {E, 2 * F, D}, 1);
    Tensor fused_scales;
    if (dtype == DType::kF8E4M3)  // 48 rows are 3 blocks: the second belongs to gate and up
      fused_scales = files.add("mlp.experts.gate_up_proj_scale_inv", DType::kF32, {E, 3, scale_columns}, 2);
    ReferenceBackend backend;
    const WeightFiles checkpoint = files.checkpoint();
    WeightStore store(backend, &checkpoint, b);
    const WeightReader mlp = store.reader().child("mlp");
    GroupedWeight by_one, gate, up;
    const Axis experts{"num_experts", E}, both{"2 * F", 2 * F}, K{"hidden_size", D};
    mlp.experts(by_one, "experts.{e}.up_proj.weight", E, {{"F", F}, K});
    mlp.fused_experts(gate, "experts.gate_up_proj", experts, {both, K}, {.first = 0, .rows = F, .step = 2 * F});
    mlp.fused_experts(up, "experts.gate_up_proj", experts, {both, K}, {.first = F, .rows = F, .step = 2 * F});
    EXPECT_EQ(up.E, E);
    EXPECT_EQ(up.N, F);
    store.load({}, 3);
    for (const GroupedWeight* group : {&by_one, &gate, &up}) {
      EXPECT_EQ(group->dtype, dtype);
      EXPECT_EQ(group->packed.stride(0) % static_cast<int64_t>(kWeightAlignment), 0);
    }
    for (int64_t e = 0; e < E; ++e) {
      const auto wanted = [&](const Tensor& values, const Tensor& scales, const std::vector<int64_t>& rows,
                              int64_t scale_row) {
        if (dtype == DType::kF8E4M3) return meant(values, scales, b, rows, scale_row);
        std::vector<float> out;
        for (const int64_t n : rows)
          for (int64_t k = 0; k < D; ++k) out.push_back(number(values, n * D + k));
        return out;
      };
      const Tensor of_e = fused[e];
      const Tensor none;
      EXPECT_EQ(rows_of(backend, by_one.expert(e)),
                wanted(single[e], single_scales.empty() ? none : single_scales[e], range(0, F), 0));
      EXPECT_EQ(rows_of(backend, gate.expert(e)), wanted(of_e, fused_scales, range(0, F), 3 * e));
      EXPECT_EQ(rows_of(backend, up.expert(e)), wanted(of_e, fused_scales, range(F, 2 * F), 3 * e));
    }
    EXPECT_EQ(store.summary().parameters, E * F * D + E * 2 * F * D);
  }
}

TEST(Experts, OfSeveralFormatsAreWidenedToF32) {
  const int64_t F = 130, D = 20;
  Files files;
  const Tensor a = files.add("experts.0.w", DType::kBF16, {F, D}, 1),
               b = files.add("experts.1.w", DType::kF32, {F, D}, 2),
               c = files.add("experts.2.w", DType::kF16, {F, D}, 3),
               d = files.add("experts.3.w", DType::kF8E4M3, {F, D}, 4),
               s = files.add("experts.3.w_scale_inv", DType::kBF16, {2, 1}, 5);
  ReferenceBackend backend;
  const WeightFiles checkpoint = files.checkpoint();
  WeightStore store(backend, &checkpoint);
  GroupedWeight group;
  store.reader().experts(group, "experts.{e}.w", 4, {{"F", F}, {"D", D}});
  store.load({}, 2);
  EXPECT_EQ(group.dtype, DType::kF32);
  const Tensor* plain[] = {&a, &b, &c};
  for (int64_t e = 0; e < 3; ++e)
    for (int64_t i = 0; i < F * D; ++i)
      ASSERT_EQ(rows_of(backend, group.expert(e))[i], number(*plain[e], i)) << e << " " << i;
  EXPECT_EQ(rows_of(backend, group.expert(3)), meant(d, s, {}, range(0, F)));
}

TEST(Experts, ErrorsNameTheExpert) {
  Files files;
  for (const int e : {0, 1, 3}) files.add(fmt::format("experts.{}.w", e), DType::kBF16, {4, 6}, 1);
  files.add("fused", DType::kBF16, {1, 4, 6}, 1);
  GroupedWeight group;
  const auto missing = files.error_of([&](WeightReader r) {
    r.experts(group, "experts.{e}.w", 4, {{"F", 4}, {"D", 6}});
  });
  EXPECT_NE(missing.find("1 tensor of the model is missing: experts.2.w"), std::string::npos) << missing;
  const auto shape = files.error_of([&](WeightReader r) {
    r.experts(group, "experts.{e}.w", 2, {{"F", 6}, {"D", 4}});
  });
  EXPECT_NE(shape.find("experts.0.w has shape [4, 6]"), std::string::npos) << shape;
  const auto fused = files.error_of([&](WeightReader r) {
    r.fused_experts(group, "fused", {"num_experts", 2}, {{"F", 4}, {"D", 6}});
  });
  for (const char* word : {"tensor fused has shape [1, 4, 6]", "num_experts = 2"})
    EXPECT_NE(fused.find(word), std::string::npos) << fused;
}

// kv_b_proj of latent attention: rows of each head are keys, then values; keys are wanted transposed.
TEST(Rearranged, NumbersMoveIntoSeveralGroups) {
  const int64_t H = 3, Dn = 4, Dv = 5, L = 6, N = H * (Dn + Dv);
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF16, DType::kF8E4M3}) {
    Files files;
    const Tensor w = files.add("kv_b_proj.weight", dtype, {N, L}, 1);
    Tensor s;
    const Fp8Blocks b{10, 4};
    if (dtype == DType::kF8E4M3) s = files.add("kv_b_proj.weight_scale_inv", DType::kF32, {3, 2}, 2);
    ReferenceBackend backend;
    const WeightFiles checkpoint = files.checkpoint();
    WeightStore store(backend, &checkpoint, b);
    GroupedWeight key, value;
    const MatrixShape stored{{"H (Dn + Dv)", N}, {"L", L}};
    store.reader().rearranged(key, "kv_b_proj.weight", stored, H, L, Dn, [&](const float* from, int64_t h, float* out) {
      for (int64_t l = 0; l < L; ++l)
        for (int64_t d = 0; d < Dn; ++d) out[l * Dn + d] = from[(h * (Dn + Dv) + d) * L + l];
    });
    store.reader().rearranged(
        value, "kv_b_proj.weight", stored, H, Dv, L,
        [&](const float* from, int64_t h, float* out) { std::copy_n(from + (h * (Dn + Dv) + Dn) * L, Dv * L, out); });
    store.load({}, 2);
    EXPECT_EQ(key.dtype, dtype == DType::kF8E4M3 ? DType::kF32 : dtype);
    const auto at = [&](int64_t n, int64_t l) {
      const float v = number(w, n * L + l);
      return dtype == DType::kF8E4M3 ? v * number(s, n / b.N * 2 + l / b.K) : v;
    };
    for (int64_t h = 0; h < H; ++h) {
      const std::vector<float> k = rows_of(backend, key.expert(h)), v = rows_of(backend, value.expert(h));
      for (int64_t l = 0; l < L; ++l) {
        for (int64_t d = 0; d < Dn; ++d) EXPECT_EQ(k[l * Dn + d], at(h * (Dn + Dv) + d, l));
        for (int64_t d = 0; d < Dv; ++d) EXPECT_EQ(v[d * L + l], at(h * (Dn + Dv) + Dn + d, l));
      }
    }
    EXPECT_EQ(store.summary().parameters, N * L) << "once, though it is read twice";
    EXPECT_EQ(store.summary().tensors, 1);
  }
}

TEST(WeightStore, ThousandsOfExpertsTakeNoMappingsOfTheirOwn) {
  const auto mappings = [] {
    std::ifstream maps("/proc/self/maps");
    return std::count(std::istreambuf_iterator<char>(maps), {}, '\n');
  };
  constexpr int64_t kE = 5000;
  Files files;
  files.add("fused", DType::kBF16, {kE, 8, 4}, 1);
  for (int64_t e = 0; e < kE; ++e) files.add(fmt::format("experts.{}.w", e), DType::kBF16, {4, 6}, 1);
  const WeightFiles checkpoint = files.checkpoint();
  ReferenceBackend backend;
  WeightStore store(backend, &checkpoint);
  GroupedWeight one, fused;
  store.reader().experts(one, "experts.{e}.w", kE, {{"F", 4}, {"D", 6}});
  store.reader().fused_experts(fused, "fused", {"E", kE}, {{"F", 8}, {"D", 4}});
  const auto before = mappings();
  store.load({}, 2);
  EXPECT_LE(mappings() - before, 20);  // threads, staging, the memory itself
  EXPECT_EQ(rows_of(backend, one.expert(kE - 1)).size(), 24u);
  std::printf("experts: %ld mappings before, %ld after loading %ld matrices\n", before, mappings(), long{2 * kE});
}

TEST(WeightStore, HasTellsWhatIsThere) {
  Files files;
  files.add("a.b", DType::kF32, {2}, 1);
  ReferenceBackend backend;
  const WeightFiles checkpoint = files.checkpoint();
  WeightStore store(backend, &checkpoint), dummy(backend, nullptr);
  EXPECT_TRUE(store.reader().child("a").has("b"));
  EXPECT_TRUE(store.reader().has("a.b"));
  EXPECT_FALSE(store.reader().has("b"));
  EXPECT_FALSE(dummy.reader().has("a.b"));
}

TEST(DummyWeights, TakeTheFormatOfAnFp8Release) {
  ReferenceBackend backend;
  const MatrixShape shape{{"N", 200}, {"K", 512}};
  const auto load = [&](std::optional<Fp8Blocks> fp8, const char* name) {
    WeightStore store(backend, nullptr, fp8);
    PackedWeight w;
    store.reader().linear(w, name, shape);
    store.load({}, 2);
    EXPECT_EQ(store.summary().parameters_by_type.begin()->first, w.dtype == DType::kF8E4M3 ? "F8_E4M3" : "BF16");
    return std::pair(w.dtype, rows_of(backend, w));
  };
  for (const char* name :
       {"model.layers.0.mlp.gate_proj.weight", "linear_attn.in_proj_qkv.weight", "mlp.experts.gate_up_proj",
        "attention.query_key_value.weight", "attention.dense.weight", "mlp.shared_expert.up_proj.weight"}) {
    const auto [dtype, values] = load(Fp8Blocks{}, name);
    EXPECT_EQ(dtype, DType::kF8E4M3) << name;
    EXPECT_EQ(load(std::nullopt, name).first, DType::kBF16) << name;
    double squares = 0;
    for (const float v : values) squares += double{v} * v;
    EXPECT_NEAR(squares / static_cast<double>(values.size()) * 512, 1.0, 0.05) << name;  // variance 1 / K
    EXPECT_EQ(values, load(Fp8Blocks{}, name).second);
  }
  for (const char* name : {"model.embed_tokens.weight", "lm_head.weight", "mlp.gate.weight", "in_proj_b.weight",
                           "mlp.shared_expert_gate.weight", "model.word_embeddings.weight"})
    EXPECT_EQ(load(Fp8Blocks{}, name).first, DType::kBF16) << name;

  WeightStore store(backend, nullptr, Fp8Blocks{});
  GroupedWeight one, fused;
  store.reader().experts(one, "experts.{e}.up_proj.weight", 3, shape);
  store.reader().fused_experts(fused, "experts.down_proj", {"E", 3}, shape);
  store.load({}, 2);
  for (const GroupedWeight* group : {&one, &fused}) {
    EXPECT_EQ(group->dtype, DType::kF8E4M3);
    EXPECT_NE(rows_of(backend, group->expert(0)), rows_of(backend, group->expert(1)));
    EXPECT_NE(rows_of(backend, group->expert(1)), rows_of(backend, group->expert(2)));
  }
}

}  // namespace
}  // namespace calandra
