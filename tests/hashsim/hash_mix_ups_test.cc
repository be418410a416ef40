// Planted mix-ups of pages, slots, counts, rows and MTP entries: each must change the choices or drafts of the hash
// model; and batches that break the contract.
#include <gtest/gtest.h>

#include <cstring>
#include <functional>
#include <random>

#include "tests/hashsim/hash_layout.h"
#include "tests/hashsim/hash_rig.h"

namespace calandra::hashsim {
namespace {

std::vector<int32_t> draw_tokens(std::mt19937_64& random, int64_t count) {
  std::vector<int32_t> tokens;
  for (int64_t i = 0; i < count; ++i) tokens.push_back(static_cast<int32_t>(random() % 64));
  return tokens;
}

// Two sequences in the middle of decoding. Slots 2 and 3 are those of A and B; they stand at P, with two pending inputs
// accepted of three. Slots 0 and 1 are where they stood before. The MTP entries [1, P] are complete.
class Scene {
 public:
  explicit Scene(uint64_t seed) : random_(seed), config_(make_config(seed)), rig(config_, {}) {
    for (const int64_t size : {37, 45}) {
      One& one = sequences.emplace_back(config_);
      one.tokens = draw_tokens(random_, size);
      for (const int32_t token : one.tokens) one.shadow.append(token);
      for (int64_t i = 0; i < 8; ++i) {  // what it will say
        one.tokens.push_back(one.shadow.greedy(one.shadow.size() - 1));
        one.shadow.append(one.tokens.back());
      }
      for (int64_t page = 0; page < 5; ++page) one.table.push_back(*rig.pages->take());
      one.prompt = size;
      one.P = size + 3;
    }
  }
  // The prompts in two steps; `between` may meddle with the second.
  using Meddle = std::function<void(Scene&)>;
  void prepare(const Meddle& before_second = {}, const Meddle& after_second = {},
               const HashRig::Change& change_second = {}) {
    std::vector<RigPart> first, second, verify;
    for (int32_t i = 0; i < 2; ++i) {
      const One& one = sequences[i];
      first.push_back(part(i, 0, 20, {{20, -1, i}}, 0));
      second.push_back(part(i, 20, one.prompt, {{one.prompt - 20, i, i}}, 0));
      verify.push_back(part(i, one.prompt, one.prompt + 4, {{4, i, 2 + i}}, 3));
    }
    const auto run = [&](const std::vector<RigPart>& parts, const HashRig::Change& change = {}) {
      const std::vector<HiddenRow> hidden = rig.step(parts, change);
      size_t row = 0;
      for (size_t i = 0; i < parts.size(); ++i)
        for (size_t r = 0; r < parts[i].tokens.size(); ++r) sequences[i].rows.push_back(hidden[row++]);
    };
    run(first);
    if (before_second) before_second(*this);
    run(second, change_second);
    if (after_second) after_second(*this);
    run(verify);
    for (int32_t i = 0; i < 2; ++i) {
      rig.accept(2 + i, 2);
      One& one = sequences[i];
      one.rows.resize(one.P);
      rig.draft({entries(i, 1, one.P + 1)}, 0);
    }
  }

  RigPart part(int32_t i, int64_t begin, int64_t end, std::vector<RigPart::Segment> segments, int32_t drafts) const {
    const One& one = sequences[i];
    return {one.table, begin, {one.tokens.begin() + begin, one.tokens.begin() + end}, std::move(segments), drafts};
  }
  RigEntries entries(int32_t i, int64_t begin, int64_t end) const {
    const One& one = sequences[i];
    return {one.table,
            begin,
            {one.tokens.begin() + begin, one.tokens.begin() + end},
            {one.rows.begin() + begin - 1, one.rows.begin() + end - 1}};
  }

  // Runs A for four more tokens; the first row whose choice is not that of the shadow, -1 when all are. `change` is
  // for the first step.
  int64_t first_wrong_row(int32_t src = 2, const HashRig::Change& change = {}) {
    One& one = sequences[0];
    int64_t wrong = -1;
    for (int64_t row = 0; row < 4; ++row) {
      const int64_t index = one.P + row;
      const std::vector<HiddenRow> hidden =
          rig.step({part(0, index, index + 1, {{1, row == 0 ? src : 2, 2}}, 0)}, row == 0 ? change : HashRig::Change{});
      if (wrong < 0 && hidden[0].pick != one.shadow.hidden(index).pick) wrong = row;
    }
    return wrong;
  }

  // The chain of four drafts of A, whose first pass is that of `first`.
  std::vector<int32_t> drafts(const RigEntries& first, int64_t first_pass = 0, const HashRig::Change& change = {}) {
    std::vector<int32_t> drafts;
    RigEntries part = first;
    for (int64_t pass = 0; pass < 4; ++pass) {
      const std::vector<HiddenRow> hidden =
          rig.draft({part}, first_pass + pass, pass == 0 ? change : HashRig::Change{});
      if (pass == 0) stream = hidden.back().stream;
      drafts.push_back(rig.greedy(hidden.back()));
      part.begin += static_cast<int64_t>(part.tokens.size());
      part.tokens = {drafts.back()};
      part.hidden = {hidden.back()};
    }
    return drafts;
  }
  RigEntries last_entry() const { return entries(0, sequences[0].P, sequences[0].P + 1); }

  // One tensor of a slot, as it is in another.
  void copy_slot_tensor(int layer, int tensor, int32_t from, int32_t to) {
    const Tensor& all = rig.slots->layer(layer)[tensor];
    std::memcpy(all[to].data(), all[from].data(), all[to].bytes());
  }

 private:
  static HashModelConfig make_config(uint64_t seed) {
    HashModelConfig config;
    config.blocks = 2 + static_cast<int64_t>(seed % 2);
    config.mtp_layers = 2;
    config.agreement = 0.5;
    config.seed = seed;
    return config;
  }

  std::mt19937_64 random_;
  HashModelConfig config_;

 public:
  struct One {
    explicit One(const HashModelConfig& config) : shadow(config) {}
    std::vector<int32_t> tokens;
    HashShadow shadow;
    std::vector<int32_t> table;
    std::vector<HiddenRow> rows;
    int64_t prompt = 0, P = 0;
  };
  HashRig rig;
  std::vector<One> sequences;
  uint64_t stream = 0;  // of the first result of drafts()
};

constexpr uint64_t kScenes = 20;

// Applies a fault to the prepared scene, and runs A on.
void expect_tokens_change(const char* name, const std::function<int64_t(Scene&)>& run, int64_t latest = 0) {
  for (uint64_t seed = 0; seed < kScenes; ++seed) {
    Scene scene(seed);
    const int64_t wrong = run(scene);
    EXPECT_TRUE(wrong >= 0 && wrong <= latest) << name << ": first wrong row " << wrong << ", seed " << seed;
  }
}

TEST(HashMixUps, NoneChangesNothing) {
  for (uint64_t seed = 0; seed < kScenes; ++seed) {
    Scene scene(seed);
    scene.prepare();
    EXPECT_EQ(scene.first_wrong_row(), -1);
    EXPECT_TRUE(scene.rig.model.violations().empty()) << scene.rig.model.violations().front();
  }
}

TEST(HashMixUps, OfPagesChangeTokens) {
  expect_tokens_change("two pages swapped", [](Scene& s) {
    s.prepare();
    std::swap(s.sequences[0].table[0], s.sequences[0].table[1]);
    return s.first_wrong_row();
  });
  expect_tokens_change("page of another sequence", [](Scene& s) {
    s.prepare();
    s.sequences[0].table[1] = s.sequences[1].table[1];
    return s.first_wrong_row();
  });
  expect_tokens_change("one entry lost", [](Scene& s) {
    s.prepare();
    scribble_page(s.rig.model.config(), *s.rig.pages, s.sequences[0].table[1], 1, 15);
    return s.first_wrong_row();
  });
  for (const int layer : {attention_layer(0), attention_layer(1)})
    for (const auto& [tensor, head] : {std::pair(0, 0), std::pair(1, 0), std::pair(1, 1)})
      expect_tokens_change("one head of one tensor not copied", [&, tensor = tensor, head = head](Scene& s) {
        s.prepare();
        const Tensor page = s.rig.pages->layer(layer)[tensor][s.sequences[0].table[0]][head];
        std::memset(page.data(), 0, page.bytes());
        return s.first_wrong_row();
      });
  // Pages that were wrong only while a part of the prompt ran.
  expect_tokens_change("page wrong for one prefill step", [](Scene& s) {
    std::vector<std::vector<std::byte>> kept;
    const auto page_of = [&](Scene& scene, int tensor) {
      return Tensor(scene.rig.pages->layer(0)[tensor])[scene.sequences[0].table[0]];
    };
    s.prepare(
        [&](Scene& scene) {
          for (int tensor : {0, 1}) {
            const Tensor page = page_of(scene, tensor);
            const auto* bytes = static_cast<const std::byte*>(page.data());
            kept.emplace_back(bytes, bytes + page.bytes());
            std::memset(page.data(), 0, page.bytes());
          }
        },
        [&](Scene& scene) {
          for (int tensor : {0, 1})
            std::memcpy(page_of(scene, tensor).data(), kept[tensor].data(), kept[tensor].size());
        });
    return s.first_wrong_row();
  });
}

TEST(HashMixUps, OfSlotsChangeTokens) {
  expect_tokens_change("stale slot", [](Scene& s) {
    s.prepare();
    return s.first_wrong_row(0);
  });
  expect_tokens_change("slot of another sequence", [](Scene& s) {
    s.prepare();
    return s.first_wrong_row(3);
  });
  expect_tokens_change("empty state", [](Scene& s) {
    s.prepare();
    return s.first_wrong_row(-1);
  });
  for (const int32_t count : {0, 1, 3})
    expect_tokens_change("wrong accepted count", [&](Scene& s) {
      s.prepare();
      s.rig.accept(2, count);
      return s.first_wrong_row();
    });
  for (const int64_t block : {0, 1})
    for (int tensor = 0; tensor < 4; ++tensor)
      for (const int32_t from : {0, 3})
        expect_tokens_change(
            "one tensor of one layer stale or foreign",
            [&](Scene& s) {
              s.prepare();
              s.copy_slot_tensor(recurrent_layer(block), tensor, from, 2);
              return s.first_wrong_row();
            },
            3);
  for (int tensor = 0; tensor < 4; ++tensor)
    expect_tokens_change(
        "one tensor of another layer",
        [&](Scene& s) {
          s.prepare();
          const Tensor &from = s.rig.slots->layer(recurrent_layer(0))[tensor],
                       &to = s.rig.slots->layer(recurrent_layer(1))[tensor];
          std::memcpy(to[2].data(), from[2].data(), to[2].bytes());
          return s.first_wrong_row();
        },
        3);
}

TEST(HashMixUps, OfRowsChangeTokens) {
  expect_tokens_change("token of another row", [](Scene& s) {
    s.prepare();
    return s.first_wrong_row(2, [](Batch& batch) { batch.token_ids.as<int32_t>()[0] ^= 1; });
  });
  expect_tokens_change("token index", [](Scene& s) {
    s.prepare();
    return s.first_wrong_row(2, [](Batch& batch) { ++batch.token_index.as<int32_t>()[0]; });
  });
  // The drafter does not know the position of its token, so the choice after it depends on those before.
  for (const int axis : {0, 1, 2})
    expect_tokens_change(
        "rotary position",
        [&](Scene& s) {
          s.prepare();
          return s.first_wrong_row(2, [&](Batch& batch) { ++batch.positions.as<int32_t>()[axis]; });
        },
        1);
  expect_tokens_change("image row that is none", [](Scene& s) {
    s.prepare();
    static int32_t row;
    static std::array<float, kHiddenSize> embedding;
    row = 0;
    embedding.fill(1);
    return s.first_wrong_row(2, [](Batch& batch) {
      batch.image_rows = Tensor(&row, DType::kI32, {1});
      batch.image_embeds = Tensor(embedding.data(), DType::kF32, {1, kHiddenSize});
    });
  });
  expect_tokens_change("two rows of a prompt in the wrong order", [](Scene& s) {
    s.prepare({}, {}, [](Batch& batch) {
      int32_t* ids = batch.token_ids.as<int32_t>();
      if (ids[3] == ids[4]) ids[3] ^= 1;
      std::swap(ids[3], ids[4]);
    });
    return s.first_wrong_row();
  });
}

TEST(HashMixUps, DraftsRunAsCertainRowsChangeTokens) {
  for (uint64_t seed = 0; seed < kScenes; ++seed) {
    Scene scene(seed);
    scene.prepare();
    Scene::One& one = scene.sequences[0];
    // Three drafts of which the last is wrong are left in the state.
    RigPart part = scene.part(0, one.P, one.P + 4, {{4, 2, 2}}, 3);
    part.tokens.back() ^= 1;
    scene.rig.step({part}, [](Batch& batch) { batch.draft_count.as<int32_t>()[0] = 0; });
    EXPECT_NE(slot_difference(one.shadow, *scene.rig.slots, 2), "");
    const std::vector<HiddenRow> hidden = scene.rig.step({scene.part(0, one.P + 3, one.P + 4, {{1, 2, 2}}, 0)});
    EXPECT_NE(hidden[0].pick, one.shadow.hidden(one.P + 3).pick);
  }
}

// A fault of entries, hidden rows or first keys changes the result that drafts are made of; and the drafts themselves,
// but for those that agree with the target in both.
void expect_drafts_change(const char* name, const std::function<std::vector<int32_t>(Scene&)>& run) {
  int changed = 0;
  for (uint64_t seed = 0; seed < kScenes; ++seed) {
    Scene clean(seed);
    clean.prepare();
    const std::vector<int32_t> want = clean.drafts(clean.last_entry());
    EXPECT_EQ(want, clean.sequences[0].shadow.drafts(clean.sequences[0].P, 4));
    Scene scene(seed);
    scene.prepare();
    changed += run(scene) != want;
    EXPECT_NE(scene.stream, clean.stream) << name << ", seed " << seed;
  }
  EXPECT_GE(changed, static_cast<int>(kScenes) * 8 / 10) << name;
}

TEST(HashMixUps, OfEntriesChangeDrafts) {
  expect_drafts_change("hidden row of the token before", [](Scene& s) {
    RigEntries part = s.last_entry();
    part.hidden[0] = s.sequences[0].rows[s.sequences[0].P - 2];
    return s.drafts(part);
  });
  expect_drafts_change("hidden row of another sequence", [](Scene& s) {
    RigEntries part = s.last_entry();
    part.hidden[0] = s.sequences[1].rows.back();
    return s.drafts(part);
  });
  expect_drafts_change("entry never written", [](Scene& s) {
    scribble_page(s.rig.model.config(), *s.rig.pages, s.sequences[0].table[0], 1, 15);
    return s.drafts(s.last_entry());
  });
  expect_drafts_change("page of another sequence", [](Scene& s) {
    std::swap(s.sequences[0].table[1], s.sequences[1].table[1]);
    return s.drafts(s.last_entry());
  });
  expect_drafts_change("provisional entry left", [](Scene& s) {
    // Entry P - 1 comes from the result of entry P - 2, as a draft pass makes it.
    const int64_t P = s.sequences[0].P;
    const std::vector<HiddenRow> hidden = s.rig.draft({s.entries(0, P - 2, P - 1)}, 0);
    RigEntries provisional = s.entries(0, P - 1, P);
    provisional.hidden[0] = hidden[0];
    s.rig.draft({provisional}, 1);
    return s.drafts(s.last_entry());
  });
  for (const int32_t first_key : {2, 16, 40})
    expect_drafts_change("first key", [&](Scene& s) {
      RigEntries part = s.last_entry();
      part.first_key = first_key;
      return s.drafts(part);
    });
  expect_drafts_change("entry in its unshifted place", [](Scene& s) {
    RigEntries part = s.last_entry();
    --part.begin;
    return s.drafts(part);
  });
  expect_drafts_change("rotary position of the token itself", [](Scene& s) {
    return s.drafts(s.last_entry(), 0, [](Batch& batch) {
      for (const int axis : {0, 1, 2}) ++batch.mtp.positions.as<int32_t>()[axis];
    });
  });
  expect_drafts_change("layer of another pass", [](Scene& s) { return s.drafts(s.last_entry(), 1); });
}

TEST(HashMixUps, EntriesFromMtpBeginOn) {
  for (uint64_t seed = 0; seed < kScenes; ++seed) {
    for (const int32_t first_key : {2, 17, 39, 40}) {
      Scene scene(seed);
      scene.prepare();
      const int64_t P = scene.sequences[0].P;
      RigEntries part = scene.last_entry();
      part.first_key = first_key;
      EXPECT_EQ(scene.drafts(part), scene.sequences[0].shadow.drafts(P, 4, first_key));
    }
  }
}

TEST(HashModel, InactiveSequencesWriteNothing) {
  Scene scene(5);
  scene.prepare();
  Scene::One& one = scene.sequences[0];
  RigPart part = scene.part(0, one.P, one.P + 3, {{3, 2, 2}}, 2);
  part.tokens = {1, 2, 3};
  part.active = false;
  RigPart other = scene.part(1, scene.sequences[1].P, scene.sequences[1].P + 1, {{1, 3, 3}}, 0);
  const std::vector<HiddenRow> hidden = scene.rig.step({part, other});
  for (int row = 0; row < 3; ++row) EXPECT_EQ(hidden[row], HiddenRow{});
  EXPECT_EQ(hidden[3], scene.sequences[1].shadow.hidden(scene.sequences[1].P));
  RigEntries entries = scene.last_entry();
  entries.tokens[0] ^= 1;
  entries.active = false;
  EXPECT_EQ(scene.rig.draft({entries}, 0)[0], HiddenRow{});

  EXPECT_EQ(slot_difference(one.shadow, *scene.rig.slots, 2, one.P), "");
  EXPECT_EQ(scene.rig.slots->accepted().as<int32_t>()[2], 2);
  // The drafts of the step before are still behind P.
  EXPECT_EQ(page_difference(one.shadow, *scene.rig.pages, one.table, 0, one.P + 1), "");
  EXPECT_EQ(entry_difference(one.shadow, *scene.rig.pages, one.table, 1, one.P + 1), "");
  EXPECT_EQ(scene.first_wrong_row(), -1);
}

// ---- rules of the contract

std::string violation(const HashRig::Change& change, const std::function<void(std::vector<RigPart>&)>& plan = {}) {
  Scene scene(3);
  scene.prepare();
  std::vector<RigPart> parts;
  for (int32_t i = 0; i < 2; ++i) {
    const int64_t P = scene.sequences[i].P;
    parts.push_back(scene.part(i, P, P + 3, {{1, 2 + i, 4 + i}, {2, 4 + i, 6 + i}}, 1));
  }
  if (plan) plan(parts);
  scene.rig.step(parts, change);
  const std::vector<std::string>& found = scene.rig.model.violations();
  return found.empty() ? "" : found.front();
}

void expect_violation(const char* words, const HashRig::Change& change,
                      const std::function<void(std::vector<RigPart>&)>& plan = {}) {
  const std::string found = violation(change, plan);
  EXPECT_NE(found.find(words), std::string::npos) << "expected: " << words << ", found: " << found;
}

TEST(BatchContract, EachRuleIsNoticed) {
  EXPECT_EQ(violation({}), "");
  const auto set = [](Tensor Batch::*tensor, int64_t at, int32_t add) {
    return [=](Batch& batch) { (batch.*tensor).as<int32_t>()[at] += add; };
  };
  using Parts = std::vector<RigPart>;
  expect_violation("does not follow", set(&Batch::token_index, 1, 1));
  expect_violation("names sequence", set(&Batch::row_sequence, 3, -1));
  expect_violation("length", set(&Batch::seq_len, 1, 1));
  expect_violation("ends at row", set(&Batch::segment_start, 2, -1));
  expect_violation("does not go on from slot", set(&Batch::state_src, 1, 4));
  expect_violation("drafts in", set(&Batch::draft_count, 0, 1));
  expect_violation("bound", [](Batch& batch) { batch.max_query_len = 2; });
  expect_violation("bound", [](Batch& batch) { batch.max_seq_len = 44; });
  expect_violation("bound", [](Batch& batch) { batch.max_drafts = 0; });
  expect_violation("stands at", {}, [](Parts& parts) { parts[0].segments[0].src = 0; });
  expect_violation("is written by sequences", {}, [](Parts& parts) { parts[1].segments[1].dst = 6; });
  expect_violation("and read by", {}, [](Parts& parts) {
    parts[0].segments[1].dst = 3;  // B's source
  });
  expect_violation("is written by sequences", {}, [](Parts& parts) { parts[1].table[3] = parts[0].table[2]; });
  expect_violation("is read by sequence", {}, [](Parts& parts) { parts[1].table[0] = parts[0].table[2]; });
}

TEST(BatchContract, EachRuleOfDraftsIsNoticed) {
  const auto found = [](const std::function<void(RigEntries&)>& change) {
    Scene scene(3);
    scene.prepare();
    RigEntries part = scene.last_entry();
    change(part);
    scene.rig.draft({part}, 0);
    return scene.rig.model.violations().empty() ? "" : scene.rig.model.violations().front();
  };
  EXPECT_EQ(found([](RigEntries&) {}), "");
  EXPECT_NE(found([](RigEntries& part) { part.first_key = 0; }).find("first key"), std::string::npos);
  EXPECT_NE(found([](RigEntries& part) { part.begin = 0; }).find("entry 0"), std::string::npos);
}

}  // namespace
}  // namespace calandra::hashsim
