// quantization_config: which number format a checkpoint says its weights have.
#pragma once

#include <optional>

#include "models/config_fields.h"
#include "weights/weight_reader.h"

namespace calandra {

// Blocks of FP8 weights ("quant_method": "fp8"), nothing without a quantization_config. Which weights are FP8 is
// decided by what is in the files, not by modules_to_not_convert: released lists are incomplete. Throws LoadError for
// another format, by name, before a weight's strange shape is.
std::optional<Fp8Blocks> parse_quantization(const ConfigFields& top);

}  // namespace calandra
