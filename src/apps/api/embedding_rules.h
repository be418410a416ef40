// How an embedding is made of a prompt's hidden rows. Source: vLLM 0.26, config/pooler.py and pooling_params.py.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "base/json.h"
#include "engine/request.h"

namespace calandra::apps {

struct EmbeddingRules {
  // `flag`: --pooler-config, {"pooling_type": "LAST" or "MEAN", "normalize": true, "dimensions": 256}; throws
  // UsageError. `config`: of the model.
  EmbeddingRules(const std::optional<json::object>& flag, const json::object& config, int64_t hidden_size);

  // The first so many numbers of each vector, as a body asks. Throws RefusedBody where the model was not trained for
  // it (Matryoshka): is_matryoshka or matryoshka_dimensions of its config.
  int64_t dimensions_of(std::optional<int64_t> asked) const;

  Pooling pooling = Pooling::kLast;
  bool normalize = true;

 private:
  const int64_t hidden_size_;
  bool is_matryoshka_ = false;
  std::vector<int64_t> trained_;  // empty: all
  int64_t usual_;
};

}  // namespace calandra::apps
