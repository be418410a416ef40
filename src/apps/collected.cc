#include "apps/collected.h"

#include <fmt/format.h>
#include <fnmatch.h>

#include "base/check.h"

namespace calandra::apps {

void append_as_f32(Backend& backend, const Tensor& t, std::vector<float>& out) {
  CHECK_LE(t.rank(), 3);
  if (t.empty()) return;
  int64_t extent = 1;  // elements from the first to the last
  for (int axis = 0; axis < t.rank(); ++axis) extent += (t.size(axis) - 1) * t.stride(axis);
  std::vector<std::byte> host(static_cast<size_t>(extent) * size_of(t.dtype()));
  backend.copy_bytes(host.data(), t.data(), host.size());
  const Tensor values(host.data(), t.dtype(), {extent});
  const int64_t n0 = t.size(0), n1 = t.rank() > 1 ? t.size(1) : 1, n2 = t.rank() > 2 ? t.size(2) : 1;
  const int64_t s1 = t.rank() > 1 ? t.stride(1) : 0, s2 = t.rank() > 2 ? t.stride(2) : 0;
  for (int64_t i = 0; i < n0; ++i) {
    for (int64_t j = 0; j < n1; ++j) {
      for (int64_t k = 0; k < n2; ++k) {
        const int64_t at = i * t.stride(0) + j * s1 + k * s2;
        out.push_back(t.dtype() == DType::kBF16  ? static_cast<float>(values.as<bf16>()[at])
                      : t.dtype() == DType::kI32 ? static_cast<float>(values.as<int32_t>()[at])
                                                 : values.as<float>()[at]);
      }
    }
  }
}

Collected* TapCollector::place_of(int layer, std::string_view name) {
  const auto full_name = [&](const std::string& number) {
    return layer < 0 ? std::string(name) : fmt::format("layers.{}{}{}", number, name.empty() ? "" : ".", name);
  };
  names_.insert(full_name("L"));
  const std::string full = full_name(std::to_string(layer));
  return fnmatch(glob_.c_str(), full.c_str(), 0) == 0 ? &tensors_[full] : nullptr;
}

void TapCollector::tap(int layer, const char* name, const Tensor& tensor) {
  Collected* c = place_of(layer, name);
  if (c == nullptr) return;
  c->dtype = tensor.dtype() == DType::kI32 ? DType::kI32 : DType::kF32;
  c->rows += tensor.size(0);
  c->row_shape.clear();
  for (int axis = 1; axis < tensor.rank(); ++axis) c->row_shape.push_back(tensor.size(axis));
  append_as_f32(backend_, tensor, c->values);
}

void TapCollector::constant(int layer, const char* name, const Tensor& tensor) {
  if (Collected* c = place_of(layer, name); c != nullptr) *c = {};
  tap(layer, name, tensor);
}

}  // namespace calandra::apps
