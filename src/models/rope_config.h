// Rotary settings of a config.json, in the spellings of both of HF's generations.
#pragma once

#include "layers/rotary_embedding.h"
#include "models/config_fields.h"

namespace calandra {

// What rope_parameters and the older rope_scaling say together: a key of rope_scaling goes before that of
// rope_parameters, so that the override of a model card (--hf-overrides '{"rope_scaling": {...}}') adds to what the
// file has. `type` there becomes rope_type, and rope_theta and partial_rotary_factor may stand beside both.
json::object rope_settings(const ConfigFields& fields);

// rope_theta and the type, default or yarn with its keys but mscale and mscale_all_dim, which are the caller's.
// rotary_dim and mrope_section of the result are empty.   `settings` of rope_settings
RopeParameters parse_rope(const ConfigFields& settings, double default_theta, int64_t max_position_embeddings);

}  // namespace calandra
