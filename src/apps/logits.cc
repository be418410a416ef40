// `calandra logits`: teacher-forced forward through the engine's runner, with taps and states.
#include <fmt/format.h>
#include <fnmatch.h>

#include <algorithm>
#include <cstring>
#include <map>

#include "apps/loaded_model.h"
#include "apps/verbs.h"
#include "base/error.h"
#include "base/progress.h"

namespace calandra::apps {
namespace {

// Host tensors that grow by rows, for safetensors output.
struct Collected {
  std::vector<int64_t> row_shape;
  std::vector<float> values;
  int64_t rows = 0;
};

void append_as_f32(const Tensor& t, std::vector<float>& out) {  // host; any strides, up to three axes
  CHECK_LE(t.rank(), 3);
  const int64_t n0 = t.size(0), n1 = t.rank() > 1 ? t.size(1) : 1, n2 = t.rank() > 2 ? t.size(2) : 1;
  const int64_t s1 = t.rank() > 1 ? t.stride(1) : 0, s2 = t.rank() > 2 ? t.stride(2) : 0;
  for (int64_t i = 0; i < n0; ++i) {
    for (int64_t j = 0; j < n1; ++j) {
      for (int64_t k = 0; k < n2; ++k) {
        const int64_t at = i * t.stride(0) + j * s1 + k * s2;
        out.push_back(t.dtype() == DType::kBF16 ? static_cast<float>(t.as<bf16>()[at]) : t.as<float>()[at]);
      }
    }
  }
}

class TapCollector : public Taps {
 public:
  explicit TapCollector(std::string glob) : glob_(std::move(glob)) {}

  void tap(int layer, const char* name, const Tensor& tensor) override {
    std::string full = layer < 0 ? name : fmt::format("layers.{}", layer);
    if (layer >= 0 && name[0] != '\0') full += std::string(".") + name;
    if (fnmatch(glob_.c_str(), full.c_str(), 0) != 0) return;
    Collected& c = tensors_[full];
    c.rows += tensor.size(0);
    c.row_shape.clear();
    for (int axis = 1; axis < tensor.rank(); ++axis) c.row_shape.push_back(tensor.size(axis));
    // Cosines and sines are kept once per pair of dims; HF's tensor has them twice.
    if (std::strcmp(name, "rope_cos") == 0 || std::strcmp(name, "rope_sin") == 0) {
      c.row_shape.back() *= 2;
      for (int64_t row = 0; row < tensor.size(0); ++row) {
        append_as_f32(tensor.slice(0, row, row + 1), c.values);
        append_as_f32(tensor.slice(0, row, row + 1), c.values);
      }
      return;
    }
    append_as_f32(tensor, c.values);
  }
  std::map<std::string, Collected>& tensors() { return tensors_; }

 private:
  std::string glob_;
  std::map<std::string, Collected> tensors_;
};

std::vector<int32_t> read_input_ids(const std::string& path, int64_t vocab_size) {
  const SafetensorsFile file{std::filesystem::path(path)};
  for (const auto& entry : file.entries())
    if (entry.name != "input_ids" && entry.name != "next_token")
      throw LoadError(path + ": tensor " + entry.name + " is not supported; text input_ids are");
  const auto* entry = file.find("input_ids");
  if (entry == nullptr) throw LoadError(path + ": tensor input_ids is missing");
  if (entry->shape.size() != 1 || entry->shape[0] == 0 || (entry->dtype != "I32" && entry->dtype != "I64"))
    throw LoadError(path + ": input_ids must be a non-empty [T] of I32 or I64");
  std::vector<std::byte> bytes(entry->bytes);
  file.read(*entry, 0, entry->bytes, bytes.data());
  std::vector<int32_t> ids;
  for (int64_t i = 0; i < entry->shape[0]; ++i) {
    int64_t id = 0;
    if (entry->dtype == "I32") {
      int32_t narrow = 0;
      std::memcpy(&narrow, bytes.data() + i * 4, 4);
      id = narrow;
    } else {
      std::memcpy(&id, bytes.data() + i * 8, 8);
    }
    if (id < 0 || id >= vocab_size)
      throw LoadError(fmt::format("{}: input_ids[{}] is {}, the vocabulary has {}", path, i, id, vocab_size));
    ids.push_back(static_cast<int32_t>(id));
  }
  return ids;
}

// state.L.recurrent [heads, k_dim, v_dim] and state.L.conv [channels, kernel - 1], oldest first.
void collect_state(ModelRunner& runner, const Sequence& sequence, std::map<std::string, Collected>& out) {
  const std::vector<CacheSpec> specs = runner.model().cache_specs();
  for (int layer = 0; layer < static_cast<int>(specs.size()); ++layer) {
    for (size_t i = 0; i < specs[layer].slotted.size(); ++i) {
      const std::string name = specs[layer].slotted[i].name;
      const Tensor device = runner.slots().layer(layer)[i][sequence.slot];
      if (name != "recurrent" && name != "conv") continue;
      std::vector<std::byte> bytes(device.bytes());
      runner.backend().copy_bytes(bytes.data(), device.data(), bytes.size());
      const Tensor host(bytes.data(), device.dtype(), device.shape());
      Collected& c = out[fmt::format("state.{}.{}", layer, name)];
      if (name == "recurrent") {
        c.rows = host.size(0);
        c.row_shape = {host.size(1), host.size(2)};
        append_as_f32(host, c.values);
      } else {
        c.rows = host.size(1);
        c.row_shape = {host.size(0)};
        for (int64_t channel = 0; channel < host.size(1); ++channel)
          append_as_f32(host.slice(1, channel, channel + 1), c.values);
      }
    }
  }
}

}  // namespace

int logits(const Options& options) {
  LoadedModel loaded = load_model(options.model);
  const CausalLM& model = *loaded.model;
  Sequence sequence;
  sequence.tokens = read_input_ids(options.input, model.vocab_size());
  sequence.prompt_size = sequence.size();
  const int64_t T = sequence.size();
  if (T > model.max_position_embeddings())
    throw LoadError(
        fmt::format("{}: {} tokens are more than the model's {}", options.input, T, model.max_position_embeddings()));

  ModelOptions model_options = options.model;
  if (options.chunk) model_options.max_num_batched_tokens = *options.chunk;
  RunnerLimits limits = runner_limits(model_options, model, 1, T);
  limits.taps = !options.taps.empty();
  ModelRunner runner(model, *loaded.backend, limits);
  CHECK(runner.reserve(sequence, T));

  TapCollector taps(options.taps);
  std::map<std::string, Collected> outputs;
  Collected& out = outputs["logits"];
  out.row_shape = {model.vocab_size()};
  ProgressBar bar("forward", T, "tokens");
  while (sequence.computed < T) {
    const ModelRunner::Part part{&sequence, std::min(runner.limits().max_num_batched_tokens, T - sequence.computed)};
    const Tensor hidden = runner.forward({&part, 1}, options.taps.empty() ? nullptr : &taps);
    for (int64_t first = 0; first < part.rows; first += ModelRunner::kLogitRows) {
      std::vector<int32_t> rows;
      for (int64_t row = first; row < std::min(part.rows, first + ModelRunner::kLogitRows); ++row)
        rows.push_back(static_cast<int32_t>(row));
      const Tensor block = runner.logits(hidden, rows);
      const size_t at = out.values.size();
      out.values.resize(at + block.numel());
      runner.backend().copy_bytes(out.values.data() + at, block.data(), block.bytes());
    }
    bar.update(sequence.computed);
  }
  out.rows = T;
  outputs.merge(taps.tensors());
  if (options.state) collect_state(runner, sequence, outputs);

  std::vector<NamedTensor> tensors;
  for (auto& [name, c] : outputs) {
    Shape shape{c.rows};
    for (const int64_t size : c.row_shape) shape.append(size);
    tensors.push_back({name, Tensor(c.values.data(), DType::kF32, shape)});
  }
  write_safetensors(options.output, std::move(tensors));
  return 0;
}

}  // namespace calandra::apps
