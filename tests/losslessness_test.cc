// The losslessness matrix: the same request gives the same tokens, logprobs (to the bit), finish reason and text as
// when it runs alone without drafts, prefix cache and preemption. And drafts, which may change no token, are themselves
// a function of the tokens before them, so that a mix-up of what only the drafter reads is seen as well.
//
// CALANDRA_MATRIX=all runs all of it, 3/16 a part of that; otherwise a part that the commit chooses, mostly a third.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <numeric>

#include "tests/hashsim/hash_rules.h"
#include "tests/losslessness_session.h"
#include "tests/model_under_test.h"

namespace calandra::lossless {
namespace {

// The part of the matrix's `sessions` that runs, never none of them. Whole models are slow in builds with stamps, and
// the oracle's models are many.
testing::TablePart part_of(const Subject& subject, const std::string& name, size_t sessions) {
  const bool third = name.starts_with("small") || (subject.demo && !CALANDRA_STAMPS);
  return testing::table_part(std::min<size_t>((third ? 3 : 24) * (testing::kHostile ? 8 : 1), sessions));
}

// Where each of `count` things, numbered from 0, comes in a mixed order, so that a part of them has some of every kind.
std::vector<uint64_t> mixed_places(size_t count) {
  std::vector<uint64_t> order(count), places(count);
  std::iota(order.begin(), order.end(), 0);
  std::ranges::sort(order, {}, [](uint64_t number) { return hashsim::mix(1, number); });
  for (size_t place = 0; place < count; ++place) places[order[place]] = place;
  return places;
}

std::vector<Drafting> draftings(const Subject& subject) {
  std::vector<Drafting> all = {{}};
  for (const DraftMethod method : {DraftMethod::kMtp, DraftMethod::kNgram}) {
    if (method == DraftMethod::kMtp && !subject.has_drafter()) continue;
    for (int k = 1; k <= 4; ++k) all.push_back({method, k});
    all.push_back({method, 4, true});
  }
  return all;
}

using Asked = std::vector<const AskedRequest*>;

// `count` requests, others for every session; all when there are not so many.
Asked some_of(const std::vector<AskedRequest>& requests, size_t count, size_t session) {
  Asked some;
  for (size_t i = 0; i < std::min(count, requests.size()); ++i)
    some.push_back(&requests[(session * count + i) % requests.size()]);
  return some;
}

Asked pointers(const std::vector<AskedRequest>& requests) { return some_of(requests, requests.size(), 0); }

int64_t longest_of(const Asked& requests) {
  int64_t longest = 0;
  for (const AskedRequest* asked : requests)
    longest = std::max(longest, std::ssize(asked->request.prompt_token_ids) + *asked->request.params.max_tokens);
  return longest;
}

class Losslessness : public ::testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    subject_ = subject(GetParam());
    if (subject_ == nullptr) GTEST_SKIP() << "skipped: " << GetParam() << " is only in the shared oracle";
  }
  // What was seen, for the log and the report.
  void report(const char* what) {
    fmt::print("{}, {}: {}\n", GetParam(), what, tally_.words());
    RecordProperty("runs", static_cast<int>(tally_.runs));
    RecordProperty("differences", static_cast<int>(tally_.differences));
    RecordProperty("drafts_compared", static_cast<int>(tally_.drafts_compared));
    EXPECT_GT(tally_.runs, 0);
    EXPECT_EQ(tally_.differences, 0) << tally_.first;
    if (subject_->one_order) {
      EXPECT_EQ(tally_.draft_differences, 0) << tally_.first;
    }
    RecordProperty("near_ties", static_cast<int>(std::ssize(tally_.partings) + tally_.at_edges + tally_.at_jumps));
  }
  // The oracle's models, for which the small ones stand otherwise: by hand.
  bool left_out() const {
    const std::vector<std::string>& own = own_subjects();
    return !whole_matrix() && std::find(own.begin(), own.end(), GetParam()) == own.end();
  }
  // Demo models are slow: fewer requests there, and in hostile builds.
  bool slow() const { return subject_->demo || testing::kHostile; }

  Subject* subject_ = nullptr;
  Tally tally_;
};

// Each session has one way of drafting, batch size and number of preemptions, and runs its requests four times: without
// the prefix cache, with a cold one, a warm one, and one that loses checkpoints before and meanwhile. The whole matrix
// runs every request in every session; its parts do with a batch of 33, and otherwise with some that change by session.
TEST_P(Losslessness, Matrix) {
  const std::vector<AskedRequest>& requests = requests_of(*subject_);
  const std::vector<Drafting> ways = draftings(*subject_);
  constexpr std::array<int64_t, 3> kBatches = {1, 7, 33};
  constexpr int kPreemptions = 4;  // 0 to 3
  const size_t all = ways.size() * kPreemptions * kBatches.size();
  const testing::TablePart part = part_of(*subject_, GetParam(), all);
  const std::vector<uint64_t> places = mixed_places(all);
  DraftLedger ledger;
  uint64_t number = 0;
  int64_t sessions = 0;
  for (const Drafting& drafting : ways) {
    for (int preemptions = 0; preemptions < kPreemptions; ++preemptions) {
      for (const int64_t batch : kBatches) {
        ++number;
        if (!part.takes(places[number - 1])) continue;
        ++sessions;
        const size_t few = whole_matrix() ? requests.size() : slow() ? 3 : 8;
        const Asked asked = some_of(requests,
                                    batch == 1   ? few
                                    : batch == 7 ? 2 * few + 2
                                                 : requests.size(),
                                    number / 3 + number % 3);
        Setting setting{.drafting = drafting, .batch = batch, .preemptions = preemptions, .seed = number};
        const bool mtp = drafting.k > 0 && drafting.method == DraftMethod::kMtp;
        draw_limits(setting, longest_of(pointers(requests)));
        Session(*subject_, setting, tally_, mtp ? &ledger : nullptr).run(asked);
        setting.cache = true;
        draw_limits(setting, longest_of(pointers(requests)));
        Session session(*subject_, setting, tally_, mtp ? &ledger : nullptr);
        session.run(asked);
        session.run(asked);
        session.evict_some();
        session.evicts = true;
        session.run(asked);
      }
    }
  }
  report(fmt::format("{} of {} sessions", sessions, number).c_str());
}

// Prompts of every length (of whole models a third of them), cold and from the checkpoints that they left.
TEST_P(Losslessness, EveryPromptLength) {
  if (left_out()) GTEST_SKIP() << "skipped: CALANDRA_MATRIX=all runs it for the oracle's models";
  std::vector<AskedRequest> requests;
  const int64_t third = slow() && !whole_matrix() ? 3 : 1;
  for (int64_t length = 1 + static_cast<int64_t>(testing::number_of_commit()) % third; length <= 130; length += third) {
    Request request;
    request.prompt_token_ids = text_of(*subject_, 3 * length, length);
    request.params.temperature = length % 2 == 0 ? 0 : 0.8f;
    request.params.top_p = 0.9f;
    request.params.seed = static_cast<uint64_t>(length);
    request.params.max_tokens = slow() ? 3 : 6;
    request.params.logprobs = 1;
    requests.push_back(ask(*subject_, fmt::format("{} tokens", length), request));
  }
  for (const bool cache : {false, true}) {
    if (slow() && !cache && !whole_matrix()) continue;
    Setting setting{.drafting = {subject_->draft_method(), 3}, .cache = cache, .batch = 7, .seed = 5};
    ample_limits(setting, 140);
    setting.limits.max_num_batched_tokens = 61;
    setting.checkpoint_interval = 0;
    if (!slow()) setting.limits.num_state_slots = 400;
    if (!slow()) setting.limits.num_blocks = 4000;
    Session session(*subject_, setting, tally_);
    session.run(pointers(requests));
    if (cache && !slow()) session.run(pointers(requests));
  }
  report("prompts of every length");
}

// A prompt cut after each of its tokens: by the rows of a step, and by a checkpoint, from which a prompt that is the
// same so far then goes on.
TEST_P(Losslessness, EveryCutPoint) {
  if (left_out()) GTEST_SKIP() << "skipped: CALANDRA_MATRIX=all runs it for the oracle's models";
  constexpr int64_t kPrompt = 40;
  Request request;
  request.prompt_token_ids = text_of(*subject_, 11, kPrompt);
  request.params.temperature = 0.8f;
  request.params.seed = 3;
  request.params.max_tokens = slow() ? 3 : 6;
  request.params.logprobs = 1;
  const AskedRequest whole = ask(*subject_, "cut", request);
  // Of demo models a third of the places, which the commit chooses.
  const int64_t step = slow() && !whole_matrix() ? 3 : 1;
  const int64_t first_place = 1 + static_cast<int64_t>(testing::number_of_commit()) % step;
  for (int64_t rows = first_place; rows <= kPrompt; rows += step) {
    Setting setting{.drafting = {subject_->draft_method(), 3}, .seed = static_cast<uint64_t>(rows)};
    ample_limits(setting, kPrompt + 10);
    setting.limits.max_num_batched_tokens = rows;
    Session(*subject_, setting, tally_).run({&whole});
  }
  Setting setting{.drafting = {subject_->draft_method(), 2}, .cache = true};
  ample_limits(setting, kPrompt + 30);
  setting.checkpoint_interval = 0;
  auto session = std::make_unique<Session>(*subject_, setting, tally_);
  for (int64_t cut = first_place; cut < kPrompt - 1; cut += step) {
    AskedRequest first = whole;
    first.request.checkpoint_hints = {cut};
    Request other = request;
    other.prompt_token_ids.resize(static_cast<size_t>(cut));
    const int32_t follows = request.prompt_token_ids[static_cast<size_t>(cut)];
    for (int i = 0; i < 3; ++i)
      other.prompt_token_ids.push_back((follows + 1 + i) % static_cast<int32_t>(subject_->model->vocab_size()));
    const AskedRequest second = ask(*subject_, fmt::format("after {}", cut), other);
    session->core().cache()->clear();
    session->run({&first});
    const int64_t before = session->core().stats().prefix.hit_tokens;
    session->run({&second});
    EXPECT_EQ(session->core().stats().prefix.hit_tokens - before, cut);
  }
  session.reset();
  report("cuts at every token");
}

// Several choices of one prompt, and each of them alone, after a hit at the prompt's last token and without one. At
// these lengths the last shared token ends a page, begins one, or stands in the middle: its MTP entry is written by
// everyone who goes on.
TEST_P(Losslessness, HitsAndForks) {
  DraftLedger drafts;
  DraftLedger* ledger = subject_->has_drafter() ? &drafts : nullptr;
  for (const int64_t length : {16, 32, 37, 48}) {
    for (const float temperature : {0.f, 0.8f}) {
      Request request;
      request.prompt_token_ids = text_of(*subject_, 5 * length, length);
      request.params.temperature = temperature;
      request.params.seed = 17;
      request.params.max_tokens = slow() ? 8 : 18;
      request.params.logprobs = 1;
      request.params.n = 4;
      const AskedRequest forked = ask(*subject_, fmt::format("{} tokens, {}", length, temperature), request);
      std::vector<AskedRequest> alone;
      for (int32_t choice = 0; choice < 4; ++choice) {
        AskedRequest& one = alone.emplace_back(forked);
        one.request.params.n = 1;
        one.request.first_choice = choice;
        one.plain = {forked.plain[static_cast<size_t>(choice)]};
      }
      Setting setting{.drafting = {subject_->draft_method(), 3}, .cache = true, .batch = 6, .seed = 1};
      ample_limits(setting, length + 20);
      Session session(*subject_, setting, tally_, ledger);
      session.strict = true;
      session.run({&forked});
      session.run({&forked});
      session.run(pointers(alone));
      session.core().cache()->clear();
      session.run(pointers(alone));  // one waits for another's prefix
      session.core().cache()->clear();
      setting.cache = false;
      setting.batch = 1;
      ample_limits(setting, length + 20);
      Session cold(*subject_, setting, tally_, ledger);
      cold.strict = true;
      cold.run(pointers(alone));
    }
  }
  EXPECT_EQ(tally_.incomplete, 0);
  if (ledger != nullptr) {
    EXPECT_GT(tally_.drafts_compared, slow() ? 100 : 400);
  }
  report("hits and forks");
}

// With complete entries, drafts depend on the tokens before them, the seed and the choice: not on a hit, preemption,
// the batch, or on how many drafts were made before.
TEST_P(Losslessness, DraftsAreAFunctionOfTheTokens) {
  if (left_out()) GTEST_SKIP() << "skipped: CALANDRA_MATRIX=all runs it for the oracle's models";
  if (!subject_->has_drafter()) GTEST_SKIP() << "skipped: " << GetParam() << " has no draft layers";
  const std::vector<AskedRequest>& requests = requests_of(*subject_);
  const Asked all = pointers(requests), few = some_of(requests, slow() ? 6 : requests.size(), 0);
  DraftLedger ledger;
  const auto run = [&](Drafting drafting, bool cache, int64_t batch, int preemptions, int times = 1) {
    Setting setting{.drafting = drafting, .cache = cache, .batch = batch, .preemptions = preemptions, .seed = 9};
    ample_limits(setting, longest_of(all));
    Session session(*subject_, setting, tally_, &ledger);
    session.strict = true;
    for (int i = 0; i < times; ++i) session.run(few, batch == 2);
  };
  run({DraftMethod::kMtp, 3}, false, 1, 0);
  run({DraftMethod::kMtp, 1}, false, 1, 0);
  run({DraftMethod::kMtp, 3}, true, 1, 0, 2);
  run({DraftMethod::kMtp, 3}, false, 7, 0);
  run({DraftMethod::kMtp, 4}, true, 33, 3, 2);
  run({DraftMethod::kMtp, 2}, true, 7, 2);
  run({DraftMethod::kMtp, 3}, false, 1, 3);
  // Three drafts alone, none for two, two for more: the number changes as others come and go.
  for (const int64_t batch : {2, 3, 7})
    run({DraftMethod::kMtp, 3, false, {{1, 1, 3}, {2, 2, 0}, {3, 1000, 2}}}, false, batch, 0);
  EXPECT_EQ(tally_.incomplete, 0);
  EXPECT_GT(tally_.drafts_compared, slow() ? 100 : 1000);
  report("drafts");
}

std::vector<std::string> names() {
  std::vector<std::string> all = own_subjects();
  all.insert(all.end(), oracle_subjects().begin(), oracle_subjects().end());
  return all;
}

INSTANTIATE_TEST_SUITE_P(Models, Losslessness, ::testing::ValuesIn(names()), test_name);

}  // namespace
}  // namespace calandra::lossless
