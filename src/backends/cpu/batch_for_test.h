// Batches and tensors for the tests of this folder.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <deque>
#include <vector>

#include "backends/cpu/cpu_backend.h"
#include "parallel/communicator.h"

namespace calandra {

// Where tests put what ops read and write: host memory, or host memory that a device under test reaches
// (tests/backends_under_test.h).
inline Buffer (*test_memory)(size_t bytes) = Buffer::host;

// Owns tensors; their addresses stay.
class TensorPool {
 public:
  Tensor zeros(DType dtype, Shape shape) {
    const size_t bytes = static_cast<size_t>(shape.numel()) * size_of(dtype);
    buffers_.push_back(test_memory(std::max<size_t>(bytes, 1)));
    return buffers_.back().tensor(dtype, shape);
  }
  Tensor ints(const std::vector<int32_t>& values) {
    Tensor x = zeros(DType::kI32, {static_cast<int64_t>(values.size())});
    std::copy(values.begin(), values.end(), x.as<int32_t>());
    return x;
  }

 private:
  std::deque<Buffer> buffers_;
};

// A number in (-1, 1) for each pair of keys.
inline float noise(uint64_t a, uint64_t b) {
  uint64_t x = a * 0x9e3779b97f4a7c15u + b * 0xc2b2ae3d27d4eb4fu + 0x165667b19e3779f9u;
  x = (x ^ (x >> 31)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 29)) * 0x94d049bb133111ebu;
  return static_cast<float>(static_cast<int64_t>(x ^ (x >> 32)) >> 40) * 0x1p-23f;
}

inline void put(const Tensor& x, int64_t i, float value) {
  if (x.dtype() == DType::kBF16)
    x.as<bf16>()[i] = bf16(value);
  else
    x.as<float>()[i] = value;
}
inline float get(const Tensor& x, int64_t i) {
  return x.dtype() == DType::kBF16 ? static_cast<float>(x.as<bf16>()[i]) : x.as<float>()[i];
}
inline void fill(const Tensor& x, uint64_t seed, float scale, float offset = 0) {
  for (int64_t i = 0; i < x.numel(); ++i) put(x, i, noise(seed, i) * scale + offset);
}
inline std::vector<std::byte> bytes_of(const Tensor& x) {
  const auto* data = static_cast<const std::byte*>(x.data());
  return {data, data + x.bytes()};
}

// What one sequence does in a step.
struct SequenceStep {
  int stream;                 // which token stream the rows come from
  int first;                  // token index of the first row
  std::vector<int> segments;  // rows of each segment
  int drafts = 0;             // of the last segment
  std::vector<int> slots;     // source, then the destination of each segment; not for attention
  int active = 1;

  int rows() const {
    int n = 0;
    for (int rows : segments) n += rows;
    return n;
  }
};

inline Batch batch_of(TensorPool& pool, const std::vector<SequenceStep>& steps) {
  std::vector<int32_t> ids, index, sequence, query{0}, len, active, drafts, start{0}, owner, src, dst;
  for (size_t b = 0; b < steps.size(); ++b) {
    const SequenceStep& step = steps[b];
    for (int i = 0; i < step.rows(); ++i) {
      ids.push_back(0);
      index.push_back(step.first + i);
      sequence.push_back(static_cast<int32_t>(b));
    }
    query.push_back(static_cast<int32_t>(ids.size()));
    len.push_back(step.first + step.rows());
    active.push_back(step.active);
    drafts.push_back(step.drafts);
    for (size_t s = 0; s < step.segments.size(); ++s) {
      start.push_back(start.back() + step.segments[s]);
      owner.push_back(static_cast<int32_t>(b));
      src.push_back(step.slots.empty() ? -1 : step.slots[s]);
      dst.push_back(step.slots.empty() ? 0 : step.slots[s + 1]);
    }
  }
  Batch batch;
  batch.token_ids = pool.ints(ids);
  batch.token_index = pool.ints(index);
  batch.row_sequence = pool.ints(sequence);
  batch.query_start = pool.ints(query);
  batch.seq_len = pool.ints(len);
  batch.active = pool.ints(active);
  batch.draft_count = pool.ints(drafts);
  batch.segment_start = pool.ints(start);
  batch.segment_sequence = pool.ints(owner);
  batch.state_src = pool.ints(src);
  batch.state_dst = pool.ints(dst);
  for (const SequenceStep& step : steps) {
    batch.max_query_len = std::max<int64_t>(batch.max_query_len, step.rows());
    batch.max_seq_len = std::max<int64_t>(batch.max_seq_len, step.first + step.rows());
    batch.max_drafts = std::max<int64_t>(batch.max_drafts, step.drafts);
  }
  return batch;
}

// Every instruction set of the machine with several thread counts.
inline std::vector<std::unique_ptr<CpuBackend>> cpu_backends() {
  std::vector<std::unique_ptr<CpuBackend>> all;
  for (const Isa isa : machine_isas())
    for (const int threads : {1, 2, 3, 16}) all.push_back(std::make_unique<CpuBackend>(threads, isa));
  return all;
}

}  // namespace calandra
