#include "engine/draft_time.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace calandra {
namespace {

TEST(RooflineSeconds, MemoryOrArithmeticThenCaches) {
  StepCost cost;
  cost.weight_bytes = 1000;
  cost.state_bytes = 10;
  cost.kv_bytes_per_key = 1;
  cost.flops_per_row = 100;
  cost.flops_per_logit_row = 50;
  cost.flops_per_row_and_key = 2;
  StepShape shape;
  shape.add(1, 20, 1);
  shape.add(3, 5, 0);
  EXPECT_EQ(shape.rows, 4);
  EXPECT_EQ(shape.sequences, 2);
  EXPECT_EQ(shape.logit_rows, 1);
  EXPECT_EQ(shape.keys, 25);
  EXPECT_EQ(shape.row_keys, 35);
  EXPECT_DOUBLE_EQ(roofline_seconds(cost, {100, 1e9}, shape), 10 + (2 * 10 + 25) / 100.0);
  EXPECT_DOUBLE_EQ(roofline_seconds(cost, {1e9, 10}, shape), 45 + 7);
  EXPECT_EQ(roofline_seconds(cost, {100, 100}, {}), 0);
  cost.expert_bytes = 100;
  cost.experts = 4;
  cost.experts_per_row = 1;
  EXPECT_DOUBLE_EQ(roofline_seconds(cost, {100, 1e9}, shape), cost.weight_bytes_of(4) / 100 + 0.45);
}

TEST(TimeCorrection, LearnsInterpolatesAndExtends) {
  TimeCorrection correction;
  EXPECT_EQ(correction.factor(5), 1);
  correction.observe(4, 1, 2);
  EXPECT_DOUBLE_EQ(correction.factor(1), 2);
  EXPECT_DOUBLE_EQ(correction.factor(1000), 2);
  for (int i = 0; i < 10; ++i) correction.observe(16, 1, 8);
  EXPECT_NEAR(correction.factor(4), 2, 1e-9);
  EXPECT_NEAR(correction.factor(16), 8, 1e-6);
  EXPECT_NEAR(correction.factor(8), 4, 1e-6);  // halfway in octaves
  EXPECT_NEAR(correction.factor(100000), 8, 1e-6);
  EXPECT_EQ(correction.factor(int64_t{1} << 40), correction.factor(int64_t{1} << 41));
}

TEST(TimeCorrection, HiccupsDoNotCountUntilTheyAreRepeated) {
  TimeCorrection correction;
  for (int i = 0; i < 50; ++i) correction.observe(2, 1, 1);
  correction.observe(2, 1, 20);
  EXPECT_LT(correction.factor(2), 1.01);
  correction.observe(3, 1, 20);  // the first one at a new point
  EXPECT_LT(correction.factor(3), 1.06);
  for (int i = 0; i < 5; ++i) correction.observe(2, 1, 3);
  EXPECT_NEAR(correction.factor(2), 3, 0.1);
  for (const double wrong : {0.0, -1.0, std::nan(""), std::numeric_limits<double>::infinity()}) {
    correction.observe(2, 1, wrong);
    correction.observe(2, 0, 1);
  }
  EXPECT_NEAR(correction.factor(2), 3, 0.1);
}

TEST(TimeCorrection, WhatChangesWhereMuchIsKnownChangesElsewhere) {
  TimeCorrection correction;
  for (int i = 0; i < 50; ++i) {
    correction.observe(1, 1, 1);
    correction.observe(8, 1, 1);
  }
  for (int i = 0; i < 200; ++i) correction.observe(1, 1, 1.09);  // contexts grew
  EXPECT_NEAR(correction.factor(1), 1.09, 0.01);
  EXPECT_NEAR(correction.factor(8), 1.06, 0.01);
}

TEST(TimeCorrection, AMachineThatChangesAtOnceChangesEverywhere) {
  TimeCorrection correction;
  for (int i = 0; i < 50; ++i) {
    correction.observe(1, 1, 1);
    correction.observe(8, 1, 2);
  }
  for (int i = 0; i < 4; ++i) correction.observe(8, 1, 4);
  EXPECT_NEAR(correction.factor(8), 4, 0.01);
  EXPECT_NEAR(correction.factor(1), 2, 0.3);
}

TEST(TimeCorrection, GuessesUntilItHasMeasuredThereOften) {
  TimeCorrection correction;
  EXPECT_TRUE(correction.guesses(4)) << "nothing is known anywhere";
  for (int i = 0; i < 10; ++i) correction.observe(8, 1, 1);
  for (int i = 0; i < 4; ++i) {
    EXPECT_TRUE(correction.guesses(4));
    correction.observe(4, 1, 1);
  }
  EXPECT_FALSE(correction.guesses(4));
  EXPECT_FALSE(correction.guesses(8));
  EXPECT_FALSE(correction.guesses(7));
  EXPECT_TRUE(correction.guesses(6));
  EXPECT_TRUE(correction.guesses(16));
}

TEST(TimeCorrection, ReachesTwiceTheMostRows) {
  TimeCorrection correction;
  EXPECT_FALSE(correction.reaches(1));
  correction.observe(8, 1, 1);
  correction.observe(3, 1, 1);
  EXPECT_TRUE(correction.reaches(16));
  EXPECT_FALSE(correction.reaches(17));
}

TEST(TimeCorrection, ForgetsWhatIsNotSeenAgain) {
  TimeCorrection correction;
  for (int i = 0; i < 20; ++i) correction.observe(64, 1, 5);
  for (int i = 0; i < 4000; ++i) correction.observe(1, 1, 1);
  EXPECT_NEAR(correction.factor(64), 1, 1e-6);
}

}  // namespace
}  // namespace calandra
