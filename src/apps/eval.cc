// `calandra eval`: perplexity of a text, cut into windows that start from empty state.
#include <cmath>

#include "apps/input_text.h"
#include "apps/limits.h"
#include "apps/output.h"
#include "apps/verbs.h"
#include "base/error.h"
#include "base/progress.h"

namespace calandra::apps {
namespace {

// -log softmax(row)[target] in f64.
double negative_log_likelihood(const float* row, int64_t vocab_size, int32_t target) {
  double max = row[0];
  for (int64_t v = 1; v < vocab_size; ++v) max = std::max(max, static_cast<double>(row[v]));
  double sum = 0;
  for (int64_t v = 0; v < vocab_size; ++v) sum += std::exp(row[v] - max);
  return std::log(sum) + max - row[target];
}

// Sum over the second to last token of the window.
double window_nll(ModelRunner& runner, std::vector<int32_t> tokens, const std::function<void(int64_t)>& on_progress) {
  Sequence sequence;
  sequence.tokens = std::move(tokens);
  sequence.prompt_size = sequence.size();
  CHECK(runner.reserve(sequence, sequence.size()));
  const int64_t V = runner.model().vocab_size(), T = sequence.size();
  std::vector<float> host;
  double nll = 0;
  while (sequence.computed < T) {
    const int64_t begin = sequence.computed;
    const ModelRunner::Part part{&sequence, std::min(runner.limits().max_num_batched_tokens, T - begin)};
    const Tensor hidden = runner.forward({&part, 1});
    for (int64_t first = 0; first < part.rows; first += ModelRunner::kLogitRows) {
      std::vector<int32_t> rows;
      for (int64_t row = first; row < std::min(part.rows, first + ModelRunner::kLogitRows); ++row)
        if (begin + row + 1 < T) rows.push_back(static_cast<int32_t>(row));
      if (rows.empty()) continue;
      const Tensor logits = runner.logits(hidden, rows);
      host.resize(logits.numel());
      runner.backend().copy_bytes(host.data(), logits.data(), logits.bytes());
      for (size_t i = 0; i < rows.size(); ++i)
        nll += negative_log_likelihood(host.data() + i * V, V, sequence.tokens[begin + rows[i] + 1]);
    }
    on_progress(sequence.computed);
  }
  runner.release(sequence);
  return nll;
}

}  // namespace

int eval(const Options& options) {
  const std::string text = read_text(options.text_file);
  LoadedModel loaded = load_model(options.model);
  if (!loaded.tokenizer) throw LoadError(loaded.folder.string() + " has no tokenizer.json, which eval needs");
  const std::vector<int32_t> ids = loaded.tokenizer->encode(text);
  const auto total = static_cast<int64_t>(ids.size());
  if (total < 2) throw LoadError(options.text_file + " has fewer than two tokens");

  const int64_t longest = options.model.max_model_len.value_or(loaded.model->max_position_embeddings());
  const int64_t window = options.window.value_or(std::min<int64_t>(1024, longest));
  if (window < 2) throw LoadError("--max-model-len 1 is too small: a window has at least 2 tokens");
  const Sizes sizes{1, std::min(window, total)};
  ModelRunner runner(*loaded.model, *loaded.backend, runner_limits(loaded, options.model, sizes, sizes));
  json::array windows;
  double nll = 0;
  int64_t predicted = 0;
  {
    ProgressBar bar("perplexity", total, "tokens");
    for (int64_t begin = 0; begin < total; begin += window) {
      const int64_t end = std::min(total, begin + window);
      if (end - begin < 2) break;  // a single token predicts nothing
      const double sum =
          window_nll(runner, {ids.begin() + begin, ids.begin() + end}, [&](int64_t done) { bar.update(begin + done); });
      windows.push_back(sum / static_cast<double>(end - begin - 1));
      nll += sum;
      predicted += end - begin - 1;
    }
  }
  nll /= static_cast<double>(predicted);

  if (options.json) {
    print_json(json::object{{"tokens", total},
                            {"window", window},
                            {"predicted", predicted},
                            {"nll", nll},
                            {"perplexity", std::exp(nll)},
                            {"window_nll", std::move(windows)}});
  } else {
    put("tokens {}  windows of {}  predicted {}\nnll {:.6f}  perplexity {:.4f}\n", format_count(total), window,
        format_count(predicted), nll, std::exp(nll));
  }
  return 0;
}

}  // namespace calandra::apps
