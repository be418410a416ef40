// Recordings of steps: CUDA graphs.
#include "backends/cuda/cuda_backend.h"
#include "backends/cuda/cuda_release.h"

namespace calandra {
namespace cuda {
namespace {

class Graph final : public Backend::Recording {
 public:
  Graph(cudaGraph_t graph, uint32_t& launches) : launches_(launches) {
    CUDA_CHECK(cudaGraphInstantiate(&runnable_, graph, 0));
  }
  ~Graph() override { CUDA_RELEASE(cudaGraphExecDestroy(runnable_)); }

  void run(ExecContext& ctx) override {
    const Scope scope("recorded step");
    CUDA_CHECK(cudaGraphLaunch(runnable_, stream_of(ctx)));
    ++launches_;
  }

 private:
  cudaGraphExec_t runnable_ = nullptr;
  uint32_t& launches_;
};

}  // namespace
}  // namespace cuda

// A kernel timer wants to see each kernel, and a synchronous backend waits for each.
bool CudaBackend::records() const { return !options_.enforce_eager && !options_.synchronous && timer_ == nullptr; }

std::unique_ptr<Backend::Recording> CudaBackend::record(ExecContext& ctx, const std::function<void()>& work) {
  const cudaStream_t stream = cuda::stream_of(ctx);
  CUDA_CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  work();
  cudaGraph_t graph = nullptr;
  CUDA_CHECK(cudaStreamEndCapture(stream, &graph));
  auto recording = std::make_unique<cuda::Graph>(graph, launches_);
  CUDA_CHECK(cudaGraphDestroy(graph));
  return recording;
}

}  // namespace calandra
