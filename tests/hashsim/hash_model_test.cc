// The hash model against its shadow through ModelRunner.
#include "tests/hashsim/hash_model.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <random>
#include <set>

#include "engine/model_runner.h"
#include "tests/hashsim/hash_rig.h"

namespace calandra::hashsim {
namespace {

using Random = std::mt19937_64;
using Position = std::array<int32_t, 3>;

int64_t draw(Random& random, int64_t least, int64_t most) {
  return least + static_cast<int64_t>(random() % static_cast<uint64_t>(most - least + 1));
}

std::vector<int32_t> draw_tokens(Random& random, int64_t count) {
  std::vector<int32_t> tokens;
  for (int64_t i = 0; i < count; ++i) tokens.push_back(static_cast<int32_t>(draw(random, 0, 63)));
  return tokens;
}

std::vector<HiddenRow> rows_of(const Tensor& hidden) {
  std::vector<HiddenRow> rows;
  for (int64_t t = 0; t < hidden.size(0); ++t) rows.push_back(get_hidden(hidden.as<float>() + t * kHiddenSize));
  return rows;
}

// A prompt of text and one image, with its shadow.
struct Prompt {
  Sequence sequence;
  std::vector<float> embeds;
  HashShadow shadow;

  Prompt(const HashModelConfig& config, Random& random, int64_t size, int64_t image_begin, int64_t image_rows)
      : shadow(config) {
    sequence.tokens = draw_tokens(random, size);
    sequence.prompt_size = size;
    for (int64_t i = 0; i < image_rows * kHiddenSize; ++i)
      embeds.push_back(static_cast<float>(draw(random, -99, 99)) / 8);
    if (image_rows > 0)
      sequence.images = {{image_begin, Tensor(embeds.data(), DType::kF32, {image_rows, kHiddenSize})}};
    for (int32_t i = 0; i < size; ++i) {
      const int64_t in_image = i - image_begin;
      const bool image = in_image >= 0 && in_image < image_rows;
      const int32_t text = i < image_begin ? i : i - static_cast<int32_t>(image_rows / 2);
      const Position position =
          image ? Position{static_cast<int32_t>(image_begin), static_cast<int32_t>(image_begin + in_image / 2),
                           static_cast<int32_t>(image_begin + in_image % 2)}
                : Position{text, text, text};
      if (image_rows > 0) sequence.positions.push_back(position);
      shadow.append(sequence.tokens[i], image_rows > 0 ? position : Position{i, i, i},
                    image ? image_hash(&embeds[in_image * kHiddenSize], kHiddenSize) : 0);
    }
    if (image_rows > 0) sequence.position_delta = -static_cast<int32_t>(image_rows / 2);
  }
};

// The chain of `k` greedy drafts behind the last token of a sequence, entries in passes of at most `chunk`.
std::vector<int32_t> drafts_of(ModelRunner& runner, Sequence& sequence, const std::vector<HiddenRow>& rows, int64_t k,
                               int64_t chunk) {
  const auto pass = [&](int64_t entry, std::span<const int32_t> tokens, const HiddenRow* before, int64_t step) {
    Buffer memory = Buffer::host(tokens.size() * kHiddenSize * sizeof(float));
    const Tensor hidden = memory.tensor(DType::kF32, {static_cast<int64_t>(tokens.size()), kHiddenSize});
    for (size_t i = 0; i < tokens.size(); ++i) put_hidden(hidden[static_cast<int64_t>(i)].as<float>(), before[i]);
    const ModelRunner::DraftPart part{&sequence, entry, tokens};
    const Tensor result = runner.draft({&part, 1}, runner.keep_hidden(hidden), step);
    const auto last = static_cast<int32_t>(tokens.size() - 1);
    const Tensor logits = runner.logits(result, {&last, 1});
    const std::span<const float> row(logits.as<float>(), static_cast<size_t>(logits.size(1)));
    return std::pair(HashShadow::choose_greedy(row, 0), rows_of(result).back());
  };
  const int64_t P = sequence.size() - 1;
  std::pair<int32_t, HiddenRow> last;
  for (int64_t entry = 1; entry <= P; entry += chunk) {
    const int64_t count = std::min(chunk, P + 1 - entry);
    last = pass(entry, std::span(sequence.tokens).subspan(entry, count), &rows[entry - 1], 0);
  }
  std::vector<int32_t> drafts{last.first};
  for (int64_t step = 1; step < k; ++step) {
    const int32_t token = drafts.back();
    last = pass(P + step, {&token, 1}, &last.second, step);
    drafts.push_back(last.first);
  }
  return drafts;
}

TEST(HashModel, RunnerEqualsShadow) {
  ReferenceBackend backend;
  int runs = 0, drafted = 0;
  for (const int64_t mtp_layers : {1, 2, 3}) {
    HashModelConfig config;
    config.mtp_layers = mtp_layers;
    config.vision = true;
    config.seed = static_cast<uint64_t>(mtp_layers);
    const HashModel model(config);
    for (const int64_t chunk : {1, 3, 7, 16, 200}) {
      Random random(static_cast<uint64_t>(chunk));
      ModelRunner runner(model, backend,
                         {.max_num_seqs = 3, .max_num_batched_tokens = 512, .max_model_len = 256, .block_size = 16});
      std::vector<Prompt> prompts;
      for (const int64_t image_rows : {0, 4, 9})
        prompts.emplace_back(config, random, 40 + 31 * image_rows / 4, 5, image_rows);
      for (Prompt& prompt : prompts) ASSERT_TRUE(runner.reserve(prompt.sequence, 200));
      std::map<const Sequence*, std::vector<HiddenRow>> rows;
      const auto run = [&](int64_t most) {
        std::vector<ModelRunner::Part> parts;
        for (Prompt& prompt : prompts) {
          const int64_t count = std::min(most, prompt.sequence.size() - prompt.sequence.computed);
          if (count > 0) parts.push_back({&prompt.sequence, count});
        }
        if (parts.empty()) return false;
        const Tensor hidden = runner.forward(parts);
        int32_t row = 0;
        for (const ModelRunner::Part& part : parts) {
          for (int64_t i = 0; i < part.rows; ++i, ++row)
            rows[part.sequence].push_back(get_hidden(hidden.as<float>() + row * kHiddenSize));
          const int32_t last = row - 1;
          const Tensor logits = runner.logits(hidden, {&last, 1});
          Prompt& prompt = *std::find_if(prompts.begin(), prompts.end(),
                                         [&](const Prompt& p) { return &p.sequence == part.sequence; });
          const std::vector<float> want = prompt.shadow.logits(part.sequence->computed - 1);
          EXPECT_TRUE(std::equal(want.begin(), want.end(), logits.as<float>()));
        }
        return true;
      };
      while (run(chunk)) ++runs;
      for (int step = 0; step < 20; ++step) {
        for (Prompt& prompt : prompts) {
          Sequence& s = prompt.sequence;
          s.tokens.push_back(prompt.shadow.greedy(s.size() - 1));
          const auto index = static_cast<int32_t>(s.size() - 1);
          prompt.shadow.append(s.tokens.back(), {s.position(index, 0), s.position(index, 1), s.position(index, 2)});
        }
        run(1);
      }
      for (Prompt& prompt : prompts) {
        Sequence& s = prompt.sequence;
        for (int64_t i = 0; i < s.size(); ++i) EXPECT_EQ(rows[&s][i], prompt.shadow.hidden(i)) << "row " << i;
        EXPECT_EQ(slot_difference(prompt.shadow, runner.slots(), s.slot, s.computed), "");
        EXPECT_EQ(page_difference(prompt.shadow, runner.pages(), s.block_table, 0, s.computed), "");
        EXPECT_EQ(drafts_of(runner, s, rows[&s], 4, chunk), prompt.shadow.drafts(s.size() - 1, 4));
        EXPECT_EQ(entry_difference(prompt.shadow, runner.pages(), s.block_table, 1, s.size()), "");
        drafted += 4;
      }
    }
    EXPECT_TRUE(model.violations().empty()) << model.violations().front();
  }
  EXPECT_GT(runs, 100);
  RecordProperty("drafts", drafted);
}

TEST(HashModel, DraftsAgreeAtTheRateAskedFor) {
  for (const double agreement : {0.0, 0.3, 0.7, 1.0}) {
    HashModelConfig config;
    config.agreement = agreement;
    HashShadow shadow(config);
    shadow.append(1);
    shadow.append(shadow.greedy(0));
    int agreed = 0;
    constexpr int kTokens = 2000;
    for (int i = 0; i < kTokens; ++i) {
      const int64_t P = shadow.size() - 1;
      agreed += shadow.drafts(P, 1).front() == shadow.greedy(P);
      shadow.append(shadow.greedy(P));
    }
    const double expected = agreement + (1 - agreement) / static_cast<double>(config.vocab_size);
    EXPECT_NEAR(static_cast<double>(agreed) / kTokens, expected, 5 * std::sqrt(0.25 / kTokens));
  }
}

TEST(HashModel, NotANumberStaysInItsRow) {
  HashModelConfig config;
  config.nan_token = 7;
  HashRig rig(config, {});
  HashShadow shadow(config);
  for (const int32_t token : {3, 7, 5}) shadow.append(token);
  const std::vector<HiddenRow> rows = rig.step({{{0}, 0, {3, 7, 5}, {{3, -1, 0}}}});
  EXPECT_EQ(rows[0], shadow.hidden(0));
  EXPECT_NE(rows[1], shadow.hidden(1));
  EXPECT_EQ(rows[2], shadow.hidden(2));
  EXPECT_TRUE(std::isnan(shadow.logits(1)[0]));
  EXPECT_EQ(slot_difference(shadow, *rig.slots, 0, 3), "");
}

TEST(HashModel, VisionRowsDependOnContentPlaceAndShape) {
  HashModelConfig config;
  config.vision = true;
  const HashModel model(config);
  ReferenceBackend backend;
  std::vector<float> patches(16 * 12, 0.25f);
  const auto rows = [&](std::vector<PatchGrid> grids) {
    Workspace measured;
    OneRank communicator;
    ExecContext dry{backend, measured, communicator};
    dry.dry_run = true;
    const Tensor input(patches.data(), DType::kF32, {16, 12});
    model.vision()->forward(dry, input, grids);
    Workspace workspace(measured, backend.allocate(measured.bytes()));
    ExecContext ctx{backend, workspace, communicator};
    const Tensor out = model.vision()->forward(ctx, input, grids);
    std::vector<uint64_t> hashes;
    for (int64_t i = 0; i < out.size(0); ++i) hashes.push_back(image_hash(out[i].as<float>(), kHiddenSize));
    return hashes;
  };
  const auto before = rows({{1, 4, 4}});
  EXPECT_EQ(std::set<uint64_t>(before.begin(), before.end()).size(), 4u);
  EXPECT_NE(rows({{1, 2, 8}})[0], before[0]);
  EXPECT_EQ(rows({{1, 4, 4}}), before);
  patches.back() = 0.5f;
  const auto after = rows({{1, 4, 4}});
  EXPECT_EQ(after[2], before[2]);
  EXPECT_NE(after[3], before[3]);
}

}  // namespace
}  // namespace calandra::hashsim
