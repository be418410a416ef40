// The gated delta rule over prompts, for recurrence.cu: sequences of more than kFewRows rows, once `recur` has folded
// their pending inputs.
#pragma once

#include "backends/cuda/device/recur.cuh"
#include "ops/exec_context.h"

namespace calandra::cuda {

// Whether there are such sequences, in a form that the kernels serve.
bool chunks_serve(const Tensor& q, const Tensor& k, const Tensor& v, const RecurShape& shape, const Batch& batch);

// What prepare_chunks leaves for walk_chunks, in the workspace.
Tensor chunk_memory(ExecContext& ctx, const RecurShape& shape, const Batch& batch);

void prepare_chunks(cudaStream_t stream, const SegmentedBatch& segments, const Batch& batch,
                    const RecurInputs<bf16_t>& in, const RecurShape& shape, const Tensor& memory);
void walk_chunks(cudaStream_t stream, const SegmentedBatch& segments, const Batch& batch, const RecurInputs<bf16_t>& in,
                 const RecurShape& shape, const Tensor& memory, float* S, bf16_t* out);

}  // namespace calandra::cuda
