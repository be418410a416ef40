#include "base/noise.h"

#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <vector>

namespace calandra {
namespace {

// Random123's kat_vectors, philox4x32 with 10 rounds.
TEST(Philox, GivesThePublishedWords) {
  EXPECT_EQ(philox4x32({0, 0, 0, 0}, 0), (PhiloxCounter{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(philox4x32({~0u, ~0u, ~0u, ~0u}, ~uint64_t{0}),
            (PhiloxCounter{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, 0x299f31d0a4093822u),
            (PhiloxCounter{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(Noise, CounterIsBlockTokenIndexChoiceStream) {
  const NoiseKey key{
      .seed = 0x299f31d0a4093822u, .token_index = 0x85a308d3, .choice = 0x13198a2e, .stream = 0x03707344};
  EXPECT_EQ(noise_words(key, 0x243f6a88), (PhiloxCounter{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

// Written by tools/sampling_goldens/gumbel.py, a second implementation.
TEST(Noise, GumbelHasTheRecordedBits) {
  std::ifstream table(CALANDRA_SOURCE_DIR "/tests/oracle/text/sampling/gumbel.txt");
  uint32_t x, bits;
  int count = 0;
  while (table >> std::hex >> x >> bits) {
    EXPECT_EQ(std::bit_cast<uint32_t>(gumbel(x)), bits) << "x = " << x;
    ++count;
  }
  EXPECT_GE(count, 1000);
  std::printf("gumbel: %d recorded values\n", count);
}

std::vector<uint32_t> many_words() {
  std::vector<uint32_t> words = {0, 1, 2, 3, ~0u, ~0u - 1};
  for (uint32_t i = 0; i < 100000; ++i) {
    const PhiloxCounter random = philox4x32({i, 0, 0, 0}, 5);
    words.push_back(random[0]);
    words.push_back(random[1] >> (random[2] % 32));
  }
  return words;
}

TEST(Noise, GumbelIsAccurateAndBounded) {
  double worst = 0;
  for (const uint32_t x : many_words()) {
    const double w = std::min((static_cast<float>(x) + 0.5f) * 0x1p-32f, 1.0f - 0x1p-24f);
    const double exact = -std::log(-std::log1p(-w));
    const float g = gumbel(x);
    worst = std::max(worst, std::abs(g - exact) / std::max(1.0, std::abs(exact)));
    EXPECT_LE(g, kMaxGumbel);
    EXPECT_GE(g, -2.82f);
    EXPECT_LE(g, gumbel_bound(x)) << x;
  }
  EXPECT_LE(worst, 4e-7);
  std::printf("gumbel: worst error %.3g max(1, |G|)\n", worst);
}

TEST(Noise, GumbelHasTheRightMeanAndVariance) {
  constexpr double kEuler = 0.57721566490153286, kVariance = 1.6449340668482264;
  double sum = 0, squares = 0;
  constexpr int kBlocks = 250000;
  for (uint32_t i = 0; i < kBlocks; ++i)
    for (const uint32_t x : noise_words({.seed = 1}, i)) {
      const double g = gumbel(x);
      sum += g;
      squares += g * g;
    }
  const double n = 4.0 * kBlocks, mean = sum / n;
  EXPECT_NEAR(mean, kEuler, 5 * std::sqrt(kVariance / n));
  // The fourth central moment of a Gumbel variable is 5.4 variances squared.
  EXPECT_NEAR(squares / n - mean * mean, kVariance, 5 * kVariance * std::sqrt(4.4 / n));
}

TEST(Noise, LogAndExpAreWithinTwoUlp) {
  const auto ulps = [](float got, double exact) {
    const float nearest = static_cast<float>(exact);
    return std::abs(got - exact) / (std::nextafter(std::abs(nearest), INFINITY) - std::abs(nearest));
  };
  double worst_log = 0, worst_exp = 0;
  for (const uint32_t word : many_words()) {
    const float x = (static_cast<float>(word) + 0.5f) * 0x1p-28f;  // up to 16
    if (x != 1.0f) worst_log = std::max(worst_log, ulps(log_f32(x), std::log(static_cast<double>(x))));
    const float z = -5.0f * x;
    float e;
    exp_nonpositive(&z, &e, 1);
    if (z >= -87.0f) worst_exp = std::max(worst_exp, ulps(e, std::exp(static_cast<double>(z))));
  }
  EXPECT_LE(worst_log, 2);
  EXPECT_LE(worst_exp, 2);
  std::printf("log: worst %.3g ulp, exp: worst %.3g ulp\n", worst_log, worst_exp);
  EXPECT_EQ(log_f32(1.0f), 0.0f);
  const float edge[] = {0.0f, -88.0f, -INFINITY, -1e30f};
  float out[4];
  exp_nonpositive(edge, out, 4);
  EXPECT_EQ(out[0], 1.0f);
  for (int i = 1; i < 4; ++i) EXPECT_EQ(out[i], 0.0f);
}

TEST(Noise, MassIsTheExponentialAsAnInteger) {
  std::vector<float> x(1000), e(1000);
  std::vector<uint64_t> mass(1000);
  for (int i = 0; i < 1000; ++i) x[i] = static_cast<float>(i) * -0.04f;
  exp_nonpositive(x.data(), e.data(), 1000);
  exp_mass(x.data(), mass.data(), 1000);
  for (int i = 0; i < 1000; ++i) {
    EXPECT_EQ(mass[i], static_cast<uint64_t>(std::nearbyint(static_cast<double>(e[i]) * 0x1p44)));
    if (x[i] < kNoMass) {
      EXPECT_EQ(mass[i], 0u);
    }
  }
  EXPECT_EQ(mass[0], uint64_t{1} << 44);
}

}  // namespace
}  // namespace calandra
