// Bodies of Responses and Messages as chats, and the store of responses.
#include <gtest/gtest.h>

#include <functional>
#include <utility>

#include "apps/api/messages_request.h"
#include "apps/api/response_store.h"
#include "apps/api/responses_request.h"

namespace calandra::apps {
namespace {

json::object read(const char* text) { return parse_json(text, "the test's body").as_object(); }
json::array read_list(const char* text) { return parse_json(text, "the test's list").as_array(); }

// Conversations that have a bit of all.
constexpr const char* kResponses =
    R"({"model": "m", "instructions": "be brief", "temperature": 0.5, "max_output_tokens": 5,
    "input": [{"role": "developer", "content": "d"},
      {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "a"},
                                                      {"type": "input_image", "image_url": "data:x", "detail": "auto"}]},
      {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "r"}]},
      {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "t", "annotations": []}]},
      {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{\"a\": 1}"},
      {"type": "custom_tool_call", "call_id": "c2", "name": "patch", "input": "p"},
      {"type": "function_call_output", "call_id": "c1", "output": "one"},
      {"type": "custom_tool_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "two"}]},
      {"type": "reasoning", "summary": [{"type": "summary_text", "text": "s"}]},
      {"type": "function_call", "call_id": "c3", "name": "f", "arguments": "{}"},
      {"role": "user", "content": "b"}],
    "tools": [{"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": true},
              {"type": "custom", "name": "patch", "description": "x"}, {"type": "web_search"}],
    "tool_choice": {"type": "function", "name": "f"}, "reasoning": {"effort": "none"}, "truncation": "auto",
    "text": {"format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}, "strict": true}}})";
constexpr const char* kMessages = R"({"model": "m", "max_tokens": 9, "stop_sequences": ["z"], "top_k": 3,
    "system": [{"type": "text", "text": "x-anthropic-billing-header: 77"},
               {"type": "text", "text": "x-anthropic-billing-header: 78\nsys", "cache_control": {"type": "ephemeral"}}],
    "messages": [{"role": "user", "content": "a"},
      {"role": "assistant", "content": [{"type": "thinking", "thinking": "t", "signature": "s"}, {"type": "text", "text": "x"},
        {"type": "tool_use", "id": "toolu_1", "name": "f", "input": {"a": 1}}]},
      {"role": "user", "content": [{"type": "text", "text": "b"},
        {"type": "tool_result", "tool_use_id": "toolu_1", "content": [{"type": "text", "text": "ok"}]},
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AA=="}}]}],
    "tools": [{"name": "f", "description": "d", "input_schema": {"type": "object"}},
              {"type": "web_search_20250305", "name": "web_search"}],
    "tool_choice": {"type": "any", "disable_parallel_tool_use": true}, "metadata": {"user_id": "u"},
    "thinking": {"type": "enabled", "budget_tokens": 6}})";

TEST(FormRequests, AWholeConversationOfResponsesIsAChat) {
  const json::object body = read(kResponses);
  const auto form = chat_of_responses(body, {});
  ASSERT_TRUE(std::holds_alternative<ResponsesChat>(form)) << std::get<RequestError>(form).message;
  const json::object& chat = std::get<ResponsesChat>(form).body;
  EXPECT_EQ(chat.at("messages"),
            read_list(R"([{"role": "system", "content": "be brief"}, {"role": "developer", "content": "d"},
    {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "data:x"}}]},
    {"role": "assistant", "content": [{"type": "text", "text": "t"}], "reasoning_content": "r", "tool_calls": [
      {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{\"a\": 1}"}},
      {"id": "c2", "type": "function", "function": {"name": "patch", "arguments": "{\"input\":\"p\"}"}}]},
    {"role": "tool", "tool_call_id": "c1", "content": "one"},
    {"role": "tool", "tool_call_id": "c2", "content": [{"type": "text", "text": "two"}]},
    {"role": "assistant", "content": "", "reasoning_content": "s", "tool_calls": [
      {"id": "c3", "type": "function", "function": {"name": "f", "arguments": "{}"}}]},
    {"role": "user", "content": "b"}])"));
  EXPECT_EQ(chat.at("tools").as_array().size(), 2U);
  EXPECT_EQ(chat.at("tools").at(1).at("function").at("parameters").at("required"), json::value({"input"}));
  EXPECT_EQ(chat.at("tool_choice"), read(R"({"type": "function", "function": {"name": "f"}})"));
  EXPECT_EQ(chat.at("max_completion_tokens"), 5);
  EXPECT_FALSE(chat.contains("truncate_prompt_tokens"));  // nothing is dropped
  EXPECT_EQ(chat.at("chat_template_kwargs").at("enable_thinking"), false);
  EXPECT_EQ(
      chat.at("response_format"),
      read(R"({"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}, "strict": true}})"));
  EXPECT_FALSE(chat.contains("input"));
}

TEST(FormRequests, ReasoningBeginsATurn) {
  const json::object body = read(R"({"input": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "t"},
      {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "r"}], "summary": [{"type": "summary_text", "text": "s"}]},
      {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}, {"role": "assistant", "content": "u"}]})");
  const auto form = chat_of_responses(body, {});
  EXPECT_EQ(std::get<ResponsesChat>(form).body, read(R"({"messages": [
      {"role": "user", "content": "a"}, {"role": "assistant", "content": "t"},
      {"role": "assistant", "content": "", "reasoning_content": "r", "tool_calls": [
        {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}]}, {"role": "assistant", "content": "u"}]})"));
}

TEST(FormRequests, AWholeConversationOfMessagesIsAChat) {
  const json::object body = read(kMessages);
  const auto form = chat_of_messages(body);
  ASSERT_TRUE(std::holds_alternative<json::object>(form)) << std::get<RequestError>(form).message;
  EXPECT_EQ(std::get<json::object>(form), read(R"({"model": "m", "max_tokens": 9, "top_k": 3, "stop": ["z"],
    "messages": [{"role": "system", "content": "sys"}, {"role": "user", "content": "a"},
      {"role": "assistant", "content": "x", "reasoning_content": "t", "tool_calls": [
        {"id": "toolu_1", "type": "function", "function": {"name": "f", "arguments": "{\"a\":1}"}}]},
      {"role": "tool", "tool_call_id": "toolu_1", "content": [{"type": "text", "text": "ok"}]},
      {"role": "user", "content": [{"type": "text", "text": "b"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}]}],
    "tools": [{"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}],
    "tool_choice": "required", "parallel_tool_calls": false,
    "thinking_token_budget": 6, "chat_template_kwargs": {"enable_thinking": true}})"));
}

TEST(FormRequests, MessagesMayAskForAFormAndForNoThoughts) {
  const json::object body = read(R"({"max_tokens": 1, "messages": [{"role": "user", "content": "a"}],
    "tools": [{"name": "f", "input_schema": {"type": "object"}, "strict": true}],
    "thinking": {"type": "adaptive", "display": "omitted"},
    "output_config": {"effort": "low", "format": {"type": "json_schema", "schema": {"type": "integer"}}},
    "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]}})");
  const auto form = chat_of_messages(body);
  ASSERT_TRUE(std::holds_alternative<json::object>(form)) << std::get<RequestError>(form).message;
  EXPECT_EQ(std::get<json::object>(form), read(R"({"max_tokens": 1, "messages": [{"role": "user", "content": "a"}],
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}, "strict": true}}],
    "include_reasoning": false, "chat_template_kwargs": {"enable_thinking": true}, "reasoning_effort": "low",
    "response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "integer"}, "strict": true}}})"));
}

TEST(FormRequests, WhatHasNoEffectIsTaken) {
  for (const char* body : {R"({"input": "a", "include": ["reasoning.encrypted_content"]})",
                           R"({"input": "a", "text": {"verbosity": "low"}, "max_tool_calls": 3})"})
    EXPECT_TRUE(std::holds_alternative<ResponsesChat>(chat_of_responses(read(body), {}))) << body;
}

TEST(FormRequests, FaultsNameTheirField) {
  const std::pair<const char*, const char*> messages[] = {
      {R"({"messages": [{"role": "user", "content": "a"}]})", "max_tokens"},
      {R"({"max_tokens": 0, "messages": [{"role": "user", "content": "a"}]})", "max_tokens"},
      {R"({"max_tokens": 1})", "messages"},
      {R"({"max_tokens": 1, "messages": [7]})", "messages"},
      {R"({"max_tokens": 1, "messages": [{"role": "user"}]})", "messages"},
      {R"({"max_tokens": 1, "messages": [{"role": "narrator", "content": "a"}]})", "messages"},
      {R"({"max_tokens": 1, "messages": [{"role": "user", "content": [{"type": "document"}]}]})", "messages"},
      {R"({"max_tokens": 1, "messages": [{"role": "user", "content": "a"}], "system": 5})", "system"},
      {R"({"max_tokens": 1, "messages": [{"role": "user", "content": "a"}], "tools": [{"name": "x"}]})", "tools"},
      {R"({"max_tokens": 1, "messages": [{"role": "user", "content": "a"}], "tool_choice": {"type": "x"}})",
       "tool_choice"},
      {R"({"max_tokens": 1, "messages": [{"role": "user", "content": "a"}], "thinking": {"type": "x"}})", "thinking"},
      {R"({"max_tokens": 1, "messages": [{"role": "user", "content": "a"}], "thinking": {"type": "enabled", "display": "x"}})",
       "thinking"},
      {R"({"max_tokens": 1, "messages": [{"role": "user", "content": "a"}], "output_config": {"format": {"type": "json_object"}}})",
       "output_config"},
      {R"({"max_tokens": 1, "messages": [{"role": "user", "content": "a"}], "output_config": {"task_budget": {"total": 5}}})",
       "output_config"},
      {R"({"max_tokens": 1, "messages": [{"role": "user", "content": "a"}], "context_management": {"edits": [
        {"type": "clear_tool_uses_20250919"}]}})",
       "context_management"},
      {R"({"max_tokens": 1, "messages": [{"role": "user", "content": "a"}], "context_management": {"edits": [
        {"type": "clear_thinking_20251015", "keep": {"type": "thinking_turns", "value": 1}}]}})",
       "context_management"}};
  for (const auto& [body, param] : messages) {
    const auto read_body = chat_of_messages(read(body));
    ASSERT_TRUE(std::holds_alternative<RequestError>(read_body)) << body;
    EXPECT_EQ(std::get<RequestError>(read_body).param, param) << body;
  }
  const std::pair<const char*, const char*> responses[] = {
      {R"({})", "input"},
      {R"({"input": []})", "input"},
      {R"({"input": 5})", "input"},
      {R"({"input": [5]})", "input"},
      {R"({"input": [{"type": "item_reference", "id": "x"}]})", "input"},
      {R"({"input": [{"role": "narrator", "content": "x"}]})", "input"},
      {R"({"input": [{"role": "user", "content": [{"type": "input_file"}]}]})", "input"},
      {R"({"input": "a", "n": 2})", "n"},
      {R"({"input": "a", "store": "no"})", "store"},
      {R"({"input": "a", "background": true, "store": false})", "background"},
      {R"({"input": "a", "background": true, "stream": true})", "background"},
      {R"({"input": "a", "conversation": "c"})", "conversation"},
      {R"({"input": "a", "truncation": "x"})", "truncation"},
      {R"({"input": "a", "tool_choice": {"type": "web_search"}})", "tool_choice"},
      {R"({"input": "a", "tools": [{"type": "function"}]})", "tools"},
      {R"({"input": "a", "text": 5})", "text"},
      {R"({"input": "a", "text": {"verbosity": 5}})", "verbosity"},
      {R"({"input": "a", "include": ["message.output_text.logprobs"]})", "include"},
      {R"({"input": "a", "include": [5]})", "include"},
      {R"({"input": "a", "prompt": {"id": "p"}})", "prompt"},
      {R"({"input": "a", "max_tool_calls": "x"})", "max_tool_calls"}};
  for (const auto& [body, param] : responses) {
    const auto read_body = chat_of_responses(read(body), {});
    ASSERT_TRUE(std::holds_alternative<RequestError>(read_body)) << body;
    EXPECT_EQ(std::get<RequestError>(read_body).param, param) << body;
  }
  const RequestError own = in_words_of_responses({400, "x", "max_tokens", "max_tokens must be at least 1"});
  EXPECT_EQ(own.param, "max_output_tokens");
  EXPECT_EQ(own.message, "max_output_tokens must be at least 1");
}

// Calls `check` with the root, once for each value in it and each other value in its place.
void with_wrong_values(json::value& root, json::value& here, const std::function<void(const json::object&)>& check) {
  for (const char* wrong : {"null", "5", "true", "\"x\"", "[]", "{}", "[5]", "[[]]", "[{}]", "{\"type\": 5}"}) {
    json::value kept = std::exchange(here, parse_json(wrong, "a value"));
    if (root.is_object()) check(root.get_object());
    here = std::move(kept);
  }
  if (json::object* fields = here.if_object())
    for (auto& member : *fields) with_wrong_values(root, member.value(), check);
  if (json::array* values = here.if_array())
    for (json::value& value : *values) with_wrong_values(root, value, check);
}

TEST(FormRequests, WrongValuesAnywhereAreFaultsOrHarmless) {
  int faults = 0;
  json::value body = read(kResponses);
  with_wrong_values(body, body, [&](const json::object& wrong) {
    const auto form = chat_of_responses(wrong, {});
    if (const auto* error = std::get_if<RequestError>(&form)) faults += error->status == 400 && !error->message.empty();
  });
  EXPECT_GT(faults, 300);
  faults = 0;
  body = read(kMessages);
  with_wrong_values(body, body, [&](const json::object& wrong) {
    const auto form = chat_of_messages(wrong);
    if (const auto* error = std::get_if<RequestError>(&form)) faults += error->status == 400 && !error->message.empty();
  });
  EXPECT_GT(faults, 100);
}

TEST(FormRequests, TheStoreKeepsToItsNumberAndBytes) {
  ResponseStore few(2, 1000);
  for (const char* id : {"a", "b", "c"}) few.put(id, {"r", "t"});
  EXPECT_FALSE(few.find("a"));
  EXPECT_TRUE(few.find("b") && few.find("c"));
  few.put("b", {"r2", "t"});  // newest again
  few.put("d", {"r", "t"});
  EXPECT_FALSE(few.find("c"));
  EXPECT_EQ(few.find("b")->response, "r2");
  few.put("e", {std::string(200, 'x'), "t"});  // would push out too many
  EXPECT_FALSE(few.find("e"));
  EXPECT_TRUE(few.find("b") && few.find("d"));

  ResponseStore small(100, 1000);
  for (int i = 0; i < 20; ++i) small.put(std::to_string(i), {std::string(100, 'x'), "t"});
  EXPECT_LE(small.bytes(), 1000U);
  EXPECT_GT(small.bytes(), 800U);
  EXPECT_TRUE(small.find("19"));
  EXPECT_FALSE(small.find("0"));

  EXPECT_TRUE(few.erase("b") && few.erase("d"));
  few.put("g", {"r", "t"});
  EXPECT_TRUE(few.erase("g"));
  EXPECT_FALSE(few.erase("g"));
  EXPECT_EQ(few.bytes(), 0U);
}

}  // namespace
}  // namespace calandra::apps
