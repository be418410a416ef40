// Random schedules of batches built by hand: chunks, segments, checkpoints, drafts, forks, inactive rows, recycled
// slots and pages. Tokens, drafts, slots and pages must be those of the shadow after every step.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <random>

#include "tests/hashsim/hash_rig.h"

namespace calandra::hashsim {
namespace {

using Random = std::mt19937_64;

int64_t draw(Random& random, int64_t least, int64_t most) {
  return least + static_cast<int64_t>(random() % static_cast<uint64_t>(most - least + 1));
}
bool chance(Random& random, int percent) { return draw(random, 0, 99) < percent; }

std::vector<int32_t> draw_tokens(Random& random, int64_t count) {
  std::vector<int32_t> tokens;
  for (int64_t i = 0; i < count; ++i) tokens.push_back(static_cast<int32_t>(draw(random, 0, 63)));
  return tokens;
}

// A small scheduler that takes every liberty that the contract gives.
class Schedule {
 public:
  explicit Schedule(uint64_t seed)
      : random_(seed), config_(draw_config()), sizes_(draw_sizes()), rig_(config_, sizes_) {
    for (int32_t slot = 0; slot < sizes_.slots; ++slot) scribble_slot(config_, *rig_.slots, slot, seed + slot);
    for (int32_t page = 0; page < sizes_.pages; ++page) scribble_page(config_, *rig_.pages, page, seed + page);
    const int64_t count = draw(random_, 1, 4);
    for (int64_t i = 0; i < count; ++i) begin(draw_tokens(random_, draw(random_, 1, 40)));
  }

  // Steps until every sequence has its tokens; the number of tokens.
  int64_t run() {
    while (!live_.empty() && !::testing::Test::HasFailure()) step();
    EXPECT_TRUE(rig_.model.violations().empty()) << rig_.model.violations().front();
    return emitted_;
  }
  int64_t accepted() const { return accepted_; }
  int64_t drafted() const { return drafted_; }
  int64_t forks() const { return forks_; }

 private:
  struct Live {
    std::vector<int32_t> tokens;
    HashShadow shadow;  // of all tokens
    int64_t P = 0, target = 0;
    std::vector<int32_t> table{};
    int32_t slot = -1;              // shared by forks until they have run
    std::vector<HiddenRow> rows{};  // true hidden rows
    int64_t mtp_begin = 1, mtp_end = 1;
    std::vector<int32_t> drafts{};  // for the next step
  };
  using Lives = std::vector<std::unique_ptr<Live>>;

  HashModelConfig draw_config() {
    HashModelConfig config;
    config.blocks = draw(random_, 1, 3);
    config.mtp_layers = draw(random_, 1, 3);
    config.agreement = 0.25 * static_cast<double>(draw(random_, 0, 4));
    config.vocab_size = chance(random_, 30) ? 3 : 64;
    config.seed = random_();
    return config;
  }
  RigSizes draw_sizes() {
    const int64_t page_tokens = std::array{1, 4, 16}[draw(random_, 0, 2)];
    return {.pages = 2000 / page_tokens, .page_tokens = page_tokens, .slots = 128, .pending_capacity = 4, .rows = 1024};
  }

  void begin(std::vector<int32_t> tokens) {
    auto live = std::make_unique<Live>(Live{std::move(tokens), HashShadow(config_)});
    for (const int32_t token : live->tokens) live->shadow.append(token);
    live->target = static_cast<int64_t>(live->tokens.size()) + draw(random_, 1, 25);
    if (chance(random_, 20)) live->mtp_begin = live->mtp_end = draw(random_, 1, 30);
    live_.push_back(std::move(live));
  }

  void reserve(Live& live, int64_t tokens) {
    while (static_cast<int64_t>(live.table.size()) * sizes_.page_tokens < tokens)
      live.table.push_back(*rig_.pages->take());
  }
  int32_t take_slot() {
    const int32_t slot = *rig_.slots->take();
    users_[slot] = 0;
    return slot;
  }
  void use(Live& live, int32_t slot) {
    ++users_[slot];
    drop(live.slot);
    live.slot = slot;
  }
  void drop(int32_t slot) {
    if (slot < 0 || --users_[slot] > 0) return;
    rig_.slots->release(slot);
    scribble_slot(config_, *rig_.slots, slot, random_());
  }
  void finish(Live& live) {
    drop(live.slot);
    for (const int32_t page : live.table) {
      if (rig_.pages->references(page) == 1) scribble_page(config_, *rig_.pages, page, random_());
      rig_.pages->release(page);
    }
  }

  // Another sequence that goes on from the same place with another last token: full pages are shared, the partial one
  // is copied, and the slot is read by both.
  void fork(Live& from) {
    // Entries are never written into a shared page: what is missing below P stays missing.
    if (from.mtp_end < from.P) from.mtp_begin = from.mtp_end = from.P;
    auto live = std::make_unique<Live>(from);
    live->tokens.resize(from.P + 1);
    live->tokens.back() = (live->tokens.back() + 1) % 64;
    live->shadow = HashShadow(config_);
    for (const int32_t token : live->tokens) live->shadow.append(token);
    live->target = from.P + draw(random_, 2, 20);
    live->drafts.clear();
    live->mtp_end = std::min(live->mtp_end, live->P);
    live->mtp_begin = std::min(live->mtp_begin, live->mtp_end);
    live->table.clear();
    for (int64_t page = 0; page * sizes_.page_tokens < from.P; ++page) {
      const int64_t kept = std::min(sizes_.page_tokens, from.P - page * sizes_.page_tokens);
      live->table.push_back(kept == sizes_.page_tokens ? from.table[page] : *rig_.pages->take());
      if (kept == sizes_.page_tokens)
        rig_.pages->add_reference(from.table[page]);
      else
        rig_.pages->copy(from.table[page], live->table.back(), kept,
                         [](void* to, const void* source, size_t bytes) { std::memcpy(to, source, bytes); });
    }
    ++users_[live->slot];
    live_.push_back(std::move(live));
    ++forks_;
  }

  void step() {
    if (chance(random_, 10) && live_.size() < 8) {
      Live& from = *live_[draw(random_, 0, static_cast<int64_t>(live_.size()) - 1)];
      if (from.P > 0) fork(from);
    }
    std::vector<RigPart> parts;
    std::vector<Live*> runs;
    for (const auto& live : live_) {
      if (chance(random_, 25) && !(runs.empty() && live == live_.back())) continue;
      runs.push_back(live.get());
      parts.push_back(plan(*live));
    }
    const std::vector<HiddenRow> hidden = rig_.step(parts);
    size_t row = 0;
    for (size_t i = 0; i < runs.size(); ++i) {
      const size_t rows = parts[i].tokens.size();
      if (parts[i].active)
        commit(*runs[i], parts[i], {hidden.begin() + row, hidden.begin() + row + rows});
      else
        stand_still(*runs[i], parts[i], {hidden.begin() + row, hidden.begin() + row + rows});
      row += rows;
    }
    draft(runs);
    for (const auto& live : live_) verify(*live);
    std::erase_if(live_, [&](const auto& live) {
      if (static_cast<int64_t>(live->tokens.size()) < live->target) return false;
      finish(*live);
      return true;
    });
  }

  RigPart plan(Live& live) {
    RigPart part;
    part.begin = live.P;
    const auto known = static_cast<int64_t>(live.tokens.size()) - live.P;
    const int64_t certain = chance(random_, 40) ? known : draw(random_, 1, known);
    part.tokens.assign(live.tokens.begin() + live.P, live.tokens.begin() + live.P + certain);
    if (certain == 1 && known == 1 && live.P > 0) {
      // Drafts of the drafter, or any others.
      if (live.drafts.empty() && chance(random_, 30)) live.drafts = draw_tokens(random_, draw(random_, 1, 4));
      const int64_t room = live.target - static_cast<int64_t>(live.tokens.size()) - 1;
      if (static_cast<int64_t>(live.drafts.size()) > room) live.drafts.resize(std::max<int64_t>(room, 0));
      part.tokens.insert(part.tokens.end(), live.drafts.begin(), live.drafts.end());
      part.drafts = static_cast<int32_t>(live.drafts.size());
    }
    reserve(live, part.begin + static_cast<int64_t>(part.tokens.size()));
    part.table = live.table;
    part.active = !chance(random_, 10);
    const bool in_place = live.slot >= 0 && users_[live.slot] == 1 && chance(random_, 50);
    int32_t src = live.slot;
    for (int64_t left = certain; left > 0;) {
      const bool rest = part.segments.size() == 9 || chance(random_, 50);
      const int64_t rows = rest ? left : draw(random_, 1, left);
      left -= rows;
      const int32_t dst = in_place ? live.slot : take_slot();
      part.segments.push_back({rows + (left == 0 ? part.drafts : 0), src, dst});
      src = dst;
    }
    return part;
  }

  void stand_still(const Live& live, const RigPart& part, const std::vector<HiddenRow>& hidden) {
    for (const HiddenRow& row : hidden) EXPECT_EQ(row, HiddenRow{});
    for (const RigPart::Segment& segment : part.segments)
      if (segment.dst != live.slot) rig_.slots->release(segment.dst);
  }

  void commit(Live& live, const RigPart& part, std::vector<HiddenRow> hidden) {
    const auto certain = static_cast<int64_t>(part.tokens.size()) - part.drafts;
    int64_t kept = certain;
    if (live.P + certain == static_cast<int64_t>(live.tokens.size())) {
      // Sample: the row of the last certain token, then those of drafts that are what was sampled.
      for (int64_t row = certain - 1;; ++row) {
        const int32_t token = rig_.greedy(hidden[row]);
        EXPECT_EQ(token, live.shadow.greedy(live.P + row));
        live.tokens.push_back(token);
        live.shadow.append(token);
        ++emitted_;
        const bool more = row + 1 < static_cast<int64_t>(part.tokens.size()) && part.tokens[row + 1] == token;
        if (!more) break;
        ++kept;
        ++accepted_;
      }
    }
    drafted_ += part.drafts;
    // The borders in between are checkpoints.
    int64_t at = live.P;
    for (const RigPart::Segment& segment : part.segments) {
      const bool last = &segment == &part.segments.back();
      at += segment.rows - (last ? part.drafts : 0);
      if (segment.dst == part.segments.back().dst) continue;
      EXPECT_EQ(slot_difference(live.shadow, *rig_.slots, segment.dst, at), "") << "checkpoint";
      users_[segment.dst] = 1;
      drop(segment.dst);
    }
    const int32_t dst = part.segments.back().dst;
    rig_.accept(dst, static_cast<int32_t>(kept - certain));
    if (dst != live.slot) use(live, dst);
    hidden.resize(kept);
    live.rows.insert(live.rows.end(), hidden.begin(), hidden.end());
    live.P += kept;
    live.drafts.clear();
  }

  // Entries up to the last sampled token, and drafts, for some of the sequences that have run.
  void draft(const std::vector<Live*>& runs) {
    std::vector<RigEntries> entries;
    std::vector<Live*> lives;
    for (Live* live : runs) {
      const bool decodes = live->P + 1 == static_cast<int64_t>(live->tokens.size());
      if (!decodes || chance(random_, 30) || live->mtp_end > live->P || live->P < 1) continue;
      live->drafts.clear();
      reserve(*live, live->P + 5);
      RigEntries part{live->table, live->mtp_end, {}, {}, static_cast<int32_t>(live->mtp_begin)};
      for (int64_t e = part.begin; e <= live->P; ++e) {
        part.tokens.push_back(live->tokens[e]);
        part.hidden.push_back(live->rows[e - 1]);
      }
      entries.push_back(part);
      lives.push_back(live);
    }
    if (entries.empty()) return;
    const int64_t k = draw(random_, 1, 4);
    for (int64_t pass = 0; pass < k; ++pass) {
      const std::vector<HiddenRow> hidden = rig_.draft(entries, pass);
      size_t row = 0;
      for (size_t i = 0; i < lives.size(); ++i) {
        row += entries[i].tokens.size();
        lives[i]->drafts.push_back(rig_.greedy(hidden[row - 1]));
        entries[i].begin = lives[i]->P + pass + 1;
        entries[i].tokens = {lives[i]->drafts.back()};
        entries[i].hidden = {hidden[row - 1]};
      }
    }
    for (Live* live : lives) {
      live->mtp_end = live->P + 1;
      EXPECT_EQ(live->drafts, live->shadow.drafts(live->P, k, live->mtp_begin));
    }
  }

  void verify(const Live& live) {
    if (live.slot >= 0) {
      EXPECT_EQ(slot_difference(live.shadow, *rig_.slots, live.slot, live.P), "");
    }
    EXPECT_EQ(page_difference(live.shadow, *rig_.pages, live.table, 0, live.P), "");
    EXPECT_EQ(entry_difference(live.shadow, *rig_.pages, live.table, live.mtp_begin, live.mtp_end), "");
  }

  Random random_;
  HashModelConfig config_;
  RigSizes sizes_;
  HashRig rig_;
  Lives live_;
  std::map<int32_t, int> users_;
  int64_t emitted_ = 0, accepted_ = 0, drafted_ = 0, forks_ = 0;
};

TEST(HashModel, RandomSchedulesEqualShadow) {
  int64_t tokens = 0, drafted = 0, accepted = 0, forks = 0;
  for (uint64_t seed = 0; seed < 300 && !HasFailure(); ++seed) {
    SCOPED_TRACE(seed);
    Schedule schedule(seed);
    tokens += schedule.run();
    drafted += schedule.drafted();
    accepted += schedule.accepted();
    forks += schedule.forks();
  }
  EXPECT_GT(accepted, 1000);
  EXPECT_GT(forks, 300);
  RecordProperty("tokens", static_cast<int>(tokens));
  std::printf("300 schedules: %d tokens, %d drafts, %d accepted, %d forks\n", static_cast<int>(tokens),
              static_cast<int>(drafted), static_cast<int>(accepted), static_cast<int>(forks));
}

}  // namespace
}  // namespace calandra::hashsim
