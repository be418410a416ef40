#include "layers/lightning_attention.h"

#include <gtest/gtest.h>

namespace calandra {
namespace {

// docs/models/bailing_v2_5.md: base slopes, with and without a power of two heads.
TEST(DecaySlopes, OfTheFirstLayerWithoutAFactor) {
  const auto slopes = [](int64_t heads) { return decay_slopes(heads, 0, 32, LinearDecayVariant::kNone); };
  const auto near = [](float got, double want) { EXPECT_NEAR(got, want, 1e-7); };
  near(slopes(64)[0], 0.9170040), near(slopes(64)[1], 0.8408964), near(slopes(64)[63], 0.00390625);
  near(slopes(32)[0], 0.8408964), near(slopes(32)[31], 0.00390625);
  near(slopes(16)[0], 0.7071068), near(slopes(16)[15], 0.00390625);
  const std::vector<float> twelve = slopes(12);
  ASSERT_EQ(twelve.size(), 12u);
  near(twelve[0], 0.5), near(twelve[1], 0.25), near(twelve[7], 0.00390625);
  near(twelve[8], 0.7071068), near(twelve[9], 0.3535534), near(twelve[10], 0.1767767), near(twelve[11], 0.0883883);
  ASSERT_EQ(slopes(1).size(), 1u);
  near(slopes(1)[0], 0.00390625);
  EXPECT_EQ(slopes(3).size(), 3u);
}

TEST(DecaySlopes, FactorsOfTheLayers) {
  const auto factor = [](int64_t layer, int64_t layers, LinearDecayVariant variant) {
    return decay_slopes(16, layer, layers, variant)[15] / 0.00390625;
  };
  const struct {
    int64_t layers, layer;
    double p, h;
  } cases[] = {{80, 0, 1.00001, 1.0126682},    {80, 40, 0.4936809, 0.5063391}, {80, 78, 0.0126682, 0.0253265},
               {32, 0, 1.00001, 1.0322681},    {32, 16, 0.4838810, 0.5161390}, {32, 30, 0.0322681, 0.0645261},
               {20, 10, 0.4736942, 0.5263258}, {20, 18, 0.0526416, 0.1052732}, {1, 0, 1.00001, 1.00001}};
  for (const auto& c : cases) {
    EXPECT_NEAR(factor(c.layer, c.layers, LinearDecayVariant::kP), c.p, 2e-7) << c.layer << " of " << c.layers;
    EXPECT_NEAR(factor(c.layer, c.layers, LinearDecayVariant::kH), c.h, 2e-7) << c.layer << " of " << c.layers;
  }
}

}  // namespace
}  // namespace calandra
