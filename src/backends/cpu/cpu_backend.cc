#include "backends/cpu/cpu_backend.h"

#include <algorithm>

#include "backends/cpu/attention_kernels.h"
#include "backends/cpu/dense_kernels.h"
#include "backends/cpu/latent_kernels.h"
#include "backends/cpu/lightning_kernels.h"
#include "backends/cpu/moe_kernels.h"
#include "backends/cpu/recurrence_kernels.h"
#include "backends/cpu/vision_kernels.h"
#include "base/cpu_topology.h"
#include "base/error.h"
#include "base/log.h"

namespace calandra {
namespace {

const DenseKernels& dense_kernels(Isa isa) {
  return isa == Isa::kAvx512 ? dense_kernels_avx512() : dense_kernels_avx2();
}
const MoeKernels& moe_kernels(Isa isa) { return isa == Isa::kAvx512 ? moe_kernels_avx512() : moe_kernels_avx2(); }
const AttentionKernels& attention_kernels(Isa isa) {
  return isa == Isa::kAvx512 ? attention_kernels_avx512() : attention_kernels_avx2();
}
const RecurrenceKernels& recurrence_kernels(Isa isa) {
  return isa == Isa::kAvx512 ? recurrence_kernels_avx512() : recurrence_kernels_avx2();
}
const LightningKernels& lightning_kernels(Isa isa) {
  return isa == Isa::kAvx512 ? lightning_kernels_avx512() : lightning_kernels_avx2();
}
const LatentKernels& latent_kernels(Isa isa) {
  return isa == Isa::kAvx512 ? latent_kernels_avx512() : latent_kernels_avx2();
}
const VisionKernels& vision_kernels(Isa isa) {
  return isa == Isa::kAvx512 ? vision_kernels_avx512() : vision_kernels_avx2();
}

}  // namespace

std::unique_ptr<Backend> make_cpu_backend(const CpuOptions& options) {
  const std::vector<Isa> isas = machine_isas();
  if (options.isa && !machine_has(*options.isa))
    throw UsageError("--isa " + std::string(name_of(*options.isa)) + ": this CPU does not have it");
  if (isas.empty()) {
    log_warning("this CPU has no AVX2, FMA and F16C: running the slow reference ops on one thread");
    return std::make_unique<ReferenceBackend>();
  }
  const int threads = options.threads > 0 ? options.threads : default_thread_count();
  return std::make_unique<CpuBackend>(threads, options.isa.value_or(isas.back()));
}

CpuBackend::CpuBackend(int threads, Isa isa)
    : isa_(isa),
      pool_(threads),
      dense_(dense_kernels(isa)),
      moe_(moe_kernels(isa)),
      attention_(attention_kernels(isa)),
      recurrence_(recurrence_kernels(isa)),
      lightning_(lightning_kernels(isa)),
      latent_(latent_kernels(isa)),
      vision_(vision_kernels(isa)) {
  CHECK(machine_has(isa));
}

size_t CpuBackend::scratch_bytes(int64_t columns) const {
  const int n = threads();
  return attention_bytes(n) + recurrence_bytes(n) + lightning_bytes(n) + latent_bytes(n) + shared_x_bytes(columns) +
         thread_scratch_bytes(n, columns);
}

void CpuBackend::note_slow(const char* op, const char* kernels_for) {
  if (std::find(slow_.begin(), slow_.end(), op) != slow_.end()) return;
  slow_.push_back(op);
  log_warning("{} runs slowly, as the reference does: the kernels take {}", op, kernels_for);
}

}  // namespace calandra
