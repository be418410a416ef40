// Recorded steps (CUDA graphs) against the same steps kernel by kernel: the same bits, in one start. Skipped without a
// device.
#include <gtest/gtest.h>

#include <numeric>

#include "backends/reference/reference.h"
#include "engine/recorded_steps.h"
#include "parallel/communicator.h"
#include "tests/model_under_test.h"

namespace calandra {
namespace {

using namespace calandra::testing;
namespace fs = std::filesystem;

TEST(RecordedSteps, TheirBoundDoublesUpToTheLongest) {
  EXPECT_EQ(RecordedSteps::bound_of(1, 4096), 512);
  EXPECT_EQ(RecordedSteps::bound_of(512, 4096), 512);
  EXPECT_EQ(RecordedSteps::bound_of(513, 4096), 1024);
  EXPECT_EQ(RecordedSteps::bound_of(2049, 3000), 3000);
  EXPECT_EQ(RecordedSteps::bound_of(7, 100), 100);
}

TEST(RecordedSteps, TheirSizesAreFew) {
  std::vector<int64_t> sizes;
  for (int64_t n = 1; n <= 64; ++n) {
    const int64_t size = RecordedSteps::rounded(n, 4);
    ASSERT_GE(size, n);
    if (sizes.empty() || sizes.back() != size) sizes.push_back(size);
  }
  EXPECT_EQ(sizes, (std::vector<int64_t>{1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 56, 64}));
  EXPECT_EQ(RecordedSteps::rounded(5, 1), 8);
  EXPECT_EQ(RecordedSteps::rounded(5, 2), 6);
}

// A device that records.
class RecordingBackend : public ReferenceBackend {
 public:
  class Again : public Recording {
   public:
    explicit Again(std::function<void()> work) : work_(std::move(work)) {}
    void run(ExecContext&) override { work_(); }

   private:
    std::function<void()> work_;
  };
  bool records() const override { return true; }
  std::unique_ptr<Recording> record(ExecContext&, const std::function<void()>& work) override {
    work();
    return std::make_unique<Again>(work);
  }
};

// The first time and the one that records; what is never recorded takes as long every time.
TEST(RecordedSteps, CountRunsThatTookLonger) {
  if (CALANDRA_STAMPS) GTEST_SKIP() << "stamps want every allocation";
  RecordingBackend backend;
  Workspace workspace;
  OneRank communicator;
  ExecContext ctx{backend, workspace, communicator};
  RecordedSteps steps;
  const auto run = [&](int64_t rows) {
    steps.run(ctx, {RecordedSteps::kForward, rows, 1, 1, 512, 0, nullptr}, [] { return Tensor(); });
    return steps.first_runs();
  };
  EXPECT_EQ(run(1), 1);
  EXPECT_EQ(run(1), 2);
  EXPECT_EQ(run(1), 2);
  EXPECT_EQ(run(2), 3);
  for (int64_t rows = 3; rows < 400; ++rows) run(rows);
  const int64_t before = steps.first_runs();
  EXPECT_EQ(run(500), before);
  EXPECT_EQ(run(500), before);
}

struct Trace {
  std::vector<std::vector<std::byte>> rows;  // hidden rows and logits, one result after the other
  std::vector<uint32_t> launches;            // of the forward of each decode step
};

// Three sequences, one of them past a bound of lengths on its way, with drafts kept and refused, passes of the draft
// layers, and one that ends and begins again in other pages.
Trace decode(ModelUnderTest& model) {
  ModelRunner runner(model.model(), model.backend(),
                     {.max_num_seqs = 3,
                      .max_num_batched_tokens = 600,
                      .max_model_len = 1024,
                      .pending_capacity = 2,
                      .hidden_ring = 8});
  Trace trace;
  const auto keep = [&](const Tensor& x) {
    std::vector<std::byte>& bytes = trace.rows.emplace_back(static_cast<size_t>(x.bytes()));
    model.backend().copy_bytes(bytes.data(), x.data(), bytes.size());
  };
  std::vector<Sequence> all(3);
  const auto begin = [&](Sequence& s, int64_t prompt) {
    s.tokens.resize(static_cast<size_t>(prompt));
    std::iota(s.tokens.begin(), s.tokens.end(), 5);
    CHECK(runner.reserve(s, prompt + 100));
    const ModelRunner::Part part{&s, prompt};
    keep(runner.forward({&part, 1}));
  };
  begin(all[0], 500);
  begin(all[1], 30);
  begin(all[2], 7);
  const std::vector<int32_t> drafts{11, 12};
  for (int step = 0; step < 24; ++step) {
    if (step == 15) {
      runner.release(all[1]);
      begin(all[1], 40);
    }
    std::vector<ModelRunner::Part> parts;
    const bool drafting = step % 3 == 2;
    for (Sequence& s : all) {
      s.tokens.push_back(20 + step);
      parts.push_back({&s, 1, drafting ? std::span(drafts) : std::span<const int32_t>()});
    }
    const uint32_t before = model.backend().launches();
    const Tensor hidden = runner.forward(parts);
    trace.launches.push_back(model.backend().launches() - before);
    keep(hidden);
    keep(runner.logits(hidden, std::vector<int32_t>{0, static_cast<int32_t>(hidden.size(0)) - 1}));
    if (drafting)
      for (size_t i = 0; i < all.size(); ++i) {
        const int32_t kept = (step + static_cast<int32_t>(i)) % 3;
        all[i].tokens.insert(all[i].tokens.end(), drafts.begin(), drafts.begin() + kept);
        runner.accept(all[i], kept);
      }
    std::vector<ModelRunner::DraftPart> entries;
    std::vector<ModelRunner::HiddenRows> before_entries;
    const int32_t next = 77;
    for (Sequence& s : all) {
      entries.push_back({&s, s.computed, {&next, 1}});
      before_entries.push_back({&s, s.computed - 1, s.computed});
    }
    keep(runner.draft(entries, runner.gather_hidden(before_entries), 0));
  }
  for (Sequence& s : all) runner.release(s);
  return trace;
}

TEST(CudaGraphs, HaveTheBitsOfSingleKernels) {
  if (model_backends().back() != "cuda") GTEST_SKIP() << "skipped: there is no device";
  const fs::path folder = fs::path(CALANDRA_SOURCE_DIR "/demo/demo-qwen3_5");
  for (const DType dtype : {DType::kBF16, DType::kF32}) {
    ModelUnderTest recorded(folder, {.backend = "cuda"}, dtype, {.drafter = true});
    ModelUnderTest eager(folder, {.backend = "cuda", .enforce_eager = true}, dtype, {.drafter = true});
    ASSERT_TRUE(recorded.backend().records());
    ASSERT_FALSE(eager.backend().records());
    const Trace got = decode(recorded), want = decode(eager);
    ASSERT_EQ(got.rows.size(), want.rows.size());
    for (size_t i = 0; i < want.rows.size(); ++i) EXPECT_EQ(got.rows[i], want.rows[i]) << "result " << i;
    EXPECT_EQ(got.launches.back(), 1u) << "more than a recording";
    EXPECT_GT(want.launches.back(), 10u);
  }
}

}  // namespace
}  // namespace calandra
