// A model of a checkpoint folder on one backend, and the forwards that whole-model tests share.
#pragma once

#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "engine/model_runner.h"
#include "models/registry.h"
#include "weights/weight_store.h"

namespace calandra::testing {

#ifdef CALANDRA_HOSTILE
inline constexpr bool kHostile = true;
#else
inline constexpr bool kHostile = false;
#endif

struct BackendChoice {
  std::string backend;  // "reference", "cpu" or "cuda"
  int threads = 1;
  std::string isa = {};        // empty: the best
  bool enforce_eager = false;  // cuda: no recordings of steps
  bool deterministic = false;  // cuda: one order of sums; the others have no other
};

std::unique_ptr<Backend> make_backend(const BackendChoice& choice);
// "reference", "cpu" and, where its plug-in and a device are, "cuda".
std::vector<std::string> model_backends();

// A tensor of any device on the host: element `at` is that many elements behind the first, strides and all.
class HostCopy {
 public:
  explicit HostCopy(const Tensor& tensor);
  float operator[](int64_t at) const;  // f32, bf16 and i32

 private:
  DType dtype_;
  std::vector<std::byte> copied_;
  const std::byte* data_;
};

class ModelUnderTest {
 public:
  // `overrides` replaces keys of the config.
  ModelUnderTest(const std::filesystem::path& folder, const BackendChoice& choice, DType dtype,
                 const ModelParts& parts = {}, const json::object& overrides = {});

  const CausalLM& model() const { return *model_; }
  Backend& backend() { return *backend_; }
  const ModelConfig& config() const { return config_; }
  // In hostile builds: pages of one token, unless `block_size` says how many; and a slot fewer than sequences, so that
  // the last of a batch waits. Who reserves for all sequences at once names the slots (num_state_slots).
  std::unique_ptr<ModelRunner> runner(RunnerLimits limits, std::optional<int64_t> block_size = {});

 private:
  ModelConfig config_;
  std::unique_ptr<Backend> backend_;
  std::unique_ptr<WeightFiles> checkpoint_;
  std::unique_ptr<WeightStore> store_;
  std::unique_ptr<CausalLM> model_;
};

// Logits after every token, [T * V], the prompt cut into chunks of at most `chunk` rows.
std::vector<float> teacher_forced(ModelRunner& runner, Sequence& sequence, int64_t chunk, Taps* taps = nullptr);

// Tensors of a safetensors file, converted: f32 to float, ids of any integer type to int32.
std::vector<float> read_floats(const SafetensorsFile& file, const std::string& name);
std::vector<int32_t> read_ids(const SafetensorsFile& file, const std::string& name);

// The case's folder in tests/oracle or in the shared oracle beside the repository; empty when it is in neither.
std::filesystem::path find_case(const std::string& family, const std::string& name);

}  // namespace calandra::testing
