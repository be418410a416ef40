// The border to the plug-in where there is no GPU: it opens, or is missing, and says why there is no backend.
#include <gtest/gtest.h>

#include <filesystem>

#include "backends/cuda/plugin_loader.h"

namespace calandra {
namespace {

TEST(CudaPlugin, OneThatIsMissingIsNamed) {
  const OpenedCuda opened = open_cuda_backend({}, "/nowhere/libcalandra_cuda.so");
  EXPECT_EQ(opened.backend, nullptr);
  EXPECT_FALSE(opened.plugin_found);
  EXPECT_NE(opened.why_not.find("/nowhere/libcalandra_cuda.so"), std::string::npos) << opened.why_not;
  EXPECT_NE(opened.why_not.find("make cuda"), std::string::npos) << opened.why_not;
}

// A library without the entry.
TEST(CudaPlugin, OneOfAnotherVersionIsRefused) {
  const OpenedCuda opened = open_cuda_backend({}, "libm.so.6");
  EXPECT_EQ(opened.backend, nullptr);
  EXPECT_TRUE(opened.plugin_found);
  EXPECT_NE(opened.why_not.find("another version"), std::string::npos) << opened.why_not;
}

TEST(CudaPlugin, ADeviceThatIsMissingIsSaid) {
  OpenedCuda opened = open_cuda_backend({.device = 4711});
  if (!opened.plugin_found) GTEST_SKIP() << opened.why_not;
  ASSERT_EQ(opened.backend, nullptr);
  EXPECT_NE(opened.why_not.find("CUDA device"), std::string::npos) << opened.why_not;
  opened = open_cuda_backend({});
  if (opened.backend != nullptr) {
    EXPECT_STREQ(opened.backend->name(), "cuda");
    EXPECT_EQ(opened.backend->device().kind, DeviceKind::kCuda);
  } else {
    EXPECT_NE(opened.why_not.find("driver"), std::string::npos) << opened.why_not;
  }
}

}  // namespace
}  // namespace calandra
