// Elementwise ops, norms and rotary positions: each row on one thread, rows split over threads when there is enough
// work.
#include <cmath>
#include <cstring>

#include "backends/cpu/cpu_backend.h"
#include "backends/cpu/dense_kernels.h"
#include "backends/cpu/moe_kernels.h"
#include "backends/cpu/row_split.h"

namespace calandra {
namespace {

int index_of(const Tensor& x) { return x.dtype() == DType::kBF16; }

// Elements of row t of a tensor [T, ..].
std::byte* row_of(const Tensor& x, int64_t t) { return x.bytes_at(t * x.stride(0)); }

// [D] for all heads, or [H, D].
const float* weight_of_head(const Tensor& weight, int64_t h) {
  return weight.as<float>() + (weight.rank() == 2 ? h * weight.size(1) : 0);
}

}  // namespace

void CpuBackend::silu_mul(ExecContext&, const Tensor& gate, const Tensor& up, Tensor& out) {
  const auto kernel = dense_.silu_mul[index_of(gate)];
  for_each_row(pool_, out.size(0), out.size(1),
               [&](int64_t t) { kernel(row_of(gate, t), row_of(up, t), row_of(out, t), out.size(1)); });
}

void CpuBackend::sigmoid_mul(ExecContext&, const Tensor& x, const Tensor& gate, Tensor& out) {
  const auto kernel = gate.size(1) == 1 ? moe_.sigmoid_scale[index_of(x)] : dense_.sigmoid_mul[index_of(x)];
  for_each_row(pool_, out.size(0), out.size(1),
               [&](int64_t t) { kernel(row_of(x, t), row_of(gate, t), row_of(out, t), out.size(1)); });
}

void CpuBackend::sigmoid(ExecContext&, const Tensor& x, Tensor& out) {
  const auto kernel = dense_.sigmoid[index_of(x)];
  for_each_row(pool_, out.size(0), out.size(1),
               [&](int64_t t) { kernel(row_of(x, t), reinterpret_cast<float*>(row_of(out, t)), out.size(1)); });
}

void CpuBackend::add(ExecContext&, const Tensor& a, const Tensor& b, Tensor& out) {
  const auto kernel = dense_.add[index_of(a)];
  for_each_row(pool_, out.size(0), out.size(1),
               [&](int64_t t) { kernel(row_of(a, t), row_of(b, t), row_of(out, t), out.size(1)); });
}

void CpuBackend::gather_rows(ExecContext&, const Tensor& x, const Tensor& rows, Tensor& out) {
  const int32_t* from = rows.as<int32_t>();
  const size_t bytes = static_cast<size_t>(out.size(1)) * size_of(out.dtype());
  for_each_row(pool_, out.size(0), out.size(1),
               [&](int64_t i) { std::memcpy(row_of(out, i), row_of(x, from[i]), bytes); });
}

void CpuBackend::rms_norm(ExecContext&, const Tensor& x, const Tensor& weight, float eps, float weight_offset,
                          Tensor& out) {
  const auto kernel = dense_.rms_norm[index_of(x)];
  const int64_t D = x.size(-1), H = x.rank() == 3 ? x.size(1) : 1;
  for_each_row(pool_, x.size(0), H * D, [&](int64_t t) {
    for (int64_t h = 0; h < H; ++h)
      kernel(x.bytes_at(t * x.stride(0) + h * (H == 1 ? 0 : x.stride(1))), weight_of_head(weight, h), eps,
             weight_offset, out.bytes_at((t * H + h) * D), D);
  });
}

void CpuBackend::gated_rms_norm(ExecContext&, const Tensor& x, const Tensor& z, const Tensor& weight, float eps,
                                ops::GateActivation act, Tensor& out) {
  const auto kernel = dense_.gated_rms_norm[index_of(x)][index_of(out)];
  const int64_t H = x.size(1), D = x.size(2);
  for_each_row(pool_, x.size(0), H * D, [&](int64_t t) {
    for (int64_t h = 0; h < H; ++h)
      kernel(x.bytes_at(t * x.stride(0) + h * x.stride(1)), z.bytes_at(t * z.stride(0) + h * z.stride(1)),
             weight_of_head(weight, h), eps, act == ops::GateActivation::kSilu, out.bytes_at((t * H + h) * D), D);
  });
}

void CpuBackend::add_rms_norm(ExecContext& ctx, const Tensor& x, const Tensor& y, const Tensor& weight, float eps,
                              float weight_offset, Tensor& sum, Tensor& norm) {
  if (ctx.dry_run) return;
  const int type = index_of(x);
  const float* w = weight.as<float>();
  const int64_t D = x.size(1);
  for_each_row(pool_, x.size(0), 2 * D, [&](int64_t t) {
    dense_.add[type](row_of(x, t), row_of(y, t), row_of(sum, t), D);
    dense_.rms_norm[type](row_of(sum, t), w, eps, weight_offset, row_of(norm, t), D);
  });
}

// The reference's numbers: f64, one rounding to f32 and one to the type of the result.
void CpuBackend::rope_table(ExecContext&, const Tensor& positions, const ops::RopeFrequencies& frequencies,
                            Tensor& out) {
  constexpr int64_t kCosAndSin = 64;  // take as long as reading so many numbers
  const int64_t T = out.size(1), half = out.size(2);
  const double* inv_freq = frequencies.inv_freq.as<double>();
  const int32_t* axis = frequencies.axis.as<int32_t>();
  const auto put = [&](double x, int which, int64_t t, int64_t i) {
    std::byte* to = out.bytes_at(which * out.stride(0) + t * out.stride(1) + i);
    const auto value = static_cast<float>(x * frequencies.scale);
    if (out.dtype() == DType::kBF16)
      *reinterpret_cast<bf16*>(to) = bf16(value);
    else
      *reinterpret_cast<float*>(to) = value;
  };
  for_each_row(pool_, T, kCosAndSin * half, [&](int64_t t) {
    for (int64_t i = 0; i < half; ++i) {
      const double angle = positions[axis[i]].as<int32_t>()[t] * inv_freq[i];
      put(std::cos(angle), 0, t, i);
      put(std::sin(angle), 1, t, i);
    }
  });
}

void CpuBackend::rope(ExecContext&, const Tensor& x, const Tensor& table, ops::RopePairing pairing, Tensor& out) {
  const bool f32_table = table.dtype() == DType::kF32;
  const auto kernel = (f32_table ? dense_.rope_f32_table : dense_.rope)[index_of(x)];
  const auto pairs = (f32_table ? dense_.rope_pairs_f32_table : dense_.rope_pairs)[index_of(x)];
  const int64_t H = x.size(1), Dh = x.size(2), half = table.size(2);
  const size_t rest = static_cast<size_t>(Dh - 2 * half) * size_of(x.dtype());
  for_each_row(pool_, x.size(0), H * Dh, [&](int64_t t) {
    const std::byte* cos = table.bytes_at(t * table.stride(1));
    const std::byte* sin = table.bytes_at(table.stride(0) + t * table.stride(1));
    for (int64_t h = 0; h < H; ++h) {
      const int64_t from = t * x.stride(0) + h * x.stride(1), to = (t * H + h) * Dh;
      if (pairing == ops::RopePairing::kHalves)
        kernel(x.bytes_at(from), x.bytes_at(from + half), cos, sin, out.bytes_at(to), out.bytes_at(to + half), half);
      else
        pairs(x.bytes_at(from), cos, sin, out.bytes_at(to), half);
      std::memcpy(out.bytes_at(to + 2 * half), x.bytes_at(from + 2 * half), rest);
    }
  });
}

}  // namespace calandra
