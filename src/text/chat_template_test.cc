#include "text/chat_template.h"

#include "base/error.h"

#include <gtest/gtest.h>

namespace calandra {
namespace {

constexpr std::string_view kPlain =
    "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>{{ m.content|trim }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}";

const std::tm kNow = parse_clock("2026-01-15 12:30:45");

json::array talk(std::initializer_list<std::pair<const char*, const char*>> turns) {
  json::array messages;
  for (const auto& [role, content] : turns) messages.push_back({{"role", role}, {"content", content}});
  return messages;
}

TEST(ChatTemplate, KeepsUserTextApart) {
  const ChatTemplate chat(kPlain, {{"bos_token", "<s>"}});
  const auto prompt =
      chat.render(talk({{"user", "say <|end|> and <s>"}}), nullptr, {{"add_generation_prompt", true}}, kNow);
  EXPECT_EQ(prompt.text, "<s><|user|>say <|end|> and <s><|end|>\n<|assistant|>");
  std::string all;
  for (const TextPiece& piece : prompt.pieces) {
    all += piece.text;
    EXPECT_EQ(piece.is_input, piece.text == "user" || piece.text == "say <|end|> and <s>") << piece.text;
  }
  EXPECT_EQ(all, prompt.text);
}

TEST(ChatTemplate, ClientsCannotBringSpecialTokens) {
  const ChatTemplate chat("{{ x }}{{ bos_token }}", {{"bos_token", "<s>"}});
  const auto prompt = chat.render(json::array(), nullptr, {{"x", "<s>"}, {"bos_token", "<t>"}}, kNow);
  ASSERT_EQ(prompt.pieces.size(), 1u);
  EXPECT_TRUE(prompt.pieces[0].is_input);
}

TEST(ChatTemplate, MessageEndsArePrefixes) {
  const ChatTemplate chat(kPlain, {{"bos_token", "<s>"}});
  const auto prompt = chat.render(talk({{"user", "a"}, {"assistant", "b"}, {"user", "c"}}), nullptr,
                                  {{"add_generation_prompt", true}}, kNow);
  ASSERT_EQ(prompt.message_ends.size(), 3u);
  EXPECT_EQ(prompt.text.substr(0, prompt.message_ends[0]), "<s><|user|>a<|end|>\n");
  EXPECT_EQ(prompt.text.substr(0, prompt.message_ends[1]), "<s><|user|>a<|end|>\n<|assistant|>b<|end|>\n");
  EXPECT_EQ(prompt.text.substr(prompt.message_ends[2]), "<|assistant|>");
}

TEST(ChatTemplate, EndsThatALaterMessageChangesAreNotGiven) {
  // Thinking of earlier turns is dropped, so the answer's end in a shorter talk is no prefix of the longer one.
  const ChatTemplate chat(
      "{% for m in messages %}{{ m.role }}:{{ m.content if loop.last else m.content.split('/')[-1] }};{% endfor %}");
  const auto prompt = chat.render(talk({{"user", "a"}, {"assistant", "think/b"}, {"user", "c"}}), nullptr, {}, kNow);
  EXPECT_EQ(prompt.text, "user:a;assistant:b;user:c;");
  EXPECT_EQ(prompt.message_ends, (std::vector<size_t>{7, 26}));
}

TEST(ChatTemplate, TriesOnlyTheLastMessages) {
  const ChatTemplate chat(kPlain, {{"bos_token", "<s>"}});
  json::array messages;
  for (int i = 0; i < 20; ++i) messages.push_back({{"role", "user"}, {"content", "x"}});
  EXPECT_EQ(chat.render(messages, nullptr, {}, kNow).message_ends.size(), ChatTemplate::kMessageEndsTried);
}

TEST(ChatTemplate, ContinuesTheFinalMessage) {
  const ChatTemplate chat(kPlain, {{"bos_token", "<s>"}});
  const json::object kwargs = {{"continue_final_message", true}};
  EXPECT_EQ(chat.render(talk({{"user", "a"}, {"assistant", "Sure, "}}), nullptr, kwargs, kNow).text,
            "<s><|user|>a<|end|>\n<|assistant|>Sure,");
  const auto tagged = chat.render(talk({{"assistant", "CONTINUE_FINAL_MESSAGE_TAG here"}}), nullptr, kwargs, kNow);
  EXPECT_EQ(tagged.text, "<s><|assistant|>CONTINUE_FINAL_MESSAGE_TAG here");
  EXPECT_THROW(chat.render(json::array(), nullptr, kwargs, kNow), jinja::Failure);
}

TEST(ChatTemplate, ParsesArgumentsThatAreObjects) {
  const json::value messages = parse_json(
      R"([{"tool_calls": [{"function": {"arguments": "{\"a\": 1}"}}, {"arguments": "[1]"}, {"arguments": "{"}]}])",
      "test");
  const json::value parsed = with_parsed_arguments(messages);
  EXPECT_EQ(to_json(parsed),
            R"([{"tool_calls":[{"function":{"arguments":{"a":1}}},{"arguments":"[1]"},{"arguments":"{"}]}])");
}

TEST(ParseClock, KnowsTheWeekDay) {
  EXPECT_EQ(kNow.tm_wday, 4);
  EXPECT_EQ(kNow.tm_yday, 14);
  for (const char* wrong :
       {"", "2026-01-15", "2026-13-15 00:00:00", "2026-02-30 00:00:00", "2026-01-15 24:00:00", "2026-01-15T12:30:45"}) {
    EXPECT_THROW(parse_clock(wrong), UsageError) << wrong;
  }
}

}  // namespace
}  // namespace calandra
