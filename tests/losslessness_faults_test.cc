// Planted faults: each does to slots, counts, pages or drafter entries what a bug would do, and the comparison with
// plain answers must see it. What only the drafter reads changes no token: there the drafts must tell.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <map>

#include "tests/losslessness_session.h"

namespace calandra::lossless {
namespace {

class LosslessnessFaults : public ::testing::TestWithParam<const char*> {
 protected:
  using Meddle = std::function<void(Session&)>;

  // Cold, warm, and each choice preempted up to three times, with every kind of request. Drafts are compared with those
  // of an engine that nobody meddles with.
  Tally seen(const Meddle& before_step, const Meddle& after_step) {
    Subject& subject = *lossless::subject(GetParam());
    std::vector<const AskedRequest*> requests;
    for (const AskedRequest& asked : requests_of(subject)) requests.push_back(&asked);
    const auto run = [&](Tally& to, DraftLedger& ledger, const Meddle& before, const Meddle& after, int k,
                         int preemptions) {
      Setting setting{.drafting = {DraftMethod::kMtp, k}, .cache = true, .batch = 7, .preemptions = preemptions};
      ample_limits(setting, 120);
      Session session(subject, setting, to, &ledger);
      session.strict = true;
      session.before_step = before;
      session.after_step = after;
      session.run(requests);
      session.run(requests);
    };
    static std::map<std::string, DraftLedger> healthy;
    const auto [known, is_new] = healthy.try_emplace(GetParam());
    Tally tally;
    if (is_new)
      for (const int k : {1, 3}) run(tally, known->second, {}, {}, k, 0);
    EXPECT_EQ(tally.differences + tally.draft_differences, 0) << tally.first;
    DraftLedger ledger = known->second;
    tally = {};
    run(tally, ledger, before_step, after_step, 3, 3);
    return tally;
  }
};

int32_t* ints(const Tensor& tensor) { return tensor.as<int32_t>(); }

// Every running choice's sequence.
template <class Visit>
void each(Session& session, const Visit& visit) {
  for (Choice* choice : session.core().scheduler().running()) visit(*choice, choice->sequence);
}

TEST_P(LosslessnessFaults, NoneIsSeenWhereNoneIs) {
  const Tally tally = seen({}, {});
  EXPECT_EQ(tally.differences, 0) << tally.first;
  EXPECT_EQ(tally.draft_differences, 0) << tally.first;
  EXPECT_GT(tally.drafts_compared, 250);
  EXPECT_GT(tally.preemptions, 30);
}

TEST_P(LosslessnessFaults, AcceptedCountOffByOne) {
  const Tally tally = seen({}, [](Session& session) {
    each(session, [&](Choice&, Sequence& s) {
      if (s.source == s.slot && s.accepted > 0) ints(session.runner().slots().accepted())[s.slot] = s.accepted - 1;
    });
  });
  EXPECT_GT(tally.differences, 0);
}

// The host's count is right, the slot's is that of an earlier step or owner.
TEST_P(LosslessnessFaults, StaleAcceptedCount) {
  const Tally tally = seen({}, [](Session& session) {
    each(session, [&](Choice&, Sequence& s) {
      if (s.source == s.slot && s.accepted == 0 && s.size() % 5 == 0 && s.outputs() > 1)
        ints(session.runner().slots().accepted())[s.slot] = 1;
    });
  });
  EXPECT_GT(tally.differences, 0);
}

// A step's states are lost; counts and hidden rows are the new ones.
TEST_P(LosslessnessFaults, StaleSlot) {
  const SlotPool::CopyBytes copy = [](void* to, const void* from, size_t bytes) { std::memcpy(to, from, bytes); };
  std::map<int32_t, std::vector<std::byte>> before;
  const Tally tally = seen(
      [&](Session& session) {
        before.clear();
        each(session, [&](Choice& choice, Sequence& s) {
          if (!choice.decodes() || s.source != s.slot || s.size() % 7 != 0) return;
          before[s.slot].resize(static_cast<size_t>(session.runner().slots().bytes_per_slot()));
          session.runner().slots().copy_out(s.slot, before[s.slot].data(), copy);
        });
      },
      [&](Session& session) {
        SlotPool& slots = session.runner().slots();
        each(session, [&](Choice&, Sequence& s) {
          const auto found = before.find(s.slot);
          if (found == before.end() || s.source != s.slot) return;
          const int32_t N = ints(slots.N())[s.slot], accepted = ints(slots.accepted())[s.slot];
          const Tensor rows = slots.hidden()[s.slot];
          std::vector<std::byte> hidden(static_cast<size_t>(rows.bytes()));
          std::memcpy(hidden.data(), rows.data(), hidden.size());
          slots.copy_in(s.slot, found->second.data(), copy);
          ints(slots.N())[s.slot] = N;
          ints(slots.accepted())[s.slot] = accepted;
          std::memcpy(rows.data(), hidden.data(), hidden.size());
        });
        before.clear();
      });
  EXPECT_GT(tally.differences, 0);
}

// Rejected drafts whose updates count: the state is ahead of the tokens.
TEST_P(LosslessnessFaults, AllDraftsAccepted) {
  const Tally tally = seen({}, [](Session& session) {
    each(session, [&](Choice& choice, Sequence& s) {
      if (s.source == s.slot && !choice.drafts.empty())
        ints(session.runner().slots().accepted())[s.slot] = static_cast<int32_t>(choice.drafts.size());
    });
  });
  EXPECT_GT(tally.differences, 0);
}

// Two running choices have each other's page: their last full ones, where the tokens before differ.
TEST_P(LosslessnessFaults, PagesOfTwoSequencesSwapped) {
  const Tally tally = seen({}, [](Session& session) {
    Sequence* first = nullptr;
    each(session, [&](Choice&, Sequence& s) {
      if (s.computed < 48) return;
      if (first != nullptr) std::swap(first->block_table[2], s.block_table[2]);
      first = first == nullptr ? &s : nullptr;
    });
  });
  EXPECT_GT(tally.differences, 0);
}

// After a hit the drafter sees keys from the hit on only.
TEST_P(LosslessnessFaults, DrafterDoesNotContinueAfterAHit) {
  const Tally tally = seen({}, [](Session& session) {
    each(session, [&](Choice& choice, Sequence& s) {
      if (choice.answer.cached_tokens > 0 && s.mtp_begin == 1) s.mtp_begin = choice.answer.cached_tokens;
    });
  });
  EXPECT_EQ(tally.differences, 0) << tally.first;
  EXPECT_GT(tally.draft_differences, 0);
}

// The entries of accepted drafts stay provisional.
TEST_P(LosslessnessFaults, DrafterEntriesTakenAsWritten) {
  const Tally tally = seen({}, [](Session& session) {
    each(session, [](Choice&, Sequence& s) { s.mtp_end = std::max(s.mtp_end, s.computed); });
  });
  EXPECT_EQ(tally.differences, 0) << tally.first;
  EXPECT_GT(tally.draft_differences, 0);
}

// The drafter goes on from the row of another token.
TEST_P(LosslessnessFaults, StaleHiddenRow) {
  const Tally tally = seen({}, [](Session& session) {
    each(session, [&](Choice&, Sequence& s) {
      if (s.source != s.slot) return;
      const Tensor rows = session.runner().slots().hidden()[s.slot];
      float* row = rows[s.accepted].as<float>();
      std::reverse(row, row + rows.size(1));
    });
  });
  EXPECT_EQ(tally.differences, 0) << tally.first;
  EXPECT_GT(tally.draft_differences, 0);
}

// Noise that belongs to the place in the batch.
TEST_P(LosslessnessFaults, NoiseByBatchRow) {
  const Tally tally = seen(
      [](Session& session) {
        uint64_t row = 0;
        each(session, [&](Choice&, Sequence& s) { s.seed = 77 + row++; });
      },
      {});
  EXPECT_GT(tally.differences, 0);
}

INSTANTIATE_TEST_SUITE_P(Models, LosslessnessFaults, ::testing::Values("small_qwen3_5", "small_bailing"));

}  // namespace
}  // namespace calandra::lossless
