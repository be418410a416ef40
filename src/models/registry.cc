#include "models/registry.h"

#include <fmt/format.h>

#include "base/error.h"
#include "models/qwen3_5/qwen3_5.h"
#include "models/qwen3_5/shapes.h"

namespace calandra {
namespace {

struct Architecture {
  const char* name;
  std::unique_ptr<CausalLM> (*make)(const ModelConfig&, WeightReader, Backend&, DType);
  void (*check)(const ModelConfig&);
  std::vector<UnusedTensors> (*unused)(const ModelConfig&);
  std::vector<std::pair<std::string, std::string>> (*describe)(const ModelConfig&);
};

std::unique_ptr<CausalLM> make_qwen3_5(const ModelConfig& c, WeightReader reader, Backend& backend, DType dtype) {
  return std::make_unique<qwen3_5::Qwen3_5>(qwen3_5::parse_config(c.config, c.file), reader, backend, dtype);
}
void check_qwen3_5(const ModelConfig& c) { qwen3_5::parse_config(c.config, c.file); }
std::vector<UnusedTensors> unused_qwen3_5(const ModelConfig& c) {
  return qwen3_5::unused_tensors(qwen3_5::parse_config(c.config, c.file));
}
std::vector<std::pair<std::string, std::string>> describe_qwen3_5(const ModelConfig& c) {
  return qwen3_5::describe(qwen3_5::parse_config(c.config, c.file));
}

const Architecture kArchitectures[] = {
    {"Qwen3_5ForConditionalGeneration", make_qwen3_5, check_qwen3_5, unused_qwen3_5, describe_qwen3_5},
    {"Qwen3_5ForCausalLM", make_qwen3_5, check_qwen3_5, unused_qwen3_5, describe_qwen3_5},
};

const Architecture& find_architecture(const std::string& name, const std::string& file) {
  std::string known;
  for (const Architecture& architecture : kArchitectures) {
    if (name == architecture.name) return architecture;
    known += std::string(known.empty() ? "" : ", ") + architecture.name;
  }
  throw LoadError(fmt::format("{}: architecture {} is not supported; supported are {}", file, name, known));
}

// The number format is refused here by name, before a weight's strange shape is.
void refuse_quantised(const ConfigFields& top) {
  if (!top.has("quantization_config")) return;
  const ConfigFields quantization = top.child("quantization_config");
  quantization.fail("quant_method", fmt::format("\"{}\" is not supported; weights must be bfloat16, float16 or float32",
                                                quantization.text("quant_method", "(absent)")));
}

DType config_dtype(const ConfigFields& top) {
  const ConfigFields fields = top.has("text_config") ? top.child("text_config") : top;
  const char* key = fields.has("dtype") ? "dtype" : "torch_dtype";
  const std::string name = fields.text(key, top.text(top.has("dtype") ? "dtype" : "torch_dtype", "bfloat16"));
  // float16 activations overflow where these models were trained in bfloat16; their weights are exact in float32.
  if (name == "float32" || name == "float16") return DType::kF32;
  if (name == "bfloat16") return DType::kBF16;
  fields.fail(key, "must be float32, bfloat16 or float16, found " + name);
}

void append_ids(std::vector<int32_t>& ids, const json::value* value) {
  if (value == nullptr) return;
  if (value->is_int64()) ids.push_back(static_cast<int32_t>(value->get_int64()));
  if (value->is_array()) {
    for (const json::value& id : value->get_array()) append_ids(ids, &id);
  }
}

}  // namespace

ModelConfig check_config(json::object config, const std::string& file) {
  ModelConfig model;
  model.file = file;
  model.config = std::move(config);
  const ConfigFields top(model.config, file);
  const json::array& architectures = top.array("architectures");
  if (architectures.size() != 1 || !architectures[0].is_string()) top.fail("architectures", "must hold one name");
  model.architecture = std::string(architectures[0].get_string());
  const Architecture& architecture = find_architecture(model.architecture, file);
  refuse_quantised(top);
  model.dtype = config_dtype(top);
  architecture.check(model);
  const ConfigFields text = top.has("text_config") ? top.child("text_config") : top;
  append_ids(model.eos_token_ids, text.object().if_contains("eos_token_id"));
  return model;
}

std::unique_ptr<CausalLM> make_model(const ModelConfig& config, WeightReader reader, Backend& backend, DType dtype) {
  return find_architecture(config.architecture, config.file).make(config, reader, backend, dtype);
}

std::vector<UnusedTensors> unused_tensors(const ModelConfig& config) {
  return find_architecture(config.architecture, config.file).unused(config);
}

std::vector<std::pair<std::string, std::string>> describe(const ModelConfig& config) {
  return find_architecture(config.architecture, config.file).describe(config);
}

json::object config_of_shape(const std::string& name) {
  std::string known;
  for (const qwen3_5::ReleaseShape& shape : qwen3_5::release_shapes()) {
    if (name == shape.name) return qwen3_5::config_of(shape);
    known += std::string(known.empty() ? "" : ", ") + shape.name;
  }
  throw UsageError("there is no shape " + name + "; shapes are " + known);
}

}  // namespace calandra
