#include "models/registry.h"

#include <fmt/format.h>

#include <limits>

#include "base/error.h"
#include "models/bailing_v2_5/bailing_v2_5.h"
#include "models/bailing_v2_5/shapes.h"
#include "models/quantization.h"
#include "models/qwen3_5/qwen3_5.h"
#include "models/qwen3_5/shapes.h"

namespace calandra {
namespace {

struct Architecture {
  const char* name;
  std::unique_ptr<CausalLM> (*make)(const ModelConfig&, WeightReader, Backend&, DType, const ModelParts&);
  std::vector<UnusedTensors> (*unused)(const ModelConfig&, const ModelParts&);
  std::vector<std::pair<std::string, std::string>> (*describe)(const ModelConfig&);  // checks the config, too
  std::span<const std::string_view> end_tokens;
};

struct Qwen3_5Family {
  static constexpr std::span<const std::string_view> kEndTokens{};
  static qwen3_5::Config parse(const ModelConfig& c) { return qwen3_5::parse_config(c.config, c.file); }
  static std::unique_ptr<CausalLM> make(const ModelConfig& c, WeightReader reader, Backend& backend, DType dtype,
                                        const ModelParts& parts) {
    return std::make_unique<qwen3_5::Qwen3_5>(parse(c), reader, backend, dtype, parts);
  }
  static std::vector<UnusedTensors> unused(const ModelConfig& c, const ModelParts& parts) {
    return qwen3_5::unused_tensors(parse(c), parts);
  }
  static std::vector<std::pair<std::string, std::string>> describe(const ModelConfig& c) {
    return qwen3_5::describe(parse(c));
  }
};

template <bailing_v2_5::FullAttention kind>
struct BailingFamily {
  // QUIRK: config.json of some releases names one of the two, and not always the one that ends a turn.
  static constexpr std::string_view kEndTokens[] = {"<|endoftext|>", "<|role_end|>"};
  static bailing_v2_5::Config parse(const ModelConfig& c) { return bailing_v2_5::parse_config(c.config, c.file, kind); }
  static std::unique_ptr<CausalLM> make(const ModelConfig& c, WeightReader reader, Backend& backend, DType dtype,
                                        const ModelParts& parts) {
    return std::make_unique<bailing_v2_5::Bailing>(parse(c), reader, backend, dtype, parts);
  }
  static std::vector<UnusedTensors> unused(const ModelConfig& c, const ModelParts& parts) {
    return bailing_v2_5::unused_tensors(parse(c), parts.drafter);
  }
  static std::vector<std::pair<std::string, std::string>> describe(const ModelConfig& c) {
    return bailing_v2_5::describe(parse(c));
  }
};

template <class Family>
constexpr Architecture row(const char* name) {
  return {name, Family::make, Family::unused, Family::describe, Family::kEndTokens};
}
using BailingV2_5 = BailingFamily<bailing_v2_5::FullAttention::kLatent>;
using BailingLinearV2 = BailingFamily<bailing_v2_5::FullAttention::kGroupedQuery>;

const Architecture kArchitectures[] = {
    row<Qwen3_5Family>("Qwen3_5ForConditionalGeneration"),
    row<Qwen3_5Family>("Qwen3_5ForCausalLM"),
    row<Qwen3_5Family>("Qwen3_5MoeForConditionalGeneration"),
    row<Qwen3_5Family>("Qwen3_5MoeForCausalLM"),
    row<BailingV2_5>("BailingMoeV2_5ForCausalLM"),
    row<BailingLinearV2>("BailingMoeLinearV2ForCausalLM"),
    row<BailingLinearV2>("BailingMoeLinearForCausalLM"),
    row<BailingLinearV2>("BailingMoELinearForCausalLM"),
};

const Architecture& find_architecture(const std::string& name, const std::string& file) {
  std::string known;
  for (const Architecture& architecture : kArchitectures) {
    if (name == architecture.name) return architecture;
    known += std::string(known.empty() ? "" : ", ") + architecture.name;
  }
  throw LoadError(fmt::format("{}: architecture {} is not supported; supported are {}", file, name, known));
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

// One id, a list of them, or none.
std::vector<int32_t> token_ids(const ConfigFields& fields, std::string_view key) {
  if (!fields.has(key)) return {};
  const json::value& value = *fields.object().if_contains(key);
  const json::array one = {value};
  std::vector<int32_t> ids;
  for (const json::value& id : value.is_array() ? value.get_array() : one) {
    if (!id.is_int64() || id.get_int64() < 0 || id.get_int64() > std::numeric_limits<int32_t>::max())
      fields.fail(key, "must be a token id or a list of them, found " + to_json(value));
    ids.push_back(static_cast<int32_t>(id.get_int64()));
  }
  return ids;
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
  model.fp8 = parse_quantization(top);
  model.dtype = config_dtype(top);
  architecture.describe(model);  // throws for broken fields
  const ConfigFields text = top.has("text_config") ? top.child("text_config") : top;
  model.eos_token_ids = token_ids(text, "eos_token_id");
  if (top.has("text_config"))
    for (const int32_t id : token_ids(top, "eos_token_id")) model.eos_token_ids.push_back(id);
  model.end_tokens = architecture.end_tokens;
  return model;
}

std::unique_ptr<CausalLM> make_model(const ModelConfig& config, WeightReader reader, Backend& backend, DType dtype,
                                     const ModelParts& parts) {
  return find_architecture(config.architecture, config.file).make(config, reader, backend, dtype, parts);
}

std::vector<UnusedTensors> unused_tensors(const ModelConfig& config, const ModelParts& parts) {
  return find_architecture(config.architecture, config.file).unused(config, parts);
}

std::vector<std::pair<std::string, std::string>> describe(const ModelConfig& config) {
  return find_architecture(config.architecture, config.file).describe(config);
}

json::object config_of_shape(const std::string& name) {
  std::string known;
  const auto is = [&](const char* shape) {
    known += std::string(known.empty() ? "" : ", ") + shape;
    return name == shape;
  };
  for (const qwen3_5::ReleaseShape& shape : qwen3_5::release_shapes())
    if (is(shape.name)) return qwen3_5::config_of(shape);
  for (const bailing_v2_5::ReleaseShape& shape : bailing_v2_5::release_shapes())
    if (is(shape.name)) return bailing_v2_5::config_of(shape);
  throw UsageError("there is no shape " + name + "; shapes are " + known);
}

}  // namespace calandra
