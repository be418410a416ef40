// The sizes of the Qwen3.5 releases, for random weights in their shape. docs/models/qwen3_5.md.
#pragma once

#include <span>

#include "base/json.h"

namespace calandra::qwen3_5 {

struct ReleaseShape {
  const char* name;
  int64_t hidden_size, num_hidden_layers, num_attention_heads, num_key_value_heads, linear_num_value_heads,
      intermediate_size;  // dense; of an expert (and of the shared one) in a mixture
  bool tie_word_embeddings;
  int64_t num_experts = 0, num_experts_per_tok = 0;
};

std::span<const ReleaseShape> release_shapes();

// A text-only config.json of this shape.
json::object config_of(const ReleaseShape& shape);

}  // namespace calandra::qwen3_5
