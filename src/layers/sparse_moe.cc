#include "layers/sparse_moe.h"

#include <array>
#include <string>

#include "base/error.h"

namespace calandra {
namespace {

// Names under which checkpoints store the router's bias (vLLM's load-time renames).
constexpr std::array kBiasNames = {"gate.expert_bias", "gate.e_score_correction_bias",
                                   "experts.e_score_correction_bias", "experts.expert_bias"};

}  // namespace

SparseMoe::SparseMoe(WeightReader reader, const Sizes& s, const ops::RouterOptions& o, const Names& names)
    : options(o) {
  const Axis D{"hidden_size", s.hidden_size}, E{"num_experts", s.num_experts},
      F{"moe_intermediate_size", s.moe_intermediate_size};
  weights.taps = names.taps;
  reader.linear(weights.router, "gate.weight", {E, D});
  const char* bias = nullptr;
  for (const char* name : kBiasNames) {
    if (!reader.has(name)) continue;
    if (bias != nullptr)
      throw LoadError(std::string(bias) + " and its alias " + name + ": the expert_bias is stored twice");
    bias = name;
  }
  if (names.expert_bias) {
    reader.vector(weights.bias, bias != nullptr ? bias : kBiasNames[0], E);
  } else if (bias != nullptr && options.score == ops::RouterScore::kSoftmax) {
    throw LoadError(std::string("score_function softmax, but the checkpoint has a router bias (") + bias +
                    "): the two exclude each other");
  }

  if (reader.has("experts.gate_up_proj")) {  // first the rows of gate, then those of up
    const Axis both{"2 * moe_intermediate_size", 2 * F.size};
    reader.fused_experts(weights.gate, "experts.gate_up_proj", E, {both, D}, {0, F.size, 2 * F.size});
    reader.fused_experts(weights.up, "experts.gate_up_proj", E, {both, D}, {F.size, F.size, 2 * F.size});
    reader.fused_experts(weights.down, "experts.down_proj", E, {D, F});
  } else {
    reader.experts(weights.gate, "experts.{e}.gate_proj.weight", E.size, {F, D});
    reader.experts(weights.up, "experts.{e}.up_proj.weight", E.size, {F, D});
    reader.experts(weights.down, "experts.{e}.down_proj.weight", E.size, {D, F});
  }
  if (s.shared_intermediate_size == 0) return;
  const Axis Fs{"shared_intermediate_size", s.shared_intermediate_size};
  const WeightReader shared = reader.child(names.shared_experts);
  shared.linear(weights.shared_gate_up.part(0), "gate_proj.weight", {Fs, D});
  shared.linear(weights.shared_gate_up.part(1), "up_proj.weight", {Fs, D});
  shared.linear(weights.shared_down, "down_proj.weight", {D, Fs});
  if (names.shared_gate != nullptr) reader.linear(weights.shared_gate, names.shared_gate, {{"1", 1}, D});
}

}  // namespace calandra
