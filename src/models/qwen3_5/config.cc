#include "models/qwen3_5/config.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "base/log.h"
#include "models/rope_config.h"

namespace calandra::qwen3_5 {
namespace {

std::vector<LayerKind> parse_layer_kinds(const ConfigFields& text, int64_t layers) {
  std::vector<LayerKind> kinds;
  if (!text.has("layer_types")) {
    const int64_t interval = text.integer("full_attention_interval", 1, layers * kMaxWidth, 4);
    for (int64_t i = 0; i < layers; ++i)
      kinds.push_back((i + 1) % interval == 0 ? LayerKind::kFullAttention : LayerKind::kLinearAttention);
    return kinds;
  }
  for (const json::value& type : text.array("layer_types")) {
    const std::string name = type.is_string() ? std::string(type.get_string()) : to_json(type);
    if (name == "linear_attention") {
      kinds.push_back(LayerKind::kLinearAttention);
    } else if (name == "full_attention") {
      kinds.push_back(LayerKind::kFullAttention);
    } else {
      text.fail("layer_types", "must hold linear_attention or full_attention, found " + name);
    }
  }
  if (static_cast<int64_t>(kinds.size()) != layers)
    text.fail("layer_types", fmt::format("has {} entries for num_hidden_layers {}", kinds.size(), layers));
  return kinds;
}

RopeParameters parse_rope_parameters(const ConfigFields& text, int64_t head_dim, int64_t max_position_embeddings) {
  const json::object settings = rope_settings(text);
  const ConfigFields fields(settings, text.where() + " rope_parameters");
  // QUIRK: HF's default is 10000, not the 1e7 of the releases.
  RopeParameters rope = parse_rope(fields, 10000, max_position_embeddings);
  if (rope.rope_type == RopeParameters::Type::kYarn)
    for (const char* key : {"mscale", "mscale_all_dim"})
      if (fields.has(key)) fields.fail(key, "is not supported: no release of the family has it");
  const double rotary = fields.number("partial_rotary_factor", 1e-6, 1, 0.25);
  rope.rotary_dim = static_cast<int64_t>(static_cast<double>(head_dim) * rotary);
  if (rope.rotary_dim % 2 != 0 || rope.rotary_dim == 0)
    fields.fail("partial_rotary_factor",
                fmt::format("{} of head_dim {} leaves no even number of rotary dims", rotary, head_dim));

  if (!fields.boolean("mrope_interleaved", true))
    fields.fail("mrope_interleaved", "false is not supported: no release of the family has it");
  if (fields.has("mrope_section")) {
    const json::array& section = fields.array("mrope_section");
    if (section.size() != 3) fields.fail("mrope_section", "must hold three sizes");
    int64_t sum = 0;
    for (size_t axis = 0; axis < 3; ++axis) {
      if (!section[axis].is_int64() || section[axis].get_int64() < 0 || section[axis].get_int64() > head_dim * 64)
        fields.fail("mrope_section", "must hold three sizes, found " + to_json(section));
      rope.mrope_section[axis] = section[axis].get_int64();
      sum += rope.mrope_section[axis];
    }
    if (sum > rope.rotary_dim / 2)
      log_warning_once("{}: mrope_section {} exceeds the {} rotary frequencies; what is beyond them has no effect",
                       fields.where(), to_json(section), rope.rotary_dim / 2);
  }
  return rope;
}

void refuse_what_is_not_computed(const ConfigFields& text) {
  if (text.boolean("attention_bias", false))
    text.fail("attention_bias", "true is not supported: no release of the family has it");
  if (!text.boolean("attn_output_gate", true))
    text.fail("attn_output_gate", "false is not supported: no release of the family has it");
  if (text.text("hidden_act", "silu") != "silu")
    text.fail("hidden_act", "must be silu, found " + text.text("hidden_act"));
  if (text.has("layer_scale")) text.fail("layer_scale", "is not supported: no release of the family has it");
  if (text.boolean("mtp_use_dedicated_embeddings", false))
    text.fail("mtp_use_dedicated_embeddings", "true is not supported: no release of the family has it");
  if (const std::string dtype = text.text("mamba_ssm_dtype", "float32"); dtype != "float32")
    log_warning_once("{}: mamba_ssm_dtype {} is ignored, the recurrent state is kept in float32", text.where(), dtype);
}

// HF Qwen3_5MoeTextConfig: every layer is a mixture; softmax over all experts, weights always renormalised.
void parse_experts(const ConfigFields& text, Config& c) {
  c.num_experts = text.integer("num_experts", 1, kMaxExperts);
  c.router.top_k = text.integer("num_experts_per_tok", 1, kMaxExperts, 8);
  if (c.router.top_k > c.num_experts)
    text.fail("num_experts_per_tok", fmt::format("{} is above num_experts {}", c.router.top_k, c.num_experts));
  c.moe_intermediate_size = text.integer("moe_intermediate_size", 1, kMaxWidth, 512);
  c.shared_expert_intermediate_size = text.integer("shared_expert_intermediate_size", 1, kMaxWidth, 512);
}

VisionConfig parse_vision(const ConfigFields& fields, int64_t hidden_size) {
  VisionConfig v;
  v.depth = fields.integer("depth", 1, 1024, 27);
  v.hidden_size = fields.integer("hidden_size", 1, kMaxWidth, 1152);
  v.intermediate_size = fields.integer("intermediate_size", 1, kMaxWidth, 4304);
  v.num_heads = fields.integer("num_heads", 1, kMaxHeads, 16);
  if (v.hidden_size % v.num_heads != 0 || v.hidden_size / v.num_heads % 4 != 0)
    fields.fail("num_heads",
                fmt::format("{} leaves no heads of a multiple of 4 in hidden_size {}", v.num_heads, v.hidden_size));
  v.in_channels = fields.integer("in_channels", 3, 3, 3);
  v.patch_size = fields.integer("patch_size", 1, 256, 16);
  v.temporal_patch_size = fields.integer("temporal_patch_size", 1, 16, 2);
  v.spatial_merge_size = fields.integer("spatial_merge_size", 1, 16, 2);
  v.num_position_embeddings = fields.integer("num_position_embeddings", 1, 1 << 24, 2304);
  const auto side = static_cast<int64_t>(std::llround(std::sqrt(static_cast<double>(v.num_position_embeddings))));
  if (side * side != v.num_position_embeddings)
    fields.fail("num_position_embeddings", fmt::format("must be a square, found {}", v.num_position_embeddings));
  v.out_hidden_size = fields.integer("out_hidden_size", 1, kMaxWidth, hidden_size);
  if (v.out_hidden_size != hidden_size)
    fields.fail("out_hidden_size",
                fmt::format("{} is not the hidden_size {} of the text model", v.out_hidden_size, hidden_size));
  if (const std::string act = fields.text("hidden_act", "gelu_pytorch_tanh"); act != "gelu_pytorch_tanh")
    fields.fail("hidden_act", "must be gelu_pytorch_tanh, found " + act);
  if (fields.has("deepstack_visual_indexes") && !fields.array("deepstack_visual_indexes").empty())
    fields.fail("deepstack_visual_indexes", "must be empty: no release of the family uses it");
  if (fields.has("rope_parameters"))
    v.rope_theta = fields.child("rope_parameters").number("rope_theta", 1, 1e15, 10000.0);
  return v;
}

}  // namespace

Config parse_config(const json::object& object, const std::string& file) {
  const ConfigFields top(object, file);
  Config c;
  c.nested = top.has("text_config");
  const ConfigFields text = c.nested ? top.child("text_config") : top;
  refuse_what_is_not_computed(text);

  c.vocab_size = text.integer("vocab_size", 1, int64_t{1} << 24);
  c.hidden_size = text.integer("hidden_size", 1, kMaxWidth);
  const std::string model_type = text.text("model_type", "");
  const bool mixture = text.has("num_experts") || model_type.find("moe") != std::string::npos;
  if (mixture) {
    parse_experts(text, c);
  } else {
    c.intermediate_size = text.integer("intermediate_size", 1, kMaxWidth);
  }
  c.num_hidden_layers = text.integer("num_hidden_layers", 1, kMaxLayers);
  check_experts_in_all(text, c.num_experts, c.num_hidden_layers);
  c.num_attention_heads = text.integer("num_attention_heads", 1, kMaxHeads);
  c.num_key_value_heads = text.integer("num_key_value_heads", 1, kMaxHeads);
  if (c.num_attention_heads % c.num_key_value_heads != 0)
    text.fail("num_key_value_heads",
              fmt::format("{} does not divide num_attention_heads {}", c.num_key_value_heads, c.num_attention_heads));
  c.head_dim = text.integer("head_dim", 2, kMaxHeadDim, 256);
  c.max_position_embeddings = text.integer("max_position_embeddings", 1, int64_t{1} << 30, 32768);
  c.rms_norm_eps = static_cast<float>(text.number("rms_norm_eps", kMinEps, 1, 1e-6));
  c.linear_conv_kernel_dim = text.integer("linear_conv_kernel_dim", 1, 64, 4);
  c.linear_key_head_dim = text.integer("linear_key_head_dim", 1, kMaxHeadDim, 128);
  c.linear_value_head_dim = text.integer("linear_value_head_dim", 1, kMaxHeadDim, 128);
  c.linear_num_key_heads = text.integer("linear_num_key_heads", 1, kMaxHeads, 16);
  c.linear_num_value_heads = text.integer("linear_num_value_heads", 1, kMaxHeads, 32);
  if (c.linear_num_value_heads % c.linear_num_key_heads != 0)
    text.fail("linear_num_value_heads", fmt::format("{} is no multiple of linear_num_key_heads {}",
                                                    c.linear_num_value_heads, c.linear_num_key_heads));

  // QUIRK: HF ignores output_gate_type and always takes silu; vLLM and the releases' config mean it.
  const std::string gate = text.text("output_gate_type", "swish");
  if (gate == "sigmoid") {
    c.output_gate_type = ops::GateActivation::kSigmoid;
  } else if (gate != "swish" && gate != "silu") {
    text.fail("output_gate_type", "must be swish, silu or sigmoid, found " + gate);
  }

  c.rope = parse_rope_parameters(text, c.head_dim, c.max_position_embeddings);
  c.max_position_embeddings = c.rope.reach(c.max_position_embeddings);
  c.layer_kinds = parse_layer_kinds(text, c.num_hidden_layers);
  c.mtp_num_hidden_layers = text.integer("mtp_num_hidden_layers", 0, 64, 0);
  c.tie_word_embeddings = top.boolean("tie_word_embeddings", text.boolean("tie_word_embeddings", false));
  if (c.nested && top.has("vision_config")) c.vision = parse_vision(top.child("vision_config"), c.hidden_size);
  return c;
}

std::vector<UnusedTensors> unused_tensors(const Config& c, const ModelParts& parts) {
  const std::string layers = c.nested ? "model.language_model.layers." : "model.layers.";
  std::vector<UnusedTensors> unused = {
      {layers + "*", fmt::format("layers beyond num_hidden_layers {}", c.num_hidden_layers), c.num_hidden_layers},
      {"mtp.layers.*", fmt::format("MTP layers beyond mtp_num_hidden_layers {}", c.mtp_num_hidden_layers),
       std::max<int64_t>(1, c.mtp_num_hidden_layers)},
      {"*.rotary_emb.inv_freq", "computed, not read"}};
  if (!parts.vision || !c.vision) unused.push_back({"model.visual.*", "vision tower: not asked for", 0, !parts.vision});
  if (!parts.drafter) unused.push_back({"mtp.*", "multi-token prediction: not asked for", 0, true});
  if (parts.drafter && c.mtp_num_hidden_layers == 0)
    unused.push_back({"mtp.*", "multi-token prediction: mtp_num_hidden_layers is 0 or missing"});
  if (c.tie_word_embeddings) unused.push_back({"lm_head.weight", "tie_word_embeddings is true"});
  return unused;
}

std::vector<std::pair<std::string, std::string>> describe(const Config& c) {
  const auto full = std::count(c.layer_kinds.begin(), c.layer_kinds.end(), LayerKind::kFullAttention);
  return {
      {"vocab_size", std::to_string(c.vocab_size)},
      {"hidden_size", std::to_string(c.hidden_size)},
      {"layers", fmt::format("{} ({} linear_attention, {} full_attention)", c.num_hidden_layers,
                             c.num_hidden_layers - full, full)},
      {"attention heads",
       fmt::format("{} query, {} key/value of {}, rotary {}{}", c.num_attention_heads, c.num_key_value_heads,
                   c.head_dim, c.rope.rotary_dim, c.rope.rope_type == RopeParameters::Type::kYarn ? " (yarn)" : "")},
      {"linear heads",
       fmt::format("{} key, {} value of {} and {}, convolution {}", c.linear_num_key_heads, c.linear_num_value_heads,
                   c.linear_key_head_dim, c.linear_value_head_dim, c.linear_conv_kernel_dim)},
      c.num_experts == 0
          ? std::pair<std::string, std::string>{"intermediate_size", std::to_string(c.intermediate_size)}
          : std::pair<std::string, std::string>{"experts",
                                                fmt::format("{} of {} per token, width {}, shared width {}",
                                                            c.router.top_k, c.num_experts, c.moe_intermediate_size,
                                                            c.shared_expert_intermediate_size)},
      {"MTP layers", std::to_string(c.mtp_num_hidden_layers)},
      {"vision tower", !c.vision ? std::string("none")
                                 : fmt::format("{} layers of {}, {} heads, patches of {}", c.vision->depth,
                                               c.vision->hidden_size, c.vision->num_heads, c.vision->patch_size)},
      {"context", fmt::format("{} tokens", c.max_position_embeddings)},
      {"output head", c.tie_word_embeddings ? "tied to the embedding" : "own matrix"},
  };
}

}  // namespace calandra::qwen3_5
