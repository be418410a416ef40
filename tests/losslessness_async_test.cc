// The losslessness matrix on a device with a stream: whole models, whose answers must be those of each request alone on
// a device without one. Steps are launched before the tokens of the one before were read; with drafts the device reads
// these as well, and they must be those of a device without a stream. The device is a queue of work on the CPU, or what
// CALANDRA_LOSSLESS_BACKEND says.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <optional>
#include <utility>

#include "backends/cpu/cpu_backend.h"
#include "tests/deferred_backend.h"
#include "tests/losslessness_session.h"

namespace calandra::lossless {
namespace {

// The subject on such a device, for as long as this lives.
class OnStream {
 public:
  OnStream(Subject& subject, uint64_t seed) : subject_(subject), model_(std::move(subject.model)) {
    auto stream = std::make_unique<DeferredBackend<CpuBackend>>(seed, DeferredFaults{}, 1,
                                                                static_cast<CpuBackend&>(*subject.backend).isa());
    queue_ = &stream->queue();
    // The subject's weights were packed by its own backend; this one only has to know how long their rows may be.
    std::vector<float> row(8192);
    const StoredMatrix longest{Tensor(row.data(), DType::kF32, {1, std::ssize(row)})};
    const Buffer packed = stream->allocate(stream->packed_bytes(longest));
    stream->pack_weight(longest, static_cast<std::byte*>(packed.data()));
    subject.model = std::make_unique<DeferredModel>(*model_, *queue_);
    backend_ = std::exchange(subject.backend, std::move(stream));
  }
  ~OnStream() {
    subject_.model = std::move(model_);
    subject_.backend = std::move(backend_);
  }
  WorkQueue& queue() { return *queue_; }

 private:
  Subject& subject_;
  std::unique_ptr<CausalLM> model_;
  std::unique_ptr<Backend> backend_;
  WorkQueue* queue_;
};

class LosslessAhead : public ::testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    if (CALANDRA_STAMPS) GTEST_SKIP() << "skipped: stamps want every tensor to be used when it was made";
    if (!s.on_device() && dynamic_cast<const CpuBackend*>(s.backend.get()) == nullptr)
      GTEST_SKIP() << "skipped: a CPU without AVX2";
    for (const AskedRequest& asked : requests_of(s)) {
      longest = std::max(longest, std::ssize(asked.request.prompt_token_ids) + *asked.request.params.max_tokens);
      if (!few || requests.size() < 12) requests.push_back(&asked);
    }
  }

  Tally run_with_drafts();

  Subject& s = *subject(GetParam());
  const bool few = s.demo && !s.on_device() && !whole_matrix();  // it is slow
  std::vector<const AskedRequest*> requests;
  int64_t longest = 0;  // tokens of a request and its answer
};

TEST_P(LosslessAhead, Matrix) {
  Tally tally;
  for (uint64_t number = 0; number < (few ? 4 : 12); ++number) {
    std::optional<OnStream> stream;
    if (!s.on_device()) stream.emplace(s, number % 3);
    Setting setting{.drafting = {},
                    .cache = number % 2 == 1,
                    .batch = number % 4 < 2    ? 33
                             : number % 4 == 2 ? 1
                                               : 7,
                    .preemptions = static_cast<int>(number % 3),
                    .seed = number + 1,
                    .async = true};
    number < 4 ? ample_limits(setting, longest) : draw_limits(setting, longest);
    Session session(s, setting, tally);
    session.run(requests);
    if (setting.cache) session.run(requests);
    if (stream) stream->queue().run_all();
  }
  fmt::print("{}: {}\n", GetParam(), tally.words());
  EXPECT_GT(tally.runs, 0);
  EXPECT_GT(tally.steps_ahead, tally.steps / 10);
  EXPECT_EQ(tally.differences, 0) << tally.first;
}

// Its rows of drafts depend on which tokens stand before them, so that no step with it is launched ahead.
bool reads_drafts(const AskedRequest& asked) {
  const Request& r = asked.request;
  const SamplingParams& p = r.params;
  return r.grammar || !r.processors.empty() || p.repetition_penalty != 1 || p.frequency_penalty != 0 ||
         p.presence_penalty != 0 || !p.bad_words_token_ids.empty() || !p.bad_words.empty() || p.thinking_token_budget;
}

// All numbers of drafts, of requests of every kind, and of those alone with which steps are launched ahead.
TEST_P(LosslessAhead, DraftsOnTheDevice) { run_with_drafts(); }

TEST_P(LosslessAhead, StepsWithDrafts) {
  std::erase_if(requests, [](const AskedRequest* asked) { return reads_drafts(*asked); });
  EXPECT_GT(requests.size(), 5u);
  const Tally tally = run_with_drafts();
  EXPECT_GT(tally.steps_ahead, tally.steps / 10);
}

Tally LosslessAhead::run_with_drafts() {
  using enum DraftMethod;
  const std::vector<Drafting> all{{kMtp, 1}, {kMtp, 2}, {kMtp, 3}, {kMtp, 4}, {kMtp, 4, true}, {kNgram, 3}};
  Tally tally;
  DraftLedger ledger;
  const auto run = [&](const Drafting& drafting, uint64_t number, bool async, bool ample, OnStream* stream) {
    Setting setting{.drafting = drafting,
                    .cache = number % 2 == 1,
                    .batch = std::array{33, 7, 1}[(number + number / all.size()) % 3],
                    .preemptions = static_cast<int>(number / 2 % 3),
                    .seed = number + 1,
                    .async = async && drafting.method == kMtp};
    ample ? ample_limits(setting, longest) : draw_limits(setting, longest);
    Session session(s, setting, tally, ample && drafting.method == kMtp ? &ledger : nullptr);
    session.run(requests);
    if (stream != nullptr) stream->queue().run_all();  // while there is what it reads
  };
  run({kMtp, 4}, 0, false, true, nullptr);
  const int64_t places = ledger.places();
  for (uint64_t number = 0; number < all.size() * (few ? 1 : 3); ++number) {
    std::optional<OnStream> stream;
    if (!s.on_device()) stream.emplace(s, number % 3);
    run(all[number % all.size()], number, true, number < all.size(), stream ? &*stream : nullptr);
  }
  fmt::print("{}: {}\n", GetParam(), tally.words());
  EXPECT_GT(tally.accepted, 100);
  EXPECT_GT(tally.drafts_compared, places / 2);
  EXPECT_EQ(tally.differences, 0) << tally.first;
  if (s.one_order) {
    EXPECT_EQ(tally.draft_differences, 0) << tally.first;
  }
  return tally;
}

INSTANTIATE_TEST_SUITE_P(Subjects, LosslessAhead, ::testing::ValuesIn(own_subjects()), test_name);

}  // namespace
}  // namespace calandra::lossless
