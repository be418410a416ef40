// The exactness matrix: bit for bit the same logits whatever the threads, batch, chunk, page size and instruction set.
// Recomputing after eviction, resuming in another batch and drafting rely on it. On the cpu and the reference backend,
// for each instruction set of the machine, and on the deterministic cuda backend where there is a device.
#include <gtest/gtest.h>

#include <algorithm>
#include <thread>

#include "backends/cpu/isa.h"
#include "tests/exactness_tools.h"
#include "tests/model_under_test.h"

namespace calandra {
namespace {

using namespace calandra::testing;
namespace fs = std::filesystem;

struct Param {
  std::string model;
  BackendChoice choice;
  DType dtype;
};

// The demo models cover dense Qwen3.5 and Bailing V2.5 (lightning and latent attention, experts, FP8); the oracle's
// small cases the other architectures.
std::vector<Param> params() {
  std::vector<Param> out;
  out.push_back({"demo-qwen3_5", {"reference", 1, ""}, DType::kF32});
  for (const char* model : {"demo-qwen3_5", "demo-bailing", "moe_fused", "linear_v2_fp32"}) {
    for (const DType dtype : {DType::kF32, DType::kBF16}) {
      for (const Isa isa : machine_isas()) out.push_back({model, {"cpu", 2, std::string(name_of(isa))}, dtype});
      if (model_backends().back() == "cuda") out.push_back({model, {.backend = "cuda", .deterministic = true}, dtype});
    }
  }
  return out;
}

class Exactness : public ::testing::TestWithParam<Param> {
 protected:
  void SetUp() override {
    model_ = folder_of(GetParam().model);
    if (model_.empty()) GTEST_SKIP() << "skipped: " << GetParam().model << " is only in the shared oracle";
  }
  fs::path model_;
  // The reference is slow: shorter sequences there.
  int64_t length() const { return GetParam().choice.backend == "reference" ? 66 : 200; }
};

std::vector<float> run(ModelUnderTest& model, std::vector<int32_t> tokens, int64_t chunk, int64_t page) {
  Sequence s = sequence_of(std::move(tokens));
  const auto runner =
      model.runner({.max_num_seqs = 1, .max_num_batched_tokens = chunk, .max_model_len = s.size()}, page);
  return teacher_forced(*runner, s, chunk);
}

TEST_P(Exactness, ChunksAndPages) {
  ModelUnderTest model(model_, GetParam().choice, GetParam().dtype);
  const std::vector<int32_t> tokens = random_tokens(length(), 1, model.model().vocab_size());
  const std::vector<float> whole = run(model, tokens, length(), 16);
  const bool reference = GetParam().choice.backend == "reference";  // slow: each chunk with one page size
  int compared = 0;
  for (const int64_t page : {1, 16}) {
    for (const int64_t chunk : {int64_t{1}, int64_t{7}, int64_t{64}, int64_t{65}, length()}) {
      if (reference && (chunk % 2 == 1) != (page == 1)) continue;
      EXPECT_TRUE(same_bits(run(model, tokens, chunk, page), whole)) << "chunk " << chunk << ", page " << page;
      ++compared;
    }
  }
  RecordProperty("runs_with_equal_bits", compared);
}

// Seven sequences of different lengths, prefilled and decoded together, against each alone.
TEST_P(Exactness, BatchOfSevenEqualsEachAlone) {
  ModelUnderTest model(model_, GetParam().choice, GetParam().dtype);
  const int64_t V = model.model().vocab_size();
  const auto runner =
      model.runner({.max_num_seqs = 7, .max_num_batched_tokens = 512, .max_model_len = 128, .num_state_slots = 7});
  std::vector<Sequence> sequences;
  std::vector<std::vector<int32_t>> alone;
  for (uint32_t i = 0; i < 7; ++i) {
    alone.push_back(random_tokens(5 + 9 * i, 100 + i, V));
    sequences.push_back(sequence_of(alone.back()));
    sequences.back().tokens.resize(alone.back().size() - 4);  // the last four arrive one by one
  }
  std::vector<std::vector<float>> got(7);
  for (int step = 0; step < 5; ++step) {
    std::vector<ModelRunner::Part> parts;
    std::vector<int32_t> last;
    int64_t row = 0;
    for (Sequence& s : sequences) {
      ASSERT_TRUE(runner->reserve(s, s.size()));
      parts.push_back({&s, s.size() - s.computed});
      row += parts.back().rows;
      last.push_back(static_cast<int32_t>(row - 1));
    }
    const HostCopy logits(runner->logits(runner->forward(parts), last));
    for (int i = 0; i < 7; ++i) {
      for (int64_t v = 0; v < V; ++v) got[i].push_back(logits[i * V + v]);
      if (step < 4) sequences[i].tokens.push_back(alone[i][sequences[i].size()]);
    }
  }
  for (int i = 0; i < 7; ++i) {
    const std::vector<float> all = run(model, alone[i], 512, 16);
    EXPECT_TRUE(same_bits(got[i], {all.end() - 5 * V, all.end()})) << "sequence " << i;
  }
  RecordProperty("runs_with_equal_bits", 7);
}

TEST_P(Exactness, Threads) {
  if (GetParam().choice.backend != "cpu") GTEST_SKIP() << "skipped: only the cpu backend has threads";
  std::vector<int> counts = {1, 2, 3};
  if (std::thread::hardware_concurrency() >= 16) counts.push_back(16);
  std::vector<float> want;
  for (const int threads : counts) {
    BackendChoice choice = GetParam().choice;
    choice.threads = threads;
    ModelUnderTest model(model_, choice, GetParam().dtype);
    const std::vector<float> got = run(model, random_tokens(length(), 2, model.model().vocab_size()), 64, 16);
    if (want.empty()) want = got;
    EXPECT_TRUE(same_bits(got, want)) << threads << " threads";
  }
  RecordProperty("runs_with_equal_bits", static_cast<int>(counts.size()) - 1);
}

// Whole models over more than 512 keys, where the keys of a query are split among cores: prefilled in chunks, then
// token by token.
class InstructionSets : public ::testing::TestWithParam<std::tuple<const char*, DType>> {};

TEST_P(InstructionSets, GiveTheSameBits) {
  const auto [name, dtype] = GetParam();
  const std::vector<Isa> isas = machine_isas();
  if (isas.size() < 2) GTEST_SKIP() << "skipped: this CPU has one instruction set of the kernels (no AVX-512)";
  const fs::path folder = folder_of(name);
  if (folder.empty()) GTEST_SKIP() << "skipped: " << name << " is only in the shared oracle";
  constexpr int64_t kPrefilled = 640, kDecoded = 8;
  std::vector<std::vector<float>> logits;
  for (const Isa isa : isas) {
    ModelUnderTest model(folder, {"cpu", 2, std::string(name_of(isa))}, dtype);
    const std::vector<int32_t> tokens = random_tokens(kPrefilled + kDecoded, 3, model.model().vocab_size());
    Sequence s = sequence_of({tokens.begin(), tokens.begin() + kPrefilled});
    const auto runner =
        model.runner({.max_num_seqs = 1, .max_num_batched_tokens = 512, .max_model_len = kPrefilled + kDecoded});
    std::vector<float>& all = logits.emplace_back(teacher_forced(*runner, s, 512));
    while (s.size() < kPrefilled + kDecoded) {
      s.tokens.push_back(tokens[s.size()]);
      const std::vector<float> row = teacher_forced(*runner, s, 512);
      all.insert(all.end(), row.begin(), row.end());
    }
    EXPECT_TRUE(same_bits(all, logits[0])) << name_of(isa) << " and " << name_of(isas[0]);
  }
  RecordProperty("logits_rows_of_instruction_sets", kPrefilled + kDecoded);
}

INSTANTIATE_TEST_SUITE_P(Models, InstructionSets,
                         ::testing::Combine(::testing::Values("demo-qwen3_5", "demo-bailing", "moe_fused",
                                                              "linear_v2_fp32"),
                                            ::testing::Values(DType::kF32, DType::kBF16)),
                         [](const auto& info) {
                           std::string model = std::get<0>(info.param);
                           std::replace(model.begin(), model.end(), '-', '_');
                           return model + "_" + std::string(name_of(std::get<1>(info.param)));
                         });

// A slot and pages that another sequence used before give the same as fresh ones.
TEST_P(Exactness, RecycledMemory) {
  ModelUnderTest model(model_, GetParam().choice, GetParam().dtype);
  const int64_t V = model.model().vocab_size();
  const auto runner = model.runner({.max_num_seqs = 1, .max_num_batched_tokens = 64, .max_model_len = 64});
  const auto once = [&](uint32_t seed) {
    Sequence s = sequence_of(random_tokens(40, seed, V));
    std::vector<float> logits = teacher_forced(*runner, s, 64);
    runner->release(s);
    return logits;
  };
  const std::vector<float> fresh = once(5);
  once(6);
  EXPECT_TRUE(same_bits(once(5), fresh));
  EXPECT_EQ(runner->pages().free_pages(), runner->pages().pages());
  EXPECT_EQ(runner->slots().free_slots(), runner->slots().slots());
}

INSTANTIATE_TEST_SUITE_P(Backends, Exactness, ::testing::ValuesIn(params()), [](const auto& info) {
  std::string model = info.param.model;
  std::replace(model.begin(), model.end(), '-', '_');
  return model + "_" + info.param.choice.backend + info.param.choice.isa + "_" + std::string(name_of(info.param.dtype));
});

}  // namespace
}  // namespace calandra
