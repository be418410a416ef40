// The C++ library as its users see it: nothing but the public header.
#include <calandra/engine.h>
#include <gtest/gtest.h>

#include <filesystem>

namespace {

class Library : public ::testing::Test {
 protected:
  Library()
      : local_(CALANDRA_SOURCE_DIR "/demo/demo-qwen3_5",
               {"--max-num-seqs=4", "--threads=1", "--disable-log-stats", "--max-model-len=256"}) {}

  std::shared_ptr<calandra::Stream> submit(calandra::Request request) {
    auto submitted = local_.engine().submit(std::move(request));
    return std::get<std::shared_ptr<calandra::Stream>>(std::move(submitted));
  }

  calandra::LocalEngine local_;
};

TEST_F(Library, StreamsWhatTheAnswerHolds) {
  calandra::Request request;
  request.prompt_token_ids = local_.chat_prompt("What does \"ancient\" mean?");
  request.params = local_.params();
  request.params.temperature = 0;
  const auto stream = submit(std::move(request));
  std::string text;
  std::optional<calandra::Answer> answer;
  while (auto event = stream->next()) {
    text += event->text;
    if (event->answer) answer = std::move(event->answer);
  }
  ASSERT_TRUE(answer);
  EXPECT_EQ(text, answer->text);
  EXPECT_NE(text.find("times long past"), std::string::npos) << text;
  EXPECT_TRUE(local_.engine().drain(60));
  const calandra::EngineStats stats = local_.engine().stats();
  EXPECT_EQ(stats.generation_tokens, std::ssize(answer->token_ids));
  EXPECT_TRUE(local_.engine().healthy());
}

TEST_F(Library, CancelEndsARequest) {
  calandra::Request request;
  request.prompt_token_ids = local_.tokenizer()->encode("Once upon a time");
  request.params.max_tokens = 200;
  request.params.ignore_eos = true;
  const auto stream = submit(std::move(request));
  ASSERT_TRUE(stream->next());
  stream->cancel();
  std::optional<calandra::Answer> answer;
  while (auto event = stream->next())
    if (event->answer) answer = std::move(event->answer);
  ASSERT_TRUE(answer);
  EXPECT_EQ(answer->finish_reason, calandra::FinishReason::kCancelled);
  EXPECT_LT(answer->token_ids.size(), 200u);
}

TEST_F(Library, AWrongRequestIsRefusedAtOnce) {
  calandra::Request request;
  request.prompt_token_ids = {1, 2, 3};
  request.params.temperature = -1;
  const auto submitted = local_.engine().submit(std::move(request));
  ASSERT_TRUE(std::holds_alternative<calandra::RequestError>(submitted));
  EXPECT_EQ(std::get<calandra::RequestError>(submitted).status, 400);
}

TEST(LibraryErrors, SayWhatIsWrong) {
  EXPECT_THROW(calandra::LocalEngine("demo:qwen3_5", {"--no-such-flag"}), calandra::UsageError);
  EXPECT_THROW(calandra::LocalEngine("/nowhere"), calandra::LoadError);
}

}  // namespace
