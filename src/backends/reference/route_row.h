// Routing of one row (ops::route), for the backends that route row by row on the host.
#pragma once

#include "ops/moe.h"

namespace calandra::reference {

// Floats of scratch that route_row needs.
inline int64_t route_scratch(int64_t E, const ops::RouterOptions& options) { return 2 * E + options.n_group; }

// logits, bias [E] (bias may be null)   experts, weights [top_k], written
// A NaN counts as the smallest choice score, so broken weights still give distinct experts; their weights are NaN.
void route_row(const float* logits, const float* bias, int64_t E, const ops::RouterOptions& options, float* scratch,
               int32_t* experts, float* weights);

}  // namespace calandra::reference
