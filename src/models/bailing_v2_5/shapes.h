// The releases by name, for random weights in their shape.
#pragma once

#include <span>

#include "base/json.h"

namespace calandra::bailing_v2_5 {

struct ReleaseShape {
  const char* name;
  bool latent;  // V2.5 / V2.6; otherwise LinearV2
  int64_t hidden_size, intermediate_size, num_hidden_layers, num_attention_heads, num_key_value_heads, layer_group_size,
      group_norm_size, moe_intermediate_size, first_k_dense_replace;
  double rope_theta;
  int64_t max_position_embeddings, num_nextn_predict_layers;
};

std::span<const ReleaseShape> release_shapes();

// config.json as the release has it.
json::object config_of(const ReleaseShape& shape);

}  // namespace calandra::bailing_v2_5
