// The mixture layer reads every form in which checkpoints store it, and the same numbers from each.
#include "layers/sparse_moe.h"

#include <gtest/gtest.h>

#include <cmath>
#include <deque>

#include "backends/reference/reference.h"
#include "base/error.h"
#include "weights/safetensors_for_test.h"
#include "weights/weight_store.h"

namespace calandra {
namespace {

constexpr int64_t kE = 4, kD = 6, kF = 3, kFs = 5, kRows = 7;
constexpr SparseMoe::Sizes kSizes{kD, kE, kF, kFs};
const ops::RouterOptions kRouter{.score = ops::RouterScore::kSigmoid, .top_k = 2};

// Tensors of a checkpoint below "mlp".
class Stored {
 public:
  // Numbers that depend on the seed alone; `first` skips those of earlier parts of a fused tensor.
  void add(const std::string& name, Shape shape, int seed, int64_t first = 0) {
    Buffer& buffer = buffers_.emplace_back(Buffer::host(static_cast<size_t>(shape.numel()) * sizeof(float)));
    float* values = static_cast<float*>(buffer.data());
    for (int64_t i = 0; i < shape.numel(); ++i)
      values[i] = std::sin(static_cast<float>((first + i) * 7 + 13 * seed) * 1.3f);
    tensors_.push_back({"mlp." + name, buffer.tensor(DType::kF32, shape)});
  }
  float* values(size_t tensor) { return tensors_[tensor].tensor.as<float>(); }

  // What the layer gives for some rows, or the error of loading it.
  std::vector<float> run(const SparseMoe::Names& names) const {
    ReferenceBackend backend;
    const FolderForTest folder;
    write_safetensors(folder.path() / "model.safetensors", tensors_);
    const WeightFiles checkpoint(folder.path());
    WeightStore store(backend, &checkpoint);
    const SparseMoe layer(store.reader().child("mlp"), kSizes, kRouter, names);
    store.load({}, 1);

    std::vector<float> x(kRows * kD);
    for (size_t i = 0; i < x.size(); ++i) x[i] = std::cos(static_cast<float>(i) * 0.7f);
    const Tensor rows(x.data(), DType::kF32, {kRows, kD});
    OneRank one;
    Workspace measured;
    ExecContext dry{.backend = backend, .workspace = measured, .communicator = one, .dry_run = true};
    layer.forward(dry, rows, rows);
    Workspace workspace(measured, Buffer::host(measured.bytes()));
    ExecContext ctx{.backend = backend, .workspace = workspace, .communicator = one};
    const Tensor y = layer.forward(ctx, rows, rows);
    return {y.as<float>(), y.as<float>() + y.numel()};
  }
  std::string error(const SparseMoe::Names& names) const {
    try {
      run(names);
    } catch (const LoadError& error) {
      return error.what();
    }
    return "";
  }

 private:
  std::deque<Buffer> buffers_;
  std::vector<NamedTensor> tensors_;
};

void add_one_by_one(Stored& stored) {
  for (int64_t e = 0; e < kE; ++e) {
    const std::string expert = "experts." + std::to_string(e) + ".";
    stored.add(expert + "gate_proj.weight", {kF, kD}, 1, e * 2 * kF * kD);
    stored.add(expert + "up_proj.weight", {kF, kD}, 1, (e * 2 + 1) * kF * kD);
    stored.add(expert + "down_proj.weight", {kD, kF}, 2, e * kD * kF);
  }
}

void add_rest(Stored& stored, const std::string& shared) {
  stored.add("gate.weight", {kE, kD}, 3);
  stored.add(shared + ".gate_proj.weight", {kFs, kD}, 4);
  stored.add(shared + ".up_proj.weight", {kFs, kD}, 5);
  stored.add(shared + ".down_proj.weight", {kD, kFs}, 6);
}

TEST(SparseMoe, FusedAndSingleExpertsAreTheSame) {
  Stored single, fused;
  add_one_by_one(single);
  fused.add("experts.gate_up_proj", {kE, 2 * kF, kD}, 1);
  fused.add("experts.down_proj", {kE, kD, kF}, 2);
  for (Stored* stored : {&single, &fused}) {
    add_rest(*stored, "shared_expert");
    stored->add("shared_expert_gate.weight", {1, kD}, 7);
  }
  const std::vector<float> y = single.run(SparseMoe::kQwen3_5);
  EXPECT_EQ(fused.run(SparseMoe::kQwen3_5), y);
  for (const float value : y) EXPECT_TRUE(std::isfinite(value));
}

TEST(SparseMoe, TheBiasIsReadUnderEachOfItsNames) {
  const auto with_bias = [](std::initializer_list<const char*> names) {
    Stored stored;
    for (const char* name : names) stored.add(name, {kE}, 8);
    add_one_by_one(stored);
    add_rest(stored, "shared_experts");
    return stored;
  };
  Stored first = with_bias({"gate.expert_bias"});
  const std::vector<float> y = first.run(SparseMoe::kBailingWithBias);
  for (const char* alias : {"gate.e_score_correction_bias", "experts.e_score_correction_bias", "experts.expert_bias"})
    EXPECT_EQ(with_bias({alias}).run(SparseMoe::kBailingWithBias), y) << alias;
  for (int64_t e = 0; e < kE; ++e) first.values(0)[e] = 0;
  EXPECT_EQ(first.run(SparseMoe::kBailingWithBias), with_bias({}).run(SparseMoe::kBailing));
  EXPECT_NE(first.run(SparseMoe::kBailingWithBias), y) << "the bias chooses";

  EXPECT_NE(with_bias({}).error(SparseMoe::kBailingWithBias).find("mlp.gate.expert_bias"), std::string::npos);
  const std::string twice = with_bias({"experts.expert_bias", "gate.expert_bias"}).error(SparseMoe::kBailingWithBias);
  EXPECT_NE(twice.find("gate.expert_bias and its alias experts.expert_bias"), std::string::npos) << twice;
  const std::string unread = with_bias({"gate.expert_bias"}).error(SparseMoe::kBailing);
  EXPECT_NE(unread.find("mlp.gate.expert_bias"), std::string::npos) << "a bias that the config denies: " << unread;
}

TEST(SparseMoe, MissingExpertsAreErrorsByName) {
  Stored stored;
  add_rest(stored, "shared_experts");
  const std::string error = stored.error(SparseMoe::kBailing);
  EXPECT_NE(error.find("mlp.experts.0.gate_proj.weight"), std::string::npos) << error;
}

}  // namespace
}  // namespace calandra
