// The sampler's host side (sampling.cu): packs a batch's rows and lists into one copy, reads the results, and samples
// the few rows that are not for the device by the code that defines the op.
#include <algorithm>
#include <cmath>

#include "backends/cuda/cuda_backend.h"
#include "backends/cuda/cuda_release.h"
#include "backends/reference/sampling_parts.h"
#include "backends/reference/sampling_row.h"

namespace calandra {
namespace cuda {
namespace {

bool is_for_device(const ops::SamplingRow& row, const Tensor& logits) {
  return logits.size(1) <= kMostColumns && !row.distribution && row.num_logprobs != ops::kAllLogprobs &&
         row.num_logprobs <= kMostTops;
}

constexpr size_t kSection = 16;

// Places of lists one behind the other.
class Sections {
 public:
  template <class T>
  size_t add(size_t count) {
    const size_t at = size_;
    size_ += (count * sizeof(T) + kSection - 1) / kSection * kSection;
    return at;
  }
  size_t size() const { return size_; }

 private:
  size_t size_ = 0;
};

template <class T>
T* at(const Buffer& buffer, size_t offset) {
  return reinterpret_cast<T*>(static_cast<std::byte*>(buffer.data()) + offset);
}

template <class T>
void put(const Buffer& buffer, size_t offset, const std::vector<T>& list) {
  if (!list.empty()) std::memcpy(at<T>(buffer, offset), list.data(), list.size() * sizeof(T));
}

// False when the memory is not there.
bool grow(Buffer& buffer, size_t bytes, Device device) {
  if (buffer.bytes() >= bytes) return true;
  buffer = {};
  bytes += bytes / 4;
  void* data = nullptr;
  const bool on_device = device.kind == DeviceKind::kCuda;
  const cudaError_t status =
      counted(on_device ? cudaMalloc(&data, bytes) : cudaHostAlloc(&data, bytes, cudaHostAllocPortable));
  if (status == cudaErrorMemoryAllocation) {
    cudaGetLastError();  // not sticky: forget it
    return false;
  }
  check(status, "memory of the sampler", __FILE__, __LINE__);
  if (on_device)
    buffer = Buffer(data, bytes, device, [](void* p, size_t) { CUDA_RELEASE(cudaFree(p)); });
  else
    buffer = Buffer(data, bytes, device, [](void* p, size_t) { CUDA_RELEASE(cudaFreeHost(p)); });
  return true;
}

bool is_likelier(const ops::TokenLogprob& a, const ops::TokenLogprob& b) {
  return a.logprob > b.logprob || (a.logprob == b.logprob && a.id < b.id);
}

// As reference::read_logprobs ends.
void read_logprobs(const ops::SamplingRow& row, const ops::SamplingBatch& batch, const SamplingOutcome& outcome,
                   const ops::TokenLogprob* tops, const float* listed, ops::TokenLogprobs& out) {
  const bool logits_wanted =
      row.logprobs_mode == ops::LogprobsMode::kRawLogits || row.logprobs_mode == ops::LogprobsMode::kProcessedLogits;
  const double log_total = logits_wanted ? 0 : reference::log_of_mass(outcome.mass);
  const auto logprob = [&](float v) {
    return logits_wanted ? v : static_cast<float>(static_cast<double>(v) - outcome.max - log_total);
  };
  out.logprob = logprob(outcome.chosen);
  out.rank = outcome.rank;
  out.top.assign(tops, tops + outcome.tops);
  std::sort(out.top.begin(), out.top.end(), is_likelier);
  for (ops::TokenLogprob& t : out.top) t.logprob = logprob(t.logprob);
  for (int32_t i = row.logprob_ids.begin; i < row.logprob_ids.end; ++i)
    out.listed.push_back({batch.ids[static_cast<size_t>(i)], logprob(listed[i - row.logprob_ids.begin])});
}

}  // namespace
}  // namespace cuda

using namespace cuda;

// For rows with lists of a few KB. Where there is no memory, steps find that out.
void CudaBackend::reserve_samples(int64_t rows) {
  constexpr size_t kListBytes = 1 << 16;
  const auto R = static_cast<size_t>(rows);
  Sections in, results;
  in.add<SamplingInput>(R);
  results.add<SamplingOutcome>(R);
  results.add<ops::TokenLogprob>(R * kMostTops);
  for (SamplingFlight& flight : sampling_.flights) {
    grow(flight.host_in, in.size() + kListBytes, {});
    grow(flight.in, in.size() + kListBytes, device());
    grow(flight.out, results.size() + kListBytes, {});
    flight.on_device.reserve(R);
  }
}

bool CudaBackend::start_on_device(ExecContext& ctx, const Tensor& logits, const ops::SamplingBatch& batch,
                                  SamplingFlight& memory, int32_t* tokens) {
  const size_t rows = memory.on_device.size(), V = static_cast<size_t>(logits.size(1));
  Sections in, results;
  const bool few = rows <= kRowsAlong;
  const size_t inputs = in.add<SamplingInput>(few ? 0 : rows), counts = in.add<ops::TokenCount>(batch.counts.size()),
               bias = in.add<ops::TokenBias>(batch.bias.size()), ids = in.add<int32_t>(batch.ids.size()),
               grammar = in.add<uint32_t>(batch.grammar.size());
  size_t listed_ids = 0;
  for (const size_t r : memory.on_device) listed_ids += static_cast<size_t>(batch.rows[r].logprob_ids.size());
  const size_t outcomes = results.add<SamplingOutcome>(rows), tops = results.add<ops::TokenLogprob>(rows * kMostTops),
               listed = results.add<float>(listed_ids);
  if (!grow(memory.host_in, in.size(), {}) || !grow(memory.out, results.size(), {}) ||
      !grow(memory.in, in.size(), device()) ||
      !grow(sampling_.token_ids, batch.token_ids.size() * sizeof(int32_t), device()))
    return false;

  SamplingArgs args{.logits = logits.as<float>(),
                    .stride = logits.stride(0),
                    .V = static_cast<int>(V),
                    .token_ids = batch.token_ids.empty() ? nullptr : at<const int32_t>(sampling_.token_ids, 0),
                    .rows = few ? nullptr : at<const SamplingInput>(memory.in, inputs),
                    .counts = at<const ops::TokenCount>(memory.in, counts),
                    .bias = at<const ops::TokenBias>(memory.in, bias),
                    .ids = at<const int32_t>(memory.in, ids),
                    .grammar = at<const uint32_t>(memory.in, grammar),
                    .moves = batch.moves ? batch.moves.as<int32_t>() : nullptr,
                    .tokens = tokens,
                    .outcomes = at<SamplingOutcome>(memory.out, outcomes),
                    .tops = at<ops::TokenLogprob>(memory.out, tops),
                    .listed = at<float>(memory.out, listed),
                    .few = {}};
  SamplingInput* input = few ? args.few : at<SamplingInput>(memory.host_in, inputs);
  int32_t first_listed = 0;
  for (size_t i = 0; i < rows; ++i) {
    const ops::SamplingRow& row = batch.rows[memory.on_device[i]];
    input[i] = {row, static_cast<int32_t>(i), reference::changes_logits(row) ? 1 : 0, first_listed};
    first_listed += row.logprob_ids.size();
  }
  put(memory.host_in, counts, batch.counts);
  put(memory.host_in, bias, batch.bias);
  put(memory.host_in, ids, batch.ids);
  put(memory.host_in, grammar, batch.grammar);
  const cudaStream_t stream = stream_of(ctx);
  if (in.size() > 0)
    CUDA_CHECK(cudaMemcpyAsync(memory.in.data(), memory.host_in.data(), in.size(), cudaMemcpyHostToDevice, stream));
  if (!batch.token_ids.empty() && !std::equal(batch.token_ids.begin(), batch.token_ids.end(),
                                              sampling_.held_token_ids.begin(), sampling_.held_token_ids.end())) {
    sampling_.held_token_ids.assign(batch.token_ids.begin(), batch.token_ids.end());
    copy_bytes(sampling_.token_ids.data(), batch.token_ids.data(), batch.token_ids.size_bytes());
  }
  launch_sampler(stream, args, static_cast<int>(rows));
  launched(ctx, "sample");
  CUDA_CHECK(cudaEventRecord(memory.sampled, stream));
  memory.outcomes = args.outcomes;
  memory.tops = args.tops;
  memory.listed = args.listed;
  return true;
}

// Waits for the rows on the device, and for nothing that was started behind them.
void CudaBackend::finish_sample(ExecContext&, const ops::SamplingBatch& batch, int flight, ops::SamplingResult& out) {
  const SamplingFlight& memory = sampling_.flights[static_cast<size_t>(flight)];
  wait_for(memory.sampled);
  const float* own_listed = memory.listed;
  for (size_t i = 0; i < memory.on_device.size(); ++i) {
    const ops::SamplingRow& row = batch.rows[memory.on_device[i]];
    const SamplingOutcome& outcome = memory.outcomes[i];
    ops::SampledRow& result = out.rows[memory.on_device[i]];
    result.token = outcome.token;
    result.greedy_id = outcome.greedy_id;
    result.status = static_cast<ops::RowStatus>(outcome.status);
    result.logprobs.top.clear();
    result.logprobs.listed.clear();
    result.distribution_ids.clear();
    result.distribution_probs.clear();
    if (result.status == ops::RowStatus::kOk && row.num_logprobs != ops::kNoLogprobs)
      read_logprobs(row, batch, outcome, memory.tops + i * kMostTops, own_listed, result.logprobs);
    own_listed += row.logprob_ids.size();
  }
}

// Of all rows or none.
bool CudaBackend::start_sample(ExecContext& ctx, const Tensor& logits, const ops::SamplingBatch& batch, int number,
                               Tensor& tokens) {
  CUDA_CHECK(cudaSetDevice(options_.device));
  SamplingFlight& flight = sampling_.flights[static_cast<size_t>(number)];
  flight.on_device.clear();
  for (size_t r = 0; r < batch.rows.size(); ++r) {
    if (!is_for_device(batch.rows[r], logits)) return false;
    flight.on_device.push_back(r);
  }
  return !flight.on_device.empty() && start_on_device(ctx, logits, batch, flight, tokens.as<int32_t>());
}

void CudaBackend::sample(ExecContext& ctx, const Tensor& logits, const ops::SamplingBatch& batch,
                         ops::SamplingResult& out) {
  CUDA_CHECK(cudaSetDevice(options_.device));
  SamplingFlight& flight = sampling_.flights.front();  // nothing of it is on its way
  std::vector<size_t>& on_device = flight.on_device;
  on_device.clear();
  for (size_t r = 0; r < batch.rows.size(); ++r)
    if (is_for_device(batch.rows[r], logits)) on_device.push_back(r);
  if (!on_device.empty() && !start_on_device(ctx, logits, batch, flight, nullptr)) on_device.clear();
  if (!on_device.empty()) finish_sample(ctx, batch, 0, out);
  if (on_device.size() == batch.rows.size()) return;

  if (out.scratch.empty()) out.scratch.resize(1);
  const int64_t V = logits.size(1);
  std::vector<float> row(static_cast<size_t>(V));
  int32_t held = -1;
  CUDA_CHECK(cudaStreamSynchronize(stream_of(ctx)));
  for (size_t r = 0, next = 0; r < batch.rows.size(); ++r) {
    if (next < on_device.size() && on_device[next] == r) {
      ++next;
      continue;
    }
    if (batch.rows[r].logit_row != held) {
      held = batch.rows[r].logit_row;
      copy_bytes(row.data(), logits.bytes_at(held * logits.stride(0)), row.size() * sizeof(float));
    }
    reference::sample_row(row.data(), V, batch, batch.rows[r], out.scratch[0], out.rows[r]);
  }
}

}  // namespace calandra
