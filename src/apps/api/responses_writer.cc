#include "apps/api/responses_writer.h"

#include <fmt/format.h>

#include <algorithm>

#include "text/parsers/answer_parser.h"

namespace calandra::apps {
namespace {

constexpr std::string_view kCallPrefix = "call_";  // of tool_call_id

// The text of a custom tool's call: its one argument, or all of them when the model gave others.
std::string custom_input(const std::string& arguments) {
  try {
    const json::value read = parse_json(arguments, "the arguments");
    const json::object* fields = read.if_object();
    const json::value* input = fields == nullptr ? nullptr : fields->if_contains("input");
    if (input != nullptr && input->is_string()) return std::string(input->get_string());
  } catch (const LoadError&) {  // cut off
  }
  return arguments;
}

}  // namespace

ResponseWriter::ResponseWriter(Head head)
    : head_(std::move(head)),
      response_{{"id", head_.id},          {"object", "response"},          {"created_at", head_.created_at},
                {"status", "in_progress"}, {"model", head_.model},          {"output", json::array()},
                {"error", nullptr},        {"incomplete_details", nullptr}, {"usage", nullptr}} {
  for (const auto& [name, value] : head_.echo) response_[name] = value;
}

void ResponseWriter::send(const char* type, json::object fields) {
  json::object event{{"type", type}, {"sequence_number", sequence_number_++}};
  for (auto& [name, value] : fields) event[name] = std::move(value);
  events_ += fmt::format("event: {}\ndata: {}\n\n", type, to_json(event));
}

void ResponseWriter::send_of_item(const char* type, json::object fields) {
  json::object all{{"item_id", item_.at("id")}, {"output_index", output_.size()}};
  for (auto& [name, value] : fields) all[name] = std::move(value);
  send(type, std::move(all));
}

void ResponseWriter::begin() {
  send("response.created", {{"response", response_}});
  send("response.in_progress", {{"response", response_}});
}

void ResponseWriter::open_part(json::object part) {
  send_of_item("response.content_part.added", {{"content_index", 0}, {"part", std::move(part)}});
}

// The parts that follow go into an item of this kind.
void ResponseWriter::open(Item kind, const OutputEvent& part) {
  if (kind_ == kind && part.kind != OutputEvent::Kind::kToolCallBegin) return;
  close("completed");
  kind_ = kind;
  const auto id = [&](const char* prefix) {  // calls have the numbers from 0 on, and ids of their own
    return prefix + tool_call_id(head_.seed, -1 - static_cast<int>(output_.size())).substr(kCallPrefix.size());
  };
  switch (kind) {
    case Item::kReasoning:
      item_ = {{"id", id("rs_")}, {"type", "reasoning"}, {"summary", json::array()}, {"content", json::array()}};
      break;
    case Item::kMessage:
      item_ = {{"id", id("msg_")}, {"type", "message"}, {"role", "assistant"}, {"content", json::array()}};
      break;
    case Item::kCall:
      item_ = {{"id", id("fc_")}, {"type", "function_call"}, {"arguments", ""}};
      break;
    case Item::kCustomCall:
      item_ = {{"id", id("ctc_")}, {"type", "custom_tool_call"}, {"input", ""}};
      break;
    case Item::kNone:
      return;
  }
  if (part.kind == OutputEvent::Kind::kToolCallBegin) {
    item_["call_id"] = tool_call_id(head_.seed, part.call);
    item_["name"] = part.text;
  }
  item_["status"] = "in_progress";
  send("response.output_item.added", {{"output_index", output_.size()}, {"item", item_}});
  if (kind == Item::kReasoning) open_part({{"type", "reasoning_text"}, {"text", ""}});
  if (kind == Item::kMessage)
    open_part({{"type", "output_text"}, {"text", ""}, {"annotations", json::array()}, {"logprobs", json::array()}});
}

void ResponseWriter::close_part(json::object part, const char* done) {
  json::object fields{{"content_index", 0}, {"text", text_}};
  if (kind_ == Item::kMessage) fields["logprobs"] = json::array();
  send_of_item(done, std::move(fields));
  item_["content"] = json::array{json::value(part)};
  send_of_item("response.content_part.done", {{"content_index", 0}, {"part", std::move(part)}});
}

void ResponseWriter::close(const char* status) {
  switch (kind_) {
    case Item::kNone:
      return;
    case Item::kReasoning:
      close_part({{"type", "reasoning_text"}, {"text", text_}}, "response.reasoning_text.done");
      break;
    case Item::kMessage:
      close_part(
          {{"type", "output_text"}, {"text", text_}, {"annotations", json::array()}, {"logprobs", json::array()}},
          "response.output_text.done");
      break;
    case Item::kCall:
      item_["arguments"] = text_;
      send_of_item("response.function_call_arguments.done", {{"name", item_.at("name")}, {"arguments", text_}});
      break;
    case Item::kCustomCall: {
      const std::string input = custom_input(text_);  // known at the end of its JSON
      item_["input"] = input;
      send_of_item("response.custom_tool_call_input.delta", {{"delta", input}});
      send_of_item("response.custom_tool_call_input.done", {{"input", input}});
      break;
    }
  }
  item_["status"] = status;
  send("response.output_item.done", {{"output_index", output_.size()}, {"item", item_}});
  output_.push_back(std::move(item_));
  kind_ = Item::kNone;
  text_.clear();
}

void ResponseWriter::add(const OutputEvent& part) {
  switch (part.kind) {
    case OutputEvent::Kind::kReasoning:
      open(Item::kReasoning, part);
      send_of_item("response.reasoning_text.delta", {{"content_index", 0}, {"delta", part.text}});
      text_ += part.text;
      break;
    case OutputEvent::Kind::kContent:
      open(Item::kMessage, part);
      send_of_item("response.output_text.delta",
                   {{"content_index", 0}, {"delta", part.text}, {"logprobs", json::array()}});
      text_ += part.text;
      break;
    case OutputEvent::Kind::kToolCallBegin: {
      const std::vector<std::string>& custom = head_.custom_tools;
      open(std::find(custom.begin(), custom.end(), part.text) == custom.end() ? Item::kCall : Item::kCustomCall, part);
      break;
    }
    case OutputEvent::Kind::kArguments:
      if (kind_ == Item::kCall) send_of_item("response.function_call_arguments.delta", {{"delta", part.text}});
      text_ += part.text;
      break;
    case OutputEvent::Kind::kToolCallEnd:
      close("completed");
      break;
  }
}

void ResponseWriter::finish(const char* status, const char* event) {
  response_["output"] = output_;
  response_["status"] = status;
  send(event, {{"response", response_}});
}

void ResponseWriter::end(const FormEnd& end) {
  const bool is_whole = end.reason == FinishReason::kStop;
  close(is_whole ? "completed" : "incomplete");
  response_["usage"] = {{"input_tokens", end.prompt_tokens},
                        {"input_tokens_details", {{"cached_tokens", end.cached_tokens}}},
                        {"output_tokens", end.output_tokens},
                        {"output_tokens_details", {{"reasoning_tokens", end.reasoning_tokens}}},
                        {"total_tokens", end.prompt_tokens + end.output_tokens}};
  if (is_whole) return finish("completed", "response.completed");
  response_["incomplete_details"] = {{"reason", "max_output_tokens"}};
  finish("incomplete", "response.incomplete");
}

void ResponseWriter::fail(const RequestError& error) {
  close("incomplete");
  response_["error"] = {{"code", error.status < 500 ? json::value(error.code) : json::value("server_error")},
                        {"message", error.message}};
  finish("failed", "response.failed");
}

void ResponseWriter::cancel() {
  close("incomplete");
  response_["output"] = output_;
  response_["status"] = "cancelled";
}

}  // namespace calandra::apps
