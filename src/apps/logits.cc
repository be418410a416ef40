// `calandra logits`: teacher-forced forward through the engine's runner, with taps and states.
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <fnmatch.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <map>

#include "apps/pictures.h"
#include "apps/verbs.h"
#include "base/error.h"
#include "base/log.h"
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
        out.push_back(t.dtype() == DType::kBF16  ? static_cast<float>(t.as<bf16>()[at])
                      : t.dtype() == DType::kI32 ? static_cast<float>(t.as<int32_t>()[at])
                                                 : t.as<float>()[at]);
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

// The file of --input.
class Inputs {
 public:
  explicit Inputs(const std::string& path) : path_(path), file_(std::filesystem::path(path)) {
    constexpr std::array kKnown = {"input_ids",      "next_token",          "pixel_values",
                                   "image_grid_thw", "pixel_values_videos", "video_grid_thw"};
    for (const auto& entry : file_.entries())
      if (std::find(kKnown.begin(), kKnown.end(), entry.name) == kKnown.end())
        throw LoadError(
            fmt::format("{}: tensor {} is not an input; inputs are {}", path, entry.name, fmt::join(kKnown, ", ")));
  }
  bool has(const char* name) const { return file_.find(name) != nullptr; }

  // Integers of a tensor with that many axes.
  std::vector<int64_t> integers(const char* name, size_t rank) const {
    const SafetensorsFile::Entry& entry = find(name);
    if (entry.shape.size() != rank || (entry.dtype != "I32" && entry.dtype != "I64"))
      throw LoadError(fmt::format("{}: {} must have {} axes and be I32 or I64", path_, name, rank));
    const size_t width = entry.dtype == "I32" ? 4 : 8;
    std::vector<std::byte> bytes(entry.bytes);
    file_.read(entry, 0, entry.bytes, bytes.data());
    std::vector<int64_t> values;
    for (size_t i = 0; i < bytes.size(); i += width) {
      int32_t narrow = 0;
      int64_t wide = 0;
      std::memcpy(width == 4 ? static_cast<void*>(&narrow) : &wide, bytes.data() + i, width);
      values.push_back(width == 4 ? narrow : wide);
    }
    return values;
  }

  std::vector<int32_t> ids(int64_t vocab_size) const {
    std::vector<int32_t> ids;
    for (const int64_t id : integers("input_ids", 1)) ids.push_back(checked("input_ids", id, vocab_size));
    if (ids.empty()) throw LoadError(path_ + ": input_ids is empty");
    return ids;
  }
  std::optional<int32_t> next_token(int64_t vocab_size) const {
    if (!has("next_token")) return std::nullopt;
    return checked("next_token", integers("next_token", find("next_token").shape.size()).at(0), vocab_size);
  }

  // Calls add(patches, grid) for every picture: pixel_values [P, values] f32 and a grid [n, 3].
  template <class Add>
  void pictures(const char* pixels, const char* grids, const Add& add) const {
    if (!has(pixels) && !has(grids)) return;
    const SafetensorsFile::Entry& entry = find(pixels);
    if (entry.shape.size() != 2 || entry.dtype != "F32")
      throw LoadError(fmt::format("{}: {} must be [patches, values] of F32", path_, pixels));
    std::vector<float> values(entry.bytes / sizeof(float));
    file_.read(entry, 0, entry.bytes, values.data());
    const std::vector<int64_t> sizes = integers(grids, 2);
    int64_t row = 0;
    const int64_t width = entry.shape[1];
    for (size_t i = 0; i + 2 < sizes.size(); i += 3) {
      const PatchGrid grid{sizes[i], sizes[i + 1], sizes[i + 2]};
      constexpr int64_t kMost = 1 << 20;
      if (std::min({grid.t, grid.h, grid.w}) < 1 || std::max({grid.t, grid.h, grid.w}) > kMost ||
          row + grid.patches() > entry.shape[0])
        throw LoadError(fmt::format("{}: {} does not fit the {} rows of {}", path_, grids, entry.shape[0], pixels));
      add(std::span(values).subspan(row * width, grid.patches() * width), grid);
      row += grid.patches();
    }
    if (row != entry.shape[0])
      throw LoadError(fmt::format("{}: {} has {} rows, {} accounts for {}", path_, pixels, entry.shape[0], grids, row));
  }

 private:
  const SafetensorsFile::Entry& find(const char* name) const {
    const SafetensorsFile::Entry* entry = file_.find(name);
    if (entry == nullptr) throw LoadError(fmt::format("{}: tensor {} is missing", path_, name));
    return *entry;
  }
  int32_t checked(const char* name, int64_t id, int64_t vocab_size) const {
    if (id < 0 || id >= vocab_size)
      throw LoadError(fmt::format("{}: {} holds {}, the vocabulary has {}", path_, name, id, vocab_size));
    return static_cast<int32_t>(id);
  }

  std::string path_;
  SafetensorsFile file_;
};

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

// Appends the logits of all rows of a result of `runner`.
void append_logits(ModelRunner& runner, const Tensor& hidden, Collected& out) {
  out.row_shape = {runner.model().vocab_size()};
  for (int64_t first = 0; first < hidden.size(0); first += ModelRunner::kLogitRows) {
    std::vector<int32_t> rows;
    for (int64_t row = first; row < std::min(hidden.size(0), first + ModelRunner::kLogitRows); ++row)
      rows.push_back(static_cast<int32_t>(row));
    const Tensor block = runner.logits(hidden, rows);
    const size_t at = out.values.size();
    out.values.resize(at + block.numel());
    runner.backend().copy_bytes(out.values.data() + at, block.data(), block.bytes());
    out.rows += block.size(0);
  }
}

// Lowest id of the greatest value of the last row.
int32_t greedy(const Collected& logits) {
  const auto last = logits.values.end() - logits.row_shape[0];
  return static_cast<int32_t>(std::max_element(last, logits.values.end()) - last);
}

// The chained greedy drafts behind the last position, from the result of the first MTP pass.
std::vector<int32_t> chain_drafts(ModelRunner& runner, Sequence& sequence, Tensor hidden, int32_t first_draft,
                                  int64_t count, Collected& logits, Taps* taps) {
  std::vector<int32_t> drafts = {first_draft};
  for (int64_t step = 1; step < count; ++step) {
    const Tensor kept = runner.keep_hidden(hidden);
    const ModelRunner::DraftPart part{&sequence, sequence.size() + step, std::span(drafts).last(1)};
    hidden = runner.draft({&part, 1}, kept, step, taps);
    append_logits(runner, hidden, logits);
    drafts.push_back(greedy(logits));
  }
  return drafts;
}

}  // namespace

int logits(const Options& options) {
  const Inputs inputs(options.input);
  const bool with_pictures = inputs.has("pixel_values") || inputs.has("pixel_values_videos") || !options.images.empty();
  LoadedModel loaded = load_model(options.model, {.drafter = options.mtp > 0, .vision = with_pictures});
  const CausalLM& model = *loaded.model;
  if (options.mtp > 0 && model.drafter() == nullptr)
    throw LoadError(loaded.config.file + ": this model has no MTP (nextn) layers, so --mtp has nothing to run");
  Sequence sequence;
  sequence.tokens = inputs.ids(model.vocab_size());
  sequence.prompt_size = sequence.size();
  const int64_t T = sequence.size();
  if (T > model.max_position_embeddings())
    throw LoadError(
        fmt::format("{}: {} tokens are more than the model's {}", options.input, T, model.max_position_embeddings()));

  TapCollector taps(options.taps);
  Taps* const tapped = options.taps.empty() ? nullptr : &taps;
  Pictures pictures(loaded, tapped);
  inputs.pictures("pixel_values", "image_grid_thw", [&](std::span<const float> patches, const PatchGrid& grid) {
    pictures.add_image_patches(patches, grid);
  });
  inputs.pictures("pixel_values_videos", "video_grid_thw", [&](std::span<const float> patches, const PatchGrid& grid) {
    pictures.add_video_patches(patches, grid);
  });
  for (const std::string& file : options.images) pictures.add_image(file);
  pictures.place_expanded(sequence);

  ModelOptions model_options = options.model;
  if (options.chunk) model_options.max_num_batched_tokens = *options.chunk;
  RunnerLimits limits = runner_limits(model_options, model, 1, T);
  limits.max_model_len = T + options.mtp;  // draft entries stand behind the last token
  limits.taps = tapped != nullptr;
  ModelRunner runner(model, *loaded.backend, limits);
  CHECK(runner.reserve(sequence, T + options.mtp));

  std::map<std::string, Collected> outputs;
  Collected& out = outputs["logits"];
  Collected first_pass;
  std::vector<int32_t> drafts;
  Collected draft_logits;
  ProgressBar bar("forward", T, "tokens");
  while (sequence.computed < T) {
    const ModelRunner::Part part{&sequence, std::min(runner.limits().max_num_batched_tokens, T - sequence.computed)};
    const Tensor hidden = runner.forward({&part, 1}, tapped);
    append_logits(runner, hidden, out);
    bar.update(sequence.computed);
    if (options.mtp == 0) continue;

    // Entries of this chunk's hidden rows: each with the token behind it, the last one with the next token.
    const int64_t begin = sequence.computed - part.rows;
    std::vector<int32_t> next(sequence.tokens.begin() + begin + 1,
                              sequence.tokens.begin() + std::min(T, sequence.computed + 1));
    const bool last = sequence.computed == T;
    if (last) next.push_back(inputs.next_token(model.vocab_size()).value_or(greedy(out)));
    const Tensor kept = runner.keep_hidden(hidden);
    const ModelRunner::DraftPart entries{&sequence, begin + 1, next};
    Tensor drafted = runner.draft({&entries, 1}, kept, 0, tapped);
    append_logits(runner, drafted, first_pass);
    if (!last) continue;
    draft_logits.row_shape = first_pass.row_shape;
    draft_logits.rows = 1;
    draft_logits.values.assign(first_pass.values.end() - model.vocab_size(), first_pass.values.end());
    drafts = chain_drafts(runner, sequence, drafted.slice(0, drafted.size(0) - 1, drafted.size(0)), greedy(first_pass),
                          options.mtp, draft_logits, nullptr);
  }
  if (tapped != nullptr && taps.tensors().empty())
    log_warning("--taps {} matches no tensor; names are embedding, layers.L, layers.L.<name>, final_norm",
                options.taps);
  outputs.merge(taps.tensors());
  if (options.state) collect_state(runner, sequence, outputs);
  if (options.mtp > 0) {
    outputs["mtp_logits.1"] = std::move(first_pass);
    outputs["mtp_draft_logits"] = std::move(draft_logits);
  }

  std::vector<NamedTensor> tensors;
  for (auto& [name, c] : outputs) {
    Shape shape{c.rows};
    for (const int64_t size : c.row_shape) shape.append(size);
    tensors.push_back({name, Tensor(c.values.data(), DType::kF32, shape)});
  }
  if (options.mtp > 0) tensors.push_back({"mtp_draft_tokens", Tensor(drafts.data(), DType::kI32, {options.mtp})});
  std::vector<int32_t> positions;
  for (size_t axis = 0; axis < 3; ++axis)
    for (const auto& position : sequence.positions) positions.push_back(position[axis]);
  if (!positions.empty()) tensors.push_back({"position_ids", Tensor(positions.data(), DType::kI32, {3, T})});
  write_safetensors(options.output, std::move(tensors));
  return 0;
}

}  // namespace calandra::apps
