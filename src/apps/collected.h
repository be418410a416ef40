// Tensors that a run collects by name, for safetensors output: results that grow by rows, and taps.
#pragma once

#include <map>
#include <set>
#include <string>
#include <vector>

#include "ops/backend.h"

namespace calandra::apps {

struct Collected {
  DType dtype = DType::kF32;  // kI32: ids, kept as values too
  std::vector<int64_t> row_shape;
  std::vector<float> values;
  int64_t rows = 0;
};

// As f32, from the backend's memory. `t` may have any strides and has up to three axes.
void append_as_f32(Backend& backend, const Tensor& t, std::vector<float>& out);

// Keeps the taps whose name matches a glob: "embedding", "layers.3", "layers.3.q_norm".
class TapCollector : public Taps {
 public:
  TapCollector(Backend& backend, std::string glob) : backend_(backend), glob_(std::move(glob)) {}

  void tap(int layer, const char* name, const Tensor& tensor) override;
  void constant(int layer, const char* name, const Tensor& tensor) override;

  std::map<std::string, Collected>& tensors() { return tensors_; }
  // Names of all that was tapped, matched or not, with "L" for the number of a layer.
  const std::set<std::string>& names() const { return names_; }

 private:
  // Where the tensor of that name goes; null when it does not match.
  Collected* place_of(int layer, std::string_view name);

  Backend& backend_;
  std::string glob_;
  std::map<std::string, Collected> tensors_;
  std::set<std::string> names_;
};

}  // namespace calandra::apps
