#include "apps/bench/bench_load.h"

#include <gtest/gtest.h>

#include <cmath>

#include "apps/bench/bench_serve.h"
#include "base/error.h"

namespace calandra::apps {
namespace {

TEST(BenchLoad, PercentilesAreNumpys) {
  const TimeSummary some = summary_of({4, 1, 3, 2});
  EXPECT_DOUBLE_EQ(some.mean, 2.5);
  EXPECT_DOUBLE_EQ(some.median, 2.5);
  EXPECT_DOUBLE_EQ(some.p99, 3.97);  // numpy.percentile([1, 2, 3, 4], 99)
  const TimeSummary one = summary_of({7});
  EXPECT_EQ(one.median, 7);
  EXPECT_EQ(one.p99, 7);
  EXPECT_EQ(summary_of({}).mean, 0);
}

// The mean and the variance of pauses are 1 / rate and 1 / (rate^2 burstiness); bounds are five standard errors.
TEST(BenchServe, PausesAreGammaDistributed) {
  constexpr int kCount = 20000;
  constexpr double kRate = 4;
  for (const double burstiness : {0.5, 1.0, 4.0}) {
    std::mt19937_64 random(7);
    const std::vector<double> times = arrivals(kCount, kRate, burstiness, random);
    double mean = 0, squares = 0, last = 0;
    for (const double time : times) {
      ASSERT_GE(time, last);
      mean += (time - last) / kCount;
      squares += (time - last) * (time - last) / kCount;
      last = time;
    }
    const double variance = 1 / (kRate * kRate * burstiness);
    EXPECT_NEAR(mean, 1 / kRate, 5 * std::sqrt(variance / kCount));
    // The fourth central moment of a gamma distribution is variance^2 (3 + 6 / shape).
    EXPECT_NEAR(squares - mean * mean, variance, 5 * variance * std::sqrt((2 + 6 / burstiness) / kCount));
  }
}

TEST(BenchServe, LimitsOfGoodput) {
  const Goodput limits = read_goodput("ttft:200,e2el:1000");
  EXPECT_EQ(limits.ttft, 200);
  EXPECT_EQ(limits.e2el, 1000);
  EXPECT_FALSE(limits.tpot);
  for (const char* wrong : {"ttft", "itl:5", "ttft:", "ttft:-1", ",", "ttft:1;tpot:2"})
    EXPECT_THROW(read_goodput(wrong), UsageError) << wrong;
}

TEST(BenchLoad, FiguresAreThoseOfVllm) {
  LoadTimes times;
  times.seconds = 4;
  times.requests.resize(3);
  times.requests[0] = {.prompt_tokens = 10,
                       .cached_tokens = 6,
                       .reusable_tokens = 8,
                       .output_tokens = 5,
                       .arrival = 0,
                       .first_token = 1,
                       .last_token = 3,
                       .gaps = {1.5, 0.5}};  // two steps for four tokens
  times.requests[1] = {.prompt_tokens = 20, .output_tokens = 1, .arrival = 1, .first_token = 3, .last_token = 3};
  times.requests[2] = {.prompt_tokens = 30, .failed = true};
  const LoadSummary summary(times);
  EXPECT_EQ(summary.completed, 2);
  EXPECT_EQ(summary.failed, 1);
  EXPECT_EQ(summary.input_tokens, 30);
  EXPECT_EQ(summary.output_tokens, 6);
  EXPECT_EQ(summary.cached_tokens, 6);
  EXPECT_EQ(summary.reusable_tokens, 8);
  EXPECT_EQ(summary.ttft.mean, 1.5);
  EXPECT_EQ(summary.tpot.mean, 0.5);  // a single token has none
  EXPECT_EQ(summary.itl.mean, 1);
  EXPECT_EQ(summary.e2el.mean, 2.5);
  json::object line;
  summary.add_to(line);
  EXPECT_EQ(line.at("request_throughput").as_double(), 0.5);
  EXPECT_EQ(line.at("output_throughput").as_double(), 1.5);
  EXPECT_EQ(line.at("total_token_throughput").as_double(), 9);
  EXPECT_EQ(line.at("mean_ttft_ms").as_double(), 1500);
}

TEST(BenchLoad, PromptsComeFromTheTextOrAtRandom) {
  const std::vector<int32_t> text = {5, 6, 7, 8, 9};
  PromptSource source(text, 100, 1), same(text, 100, 1);
  const std::vector<int32_t> prompt = source.take(12);
  EXPECT_EQ(prompt, same.take(12));
  for (size_t i = 0; i + 1 < prompt.size(); ++i) EXPECT_EQ(prompt[i + 1], prompt[i] == 9 ? 5 : prompt[i] + 1);
  PromptSource random({}, 3, 1);
  for (const int32_t id : random.take(50)) EXPECT_TRUE(id >= 0 && id < 3);
  double sum = 0;
  for (int i = 0; i < 4000; ++i) sum += random.exponential();
  EXPECT_NEAR(sum / 4000, 1, 0.08);  // five standard errors
}

}  // namespace
}  // namespace calandra::apps
