// What tests of the CUDA backend's ops begin with. They are skipped without a device.
#pragma once

#include <memory>

#include "backends/cuda/plugin_loader.h"
#include "tests/ops/op_setting.h"

namespace calandra {

class CudaTest : public testing::Test {
 protected:
  void SetUp() override {
    (void)backends_under_test();  // memory of tests that the device reaches
    OpenedCuda opened = open_cuda_backend({.synchronous = true});
    if (opened.backend == nullptr) GTEST_SKIP() << "skipped: " << opened.why_not;
    device = std::make_unique<OpRunner>(std::move(opened.backend));
  }

  TensorPool pool;
  std::unique_ptr<OpRunner> device;
};

}  // namespace calandra
