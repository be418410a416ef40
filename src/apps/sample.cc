// `calandra sample`: the engine's sampler on given logits.
#include "apps/input_text.h"
#include "apps/jsonl.h"
#include "apps/loaded_model.h"
#include "apps/verbs.h"
#include "base/error.h"
#include "engine/sample_rows.h"

namespace calandra::apps {

int sample(const Options& options) {
  json::object named;
  if (options.logits_file == "-") throw UsageError("--logits cannot be standard input, which holds the rows");
  if (!options.logits_file.empty()) {
    json::value file = read_json(options.logits_file);
    if (!file.is_object()) throw LoadError(options.logits_file + " must hold an object of named logit vectors");
    named = std::move(file.get_object());
  }
  const std::unique_ptr<Backend> backend = make_backend(options.model);
  Workspace workspace;
  OneRank one;
  ExecContext ctx{*backend, workspace, one};
  return answer_rows([&](const json::object& row) { return sample_row(ctx, row, named); });
}

}  // namespace calandra::apps
