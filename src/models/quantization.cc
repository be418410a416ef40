#include "models/quantization.h"

#include <fmt/format.h>

namespace calandra {
namespace {

constexpr int64_t kMaxBlock = 1 << 20;

Fp8Blocks parse_fp8(const ConfigFields& fields) {
  if (const std::string scheme = fields.text("activation_scheme", "dynamic"); scheme != "dynamic")
    fields.fail("activation_scheme",
                fmt::format("must be dynamic, found {}: scales of activations are not supported", scheme));
  if (const std::string format = fields.text("fmt", "e4m3"); format != "e4m3")
    fields.fail("fmt", "must be e4m3, found " + format);
  Fp8Blocks blocks;
  if (!fields.has("weight_block_size")) return blocks;
  const json::array& size = fields.array("weight_block_size");
  const auto is_size = [](const json::value& v) {
    return v.is_int64() && v.get_int64() >= 1 && v.get_int64() <= kMaxBlock;
  };
  if (size.size() != 2 || !is_size(size[0]) || !is_size(size[1]))
    fields.fail("weight_block_size", "must hold two sizes of at least 1, found " + to_json(size));
  blocks.N = size[0].get_int64();
  blocks.K = size[1].get_int64();
  return blocks;
}

}  // namespace

std::optional<Fp8Blocks> parse_quantization(const ConfigFields& top) {
  if (!top.has("quantization_config")) {
    if (top.has("text_config")) return parse_quantization(top.child("text_config"));
    return std::nullopt;
  }
  const ConfigFields fields = top.child("quantization_config");
  const std::string method = fields.text("quant_method", "(absent)");
  if (method == "fp8") return parse_fp8(fields);
  std::string detail;
  for (const char* key : {"format", "quant_algo", "checkpoint_format"})
    if (fields.has(key)) detail += fmt::format(", {} {}", key, fields.text(key));
  fields.fail("quant_method", fmt::format("{}{} is not supported yet by this version; it computes with fp8 in blocks, "
                                          "and with bfloat16, float16 or float32 without a quantization_config",
                                          method, detail));
}

}  // namespace calandra
