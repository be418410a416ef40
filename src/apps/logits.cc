// `calandra logits`: teacher-forced forward through the engine's runner, with taps and states.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <deque>
#include <map>

#include "apps/collected.h"
#include "apps/limits.h"
#include "apps/logits_input.h"
#include "apps/pictures.h"
#include "apps/verbs.h"
#include "base/error.h"
#include "base/progress.h"

namespace calandra::apps {
namespace {

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
        append_as_f32(runner.backend(), host, c.values);
      } else {
        c.rows = host.size(1);
        c.row_shape = {host.size(0)};
        for (int64_t channel = 0; channel < host.size(1); ++channel)
          append_as_f32(runner.backend(), host.slice(1, channel, channel + 1), c.values);
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
                                  int64_t count, Collected& logits) {
  std::vector<int32_t> drafts = {first_draft};
  for (int64_t step = 1; step < count; ++step) {
    const Tensor kept = runner.keep_hidden(hidden);
    const ModelRunner::DraftPart part{&sequence, sequence.size() + step, std::span(drafts).last(1)};
    hidden = runner.draft({&part, 1}, kept, step);
    append_logits(runner, hidden, logits);
    drafts.push_back(greedy(logits));
  }
  return drafts;
}

}  // namespace

int logits(const Options& options) {
  const int64_t mtp = options.mtp.value_or(0);
  const LogitsInput inputs(options.input);
  const bool with_pictures = inputs.has("pixel_values") || inputs.has("pixel_values_videos") || !options.images.empty();
  LoadedModel loaded = load_model(options.model, {.drafter = mtp > 0, .vision = with_pictures});
  const CausalLM& model = *loaded.model;
  Sequence sequence;
  sequence.tokens = inputs.ids(model.vocab_size());
  sequence.prompt_size = sequence.size();
  const int64_t T = sequence.size();
  TapCollector taps(*loaded.backend, options.taps);
  Taps* const tapped = options.taps.empty() ? nullptr : &taps;
  const PictureReader reader(loaded);
  Pictures pictures(reader, tapped);
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
  const Sizes sizes{1, T + mtp};  // draft entries stand behind the last token
  RunnerLimits limits = runner_limits(loaded, model_options, sizes, sizes);
  limits.taps = tapped != nullptr;
  ModelRunner runner(model, *loaded.backend, limits);
  CHECK(runner.reserve(sequence, T + mtp));

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
    if (mtp == 0) continue;

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
                          mtp, draft_logits);
  }
  if (tapped != nullptr && taps.tensors().empty())
    throw LoadError(
        fmt::format("--taps {} matches nothing; this run has {}", options.taps, fmt::join(taps.names(), ", ")));
  outputs.merge(taps.tensors());
  if (options.state) collect_state(runner, sequence, outputs);
  if (mtp > 0) {
    outputs["mtp_logits.1"] = std::move(first_pass);
    outputs["mtp_draft_logits"] = std::move(draft_logits);
  }

  std::vector<NamedTensor> tensors;
  std::deque<std::vector<int32_t>> ids;
  for (auto& [name, c] : outputs) {
    Shape shape{c.rows};
    for (const int64_t size : c.row_shape) shape.append(size);
    void* values = c.values.data();
    if (c.dtype == DType::kI32) values = ids.emplace_back(c.values.begin(), c.values.end()).data();
    tensors.push_back({name, Tensor(values, c.dtype, shape)});
  }
  if (mtp > 0) tensors.push_back({"mtp_draft_tokens", Tensor(drafts.data(), DType::kI32, {mtp})});
  std::vector<int32_t> positions;
  for (size_t axis = 0; axis < 3; ++axis)
    for (const auto& position : sequence.positions) positions.push_back(position[axis]);
  if (!positions.empty()) tensors.push_back({"position_ids", Tensor(positions.data(), DType::kI32, {3, T})});
  write_safetensors(options.output, std::move(tensors));
  return 0;
}

}  // namespace calandra::apps
