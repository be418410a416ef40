// Parts of messages, data: URLs and the ledger of bytes.
#include <gtest/gtest.h>

#include <future>

#include "apps/api/byte_ledger.h"
#include "apps/api/chat_messages.h"
#include "apps/api/data_url.h"
#include "apps/picture_reader.h"

namespace calandra::apps {
namespace {

ChatMessages read(const char* messages) {
  auto result = chat_messages(parse_json(messages, "messages").as_array());
  if (const auto* error = std::get_if<RequestError>(&result)) throw std::runtime_error(error->message);
  return std::get<ChatMessages>(std::move(result));
}

TEST(ChatParts, PicturesKeepTheirPlaces) {
  const ChatMessages chat = read(R"([
    {"role": "system", "content": [{"type": "text", "text": "s"}]},
    {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "u1"}},
                                 {"type": "text", "text": "b"}, {"video_url": "u2"}, {"type": "input_image", "image_url": "u3"}]},
    {"role": "assistant", "content": null},
    {"role": "user", "content": [{"type": "text", "text": "c"}, {"type": "input_text", "text": "d"}]},
    {"role": "user", "content": [{"type": "image", "url": "u4"}]}])");
  ASSERT_EQ(chat.media.size(), 4u);
  for (size_t i = 0; i < 4; ++i) {
    EXPECT_EQ(chat.media[i].url, "u" + std::to_string(i + 1));
    EXPECT_EQ(chat.media[i].is_video, i == 1);
  }
  EXPECT_EQ(to_json(chat.messages), R"([{"role":"system","content":"s"},{"role":"user","content":[)"
                                    R"({"type":"text","text":"a"},{"type":"image"},{"type":"text","text":"b"},)"
                                    R"({"type":"video"},{"type":"image"}]},{"role":"assistant","content":""},)"
                                    R"({"role":"user","content":"cd"},{"role":"user","content":[{"type":"image"}]}])");
}

TEST(ChatParts, BodiesThatMayHavePictures) {
  for (const char* body :
       {R"({"messages": [{"content": [{"type": "image_url"}]}]})",
        R"({"messages": [{"content": [{"image_url": "x"}]}]})",
        R"({"input": [{"type": "message", "content": [{"type": "input_image"}]}]})",
        R"({"messages": [{"content": [{"type": "tool_result", "content": [{"type": "image", "source": {}}]}]}]})",
        R"({"messages": [{"content": [{"type": "video_url"}]}]})"})
    EXPECT_TRUE(may_have_media(parse_json(body, "body"))) << body;
  for (const char* body : {R"({"messages": [{"role": "user", "content": "image_url"}]})",
                           R"({"messages": [{"content": [{"type": "text", "text": "image"}]}], "n": 1})", "[]", "7"})
    EXPECT_FALSE(may_have_media(parse_json(body, "body"))) << body;
}

TEST(ChatParts, WhatIsWrongIsSaid) {
  const auto why = [](const char* messages) {
    const auto result = chat_messages(parse_json(messages, "messages").as_array());
    const auto* error = std::get_if<RequestError>(&result);
    return error != nullptr ? error->message : "";
  };
  EXPECT_EQ(why(R"([{"role": "user", "content": "a", "name": null}, {"role": "user", "content": "b", "name": "n"}])"),
            "");
  for (const auto& [messages, says] :
       {std::pair{R"([7])", "objects"},
        {R"([{"content": "a"}])", "role"},
        {R"([{"role": "cat", "content": "a"}])", "roles"},
        {R"([{"role": "user", "content": "a", "name": {"a": 1}}])", "name"},
        {R"([{"role": "assistant", "content": "a", "tool_calls": 1}])", "tool_calls"},
        {R"([{"role": "assistant", "tool_calls": [5]}])", "name of a function"},
        {R"([{"role": "assistant", "tool_calls": [{}]}])", "name of a function"},
        {R"([{"role": "assistant", "tool_calls": [{"function": {"arguments": "{}"}}]}])", "name of a function"}})
    EXPECT_NE(why(messages).find(says), std::string::npos) << messages << ": " << why(messages);
}

// H12: values within texts are values of a body too.
TEST(ChatParts, ArgumentsOfTooManyValuesStayTexts) {
  std::string numbers = "{\"a\": [0";
  for (int i = 0; i < 300'000; ++i) numbers += ",0";
  numbers += "]}";
  const auto with_calls = [&](const json::value& call) {
    const json::object message{{"role", "assistant"}, {"content", ""}, {"tool_calls", json::array{call, call}}};
    return std::get<ChatMessages>(chat_messages(json::array{message})).messages.at(0).at("tool_calls");
  };
  for (const bool has_function : {true, false}) {
    const json::object named{{"name", "f"}, {"arguments", numbers}};
    const json::value calls = with_calls(has_function ? json::value{{"function", named}} : json::value(named));
    const auto arguments = [&](size_t i) {
      return (has_function ? calls.at(i).at("function") : calls.at(i)).at("arguments");
    };
    EXPECT_TRUE(arguments(0) == parse_json(numbers, "the arguments"));
    EXPECT_TRUE(arguments(1) == json::value({{"arguments", numbers}}));
  }
}

TEST(DataUrls, Base64) {
  EXPECT_EQ(decode_base64(""), "");
  EXPECT_EQ(decode_base64("Zg=="), "f");
  EXPECT_EQ(decode_base64("Zg"), "f");
  EXPECT_EQ(decode_base64("Zm8="), "fo");
  EXPECT_EQ(decode_base64("Zm9vYmFy"), "foobar");
  EXPECT_EQ(decode_base64("+/+/"), "\xfb\xff\xbf");
  for (const char* text :
       {"Z", "Zg=", "Zg===", "=", "====", "Zm9v=", "Z m8", "Zm8\n", "-_-_", "Zm\xc3\xa4", "Zg==Zg=="})
    EXPECT_FALSE(decode_base64(text)) << text;
}

TEST(ByteLedgers, HoldAndGiveBack) {
  ByteLedger ledger(10);
  auto first = ledger.take(7);
  EXPECT_TRUE(first);
  EXPECT_FALSE(ledger.take(4));
  EXPECT_FALSE(ledger.wait(4, [] { return true; }));
  auto waiting = std::async(std::launch::async, [&] { return ledger.wait(4, {}).has_value(); });
  first.reset();
  EXPECT_TRUE(waiting.get());
  EXPECT_EQ(ledger.held(), 0);
}

// C10b: what the tower would compute alike has one key, what it would not has two.
TEST(PictureKeys, ByPatchesAndGrid) {
  const std::vector<float> values(32, 0.5f);
  const auto key = [&](std::vector<float> patches, PatchGrid grid) {
    return make_picture(std::move(patches), grid).input->content_hash;
  };
  const auto same = key(values, {1, 4, 2});
  EXPECT_EQ(key(values, {1, 4, 2}), same);
  EXPECT_NE(key(values, {1, 2, 4}), same);
  EXPECT_NE(key(values, {2, 2, 2}), same);
  for (size_t i = 0; i < values.size(); ++i) {
    std::vector<float> other = values;
    other[i] = -0.5f;
    EXPECT_NE(key(other, {1, 4, 2}), same) << i;
  }
}

}  // namespace
}  // namespace calandra::apps
