// What is a near tie, on answers of which one token was replaced.
#include "tests/near_tie.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

namespace calandra::lossless {
namespace {

constexpr size_t kAt = 2;  // the token that is replaced

// `asked` with another token in its place.
Parting with(Subject& subject, const AskedRequest& asked, size_t at, int32_t token) {
  Answer other = asked.plain[0];
  other.token_ids.at(at) = token;
  return parting_of(subject, asked, 0, other);
}

class NearTie : public ::testing::Test {
 protected:
  AskedRequest asked(float temperature, int32_t top_k = 0) {
    Request request;
    request.prompt_token_ids = text_of(subject_, 0, 20);
    request.params.temperature = temperature;
    request.params.top_k = top_k;
    request.params.seed = 5;
    request.params.max_tokens = 4;
    request.params.ignore_eos = true;
    request.params.logprobs = 5;
    request.params.logprobs_mode = ops::LogprobsMode::kRawLogits;
    return ask(subject_, "request", request);
  }
  Parting with(const AskedRequest& asked, int32_t token) { return lossless::with(subject_, asked, kAt, token); }
  Subject& subject_ = *subject("demo-qwen3_5");
};

TEST_F(NearTie, OfLogits) {
  const AskedRequest greedy = asked(0);
  const std::vector<ops::TokenLogprob>& top = greedy.plain[0].logprobs.at(kAt).top;
  for (size_t i = 1; i < top.size(); ++i) {
    const Parting parting = with(greedy, top[i].id);
    EXPECT_EQ(parting.token, static_cast<int64_t>(kAt));
    EXPECT_NEAR(parting.gap, top[0].logprob - top[i].logprob, 1e-4);
    EXPECT_EQ(parting.is_near_tie(), parting.gap <= std::max(parting.explained, parting.disturbed));
    EXPECT_EQ(parting.disturbed, 0) << "there is no router here";
    EXPECT_GT(parting.explained, 0);
    EXPECT_LT(parting.explained, 1) << "a token e times as likely is no tie";
  }
}

// With the noise of its place no token comes before the one that was sampled.
TEST_F(NearTie, OfLogitsWithNoise) {
  const AskedRequest sampled = asked(1.5f);
  const std::vector<int32_t>& plain = sampled.plain[0].token_ids;
  for (int32_t id = 10; id < 6000; id += 701) {
    if (id == plain.at(kAt)) continue;
    EXPECT_GE(with(sampled, id).gap, 0) << id;
  }
}

TEST_F(NearTie, AtTheEdgeOfAFilter) {
  const AskedRequest one = asked(0.8f, 1);
  const Parting parting = with(one, (one.plain[0].token_ids.at(kAt) + 1) % 6000);
  EXPECT_TRUE(parting.edge);
  EXPECT_TRUE(parting.is_near_tie());
}

// The last row of this prompt has a router at a near tie: its experts, and with them the logits, are one or the other.
TEST(NearTieOfRouters, JumpsAsFar) {
  Subject& s = *subject("demo-bailing");
  Request request;
  request.prompt_token_ids = text_of(s, 372, 124);
  request.params.temperature = 0;
  request.params.max_tokens = 1;
  request.params.logprobs = 4;
  const AskedRequest greedy = ask(s, "request", request);
  const std::vector<ops::TokenLogprob>& top = greedy.plain[0].logprobs.at(0).top;
  EXPECT_TRUE(std::any_of(top.rbegin(), top.rend() - 1, [&](const ops::TokenLogprob& token) {
    const Parting parting = with(s, greedy, 0, token.id);
    return parting.is_near_tie() && parting.gap > 4 * parting.explained;
  }));
  EXPECT_FALSE(with(s, greedy, 0, 10).is_near_tie());
}

TEST_F(NearTie, AnAnswerThatEndsEarlierIsNone) {
  const AskedRequest greedy = asked(0);
  Answer shorter = greedy.plain[0];
  shorter.token_ids.pop_back();
  EXPECT_FALSE(parting_of(subject_, greedy, 0, shorter).is_near_tie());
}

}  // namespace
}  // namespace calandra::lossless
