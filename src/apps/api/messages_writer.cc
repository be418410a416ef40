#include "apps/api/messages_writer.h"

#include <fmt/format.h>

#include "server/api_error.h"
#include "text/parsers/answer_parser.h"

namespace calandra::apps {
namespace {

constexpr std::string_view kCallPrefix = "call_";  // of tool_call_id

json::object usage_object(int64_t prompt, int64_t cached, int64_t output) {
  return {{"input_tokens", prompt - cached},  // those that were computed
          {"cache_creation_input_tokens", 0},
          {"cache_read_input_tokens", cached},
          {"output_tokens", output}};
}

std::string hex_id(uint64_t seed, int index) { return tool_call_id(seed, index).substr(kCallPrefix.size()); }

}  // namespace

MessageWriter::MessageWriter(std::string model, uint64_t seed, int64_t prompt_tokens)
    : seed_(seed),
      message_{{"id", "msg_" + hex_id(seed, -1)},
               {"type", "message"},
               {"role", "assistant"},
               {"model", model},
               {"content", json::array()},
               {"stop_reason", nullptr},
               {"stop_sequence", nullptr},
               {"usage", usage_object(prompt_tokens, 0, 0)}} {}

void MessageWriter::send(const char* type, json::object fields) {
  json::object event{{"type", type}};
  for (auto& [name, value] : fields) event[name] = std::move(value);
  events_ += fmt::format("event: {}\ndata: {}\n\n", type, to_json(event));
}

void MessageWriter::send_delta(const char* type, const char* name, const std::string& text) {
  send("content_block_delta", {{"index", blocks_.size()}, {"delta", {{"type", type}, {name, text}}}});
}

void MessageWriter::begin() {
  send("message_start", {{"message", message_}});
  send("ping", {});
}

// The parts that follow go into a block of this type.
void MessageWriter::open(const char* type, const OutputEvent& part) {
  if (!block_.empty() && block_.at("type") == type && part.kind != OutputEvent::Kind::kToolCallBegin) return;
  close();
  block_["type"] = type;
  if (part.kind == OutputEvent::Kind::kReasoning) {
    block_["thinking"] = "";
    block_["signature"] = "";
  } else if (part.kind == OutputEvent::Kind::kContent) {
    block_["text"] = "";
  } else {
    block_["id"] = "toolu_" + hex_id(seed_, part.call);
    block_["name"] = part.text;
    block_["input"] = json::object();
  }
  send("content_block_start", {{"index", blocks_.size()}, {"content_block", block_}});
}

void MessageWriter::close() {
  if (block_.empty()) return;
  const std::string text = std::exchange(text_, {});
  if (block_.at("type") == "thinking") {
    // Clients send it back with the block; nothing is signed, as nothing is trusted in it.
    const std::string signature = hex_id(seed_, -2 - static_cast<int>(blocks_.size()));
    send_delta("signature_delta", "signature", signature);
    block_["thinking"] = text;
    block_["signature"] = signature;
  } else if (block_.at("type") == "text") {
    block_["text"] = text;
  } else {
    try {
      json::value input = parse_json(text.empty() ? "{}" : text, "the input");
      if (input.is_object()) block_["input"] = std::move(input);
    } catch (const LoadError&) {  // cut off by max_tokens: the block has no input
    }
  }
  send("content_block_stop", {{"index", blocks_.size()}});
  blocks_.push_back(std::exchange(block_, {}));
}

void MessageWriter::add(const OutputEvent& part) {
  switch (part.kind) {
    case OutputEvent::Kind::kReasoning:
      open("thinking", part);
      send_delta("thinking_delta", "thinking", part.text);
      text_ += part.text;
      break;
    case OutputEvent::Kind::kContent:
      open("text", part);
      send_delta("text_delta", "text", part.text);
      text_ += part.text;
      break;
    case OutputEvent::Kind::kToolCallBegin:
      open("tool_use", part);
      has_calls_ = true;
      break;
    case OutputEvent::Kind::kArguments:
      send_delta("input_json_delta", "partial_json", part.text);
      text_ += part.text;
      break;
    case OutputEvent::Kind::kToolCallEnd:
      close();
      break;
  }
}

void MessageWriter::end(const FormEnd& end) {
  close();
  const char* reason = end.reason != FinishReason::kStop ? "max_tokens"
                       : has_calls_                      ? "tool_use"
                       : end.stop.empty()                ? "end_turn"
                                                         : "stop_sequence";
  message_["content"] = std::move(blocks_);
  message_["stop_reason"] = reason;
  if (message_["stop_reason"] == "stop_sequence") message_["stop_sequence"] = end.stop;
  message_["usage"] = usage_object(end.prompt_tokens, end.cached_tokens, end.output_tokens);
  send("message_delta", {{"delta", {{"stop_reason", reason}, {"stop_sequence", message_["stop_sequence"]}}},
                         {"usage", message_["usage"]}});
  send("message_stop", {});
}

void MessageWriter::fail(const RequestError& error) {
  events_ += fmt::format("event: error\ndata: {}\n\n", to_json(server::anthropic_error_object(error)));
}

}  // namespace calandra::apps
