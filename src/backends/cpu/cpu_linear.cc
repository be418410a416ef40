// Weights in panels of 32 outputs and the products with them: linear, linear_add, swiglu_mlp, embedding.
// Layout, and the order of every sum: dense_kernels.h. Work is split into items of one panel by at most kRowBlock rows;
// a thread takes consecutive items, so that for few rows it streams through its own part of the weights.
#include <algorithm>
#include <cstring>
#include <limits>

#include "backends/cpu/cpu_backend.h"
#include "backends/cpu/dense_kernels.h"
#include "backends/cpu/panels.h"
#include "backends/cpu/row_split.h"

namespace calandra {

// What to do with the sums of each panel of a pack.
struct LinearJob {
  std::span<const PackedWeight> parts;
  Tensor& out;
  const Tensor* residual = nullptr;
  bool swiglu = false;  // parts are gate and up; out is silu(gate) * up
};

namespace {

constexpr int64_t kChunk = 4 * kRowBlock;  // rows whose f32 copy is held at once
constexpr int64_t kOwnRows = 4;            // up to here each thread copies x for itself, which saves a barrier
constexpr int64_t kProductsPerThread = 1 << 17;

int index_of(const Tensor& x) { return x.dtype() == DType::kBF16; }

// Floats of one thread's scratch: a widened block, two sets of sums, its own copy of few rows.
int64_t thread_floats(int64_t K) { return kWide + 2 * kSums + kOwnRows * blocks_of(K) * kXStride; }

WeightFormat format_of(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return WeightFormat::kF32;
    case DType::kBF16:
      return WeightFormat::kBF16;
    case DType::kF16:
      return WeightFormat::kF16;
    case DType::kF8E4M3:
      return WeightFormat::kF8;
    default:
      CHECK_MSG(false, "weight is " + std::string(name_of(dtype)));
  }
  return WeightFormat::kF32;
}

// Place of output i of a panel within the 32 numbers of one k.
int place_of(DType dtype, int i) { return dtype == DType::kBF16 ? i % 16 * 2 + i / 16 : i; }

// Panels of `bytes` each; lanes beyond N are zeros.
template <class T>
void pack_panels(const Tensor& source, std::byte* to, size_t bytes) {
  const int64_t N = source.size(0), K = source.size(1), stride = source.stride(0);
  const T* rows = static_cast<const T*>(source.data());
  constexpr int64_t kStep = 64;  // columns at a time, so that the written lines stay in the first cache
  for (int64_t n0 = 0; n0 < N; n0 += kPanel, to += bytes) {
    if (N - n0 < kPanel) std::memset(to, 0, bytes);
    for (int64_t k0 = 0; k0 < K; k0 += kStep)
      for (int64_t n = n0; n < std::min(n0 + kPanel, N); ++n) {
        T* lane = reinterpret_cast<T*>(to) + place_of(source.dtype(), static_cast<int>(n - n0));
        const T* from = rows + n * stride;
        for (int64_t k = k0; k < std::min(k0 + kStep, K); ++k) lane[k * kPanel] = from[k];
      }
  }
}

// The scales of f8 panels. A NaN among the values, which the kernels do not know, moves to the scale of its block: what
// is multiplied with it is NaN either way.
void pack_scales(const StoredMatrix& source, std::byte* to, size_t bytes) {
  const int64_t N = source.N(), K = source.K(), block_k = source.block_k;
  for (int64_t n = 0; n < N; ++n) {
    float* lane = reinterpret_cast<float*>(to + n / kPanel * bytes + K * kPanel) + n % kPanel;
    const float* from = static_cast<const float*>(source.scales.data()) + n / source.block_n * source.scales.size(1);
    const auto* values = reinterpret_cast<const uint8_t*>(source.values.bytes_at(n * source.values.stride(0)));
    for (int64_t k = 0; k < K; k += block_k, ++from, lane += kPanel) {
      const int64_t behind = std::min(k + block_k, K);
      const bool nan = std::any_of(values + k, values + behind, [](uint8_t bits) { return (bits & 0x7f) == 0x7f; });
      *lane = nan ? std::numeric_limits<float>::quiet_NaN() : *from * 256;
    }
  }
}

template <class T>
float value_at(const PackedWeight& weight, const std::byte* panel, int lane, int64_t k) {
  return static_cast<float>(reinterpret_cast<const T*>(panel)[k * kPanel + place_of(weight.dtype, lane)]);
}
template <>
float value_at<f8_e4m3>(const PackedWeight& weight, const std::byte* panel, int lane, int64_t k) {
  const float value = static_cast<float>(reinterpret_cast<const f8_e4m3*>(panel)[k * kPanel + lane]) / 256;
  return value * reinterpret_cast<const float*>(panel + weight.K * kPanel)[k / weight.block_k * kPanel + lane];
}

template <class T, class Out>
void read_lane(const PackedWeight& weight, int64_t n, Out* out) {
  const std::byte* panel = static_cast<const std::byte*>(weight.packed.data()) +
                           n / kPanel * panel_bytes(weight.dtype, weight.K, weight.block_k);
  for (int64_t k = 0; k < weight.K; ++k) out[k] = Out(value_at<T>(weight, panel, static_cast<int>(n % kPanel), k));
}

template <class Out>
void unpack_row(const PackedWeight& weight, int64_t n, Out* out) {
  if (n < 0 || n >= weight.N) {
    std::fill(out, out + weight.K, Out(0.0f));
    return;
  }
  switch (format_of(weight.dtype)) {
    case WeightFormat::kF32:
      return read_lane<float>(weight, n, out);
    case WeightFormat::kBF16:
      return read_lane<bf16>(weight, n, out);
    case WeightFormat::kF16:
      return read_lane<f16>(weight, n, out);
    case WeightFormat::kF8:
      return read_lane<f8_e4m3>(weight, n, out);
  }
}

// To the sums of a panel the bias of its outputs, if there is one.
void add_bias(const PackedWeight& weight, int64_t panel, int rows, float* sums) {
  if (!weight.bias) return;
  const float* bias = weight.bias.as<float>() + panel * kPanel;
  const int64_t columns = std::min<int64_t>(kPanel, weight.N - panel * kPanel);
  for (int r = 0; r < rows; ++r, sums += kPanel)
    for (int64_t i = 0; i < columns; ++i) sums[i] += bias[i];
}

// Result of `rows` rows from `row`, columns of `out` from `column`.
PanelResult result_of(const LinearJob& job, int64_t row, int rows, int64_t column, int64_t columns) {
  PanelResult result{};
  result.rows = rows;
  result.columns = static_cast<int>(std::min<int64_t>(columns, kPanel));
  result.out = job.out.bytes_at(row * job.out.stride(0) + column);
  result.out_stride = job.out.stride(0);
  if (job.residual != nullptr) {
    result.residual = job.residual->bytes_at(row * job.residual->stride(0) + column);
    result.residual_stride = job.residual->stride(0);
  }
  return result;
}

}  // namespace

size_t panel_bytes(DType dtype, int64_t K, int64_t block_k) {
  const size_t values = static_cast<size_t>(K * kPanel) * size_of(dtype);
  if (dtype != DType::kF8E4M3) return values;
  return values + static_cast<size_t>((K + block_k - 1) / block_k * kPanel) * sizeof(float);
}

PanelProduct panel_product(const PackedWeight& weight, int64_t panel) {
  const std::byte* at = static_cast<const std::byte*>(weight.packed.data()) +
                        static_cast<size_t>(panel) * panel_bytes(weight.dtype, weight.K, weight.block_k);
  PanelProduct task{};
  task.K = weight.K;
  task.panel = at;
  task.format = format_of(weight.dtype);
  task.scales = reinterpret_cast<const float*>(at + weight.K * kPanel);
  task.block_k = weight.block_k;
  return task;
}

size_t CpuBackend::packed_bytes(const StoredMatrix& source) const {
  return static_cast<size_t>(panels_of(source.N())) * panel_bytes(source.dtype(), source.K(), source.block_k);
}

size_t CpuBackend::shared_x_bytes(int64_t K) {
  return static_cast<size_t>(blocks_of(K) * kChunk * kXStride) * sizeof(float);
}

size_t CpuBackend::thread_scratch_bytes(int threads, int64_t K) {
  return K == 0 ? 0 : static_cast<size_t>(threads * thread_floats(K)) * sizeof(float);
}

PackedWeight CpuBackend::pack_weight(const StoredMatrix& source, std::byte* to) {
  CHECK_EQ(source.values.rank(), 2);
  const int64_t N = source.N(), K = source.K();
  const size_t bytes = panel_bytes(source.dtype(), K, source.block_k);
  switch (format_of(source.dtype())) {
    case WeightFormat::kF32:
      pack_panels<float>(source.values, to, bytes);
      break;
    case WeightFormat::kBF16:
      pack_panels<bf16>(source.values, to, bytes);
      break;
    case WeightFormat::kF16:
      pack_panels<f16>(source.values, to, bytes);
      break;
    case WeightFormat::kF8:
      pack_panels<uint8_t>(source.values, to, bytes);
      pack_scales(source, to, bytes);
      break;
  }

  const std::lock_guard lock(scratch_mutex_);
  if (K > max_K_) {
    max_K_ = K;
    shared_x_ = Buffer::host(shared_x_bytes(K));
    thread_scratch_ = Buffer::host(thread_scratch_bytes(threads(), K));
  }
  return {N, K, source.dtype(), Tensor(to, DType::kU8, {static_cast<int64_t>(packed_bytes(source))}), source.block_k};
}

void CpuBackend::run_linear(const Tensor& x, const LinearJob& job) {
  const int64_t K = x.size(1);
  CHECK_LE(K, max_K_);  // the scratch was sized when the weights were packed
  int64_t panels = 0;
  for (const PackedWeight& part : job.parts) panels += panels_of(part.N);
  if (job.swiglu) panels = panels_of(job.parts[0].N);
  const int type = index_of(x), out_type = index_of(job.out);

  const int64_t chunks = (x.size(0) + kChunk - 1) / kChunk;
  for (int64_t c = 0; c < chunks; ++c) {
    const int64_t first = x.size(0) * c / chunks, rows = x.size(0) * (c + 1) / chunks - first;
    const bool own = rows <= kOwnRows;
    float* shared = static_cast<float*>(shared_x_.data());
    if (!own)
      pool_.parallel_for(rows, std::max<int64_t>(1, kNumbersPerThread / K), [&](int64_t begin, int64_t end, int) {
        dense_.spread[type](x.bytes_at((first + begin) * x.stride(0)), x.stride(0), end - begin, K,
                            shared + begin * kXStride, rows * kXStride);
      });

    const int64_t row_blocks = (rows + kRowBlock - 1) / kRowBlock;
    const int64_t products = panels == 0 ? 1 : std::max<int64_t>(1, rows * K * kPanel / row_blocks);
    pool_.parallel_for(panels * row_blocks, kProductsPerThread / products, [&](int64_t begin, int64_t end, int thread) {
      float* scratch = static_cast<float*>(thread_scratch_.data()) + thread * thread_floats(max_K_);
      float* sums = scratch + kWide;
      const float* copy = shared;
      if (own) {
        float* mine = sums + 2 * kSums;
        dense_.spread[type](x.bytes_at(first * x.stride(0)), x.stride(0), rows, K, mine, rows * kXStride);
        copy = mine;
      }
      for (int64_t item = begin; item < end; ++item) {
        const int64_t block = item / panels;
        int64_t panel = item % panels;
        const int64_t row = rows * block / row_blocks;
        const int some = static_cast<int>(rows * (block + 1) / row_blocks - row);
        const auto multiply = [&](const PackedWeight& weight, float* into) {
          PanelProduct task = panel_product(weight, panel);
          task.x = copy + row * kXStride;
          task.x_block_stride = rows * kXStride;
          task.rows = some;
          task.wide = scratch;
          task.sums = into;
          dense_.multiply(task);
          add_bias(weight, panel, some, into);
        };

        if (job.swiglu) {
          multiply(job.parts[0], sums);
          multiply(job.parts[1], sums + kSums);
          dense_.finish_swiglu[out_type](
              sums, sums + kSums, result_of(job, first + row, some, panel * kPanel, job.parts[0].N - panel * kPanel));
          continue;
        }
        int64_t column = 0;
        const PackedWeight* part = job.parts.data();
        for (; panel >= panels_of(part->N); ++part) panel -= panels_of(part->N), column += part->N;
        multiply(*part, sums);
        dense_.finish[out_type](sums,
                                result_of(job, first + row, some, column + panel * kPanel, part->N - panel * kPanel));
      }
    });
  }
}

void CpuBackend::linear(ExecContext&, const Tensor& x, const LinearPack& pack, Tensor& out) {
  run_linear(x, {.parts = pack.parts(), .out = out});
}

void CpuBackend::linear_add(ExecContext& ctx, const Tensor& x, const PackedWeight& weight, const Tensor& residual,
                            Tensor& out) {
  if (ctx.taps != nullptr) return Backend::linear_add(ctx, x, weight, residual, out);
  if (ctx.dry_run) return;
  run_linear(x, {.parts = {&weight, 1}, .out = out, .residual = &residual});
}

// Two regions: gate and up with their product, then down with the residual. The same roundings as the parts.
void CpuBackend::swiglu_mlp(ExecContext& ctx, const Tensor& x, const LinearPack& gate_up, const PackedWeight& down,
                            const Tensor& residual, Tensor& out) {
  if (ctx.taps != nullptr) return Backend::swiglu_mlp(ctx, x, gate_up, down, residual, out);
  const size_t mark = ctx.workspace.mark();
  Tensor h = ctx.workspace.alloc(x.dtype(), {x.size(0), down.K});
  if (!ctx.dry_run) {
    run_linear(x, {.parts = gate_up.parts(), .out = h, .swiglu = true});
    run_linear(h, {.parts = {&down, 1}, .out = out, .residual = &residual});
  }
  ctx.workspace.release(mark);
}

std::vector<float> CpuBackend::weight_row(const PackedWeight& weight, int64_t n) const {
  std::vector<float> row(static_cast<size_t>(weight.K));
  unpack_row(weight, n, row.data());
  return row;
}

void CpuBackend::embedding(ExecContext&, const Tensor& ids, const PackedWeight& weight, Tensor& out) {
  constexpr int64_t kLine = 16;  // numbers of a row lie a cache line apart
  const int32_t* id = ids.as<int32_t>();
  for_each_row(pool_, ids.size(0), kLine * weight.K, [&](int64_t row) {
    if (out.dtype() == DType::kBF16)
      unpack_row(weight, id[row], out.as<bf16>() + row * weight.K);
    else
      unpack_row(weight, id[row], out.as<float>() + row * weight.K);
  });
}

}  // namespace calandra
