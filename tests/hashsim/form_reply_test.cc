// FormReply over the engine: the end of an answer is made elsewhere, and nobody is told before.
#include "apps/api/form_reply.h"

#include <gtest/gtest.h>

#include <atomic>

#include "backends/reference/reference.h"
#include "tests/hashsim/hash_model.h"

namespace calandra::apps {
namespace {

class FormReplyTest : public ::testing::TestWithParam<bool> {
 protected:
  FormReplyTest() : engine_(runner_, nullptr, {.seed = 5}) {}

  BatchBody body() const {
    BatchBody body;
    body.endpoint = Endpoint::kChatCompletions;
    body.stream = GetParam();
    Request& request = body.requests.emplace_back();
    request.prompt_token_ids = {1, 2, 3};
    request.params.max_tokens = 4;
    request.params.ignore_eos = true;
    return body;
  }

  std::unique_ptr<FormReply> start(std::function<void(const FormReply::Writer&)> on_end) {
    auto started = FormReply::start(
        engine_, body(), ResponseWriter({.id = "resp_1", .model = "m", .echo = {}, .custom_tools = {}}),
        [this] { ++wakes_; }, [this](std::function<void()> work) { work_.push_back(std::move(work)); },
        std::move(on_end));
    return std::get<std::unique_ptr<FormReply>>(std::move(started));
  }

  // As a connection does, until the end was given away.
  void read(FormReply& reply, server::HttpReply& to) {
    while (work_.empty()) ASSERT_FALSE(reply.advance(to));
  }

  hashsim::HashModel model_{{}};
  ReferenceBackend backend_;
  ModelRunner runner_{model_, backend_, {.max_num_seqs = 2, .max_num_batched_tokens = 32, .max_model_len = 64}};
  Engine engine_;
  std::atomic<int> wakes_ = 0;
  std::vector<std::function<void()>> work_;
};

TEST_P(FormReplyTest, MakesTheEndElsewhere) {
  int ends = 0;
  const auto reply = start([&](const FormReply::Writer&) { ++ends; });
  server::HttpReply got;
  ASSERT_NO_FATAL_FAILURE(read(*reply, got));
  EXPECT_FALSE(reply->advance(got));
  EXPECT_EQ(ends, 0);
  EXPECT_EQ(got.body.find("response.incomplete"), std::string::npos);
  ASSERT_EQ(work_.size(), 1u);
  const int before = wakes_;
  work_[0]();
  EXPECT_EQ(ends, 1);
  EXPECT_GT(wakes_, before);
  EXPECT_TRUE(reply->advance(got));
  EXPECT_NE(got.body.find("\"max_output_tokens\""), std::string::npos) << got.body;
  EXPECT_EQ(got.body.find("event: response.incomplete") != std::string::npos, GetParam());
  const std::vector<std::pair<std::string_view, double>> measures(got.measures.begin(), got.measures.begin() + 3);
  EXPECT_EQ(measures, (std::vector<std::pair<std::string_view, double>>{{"gen_ai.usage.num_sequences", 1},
                                                                        {"gen_ai.usage.prompt_tokens", 3},
                                                                        {"gen_ai.usage.completion_tokens", 4}}));
}

TEST_P(FormReplyTest, ClientsMayLeaveBeforeTheEndIsMade) {
  int ends = 0;
  auto reply = start([&](const FormReply::Writer&) { ++ends; });
  server::HttpReply got;
  ASSERT_NO_FATAL_FAILURE(read(*reply, got));
  reply.reset();
  work_[0]();
  EXPECT_EQ(ends, 1);
}

TEST_P(FormReplyTest, AnEndThatCannotBeMadeIsAFault) {
  const auto reply = start([](const FormReply::Writer&) { throw std::runtime_error("no memory"); });
  server::HttpReply got;
  ASSERT_NO_FATAL_FAILURE(read(*reply, got));
  work_[0]();
  EXPECT_THROW(reply->advance(got), std::runtime_error);
}

INSTANTIATE_TEST_SUITE_P(Streams, FormReplyTest, ::testing::Bool());

}  // namespace
}  // namespace calandra::apps
