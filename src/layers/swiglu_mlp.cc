#include "layers/swiglu_mlp.h"

namespace calandra {

SwiGluMlp::SwiGluMlp(WeightReader reader, int64_t hidden_size, int64_t intermediate_size) {
  const Axis D{"hidden_size", hidden_size}, F{"intermediate_size", intermediate_size};
  reader.linear(gate_up.part(0), "gate_proj.weight", {F, D});
  reader.linear(gate_up.part(1), "up_proj.weight", {F, D});
  reader.linear(down_proj, "down_proj.weight", {D, F});
}

}  // namespace calandra
