#include "tests/oracle_tools.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "engine/engine_core.h"

namespace calandra::testing {
namespace {

// Rows of f32 values as a dense tensor of the model's type; `bytes` owns it.
Tensor as_rows(const float* values, int64_t rows, int64_t width, DType dtype, std::vector<std::byte>& bytes) {
  bytes.resize(rows * width * size_of(dtype));
  const Tensor t(bytes.data(), dtype, {rows, width});
  for (int64_t i = 0; i < rows * width; ++i) {
    if (dtype == DType::kBF16)
      t.as<bf16>()[i] = bf16(values[i]);
    else
      t.as<float>()[i] = values[i];
  }
  return t;
}

std::string full_name(int layer, const char* name) {
  return layer < 0 ? name : fmt::format("layers.{}{}{}", layer, name[0] == '\0' ? "" : ".", name);
}

void append(const Tensor& dense, std::vector<float>& out) {
  const HostCopy values(dense);
  for (int64_t i = 0; i < dense.numel(); ++i) out.push_back(values[i]);
}

}  // namespace

int64_t Recorder::place(const std::string& name) const {
  const auto it = std::find(order.begin(), order.end(), name);
  return it == order.end() ? -1 : it - order.begin();
}

::testing::AssertionResult all_near(std::vector<TapPair> pairs) {
  std::stable_sort(pairs.begin(), pairs.end(), [](const TapPair& a, const TapPair& b) { return a.place < b.place; });
  for (size_t i = 0; i < pairs.size(); ++i) {
    const TapPair& pair = pairs[i];
    const double difference = max_abs_difference(pair.got, pair.want);
    if (difference <= pair.bound) continue;
    return ::testing::AssertionFailure() << pair.name << ", number " << i + 1 << " of " << pairs.size()
                                         << " in the order of computation, is the first that differs: by " << difference
                                         << " of " << pair.bound << " allowed, " << pair.got.size() << " values for "
                                         << pair.want.size();
  }
  return ::testing::AssertionSuccess();
}

void Recorder::constant(int layer, const char* name, const Tensor& t) {
  if (!tensors.contains(full_name(layer, name))) tap(layer, name, t);
}

void Recorder::tap(int layer, const char* name, const Tensor& t) {
  const std::string key = full_name(layer, name);
  if (!tensors.contains(key)) order.push_back(key);
  std::vector<float>& out = tensors[key];
  std::vector<int64_t>& shape = shapes[key];
  const int64_t rows = shape.empty() ? 0 : shape[0];
  shape.clear();
  for (int axis = 0; axis < t.rank(); ++axis) shape.push_back(t.size(axis));
  shape[0] += rows;
  const int64_t n1 = t.rank() > 1 ? t.size(1) : 1, n2 = t.rank() > 2 ? t.size(2) : 1;
  const int64_t s1 = t.rank() > 1 ? t.stride(1) : 0, s2 = t.rank() > 2 ? t.stride(2) : 0;
  const HostCopy values(t);
  for (int64_t i = 0; i < t.size(0); ++i)
    for (int64_t j = 0; j < n1; ++j)
      for (int64_t k = 0; k < n2; ++k) out.push_back(values[i * t.stride(0) + j * s1 + k * s2]);
}

double max_abs(const std::vector<float>& x) {
  double max = 0;
  for (const float v : x) max = std::max(max, std::abs(static_cast<double>(v)));
  return max;
}

double max_abs_difference(const std::vector<float>& a, const std::vector<float>& b) {
  if (a.size() != b.size()) return std::numeric_limits<double>::infinity();
  double max = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    const double d = std::abs(static_cast<double>(a[i]) - b[i]);
    max = std::isnan(d) ? std::numeric_limits<double>::infinity() : std::max(max, d);
  }
  return max;
}

double rms_difference(const std::vector<float>& a, const std::vector<float>& b) {
  if (a.size() != b.size()) return std::numeric_limits<double>::infinity();
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    const double d = static_cast<double>(a[i]) - b[i];
    sum += d * d;
  }
  return std::sqrt(sum / static_cast<double>(std::max<size_t>(1, a.size())));
}

std::vector<float> state_of(ModelRunner& runner, const Sequence& sequence, int layer, const std::string& name) {
  const std::vector<CacheSpec> specs = runner.model().cache_specs();
  for (size_t i = 0; i < specs[layer].slotted.size(); ++i) {
    if (name != specs[layer].slotted[i].name) continue;
    const Tensor t = runner.slots().layer(layer)[i][sequence.slot];
    std::vector<float> out;
    if (name == "recurrent") {
      append(t, out);
    } else {  // [W - 1, C] -> [C, W - 1]
      const HostCopy values(t);
      for (int64_t c = 0; c < t.size(1); ++c)
        for (int64_t w = 0; w < t.size(0); ++w) out.push_back(values[w * t.size(1) + c]);
    }
    return out;
  }
  return {};
}

std::vector<std::vector<int32_t>> greedy(ModelUnderTest& model, const std::vector<std::vector<int32_t>>& prompts,
                                         int64_t count) {
  int64_t longest = 0;
  std::vector<Request> requests;
  for (const std::vector<int32_t>& prompt : prompts) {
    longest = std::max(longest, static_cast<int64_t>(prompt.size()));
    Request& request = requests.emplace_back();
    request.prompt_token_ids = prompt;
    request.params.temperature = 0;
    request.params.ignore_eos = true;
    request.params.max_tokens = static_cast<int32_t>(count);
  }
  RunnerLimits limits{.max_num_seqs = static_cast<int64_t>(prompts.size()),
                      .max_num_batched_tokens = 1024,
                      .max_model_len = longest + count};
  if (kHostile) {
    limits.num_state_slots = limits.max_num_seqs;
    limits.num_blocks = limits.max_model_len;  // of one token
  }
  const auto runner = model.runner(limits);
  std::vector<std::vector<int32_t>> continuations;
  for (const std::vector<Answer>& answers : EngineCore(*runner, nullptr, {}).run(requests))
    continuations.push_back(answers.at(0).token_ids);
  return continuations;
}

int32_t argmax(const float* row, int64_t n) { return static_cast<int32_t>(std::max_element(row, row + n) - row); }

std::vector<float> all_logits(ModelRunner& runner, const Tensor& hidden) {
  std::vector<float> logits;
  for (int64_t first = 0; first < hidden.size(0); first += ModelRunner::kLogitRows) {
    std::vector<int32_t> rows;
    for (int64_t row = first; row < std::min(hidden.size(0), first + ModelRunner::kLogitRows); ++row)
      rows.push_back(static_cast<int32_t>(row));
    append(runner.logits(hidden, rows), logits);
  }
  return logits;
}

std::vector<float> target_hidden(ModelRunner& runner, Sequence& sequence, int64_t chunk, std::vector<float>* logits) {
  std::vector<float> rows;
  while (sequence.computed < sequence.size()) {
    const ModelRunner::Part part{&sequence, std::min(chunk, sequence.size() - sequence.computed)};
    const Tensor hidden = runner.forward({&part, 1});
    append(hidden, rows);
    if (logits == nullptr) continue;
    const std::vector<float> more = all_logits(runner, hidden);
    logits->insert(logits->end(), more.begin(), more.end());
  }
  return rows;
}

MtpPass mtp_pass(ModelRunner& runner, Sequence& sequence, const std::vector<float>& hidden,
                 const std::vector<int32_t>& next, int64_t step, int64_t chunk, Taps* taps) {
  const int64_t D = runner.model().hidden_size(), T = static_cast<int64_t>(next.size());
  CHECK_LE(T * D, static_cast<int64_t>(hidden.size()));
  MtpPass pass;
  std::vector<std::byte> bytes;
  for (int64_t first = 0; first < T; first += chunk) {
    const int64_t rows = std::min(chunk, T - first);
    const Tensor kept = runner.keep_hidden(as_rows(hidden.data() + first * D, rows, D, runner.model().dtype(), bytes));
    const ModelRunner::DraftPart part{&sequence, first + 1, std::span(next).subspan(first, rows)};
    const Tensor result = runner.draft({&part, 1}, kept, step, taps);
    append(result, pass.hidden);
    const std::vector<float> logits = all_logits(runner, result);
    pass.logits.insert(pass.logits.end(), logits.begin(), logits.end());
  }
  return pass;
}

Drafts chained_drafts(ModelRunner& runner, Sequence& sequence, const MtpPass& first, int64_t count, bool cycle_layers) {
  const int64_t D = runner.model().hidden_size(), V = runner.model().vocab_size();
  Drafts drafts;
  drafts.logits.assign(first.logits.end() - V, first.logits.end());
  drafts.hidden.assign(first.hidden.end() - D, first.hidden.end());
  drafts.tokens.push_back(argmax(drafts.logits.data(), V));
  std::vector<std::byte> bytes;
  for (int64_t step = 1; step < count; ++step) {
    const Tensor kept =
        runner.keep_hidden(as_rows(drafts.hidden.data() + (step - 1) * D, 1, D, runner.model().dtype(), bytes));
    const ModelRunner::DraftPart part{&sequence, sequence.size() + step, std::span(drafts.tokens).last(1)};
    const Tensor result = runner.draft({&part, 1}, kept, cycle_layers ? step : 0);
    append(result, drafts.hidden);
    const std::vector<float> logits = all_logits(runner, result);
    drafts.logits.insert(drafts.logits.end(), logits.begin(), logits.end());
    drafts.tokens.push_back(argmax(logits.data(), V));
  }
  return drafts;
}

}  // namespace calandra::testing
