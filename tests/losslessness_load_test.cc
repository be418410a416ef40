// Quiet and loaded: up to 64 sequences at once, requests that come at random and clients that leave. Every answer is
// that of its request alone, and what was heard of one that was broken off is its beginning.
//
// 10,000 requests of each model by hand, with CALANDRA_MATRIX=all or a part of them with 3/16; in CI a third, which the
// commit chooses; of the demo models in builds with stamps, which are slow, one session.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "tests/losslessness_session.h"
#include "tests/model_under_test.h"

namespace calandra::lossless {
namespace {

constexpr int64_t kLanes = 64;
constexpr int64_t kSessions = 40, kRequests = 250;  // of a session

// Others of the same kinds: with another seed, and a few more tokens behind the prompt unless it shows pictures.
std::vector<AskedRequest> more_requests(Subject& subject, int variants) {
  std::vector<AskedRequest> all = requests_of(subject);
  for (int variant = 1; variant < variants; ++variant) {
    for (const AskedRequest& kind : requests_of(subject)) {
      Request request = kind.request;
      if (request.params.seed) *request.params.seed += static_cast<uint64_t>(variant);
      if (request.positions.empty())
        for (const int32_t id : text_of(subject, 31 * variant, variant)) request.prompt_token_ids.push_back(id);
      all.push_back(ask(subject, fmt::format("{}, variant {}", kind.name, variant), request));
    }
  }
  return all;
}

class LosslessnessLoad : public ::testing::TestWithParam<std::string> {};

TEST_P(LosslessnessLoad, LoadedAsAlone) {
  Subject* const loaded = subject(GetParam());
  if (loaded == nullptr) GTEST_SKIP() << "skipped: " << GetParam() << " is only in the shared oracle";
  const testing::TablePart part =
      testing::table_part((loaded->demo && CALANDRA_STAMPS) || testing::kHostile ? kSessions : 3);
  const std::vector<AskedRequest> requests = more_requests(*loaded, loaded->demo && !part.whole ? 1 : 6);
  Tally tally;
  int64_t asked_for = 0;
  int64_t most = 0;
  for (int64_t number = 0; number < kSessions; ++number) {
    if (!part.takes(static_cast<uint64_t>(number))) continue;
    Dice dice(static_cast<uint64_t>(number) * 7919 + 5);
    std::vector<const AskedRequest*> asked;
    for (int64_t i = 0; i < kRequests; ++i)
      asked.push_back(&requests[static_cast<size_t>(dice.in(0, std::ssize(requests) - 1))]);
    Setting setting{.drafting = {number % 3 == 0 ? DraftMethod::kNgram : loaded->draft_method(),
                                 static_cast<int>(number % 5), number % 2 == 0},
                    .cache = number % 4 != 0,
                    .batch = kLanes,
                    .preemptions = static_cast<int>(number / 4 % 2),
                    .seed = static_cast<uint64_t>(number),
                    .arrivals = static_cast<int>(dice.in(60, 92)),
                    .leave = 20};
    draw_limits(setting, 140);
    setting.limits.max_num_batched_tokens = std::max<int64_t>(setting.limits.max_num_batched_tokens, kLanes);
    Session session(*loaded, setting, tally);
    session.evicts = setting.cache && number % 3 == 1;
    session.after_step = [&](Session& s) {
      most = std::max<int64_t>(most, std::ssize(s.core().scheduler().running()));
    };
    session.run(asked);
    asked_for += kRequests;
  }
  fmt::print("{}: {} requests, up to {} at once: {}\n", GetParam(), asked_for, most, tally.words());
  RecordProperty("requests", static_cast<int>(asked_for));
  EXPECT_GT(tally.left, 0);
  if (asked_for > kRequests) {  // one session may be a quiet one
    EXPECT_GT(most, kLanes / 2);
  }
  EXPECT_EQ(tally.differences, 0) << tally.first;
}

INSTANTIATE_TEST_SUITE_P(Models, LosslessnessLoad, ::testing::ValuesIn(table_subjects()), test_name);

}  // namespace
}  // namespace calandra::lossless
