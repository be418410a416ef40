#include "tests/model_under_test.h"

#include <algorithm>
#include <cstring>

#include "backends/cpu/cpu_backend.h"
#include "backends/cuda/plugin_loader.h"
#include "backends/reference/reference.h"
#include "base/error.h"
#include "base/json.h"

namespace calandra::testing {

namespace fs = std::filesystem;

std::unique_ptr<Backend> make_backend(const BackendChoice& choice) {
  if (choice.backend == "reference") return std::make_unique<ReferenceBackend>();
  if (choice.backend == "cuda") {
    OpenedCuda opened =
        open_cuda_backend({.enforce_eager = choice.enforce_eager, .deterministic = choice.deterministic});
    if (opened.backend == nullptr) throw LoadError(opened.why_not);
    return std::move(opened.backend);
  }
  CpuOptions options;
  options.threads = choice.threads;
  if (!choice.isa.empty()) options.isa = isa_by_name(choice.isa);
  return make_cpu_backend(options);
}

namespace {

// For copies from the device; null without one.
Backend* device() {
  static const OpenedCuda opened = open_cuda_backend({});
  return opened.backend.get();
}

}  // namespace

std::vector<std::string> model_backends() {
  std::vector<std::string> names = {"reference", "cpu"};
  if (device() != nullptr) names.push_back("cuda");
  return names;
}

HostCopy::HostCopy(const Tensor& tensor) : dtype_(tensor.dtype()), data_(static_cast<std::byte*>(tensor.data())) {
  if (tensor.device().kind == DeviceKind::kCpu || tensor.empty()) return;
  int64_t elements = 1;
  for (int axis = 0; axis < tensor.rank(); ++axis) elements += (tensor.size(axis) - 1) * tensor.stride(axis);
  copied_.resize(static_cast<size_t>(elements) * size_of(dtype_));
  device()->copy_bytes(copied_.data(), data_, copied_.size());
  data_ = copied_.data();
}

float HostCopy::operator[](int64_t at) const {
  switch (dtype_) {
    case DType::kBF16:
      return static_cast<float>(reinterpret_cast<const bf16*>(data_)[at]);
    case DType::kI32:
      return static_cast<float>(reinterpret_cast<const int32_t*>(data_)[at]);
    default:
      CHECK(dtype_ == DType::kF32);
      return reinterpret_cast<const float*>(data_)[at];
  }
}

ModelUnderTest::ModelUnderTest(const fs::path& folder, const BackendChoice& choice, DType dtype,
                               const ModelParts& parts, const json::object& overrides)
    : backend_(make_backend(choice)) {
  json::value config = read_json_file(folder / "config.json");
  if (!config.is_object()) throw LoadError("config.json must hold a JSON object");
  for (const auto& [key, value] : overrides) config.as_object()[key] = value;
  config_ = check_config(config.as_object(), (folder / "config.json").string());
  checkpoint_ = std::make_unique<WeightFiles>(folder);
  store_ = std::make_unique<WeightStore>(*backend_, checkpoint_.get(), config_.fp8);
  model_ = make_model(config_, store_->reader(), *backend_, dtype, parts);
  store_->load(unused_tensors(config_, parts), 2);
}

std::unique_ptr<ModelRunner> ModelUnderTest::runner(RunnerLimits limits, std::optional<int64_t> block_size) {
  limits.block_size = block_size.value_or(kHostile ? 1 : limits.block_size);
  if (kHostile && limits.max_num_seqs > 1 && limits.num_state_slots == 0)
    limits.num_state_slots = limits.max_num_seqs - 1;
  return std::make_unique<ModelRunner>(*model_, *backend_, limits);
}

std::vector<float> teacher_forced(ModelRunner& runner, Sequence& sequence, int64_t chunk, Taps* taps) {
  CHECK(runner.reserve(sequence, sequence.size()));
  std::vector<float> logits;
  while (sequence.computed < sequence.size()) {
    const ModelRunner::Part part{&sequence, std::min(chunk, sequence.size() - sequence.computed)};
    const Tensor hidden = runner.forward({&part, 1}, taps);
    for (int64_t first = 0; first < part.rows; first += ModelRunner::kLogitRows) {
      std::vector<int32_t> rows;
      for (int64_t row = first; row < std::min(part.rows, first + ModelRunner::kLogitRows); ++row)
        rows.push_back(static_cast<int32_t>(row));
      const Tensor block = runner.logits(hidden, rows);
      const HostCopy values(block);
      for (int64_t i = 0; i < block.numel(); ++i) logits.push_back(values[i]);
    }
  }
  return logits;
}

std::vector<float> read_floats(const SafetensorsFile& file, const std::string& name) {
  const auto* entry = file.find(name);
  CHECK_MSG(entry != nullptr && entry->dtype == "F32", name);
  std::vector<float> values(entry->bytes / 4);
  file.read(*entry, 0, entry->bytes, values.data());
  return values;
}

std::vector<int32_t> read_ids(const SafetensorsFile& file, const std::string& name) {
  const auto* entry = file.find(name);
  CHECK_MSG(entry != nullptr && (entry->dtype == "I64" || entry->dtype == "I32"), name);
  std::vector<std::byte> bytes(entry->bytes);
  file.read(*entry, 0, entry->bytes, bytes.data());
  const size_t width = entry->dtype == "I64" ? 8 : 4;
  std::vector<int32_t> ids(entry->bytes / width);
  for (size_t i = 0; i < ids.size(); ++i)
    std::memcpy(&ids[i], bytes.data() + i * width, 4);  // little-endian: the low half
  return ids;
}

fs::path find_case(const std::string& family, const std::string& name) {
  for (const char* root : {CALANDRA_SOURCE_DIR "/tests/oracle", CALANDRA_SOURCE_DIR "/../shared/oracle"}) {
    const fs::path folder = fs::path(root) / family / name;
    if (fs::exists(folder / "case.json")) return folder;
  }
  return {};
}

}  // namespace calandra::testing
