#include "engine/draft_acceptance.h"

#include <gtest/gtest.h>

namespace calandra {
namespace {

TEST(DraftAcceptance, StartsAtSeventyPercentAndDeclines) {
  const auto p = DraftAcceptance().estimate({});
  EXPECT_DOUBLE_EQ(p[0], 0.7);
  for (int j = 1; j < kMostDraftPositions; ++j) EXPECT_NEAR(p[j], 0.9 * p[j - 1], 1e-12);
}

TEST(DraftAcceptance, DraftsBehindARefusedOneWereNotTried) {
  DraftAcceptance acceptance;
  SequenceAcceptance sequence;
  acceptance.observe(sequence, 4, 1);
  EXPECT_DOUBLE_EQ(sequence.tried[0], 8 * 0.98 + 1);  // the mean of all counts as 8 trials at first
  EXPECT_DOUBLE_EQ(sequence.accepted[0], 8 * 0.98 * 0.7 + 1);
  EXPECT_DOUBLE_EQ(sequence.tried[1], 8 * 0.98 + 1);
  EXPECT_DOUBLE_EQ(sequence.accepted[1], 8 * 0.98 * 0.63);
  EXPECT_EQ(sequence.tried[2], 0);
  acceptance.observe(sequence, 1, 1);
  EXPECT_DOUBLE_EQ(sequence.tried[1], 8 * 0.98 + 1);
}

TEST(DraftAcceptance, LearnsPerPositionAndSharesWithNewSequences) {
  DraftAcceptance acceptance;
  SequenceAcceptance good, bad, fresh;
  for (int i = 0; i < 400; ++i) {
    acceptance.observe(good, 3, i % 10 == 0 ? 1 : i % 2 ? 3 : 2);  // 1, then 0.9, then 0.56 of those
    acceptance.observe(bad, 1, 0);
  }
  const auto p = acceptance.estimate(good);
  EXPECT_DOUBLE_EQ(p[0], 0.99);  // the most that is believed
  EXPECT_NEAR(p[1], 0.9, 0.06);
  EXPECT_NEAR(p[2], 0.56, 0.1);
  EXPECT_LE(acceptance.estimate(bad)[0], 0.1);
  EXPECT_NEAR(acceptance.estimate(fresh)[0], 0.5, 0.05);
  // A position never tried follows the one before it.
  EXPECT_LE(acceptance.estimate(bad)[1], 0.2);
  EXPECT_GE(acceptance.estimate(fresh)[1], 0.8);
  for (const double x : p) EXPECT_TRUE(x > 0 && x < 1);
}

TEST(DraftAcceptance, WhatIsNotTriedAges) {
  DraftAcceptance acceptance;
  SequenceAcceptance unlucky;
  for (int i = 0; i < 60; ++i) acceptance.observe(unlucky, 2, i % 2);  // never the second
  const PerPosition before = acceptance.estimate(unlucky);
  for (int i = 0; i < 500; ++i) acceptance.age(unlucky, 1);
  EXPECT_EQ(unlucky.idle_steps, 0);
  EXPECT_EQ(acceptance.estimate(unlucky)[1], acceptance.estimate({})[1] / acceptance.estimate({})[0] * before[0]);
  for (int i = 0; i < 500; ++i) acceptance.age(unlucky, 0);
  EXPECT_EQ(unlucky.idle_steps, 500);
  EXPECT_NEAR(acceptance.estimate(unlucky)[0], before[0], 1e-12);  // the ratio stays, and gives way faster
  EXPECT_DOUBLE_EQ(unlucky.tried[0], 4);
  const double second = acceptance.estimate({})[1];
  for (int i = 0; i < 1000; ++i) acceptance.age_means(1);
  EXPECT_GT(acceptance.estimate({})[1], second);
}

}  // namespace
}  // namespace calandra
