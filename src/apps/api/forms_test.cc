// Answers in the words of Responses and Messages, however the text was cut.
#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <thread>
#include <utility>

#include "apps/api/messages_writer.h"
#include "apps/api/responses_request.h"
#include "apps/api/responses_writer.h"
#include "apps/api/work_thread.h"
#include "text/parsers/answer_parser.h"

namespace calandra::apps {
namespace {

// Events of a stream: {"event", "data"}.
std::vector<std::pair<std::string, json::object>> events_of(std::string_view text) {
  std::vector<std::pair<std::string, json::object>> events;
  constexpr std::string_view kEvent = "event: ", kData = "\ndata: ", kEnd = "\n\n";
  while (!text.empty()) {
    const size_t data = text.find(kData), end = text.find(kEnd);
    EXPECT_TRUE(text.starts_with(kEvent) && data < end && end != std::string_view::npos);
    events.emplace_back(text.substr(kEvent.size(), data - kEvent.size()),
                        parse_json(text.substr(data + kData.size(), end - data - kData.size()), "data").as_object());
    EXPECT_EQ(events.back().second.at("type").as_string(), events.back().first);
    text.remove_prefix(end + kEnd.size());
  }
  return events;
}

// What a client has after the events, by the rules of the order.
json::object message_of_events(std::string_view text) {
  json::object message;
  std::string inputs;
  int64_t open = -1, next = 0;
  bool ended = false;
  for (const auto& [type, data] : events_of(text)) {
    EXPECT_FALSE(ended) << type;
    if (type == "message_start") {
      EXPECT_TRUE(message.empty());
      message = data.at("message").as_object();
      EXPECT_TRUE(message.at("content").as_array().empty());
      continue;
    }
    EXPECT_FALSE(message.empty()) << type;
    if (type == "ping") continue;
    json::array& content = message["content"].as_array();
    if (type == "content_block_start") {
      EXPECT_EQ(open, -1);
      EXPECT_EQ(data.at("index").as_int64(), next);
      open = next++;
      content.push_back(data.at("content_block"));
      inputs.clear();
    } else if (type == "content_block_delta") {
      EXPECT_EQ(data.at("index").as_int64(), open);
      json::object& block = content.back().as_object();
      const json::object& delta = data.at("delta").as_object();
      const auto add = [&](const char* name) {
        block[name] = std::string(block.at(name).as_string()) + std::string(delta.at(name).as_string());
      };
      if (delta.at("type") == "text_delta") {
        add("text");
      } else if (delta.at("type") == "thinking_delta") {
        add("thinking");
      } else if (delta.at("type") == "signature_delta") {
        add("signature");
      } else {
        EXPECT_EQ(delta.at("type"), "input_json_delta");
        inputs += delta.at("partial_json").as_string();
      }
    } else if (type == "content_block_stop") {
      EXPECT_EQ(data.at("index").as_int64(), open);
      open = -1;
      if (!inputs.empty()) content.back().as_object()["input"] = parse_json(inputs, "input");
    } else if (type == "message_delta") {
      EXPECT_EQ(open, -1);
      for (const auto& [name, value] : data.at("delta").as_object()) message[name] = value;
      message["usage"] = data.at("usage");
    } else {
      EXPECT_EQ(type, "message_stop");
      EXPECT_FALSE(message.at("stop_reason").is_null());
      ended = true;
    }
  }
  EXPECT_TRUE(ended);
  return message;
}

// The last event's response, after the rules of the order and after every delta was compared with what is done.
json::object response_of_events(std::string_view text) {
  const auto events = events_of(text);
  json::object item;  // the open one
  json::array output;
  std::string deltas;
  bool in_part = false, text_done = false;
  for (size_t i = 0; i < events.size(); ++i) {
    const auto& [type, data] = events[i];
    EXPECT_EQ(data.at("sequence_number").as_int64(), static_cast<int64_t>(i));
    if (i < 2) {
      EXPECT_EQ(type, i == 0 ? "response.created" : "response.in_progress");
      EXPECT_EQ(data.at("response").at("status"), "in_progress");
      continue;
    }
    if (i + 1 == events.size()) break;
    EXPECT_EQ(data.at("output_index").as_int64(), std::ssize(output)) << type;
    if (type == "response.output_item.added") {
      EXPECT_TRUE(item.empty());
      item = data.at("item").as_object();
      EXPECT_EQ(item.at("status"), "in_progress");
      deltas.clear();
      text_done = false;
      continue;
    }
    EXPECT_FALSE(item.empty()) << type;
    if (type == "response.output_item.done") {
      EXPECT_FALSE(in_part);
      EXPECT_TRUE(text_done);
      EXPECT_EQ(data.at("item").at("id"), item.at("id"));
      EXPECT_NE(data.at("item").at("status"), "in_progress");
      output.push_back(data.at("item"));
      item.clear();
      continue;
    }
    EXPECT_EQ(data.at("item_id"), item.at("id")) << type;
    const std::string kind(item.at("type").as_string());
    const bool has_parts = kind == "message" || kind == "reasoning";
    if (type == "response.content_part.added") {
      EXPECT_TRUE(has_parts && !in_part);
      in_part = true;
    } else if (type == "response.content_part.done") {
      EXPECT_TRUE(in_part && text_done);
      EXPECT_EQ(std::string(data.at("part").at("text").as_string()), deltas);
      in_part = false;
    } else if (type.ends_with(".delta")) {
      EXPECT_EQ(in_part, has_parts);
      EXPECT_FALSE(text_done);
      deltas += data.at("delta").as_string();
    } else {
      EXPECT_TRUE(type.ends_with(".done")) << type;
      const char* name = has_parts ? "text" : kind == "function_call" ? "arguments" : "input";
      EXPECT_EQ(std::string(data.at(name).as_string()), deltas);
      text_done = true;
    }
  }
  EXPECT_TRUE(item.empty());
  const json::object& last = events.back().second.at("response").as_object();
  EXPECT_EQ(last.at("output"), json::value(output));
  EXPECT_EQ(last.at("id"), events.front().second.at("response").at("id"));
  EXPECT_EQ("response." + std::string(last.at("status").as_string()), events.back().first);
  return last;
}

constexpr std::string_view kAnswer =
    "I think: 2 + 3.\n</think>\n\nI look, 世界.\n\n<tool_call>\n<function=weather>\n<parameter=city>\nParis \"old\"\n"
    "</parameter>\n<parameter=days>\n3\n</parameter>\n</function>\n</tool_call>\n<tool_call>\n<function=patch>\n"
    "<parameter=input>\n*** Begin\n</parameter>\n</function>\n</tool_call>";

FormParts parts_of_answer(bool with_reasoning = true) {
  return FormParts({.reasoning = ReasoningFormat::kQwen3, .thinking = true, .tools = ToolFormat::kQwen3Coder},
                   with_reasoning);
}

const FormEnd kEnd{.reason = FinishReason::kStop,
                   .stop = "",
                   .prompt_tokens = 9,
                   .cached_tokens = 4,
                   .output_tokens = 7,
                   .reasoning_tokens = 3};

// The answer, cut at these places of its text.
template <class Writer>
std::string write(Writer& writer, const std::vector<size_t>& cuts, const FormEnd& end = kEnd,
                  std::string_view answer = kAnswer) {
  FormParts parts = parts_of_answer();
  writer.begin();
  std::string events = writer.take_events();
  size_t from = 0;
  for (const size_t cut : cuts) {
    for (const OutputEvent& part : parts.add(answer.substr(from, cut - from))) writer.add(part);
    events += writer.take_events();
    from = cut;
  }
  for (const OutputEvent& part : parts.add(answer.substr(from))) writer.add(part);
  for (const OutputEvent& part : parts.finish()) writer.add(part);
  writer.end(end);
  return events + writer.take_events();
}

MessageWriter message_writer() { return {"m", 5, 9}; }
ResponseWriter response_writer() {
  return ResponseWriter({.id = "resp_1",
                         .model = "m",
                         .created_at = 3,
                         .echo = {{"metadata", {{"a", "b"}}}},
                         .custom_tools = {"patch"},
                         .seed = 5});
}

// The engine gives whole characters.
bool is_between_characters(size_t at) {
  return at == kAnswer.size() || (static_cast<unsigned char>(kAnswer[at]) & 0xC0) != 0x80;
}

std::vector<size_t> random_cuts(std::mt19937& random) {
  std::vector<size_t> cuts(random() % 20);
  for (size_t& cut : cuts) do
      cut = random() % kAnswer.size();
    while (!is_between_characters(cut));
  std::sort(cuts.begin(), cuts.end());
  return cuts;
}

TEST(Forms, AMessageIsWhatItsEventsSayHoweverTheTextWasCut) {
  MessageWriter whole = message_writer();
  write(whole, {});
  const json::array& content = whole.object().at("content").as_array();
  ASSERT_EQ(content.size(), 4U);
  EXPECT_EQ(content[0].at("thinking"), "I think: 2 + 3.\n");
  EXPECT_EQ(content[1].at("text"), "\n\nI look, 世界.\n\n");
  EXPECT_EQ(content[2].at("input").at("city"), "Paris \"old\"");
  EXPECT_EQ(content[3].at("name"), "patch");
  EXPECT_NE(content[2].at("id"), content[3].at("id"));
  EXPECT_EQ(whole.object().at("stop_reason"), "tool_use");
  EXPECT_EQ(whole.object().at("usage").at("input_tokens"), 5);
  EXPECT_EQ(whole.object().at("usage").at("cache_read_input_tokens"), 4);
  std::mt19937 random(1);
  for (int i = 0; i < 300; ++i) {
    MessageWriter cut = message_writer();
    const json::object told = message_of_events(write(cut, random_cuts(random)));
    EXPECT_EQ(told, whole.object());
    EXPECT_EQ(cut.object(), whole.object());
  }
}

TEST(Forms, AResponseIsWhatItsEventsSayHoweverTheTextWasCut) {
  ResponseWriter whole = response_writer();
  write(whole, {});
  const json::array& output = whole.object().at("output").as_array();
  ASSERT_EQ(output.size(), 4U);
  EXPECT_EQ(output[0].at("content").at(0).at("text"), "I think: 2 + 3.\n");
  EXPECT_EQ(output[1].at("content").at(0).at("text"), "\n\nI look, 世界.\n\n");
  EXPECT_EQ(parse_json(output[2].at("arguments").as_string(), "arguments").at("city"), "Paris \"old\"");
  EXPECT_EQ(output[3].at("type"), "custom_tool_call");
  EXPECT_EQ(output[3].at("input"), "*** Begin");
  for (const char* prefix : {"rs_", "msg_", "fc_", "ctc_"})
    EXPECT_TRUE(std::any_of(output.begin(), output.end(),
                            [&](const json::value& item) { return item.at("id").as_string().starts_with(prefix); }));
  EXPECT_EQ(whole.object().at("metadata").at("a"), "b");
  EXPECT_EQ(whole.object().at("usage").at("output_tokens_details").at("reasoning_tokens"), 3);
  std::mt19937 random(2);
  for (int i = 0; i < 300; ++i) {
    ResponseWriter cut = response_writer();
    EXPECT_EQ(response_of_events(write(cut, random_cuts(random))), whole.object());
    EXPECT_EQ(cut.object(), whole.object());
  }
}

// An answer that ends anywhere keeps the order, and says that it is not whole.
TEST(Forms, AnswersMayEndAnywhere) {
  FormEnd end = kEnd;
  end.reason = FinishReason::kLength;
  for (size_t size = 0; size <= kAnswer.size(); ++size) {
    if (!is_between_characters(size)) continue;
    MessageWriter message = message_writer();
    std::string text = write(message, {}, end, kAnswer.substr(0, size));
    EXPECT_EQ(events_of(text).back().first, "message_stop");
    EXPECT_EQ(message.object().at("stop_reason"), "max_tokens");
    ResponseWriter response = response_writer();
    const json::object told = response_of_events(write(response, {}, end, kAnswer.substr(0, size)));
    EXPECT_EQ(told.at("incomplete_details").at("reason"), "max_output_tokens");
  }
  end.reason = FinishReason::kStop;
  end.stop = "zq";
  MessageWriter message = message_writer();
  message_of_events(write(message, {}, end, "</think>a"));
  EXPECT_EQ(message.object().at("stop_reason"), "stop_sequence");
  EXPECT_EQ(message.object().at("stop_sequence"), "zq");
}

TEST(Forms, SpaceAloneIsNoPart) {
  const std::string call = "<tool_call>\n<function=f>\n</function>\n</tool_call>\n";
  for (const std::string& answer : {"a</think>\n\n" + call, "</think>b" + call + "\n" + call}) {
    for (size_t cut = 0; cut <= answer.size(); ++cut) {
      MessageWriter message = message_writer();
      message_of_events(write(message, {cut}, kEnd, answer));
      const json::array& content = message.object().at("content").as_array();
      ASSERT_EQ(content.size(), answer.starts_with("a") ? 2U : 3U) << cut;
      EXPECT_EQ(content.back().at("type"), "tool_use");
    }
  }
  FormParts silent = parts_of_answer(/*with_reasoning=*/false);
  const OutputEvents parts = silent.add("a</think>  b ");
  ASSERT_EQ(parts.size(), 1U);
  EXPECT_EQ(parts[0].text, "  b ");
}

TEST(Forms, AFaultEndsAStream) {
  const RequestError error{503, "service_unavailable", "", "cut off"};
  ResponseWriter response = response_writer();
  response.begin();
  response.add({OutputEvent::Kind::kContent, "a"});
  response.fail(error);
  EXPECT_EQ(response_of_events(response.take_events()).at("error").at("code"), "server_error");
  MessageWriter message = message_writer();
  message.begin();
  message.fail(error);
  EXPECT_EQ(events_of(message.take_events()).back().second.at("error").at("type"), "overloaded_error");
}

// The items that a response gives are items that the next request may have.
TEST(Forms, OutputItemsGoBackIn) {
  ResponseWriter writer = response_writer();
  write(writer, {});
  const auto turns = messages_of_items(writer.object().at("output").as_array(), {});
  ASSERT_TRUE(std::holds_alternative<json::array>(turns));
  const json::array& messages = std::get<json::array>(turns);
  ASSERT_EQ(messages.size(), 1U);
  EXPECT_EQ(messages[0].at("reasoning_content"), "I think: 2 + 3.\n");
  EXPECT_EQ(messages[0].at("tool_calls").as_array().size(), 2U);
  EXPECT_EQ(parse_json(messages[0].at("tool_calls").at(1).at("function").at("arguments").as_string(), "a").at("input"),
            "*** Begin");
}

TEST(WorkThread, DoesWhatItIsGivenInOrderAndElsewhere) {
  std::vector<int> done;
  std::vector<std::thread::id> threads;
  WorkThread thread;
  const auto add = [&](int i) {
    thread.add([&, i] {
      done.push_back(i);
      threads.push_back(std::this_thread::get_id());
    });
  };
  for (int i = 0; i < 100; ++i) add(i);
  thread.stop();
  ASSERT_EQ(done.size(), 100u);
  EXPECT_TRUE(std::is_sorted(done.begin(), done.end()));
  EXPECT_EQ(std::count(threads.begin(), threads.end(), std::this_thread::get_id()), 0);
  add(100);  // behind the end nobody else does it
  EXPECT_EQ(done.back(), 100);
  EXPECT_EQ(threads.back(), std::this_thread::get_id());
}

}  // namespace
}  // namespace calandra::apps
