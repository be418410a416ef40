#include "models/bailing_v2_5/config.h"

#include <fmt/format.h>

#include <cmath>

#include "base/log.h"
#include "models/rope_config.h"

namespace calandra::bailing_v2_5 {
namespace {

// HF: the softmax scale of the latent layers takes mscale^2 when mscale_all_dim is given; no release has it.
float parse_latent_scale_factor(const ConfigFields& rope, double factor) {
  if (rope.has("mscale")) rope.fail("mscale", "is not supported: no release of the family has it");
  const double mscale_all_dim = rope.number("mscale_all_dim", 0, 1e3, 0.0);
  const double mscale = mscale_all_dim > 0 && factor > 1 ? 0.1 * mscale_all_dim * std::log(factor) + 1 : 1;
  return static_cast<float>(mscale * mscale);
}

int64_t parse_rotary_dim(const ConfigFields& top, const ConfigFields& rope, int64_t head_dim) {
  if (top.has("rotary_dim")) {
    const int64_t rotary_dim = top.integer("rotary_dim", 2, head_dim);
    if (rotary_dim % 2 != 0) top.fail("rotary_dim", fmt::format("must be even, found {}", rotary_dim));
    return rotary_dim;
  }
  const double factor = rope.number("partial_rotary_factor", 1e-6, 1, 0.5);
  const auto rotary_dim = static_cast<int64_t>(static_cast<double>(head_dim) * factor);
  if (rotary_dim % 2 != 0 || rotary_dim == 0)
    rope.fail("partial_rotary_factor", fmt::format("{} of head_dim {} leaves {} rotary dims; it must be an even number",
                                                   factor, head_dim, rotary_dim));
  return rotary_dim;
}

void parse_latent(const ConfigFields& top, Config& c) {
  c.q_lora_rank = top.integer("q_lora_rank", 1, kMaxWidth, 0);
  c.kv_lora_rank = top.integer("kv_lora_rank", 1, kMaxWidth, 512);
  c.qk_nope_head_dim = top.integer("qk_nope_head_dim", 1, kMaxHeadDim, 128);
  c.qk_rope_head_dim = top.integer("qk_rope_head_dim", 2, kMaxHeadDim, 64);
  if (c.qk_rope_head_dim % 2 != 0)
    top.fail("qk_rope_head_dim", fmt::format("must be even for the rotary pairs, found {}", c.qk_rope_head_dim));
  c.v_head_dim = top.integer("v_head_dim", 1, kMaxHeadDim, 128);
  if (!top.boolean("rope_interleave", true))
    top.fail("rope_interleave", "false is not supported: the latent layers of every release interleave");
  c.latent_rope = c.rope;
  c.latent_rope.rotary_dim = c.qk_rope_head_dim;
}

void parse_experts(const ConfigFields& top, Config& c) {
  c.num_experts = top.integer("num_experts", 0, kMaxExperts, 0);
  c.first_k_dense_replace = top.integer("first_k_dense_replace", 0, kMaxLayers, 0);
  if (c.num_experts <= 1) return;
  check_experts_in_all(top, c.num_experts, c.num_hidden_layers);
  ops::RouterOptions& router = c.router;
  const std::string score = top.text("score_function", top.text("scoring_func", "sigmoid"));
  if (score != "sigmoid" && score != "softmax")
    top.fail(top.has("score_function") ? "score_function" : "scoring_func",
             "must be sigmoid or softmax, found " + score);
  router.score = score == "sigmoid" ? ops::RouterScore::kSigmoid : ops::RouterScore::kSoftmax;
  c.moe_router_enable_expert_bias =
      top.boolean("moe_router_enable_expert_bias", router.score == ops::RouterScore::kSigmoid);
  if (c.moe_router_enable_expert_bias && router.score == ops::RouterScore::kSoftmax)
    top.fail("moe_router_enable_expert_bias", "true needs score_function sigmoid: softmax routing has no bias");

  router.top_k = top.integer("num_experts_per_tok", 1, c.num_experts);
  router.n_group = top.integer("n_group", 1, c.num_experts, 1);
  router.topk_group = top.integer("topk_group", 1, int64_t{1} << 30, router.n_group);
  if (c.num_experts % router.n_group != 0)
    top.fail("n_group", fmt::format("{} does not divide num_experts {}", router.n_group, c.num_experts));
  if (router.topk_group > router.n_group)
    top.fail("topk_group", fmt::format("{} is above n_group {}", router.topk_group, router.n_group));
  const int64_t kept = c.num_experts / router.n_group * router.topk_group;
  if (router.top_k > kept)
    top.fail("num_experts_per_tok", fmt::format("{} exceeds the {} experts of the kept groups", router.top_k, kept));
  // QUIRK: HF's class does not know the key and always normalises; a single choice is never normalised.
  router.norm_topk_prob = top.boolean("norm_topk_prob", true) && router.top_k > 1;
  router.routed_scaling_factor = static_cast<float>(top.number("routed_scaling_factor", 0, 1e6, 1.0));

  c.moe_intermediate_size = top.integer("moe_intermediate_size", 1, kMaxWidth);
  const int64_t shared = top.integer("num_shared_experts", 0, 1024, 0);
  c.shared_intermediate_size =
      shared * top.integer("moe_shared_expert_intermediate_size", 1, kMaxWidth, c.moe_intermediate_size);
  if (const std::string dtype = top.text("router_dtype", "fp32"); dtype != "fp32" && dtype != "float32")
    log_warning_once("{}: router_dtype {} is ignored, the router is computed in float32", top.where(), dtype);
  if (top.boolean("multi_gate", false) || top.text("router_type", "") == "MultiRouter")
    top.fail("multi_gate", "is not supported: no known release has it");
}

// Options of the predecessors that are off in every release.
void refuse_what_is_not_computed(const ConfigFields& top) {
  for (const char* key : {"use_linear_gqa", "use_low_rank", "norm_head", "using_split_qkv_in_self_attention"})
    if (top.boolean(key, false)) top.fail(key, "true is not supported: no release of the family has it");
  if (top.has("short_conv_kernel_size"))
    top.fail("short_conv_kernel_size", "belongs to the next generation (Ling 3), which is another model");
  if (const std::string act = top.text("hidden_act", "silu"); act != "silu")
    top.fail("hidden_act", "must be silu, found " + act);
  // SGLang's switch: other values than mla mean grouped-query layers, which no release of V2.5 has.
  if (const std::string type = top.text("full_attention_type", "mla"); type != "mla")
    top.fail("full_attention_type", "must be mla, found " + type + "; LinearV2 checkpoints name their architecture");
  if (top.has("layers_block_type")) top.fail("layers_block_type", "is not supported; give layer_group_size");
}

}  // namespace

Config parse_config(const json::object& object, const std::string& file, FullAttention kind) {
  const ConfigFields top(object, file);
  refuse_what_is_not_computed(top);
  Config c;
  c.full_attention = kind;
  c.vocab_size = top.integer("vocab_size", 1, int64_t{1} << 24);
  c.hidden_size = top.integer("hidden_size", 1, kMaxWidth);
  c.num_hidden_layers = top.integer("num_hidden_layers", 1, kMaxLayers);
  c.num_attention_heads = top.integer("num_attention_heads", 1, kMaxHeads);
  c.num_key_value_heads = top.integer("num_key_value_heads", 1, kMaxHeads, c.num_attention_heads);
  if (kind == FullAttention::kGroupedQuery && c.num_attention_heads % c.num_key_value_heads != 0)
    top.fail("num_key_value_heads",
             fmt::format("{} does not divide num_attention_heads {}", c.num_key_value_heads, c.num_attention_heads));
  c.head_dim = top.integer("head_dim", 2, kMaxHeadDim, c.hidden_size / c.num_attention_heads);
  c.max_position_embeddings = top.integer("max_position_embeddings", 1, int64_t{1} << 30, 32768);
  c.rms_norm_eps = static_cast<float>(top.number("rms_norm_eps", kMinEps, 1, 1e-6));
  c.tie_word_embeddings = top.boolean("tie_word_embeddings", false);
  c.use_qk_norm = top.boolean("use_qk_norm", true);
  c.use_qkv_bias = top.boolean("use_qkv_bias", false);
  c.use_bias = top.boolean("use_bias", false);

  c.layer_group_size = top.integer("layer_group_size", 1, kMaxLayers, 1);
  // The published implementations disagree about a remainder (docs/models/bailing_v2_5.md); no release has one.
  if (c.num_hidden_layers % c.layer_group_size != 0)
    top.fail("layer_group_size", fmt::format("{} does not divide num_hidden_layers {}; such models are not defined",
                                             c.layer_group_size, c.num_hidden_layers));
  c.group_norm_size =
      top.integer("group_norm_size", 1, 1 << 20, top.integer("linear_attn_norm_group_size", 1, 1 << 20, 1));
  if (c.num_attention_heads * c.head_dim % c.group_norm_size != 0)
    top.fail("group_norm_size", fmt::format("{} does not divide num_attention_heads * head_dim = {}", c.group_norm_size,
                                            c.num_attention_heads * c.head_dim));
  c.linear_silu = top.boolean("use_linear_silu", top.boolean("linear_silu", false));
  c.linear_rope = top.boolean("linear_rope", true);
  // P: the maker's serving and training code; H: the code shipped with the checkpoints. --hf-overrides switches.
  const std::string decay = top.text("linear_decay_variant", "P");
  if (decay != "P" && decay != "H") top.fail("linear_decay_variant", "must be \"P\" or \"H\", found " + decay);
  c.linear_decay_variant = decay == "P" ? LinearDecayVariant::kP : LinearDecayVariant::kH;
  if (!top.boolean("lightning_layerwise_decay", true)) c.linear_decay_variant = LinearDecayVariant::kNone;

  const json::object settings = rope_settings(top);
  const ConfigFields rope(settings, top.where() + " rope_parameters");
  c.rope = parse_rope(rope, 600000, c.max_position_embeddings);
  c.max_position_embeddings = c.rope.reach(c.max_position_embeddings);
  if (c.rope.rope_type == RopeParameters::Type::kYarn)
    c.latent_scale_factor = parse_latent_scale_factor(rope, c.rope.factor);
  if (kind == FullAttention::kLatent) parse_latent(top, c);
  c.rope.rotary_dim = parse_rotary_dim(top, rope, c.head_dim);
  parse_experts(top, c);
  const bool dense_layers = c.num_experts <= 1 || c.first_k_dense_replace > 0;
  if (dense_layers) c.intermediate_size = top.integer("intermediate_size", 1, kMaxWidth);
  c.num_nextn_predict_layers = top.integer("num_nextn_predict_layers", 0, 64, 0);
  if (kind == FullAttention::kGroupedQuery && c.num_nextn_predict_layers > 0) {
    log_warning_once(
        "{}: num_nextn_predict_layers {} is ignored: LinearV2 models have no MTP layer, so they cannot draft", file,
        c.num_nextn_predict_layers);
    c.num_nextn_predict_layers = 0;
  }
  return c;
}

std::vector<UnusedTensors> unused_tensors(const Config& c, bool drafter) {
  std::vector<UnusedTensors> unused;
  const std::string beyond = fmt::format("layers beyond the {} and their MTP layers", c.num_hidden_layers);
  for (const char* layers : {"model.layers.*", "layers.*"}) {
    unused.push_back({layers, beyond, c.num_hidden_layers + c.num_nextn_predict_layers});
    if (!drafter) unused.push_back({layers, "MTP layers: not asked for", c.num_hidden_layers, true});
  }
  for (const char* pattern : {"model.mtp*", "*.slope", "*inv_freq", "*v_head*"})
    unused.push_back({pattern, "computed or not part of inference"});
  if (c.tie_word_embeddings) unused.push_back({"lm_head.weight", "tie_word_embeddings is true"});
  return unused;
}

std::vector<std::pair<std::string, std::string>> describe(const Config& c) {
  const int64_t full = c.num_hidden_layers / c.layer_group_size;
  const bool latent = c.full_attention == FullAttention::kLatent;
  std::vector<std::pair<std::string, std::string>> facts = {
      {"vocab_size", std::to_string(c.vocab_size)},
      {"hidden_size", std::to_string(c.hidden_size)},
      {"layers", fmt::format("{} ({} lightning attention, {} {})", c.num_hidden_layers, c.num_hidden_layers - full,
                             full, latent ? "latent attention" : "grouped-query attention")},
      {"lightning heads", fmt::format("{} of {}, rotary {}, {} norm groups, decay variant {}", c.num_attention_heads,
                                      c.head_dim, c.rope.rotary_dim, c.group_norm_size,
                                      c.linear_decay_variant == LinearDecayVariant::kP   ? "P"
                                      : c.linear_decay_variant == LinearDecayVariant::kH ? "H"
                                                                                         : "none")}};
  if (latent) {
    facts.push_back({"latent attention",
                     fmt::format("{} heads, q_lora_rank {}, kv_lora_rank {}, nope {}, rope {}, value {}",
                                 c.num_attention_heads, c.q_lora_rank > 0 ? std::to_string(c.q_lora_rank) : "none",
                                 c.kv_lora_rank, c.qk_nope_head_dim, c.qk_rope_head_dim, c.v_head_dim)});
  } else {
    facts.push_back({"attention heads", fmt::format("{} query, {} key/value of {}", c.num_attention_heads,
                                                    c.num_key_value_heads, c.head_dim)});
  }
  if (c.num_experts > 1) {
    facts.push_back({"experts", fmt::format("{} of {} per token, width {}, {} of {} groups, shared width {}",
                                            c.router.top_k, c.num_experts, c.moe_intermediate_size, c.router.topk_group,
                                            c.router.n_group, c.shared_intermediate_size)});
    facts.push_back({"dense layers", fmt::format("first {} (width {})", c.first_k_dense_replace, c.intermediate_size)});
  } else {
    facts.push_back({"intermediate_size", std::to_string(c.intermediate_size)});
  }
  facts.push_back({"MTP layers", std::to_string(c.num_nextn_predict_layers)});
  facts.push_back({"context", fmt::format("{} tokens{}", c.max_position_embeddings,
                                          c.rope.rope_type == RopeParameters::Type::kYarn ? " (yarn)" : "")});
  facts.push_back({"output head", c.tie_word_embeddings ? "tied to the embedding" : "own matrix"});
  return facts;
}

}  // namespace calandra::bailing_v2_5
