// Memory of steps: after warm-up no step allocates in the model or its ops, whatever the layers; a backend holds what
// its plan says; and a decode step keeps to its budget of barriers.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <numeric>

#include "backends/cpu/cpu_backend.h"
#include "tests/allocation_watch.h"
#include "tests/model_under_test.h"

namespace calandra {
namespace {

using namespace calandra::testing;
namespace fs = std::filesystem;

constexpr const char* kNotCounted = "skipped: sanitizers need malloc for themselves";

// What the model's functions allocated and how often threads met, summed over its calls.
struct Counts {
  int64_t calls = 0, allocations = 0, launches = 0;
  std::string first;  // where it allocated first
};

// A model that counts inside its forwards. What the runner does around them is not the model's.
class WatchedModel : public CausalLM {
 public:
  explicit WatchedModel(const CausalLM& model) : model_(model) {
    if (model.drafter() != nullptr) drafter_.emplace(*model.drafter(), *this);
  }

  int64_t vocab_size() const override { return model_.vocab_size(); }
  int64_t hidden_size() const override { return model_.hidden_size(); }
  int64_t max_position_embeddings() const override { return model_.max_position_embeddings(); }
  DType dtype() const override { return model_.dtype(); }
  std::vector<CacheSpec> cache_specs() const override { return model_.cache_specs(); }
  StepCost step_cost() const override { return model_.step_cost(); }
  const Drafter* drafter() const override { return drafter_ ? &*drafter_ : nullptr; }

  Tensor forward(ExecContext& ctx, const Batch& batch, ModelCaches& caches) const override {
    return watched(ctx, [&] {
      const Tensor hidden = model_.forward(ctx, batch, caches);
      Tensor ring;
      ops::commit_slots(ctx, hidden, caches.slots, ring, batch);  // the runner does it again
      return hidden;
    });
  }
  Tensor logits(ExecContext& ctx, const Tensor& hidden) const override {
    return watched(ctx, [&] { return model_.logits(ctx, hidden); });
  }

  mutable Counts counts;

 private:
  class WatchedDrafter : public Drafter {
   public:
    WatchedDrafter(const Drafter& drafter, const WatchedModel& model) : drafter_(drafter), model_(model) {}
    int64_t num_layers() const override { return drafter_.num_layers(); }
    std::vector<CacheSpec> cache_specs() const override { return drafter_.cache_specs(); }
    StepCost step_cost() const override { return drafter_.step_cost(); }
    std::span<const int32_t> token_ids() const override { return drafter_.token_ids(); }
    Tensor logits(ExecContext& ctx, const Tensor& hidden) const override {
      return model_.watched(ctx, [&] { return drafter_.logits(ctx, hidden); });
    }
    Tensor forward(ExecContext& ctx, const Batch& batch, ModelCaches& caches, const Tensor& hidden,
                   int64_t step) const override {
      return model_.watched(ctx, [&] { return drafter_.forward(ctx, batch, caches, hidden, step); });
    }

   private:
    const Drafter& drafter_;
    const WatchedModel& model_;
  };

  template <class F>
  Tensor watched(ExecContext& ctx, const F& run) const {
    if (ctx.dry_run) return run();
    const uint32_t before = ctx.backend.launches();
    Tensor result;
    int64_t allocations = 0;
    std::string first;
    {
      const AllocationWatch watch;
      result = run();
      allocations = watch.count();
      if (allocations > 0) first = watch.first();
    }
    ++counts.calls;
    if (counts.allocations == 0) counts.first = first;
    counts.allocations += allocations;
    counts.launches += ctx.backend.launches() - before;
    return result;
  }

  const CausalLM& model_;
  std::optional<WatchedDrafter> drafter_;
};

// A release's layers with random weights; `overrides` makes them small.
class DummyModel {
 public:
  DummyModel(const char* shape, const json::object& overrides, Backend& backend, const ModelParts& parts) {
    json::object config = config_of_shape(shape);
    for (const auto& [key, value] : overrides) config[key] = value;
    config_ = check_config(config, shape);
    store_.emplace(backend, nullptr, config_.fp8);
    model_ = make_model(config_, store_->reader(), backend, DType::kBF16, parts);
    store_->load({}, 2);
  }
  const CausalLM& model() const { return *model_; }

 private:
  ModelConfig config_;
  std::optional<WeightStore> store_;
  std::unique_ptr<CausalLM> model_;
};

constexpr int64_t kPrompt = 70;

const RunnerLimits kLimits{.max_num_seqs = 3,
                           .max_num_batched_tokens = 80,
                           .max_model_len = 128,
                           .num_state_slots = 3,
                           .pending_capacity = 2,
                           .max_cuts = 1};

// A greedy row, one with filters and one without, their memory kept from step to step.
class Sampler {
 public:
  Sampler() {
    batch_.rows.resize(3);
    batch_.rows[0].temperature = 0;
    batch_.rows[1].temperature = 0.7f;
    batch_.rows[1].top_k = 20;
    batch_.rows[1].top_p = 0.8f;
    batch_.rows[2].logit_row = 1;
  }
  // Samples and returns what that allocated.
  int64_t run(ModelRunner& runner, const Tensor& logits, int32_t token_index) {
    for (ops::SamplingRow& row : batch_.rows) row.token_index = token_index;
    const AllocationWatch watch;
    runner.sample(logits, batch_, result_);
    return watch.count();
  }

 private:
  ops::SamplingBatch batch_;
  ops::SamplingResult result_;
};

// Prefill in two chunks, with a cut and beside another sequence's; decode of two sequences; drafts, kept and refused; a
// pass of the draft layers; logits and samples. Returns the allocations of the sampler.
int64_t all_kinds_of_steps(ModelRunner& runner, Sampler& sampler) {
  int64_t sampled = 0;
  Sequence a, b, cut;
  a.tokens.resize(kPrompt);
  std::iota(a.tokens.begin(), a.tokens.end(), 5);
  b.tokens.assign({9, 8, 7, 6, 5});
  for (Sequence* s : {&a, &b, &cut}) CHECK(runner.reserve(*s, 100));
  using Part = ModelRunner::Part;
  const ModelRunner::Cut cuts[] = {{32, cut.slot}};
  const std::vector<int32_t> drafts{11, 12}, rows{0, 1};

  const Tensor hidden = runner.forward(std::vector<Part>{{&a, 64, {}, cuts}});
  if (runner.model().drafter() != nullptr) {
    const Tensor kept = runner.keep_hidden(hidden.slice(0, 0, 63));
    const ModelRunner::DraftPart part{&a, 1, std::span(a.tokens).subspan(1, 63)};
    runner.logits(runner.draft({&part, 1}, kept, 0), rows);
  }
  runner.forward(std::vector<Part>{{&a, kPrompt - 64}, {&b, 5}});
  for (int step = 0; step < 4; ++step) {
    a.tokens.push_back(20 + step);
    b.tokens.push_back(30 + step);
    const bool drafting = step % 2 == 1;
    const Tensor decoded =
        runner.forward(std::vector<Part>{{&a, 1, drafting ? std::span(drafts) : std::span<const int32_t>()}, {&b, 1}});
    const Tensor logits = runner.logits(decoded, rows);
    if (drafting) {
      runner.accept(a, 1);
      a.tokens.push_back(drafts[0]);
    }
    sampled += sampler.run(runner, logits, step);
  }
  for (Sequence* s : {&a, &b, &cut}) runner.release(*s);
  return sampled;
}

void expect_no_allocation(const CausalLM& model, Backend& backend) {
  if (!allocations_are_counted()) GTEST_SKIP() << kNotCounted;
  const WatchedModel watched(model);
  ModelRunner runner(watched, backend, kLimits);
  Sampler sampler;
  all_kinds_of_steps(runner, sampler);  // warms up
  watched.counts = {};
  EXPECT_EQ(all_kinds_of_steps(runner, sampler), 0) << "in the sampler";
  EXPECT_GE(watched.counts.calls, 10);
  EXPECT_EQ(watched.counts.allocations, 0) << "the first at: " << watched.counts.first;
}

class StepMemory : public ::testing::TestWithParam<DType> {};

// A watch that sees nothing would let everything pass.
TEST(AllocationWatch, SeesEveryKind) {
  if (!allocations_are_counted()) GTEST_SKIP() << kNotCounted;
  const auto counted = [](auto&& allocate) {
    const AllocationWatch watch;
    allocate();
    return watch.count();
  };
  static std::atomic<void*> kept;  // the compiler may leave out an allocation that nobody sees
  EXPECT_EQ(counted([] {}), 0);
  EXPECT_EQ(counted([] { std::free(kept = std::malloc(5)); }), 1);
  EXPECT_EQ(counted([] { std::free(kept = std::calloc(5, 5)); }), 1);
  EXPECT_EQ(counted([] { std::free(kept = std::realloc(std::malloc(5), 500)); }), 2);
  EXPECT_EQ(counted([] { std::free(kept = std::aligned_alloc(64, 64)); }), 1);
  EXPECT_EQ(counted([] { ::operator delete(kept = ::operator new(7)); }), 1);
  EXPECT_EQ(counted([] { ::operator delete (kept = ::operator new (7, std::align_val_t{64}), std::align_val_t{64}); }),
            1);
  EXPECT_EQ(counted([] { std::vector<int>(10).swap(*std::make_unique<std::vector<int>>()); }), 2);
  EXPECT_EQ(counted([] { Buffer::host(100); }), 1);
  ThreadPool pool(3);
  pool.run([](int) {});
  EXPECT_EQ(counted([&] { pool.run([](int) { std::free(kept = std::malloc(3)); }); }), 3) << "of all threads";
  const AllocationWatch watch;
  const Scope scope("here", 7);
  std::free(kept = std::malloc(5));
  EXPECT_EQ(watch.first(), "here 7");
}

TEST_P(StepMemory, DemosAllocateNothing) {
  for (const char* name : {"demo-qwen3_5", "demo-bailing"}) {
    SCOPED_TRACE(name);
    ModelUnderTest model(fs::path(CALANDRA_SOURCE_DIR "/demo") / name, {"cpu", 2, ""}, GetParam(), {.drafter = true});
    ASSERT_NE(model.model().drafter(), nullptr);
    expect_no_allocation(model.model(), model.backend());
  }
}

INSTANTIATE_TEST_SUITE_P(Types, StepMemory, ::testing::Values(DType::kF32, DType::kBF16),
                         [](const auto& info) { return std::string(name_of(info.param)); });

// Mixtures of both families, and grouped-query attention beside lightning attention, which no demo has.
TEST(StepMemory, OtherLayersAllocateNothing) {
  const json::object small{
      {"vocab_size", 512},         {"hidden_size", 256},          {"num_hidden_layers", 5},
      {"num_experts", 16},         {"num_experts_per_tok", 4},    {"moe_intermediate_size", 128},
      {"intermediate_size", 512},  {"num_attention_heads", 4},    {"num_key_value_heads", 2},
      {"linear_num_key_heads", 2}, {"linear_num_value_heads", 4}, {"shared_expert_intermediate_size", 128}};
  for (const char* shape : {"qwen3_5-35b-a3b", "ring-mini-linear-2.0"}) {
    SCOPED_TRACE(shape);
    const std::unique_ptr<Backend> backend = make_backend({"cpu", 2, ""});
    const DummyModel model(shape, small, *backend, {.drafter = true});
    expect_no_allocation(model.model(), *backend);
  }
}

// DESIGN: at most 6 barriers for a dense layer at decode. The layers are a release's, large enough for two threads.
TEST(Barriers, OfADecodeStep) {
  for (const int64_t layers : {4, 8}) {
    const std::unique_ptr<Backend> backend = make_backend({"cpu", 2, ""});
    const DummyModel model("qwen3_5-0.8b", {{"vocab_size", 512}, {"num_hidden_layers", layers}}, *backend, {});
    const WatchedModel watched(model.model());
    ModelRunner runner(watched, *backend, {.max_num_seqs = 1, .max_num_batched_tokens = 8, .max_model_len = 64});
    Sequence s;
    s.tokens = {5, 6, 7};
    ASSERT_TRUE(runner.reserve(s, 10));
    const ModelRunner::Part prompt{&s, 3}, next{&s, 1};
    runner.forward({&prompt, 1});
    s.tokens.push_back(8);
    watched.counts = {};
    runner.forward({&next, 1});
    EXPECT_GE(watched.counts.launches, 4 * layers) << "no region was counted";
    EXPECT_LE(watched.counts.launches, 6 * layers);
    RecordProperty(fmt::format("barriers_of_{}_layers", layers), static_cast<int>(watched.counts.launches));
  }
}

// The plan that `inspect` prints is asked of a backend that has packed nothing.
TEST(Scratch, IsWhatWasPlanned) {
  if (!allocations_are_counted()) GTEST_SKIP() << kNotCounted;
  for (const Isa isa : machine_isas())
    for (const int threads : {1, 3}) {
      const int64_t before = mapped_bytes();
      CpuBackend backend(threads, isa);
      const auto held = [&] { return mapped_bytes() - before; };
      EXPECT_EQ(held(), static_cast<int64_t>(backend.scratch_bytes(0)));
      for (const int64_t K : {40, 1000, 7}) {
        std::vector<float> values(static_cast<size_t>(3 * K));
        const StoredMatrix matrix{Tensor(values.data(), DType::kF32, {3, K})};
        std::vector<std::byte> packed(backend.packed_bytes(matrix) + 64);
        const size_t planned = backend.scratch_bytes(std::max<int64_t>(K, K == 7 ? 1000 : K));
        backend.pack_weight(matrix, packed.data() + (64 - reinterpret_cast<uintptr_t>(packed.data()) % 64));
        EXPECT_EQ(held(), static_cast<int64_t>(planned)) << K;
      }
    }
}

TEST(Scratch, OfAModelIsPlannedFromItsWidestMatrix) {
  if (!allocations_are_counted()) GTEST_SKIP() << kNotCounted;
  for (const char* name : {"demo-qwen3_5", "demo-bailing"}) {
    const fs::path folder = fs::path(CALANDRA_SOURCE_DIR "/demo") / name;
    const ModelConfig config = check_config(read_json_file(folder / "config.json").as_object(), name);
    const WeightFiles checkpoint(folder);
    const int64_t before = mapped_bytes();
    const std::unique_ptr<Backend> backend = make_backend({"cpu", 2, ""});
    size_t planned = 0;
    {
      WeightStore store(*backend, &checkpoint, config.fp8);
      const auto model = make_model(config, store.reader(), *backend, DType::kBF16, {});
      planned = backend->scratch_bytes(store.summary().columns);
      store.load(unused_tensors(config, {}), 2);
    }
    EXPECT_EQ(mapped_bytes() - before, static_cast<int64_t>(planned)) << name;
    RecordProperty(std::string(name) + "_scratch", static_cast<int>(planned));
  }
}

}  // namespace
}  // namespace calandra
