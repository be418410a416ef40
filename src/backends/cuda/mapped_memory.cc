#include "backends/cuda/mapped_memory.h"

#include <cudaTypedefs.h>

#include <map>
#include <mutex>

#include "backends/cuda/cuda_release.h"
#include "backends/cuda/driver_function.h"

namespace calandra::cuda {
namespace {

constexpr size_t kGranularity = size_t{2} << 20;  // of the driver, on every device with these kernels

struct Driver {
  PFN_cuMemAddressReserve_v10020 reserve =
      driver_function<PFN_cuMemAddressReserve_v10020>("cuMemAddressReserve", 10020);
  PFN_cuMemAddressFree_v10020 free = driver_function<PFN_cuMemAddressFree_v10020>("cuMemAddressFree", 10020);
  PFN_cuMemCreate_v10020 create = driver_function<PFN_cuMemCreate_v10020>("cuMemCreate", 10020);
  PFN_cuMemRelease_v10020 release = driver_function<PFN_cuMemRelease_v10020>("cuMemRelease", 10020);
  PFN_cuMemMap_v10020 map = driver_function<PFN_cuMemMap_v10020>("cuMemMap", 10020);
  PFN_cuMemUnmap_v10020 unmap = driver_function<PFN_cuMemUnmap_v10020>("cuMemUnmap", 10020);
  PFN_cuMemSetAccess_v10020 set_access = driver_function<PFN_cuMemSetAccess_v10020>("cuMemSetAccess", 10020);
};

const Driver& driver() {
  static const Driver functions;
  return functions;
}

// The runtime's errors have the driver's numbers.
cudaError_t status_of(CUresult result) { return static_cast<cudaError_t>(result); }
static_assert(int{cudaErrorMemoryAllocation} == int{CUDA_ERROR_OUT_OF_MEMORY});
static_assert(int{cudaErrorCudartUnloading} == int{CUDA_ERROR_DEINITIALIZED});

CUdeviceptr address(void* data) { return reinterpret_cast<CUdeviceptr>(data); }

struct Range {
  size_t bytes;
  int device;
  bool there;
};

// Never destroyed: memory may be freed when the process ends.
struct Ranges {
  std::mutex mutex;
  std::map<void*, Range> all;
};
Ranges& ranges() {
  static auto& kept = *new Ranges;
  return kept;
}

// With the mutex.
Range& range_of(void* data) {
  const auto found = ranges().all.find(data);
  CHECK_MSG(found != ranges().all.end(), "memory that cannot be given back");
  return found->second;
}

// False: there is not enough memory.
bool map(void* data, const Range& range) {
  CUmemAllocationProp kind{};
  kind.type = CU_MEM_ALLOCATION_TYPE_PINNED;
  kind.location = {CU_MEM_LOCATION_TYPE_DEVICE, {range.device}};
  const CUmemAccessDesc access{kind.location, CU_MEM_ACCESS_FLAGS_PROT_READWRITE};
  CUDA_CHECK(cudaSetDevice(range.device));
  CUmemGenericAllocationHandle handle = 0;
  cudaError_t status = counted(status_of(driver().create(&handle, range.bytes, &kind, 0)));
  if (status == cudaErrorMemoryAllocation) return false;
  check(status, "cuMemCreate", __FILE__, __LINE__);
  status = counted(status_of(driver().map(address(data), range.bytes, 0, handle, 0)));
  CUDA_CHECK(status_of(driver().release(handle)));        // from here on the mapping holds the memory
  if (status == cudaErrorMemoryAllocation) return false;  // tables of pages take some, too
  check(status, "cuMemMap", __FILE__, __LINE__);
  status = counted(status_of(driver().set_access(address(data), range.bytes, &access, 1)));
  if (status == cudaErrorMemoryAllocation) {
    CUDA_CHECK(status_of(driver().unmap(address(data), range.bytes)));
    return false;
  }
  check(status, "cuMemSetAccess", __FILE__, __LINE__);
  CUDA_CHECK(cudaMemset(data, 0, range.bytes));
  CUDA_CHECK(cudaStreamSynchronize(nullptr));
  return true;
}

void unmap(void* data, const Range& range) {
  CUDA_RELEASE(cudaSetDevice(range.device));
  CUDA_RELEASE(cudaDeviceSynchronize());
  CUDA_RELEASE(status_of(driver().unmap(address(data), range.bytes)));
}

}  // namespace

void* allocate_mapped(int device, size_t bytes) {
  const Range range{(bytes + kGranularity - 1) / kGranularity * kGranularity, device, true};
  CUdeviceptr at = 0;
  const cudaError_t status = counted(status_of(driver().reserve(&at, range.bytes, 0, 0, 0)));
  if (status == cudaErrorMemoryAllocation) return nullptr;
  check(status, "cuMemAddressReserve", __FILE__, __LINE__);
  auto* const data = reinterpret_cast<void*>(at);
  if (!map(data, range)) {
    CUDA_CHECK(status_of(driver().free(at, range.bytes)));
    return nullptr;
  }
  const std::lock_guard lock(ranges().mutex);
  ranges().all.emplace(data, range);
  return data;
}

void free_mapped(void* data) {
  Range range{};
  {
    const std::lock_guard lock(ranges().mutex);
    range = range_of(data);
    ranges().all.erase(data);
  }
  if (range.there) unmap(data, range);
  CUDA_RELEASE(status_of(driver().free(address(data), range.bytes)));
}

void give_back_mapped(void* data) {
  const std::lock_guard lock(ranges().mutex);
  Range& range = range_of(data);
  if (range.there) unmap(data, range);
  range.there = false;
}

bool take_back_mapped(void* data) {
  const std::lock_guard lock(ranges().mutex);
  Range& range = range_of(data);
  if (!range.there) range.there = map(data, range);
  return range.there;
}

}  // namespace calandra::cuda
