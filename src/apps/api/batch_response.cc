#include "apps/api/batch_response.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <ctime>
#include <numeric>
#include <random>

#include "server/api_error.h"

namespace calandra::apps {
namespace {

// JSON has no infinities; vLLM writes this for them.
float json_logprob(float logprob) { return std::max(logprob, -9999.0F); }

json::array ids_of(std::span<const int32_t> ids) { return json::array(ids.begin(), ids.end()); }

int64_t characters(std::string_view text) {
  return std::count_if(text.begin(), text.end(), [](char c) { return (static_cast<unsigned char>(c) & 0xC0) != 0x80; });
}

std::string random_hex() {
  std::random_device device;
  return fmt::format("{:08x}{:08x}{:08x}", device(), device(), device());
}

std::string base64(std::span<const float> values) {
  constexpr std::string_view kDigits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::vector<unsigned char> bytes(values.size() * sizeof(float));
  std::memcpy(bytes.data(), values.data(), bytes.size());
  std::string text;
  for (size_t i = 0; i < bytes.size(); i += 3) {
    const size_t count = std::min<size_t>(3, bytes.size() - i);
    uint32_t three = 0;
    for (size_t j = 0; j < 3; ++j) three = three << 8 | (j < count ? bytes[i + j] : 0);
    for (size_t j = 0; j < 4; ++j) text += j <= count ? kDigits[three >> (18 - 6 * j) & 63] : '=';
  }
  return text;
}

json::value embedding_of(std::vector<float> values, const BatchBody& body) {
  values.resize(static_cast<size_t>(body.dimensions));
  if (body.normalize) {
    double square = 0;
    for (const float value : values) square += static_cast<double>(value) * value;
    const auto scale = static_cast<float>(1 / std::max(std::sqrt(square), 1e-12));
    for (float& value : values) value *= scale;
  }
  if (body.base64) return json::string(base64(values));
  return json::array(values.begin(), values.end());
}

}  // namespace

json::object usage_of(const BatchBody& body, const std::vector<std::vector<Answer>>& answers) {
  int64_t prompt = 0, completion = 0, cached = 0;
  std::vector<int64_t> drafted, accepted;
  const auto add = [](std::vector<int64_t>& to, const std::vector<int64_t>& counts) {
    to.resize(std::max(to.size(), counts.size()));
    for (size_t i = 0; i < counts.size(); ++i) to[i] += counts[i];
  };
  for (size_t j = 0; j < answers.size(); ++j) {
    prompt += std::ssize(body.requests[j].prompt_token_ids);
    cached += answers[j][0].cached_tokens;  // the other choices share the prompt
    for (const Answer& answer : answers[j]) {
      if (!body.without_answer) completion += std::ssize(answer.token_ids);
      add(drafted, answer.drafted);
      add(accepted, answer.accepted);
    }
  }
  json::object usage{{"prompt_tokens", prompt},
                     {"completion_tokens", completion},
                     {"total_tokens", prompt + completion},
                     {"prompt_tokens_details", {{"cached_tokens", cached}}}};
  if (!drafted.empty()) {
    const auto sum = [](const std::vector<int64_t>& v) { return std::accumulate(v.begin(), v.end(), int64_t{0}); };
    usage["completion_tokens_details"] = {{"speculation",
                                           {{"drafted", sum(drafted)},
                                            {"accepted", sum(accepted)},
                                            {"drafted_per_position", json::array(drafted.begin(), drafted.end())},
                                            {"accepted_per_position", json::array(accepted.begin(), accepted.end())}}}};
  }
  return usage;
}

json::value stop_reason(const Answer& answer) {
  if (answer.stop_token) return *answer.stop_token;
  return answer.stop_reason.empty() ? json::value(nullptr) : json::value(json::string(answer.stop_reason));
}

BatchWriter::BatchWriter(const Tokenizer* tokenizer, std::string model)
    : tokenizer_(tokenizer), model_(std::move(model)), run_(random_hex()) {}

std::string BatchWriter::make_id(const char* prefix) { return fmt::format("{}-{}{:08x}", prefix, run_, ids_++); }

json::object BatchWriter::response_line(const json::value& custom_id, int status, json::value body, json::value error) {
  return {{"id", make_id("batch")},
          {"custom_id", custom_id},
          {"response", {{"status_code", status}, {"request_id", make_id("req")}, {"body", std::move(body)}}},
          {"error", std::move(error)}};
}

json::object BatchWriter::error_line(const json::value& custom_id, const RequestError& error) {
  const json::object object = server::error_object(error);
  return response_line(custom_id, error.status, {{"error", object}}, object);
}

json::object BatchWriter::line(const json::value& custom_id, const BatchBody& body,
                               const std::vector<std::vector<Answer>>& answers) {
  for (const std::vector<Answer>& choices : answers)
    for (const Answer& answer : choices)
      if (answer.error) return error_line(custom_id, *answer.error);
  return response_line(custom_id, 200, response(body, answers), nullptr);
}

uint64_t BatchWriter::call_seed() {
  std::random_device device;
  return static_cast<uint64_t>(device()) << 32 | device();
}

json::object BatchWriter::response_head(const BatchBody& body, bool chunk) {
  const bool chats = body.endpoint == Endpoint::kChatCompletions, embeds = body.endpoint == Endpoint::kEmbeddings;
  const char* prefix = chats ? "chatcmpl" : embeds ? "embd" : "cmpl";
  const char* chat = chunk ? "chat.completion.chunk" : "chat.completion";
  return {{"id", body.request_id.empty() ? make_id(prefix) : fmt::format("{}-{}", prefix, body.request_id)},
          {"object", chats    ? chat
                     : embeds ? "list"
                              : "text_completion"},
          {"created", static_cast<int64_t>(std::time(nullptr))},
          {"model", model_}};
}

json::object BatchWriter::response(const BatchBody& body, const std::vector<std::vector<Answer>>& answers) {
  const bool chats = body.endpoint == Endpoint::kChatCompletions, embeds = body.endpoint == Endpoint::kEmbeddings;
  json::object response = response_head(body, false);
  json::object rest = chats ? chat(body, answers[0]) : embeds ? embeddings(body, answers) : completion(body, answers);
  for (auto& [name, value] : rest) response[name] = std::move(value);
  response["usage"] = usage_of(body, answers);
  return response;
}

std::string BatchWriter::name_of_token(int32_t id, bool as_id) const {
  if (as_id || tokenizer_ == nullptr) return fmt::format("token_id:{}", id);
  return tokenizer_->decode({&id, 1});
}

json::object BatchWriter::completion(const BatchBody& body, const std::vector<std::vector<Answer>>& answers) const {
  json::array choices;
  for (size_t j = 0; j < answers.size(); ++j) {
    for (const Answer& answer : answers[j]) {
      const std::string text = (body.echo ? body.echoes[j] : "") + (body.without_answer ? "" : answer.text);
      json::object choice{{"index", std::ssize(choices)},
                          {"text", text},
                          {"logprobs", nullptr},
                          {"finish_reason", name_of(answer.finish_reason)},
                          {"stop_reason", stop_reason(answer)}};
      if (body.without_answer) choice["finish_reason"] = "length";
      const SamplingParams& params = body.requests[j].params;
      int64_t offset = 0;
      if (params.logprobs) choice["logprobs"] = completion_logprobs(body, j, answers[j][0], answer, offset);
      if (params.prompt_logprobs) choice["prompt_logprobs"] = prompt_logprobs(body, j, answers[j][0]);
      if (body.return_token_ids) {
        choice["token_ids"] = body.without_answer ? json::array() : ids_of(answer.token_ids);
        choice["prompt_token_ids"] = ids_of(body.requests[j].prompt_token_ids);
      }
      choices.push_back(std::move(choice));
    }
  }
  return {{"choices", std::move(choices)}};
}

// With echo the prompt's tokens come first; the first of them has no logprob.
json::object BatchWriter::completion_logprobs(const BatchBody& body, size_t prompt, const Answer& first,
                                              const Answer& answer, int64_t& offset) const {
  const bool as_id = body.tokens_as_token_ids;
  json::array offsets, logprobs, names, tops;
  const auto add = [&](int32_t token, const ops::TokenLogprobs* entry) {
    std::string name = name_of_token(token, as_id);
    offsets.push_back(offset);
    offset += characters(name);
    logprobs.push_back(entry == nullptr ? json::value(nullptr) : json::value(json_logprob(entry->logprob)));
    if (entry == nullptr) {
      tops.push_back(nullptr);
    } else {
      json::object top;
      for (const auto* list : {&entry->top, &entry->listed})
        for (const ops::TokenLogprob& t : *list) top.emplace(name_of_token(t.id, as_id), json_logprob(t.logprob));
      top.emplace(name, json_logprob(entry->logprob));
      tops.push_back(std::move(top));
    }
    names.push_back(json::string(name));
  };
  if (body.echo) {
    const std::vector<int32_t>& ids = body.requests[prompt].prompt_token_ids;
    for (size_t i = 0; i < ids.size(); ++i) {
      const bool known = i > 0 && i - 1 < first.prompt_logprobs.size();
      add(ids[i], known ? &first.prompt_logprobs[i - 1] : nullptr);
    }
  }
  if (!body.without_answer)
    for (size_t i = 0; i < answer.token_ids.size(); ++i)
      add(answer.token_ids[i], i < answer.logprobs.size() ? &answer.logprobs[i] : nullptr);
  return {{"text_offset", std::move(offsets)},
          {"token_logprobs", std::move(logprobs)},
          {"tokens", std::move(names)},
          {"top_logprobs", std::move(tops)}};
}

json::object BatchWriter::logprobs(const BatchBody& body, const Answer& some, int64_t& offset) const {
  if (body.endpoint == Endpoint::kChatCompletions) return chat_logprobs(body, some);
  return completion_logprobs(body, 0, some, some, offset);
}

// As vLLM: null for the first token, then token id -> logprob, rank and text.
json::array BatchWriter::prompt_logprobs(const BatchBody& body, size_t prompt, const Answer& first) const {
  json::array out{nullptr};
  const std::vector<int32_t>& ids = body.requests[prompt].prompt_token_ids;
  for (size_t i = 0; i < first.prompt_logprobs.size(); ++i) {
    const ops::TokenLogprobs& entry = first.prompt_logprobs[i];
    json::object row;
    const auto add = [&](int32_t id, float logprob, json::value rank) {
      row.emplace(std::to_string(id), json::object{{"logprob", json_logprob(logprob)},
                                                   {"rank", std::move(rank)},
                                                   {"decoded_token", name_of_token(id, body.tokens_as_token_ids)}});
    };
    add(ids[i + 1], entry.logprob, entry.rank);
    for (size_t t = 0; t < entry.top.size(); ++t) add(entry.top[t].id, entry.top[t].logprob, t + 1);
    for (const ops::TokenLogprob& t : entry.listed) add(t.id, t.logprob, nullptr);
    out.push_back(std::move(row));
  }
  return out;
}

// `calls`: it ended by itself, with tool calls.
json::object BatchWriter::message_of(const BatchBody& body, const Answer& answer, bool& calls) {
  json::object message{{"role", "assistant"}, {"content", answer.text}};
  if (!body.parser) return message;
  AnswerParser parser(*body.parser);
  ParsedAnswer parsed;
  parsed.add(parser.add(answer.text));
  parsed.add(parser.finish());
  message["content"] = parsed.content;
  if (!parsed.reasoning.empty() && body.include_reasoning)
    for (const char* name : {"reasoning", "reasoning_content"}) message[name] = parsed.reasoning;
  if (parsed.tool_calls.empty()) return message;
  calls = answer.finish_reason == FinishReason::kStop && !body.named_call;
  if (parsed.content.empty()) message["content"] = nullptr;
  json::array list;
  const uint64_t seed = call_seed();
  for (const ParsedAnswer::ToolCall& call : parsed.tool_calls)
    list.push_back({{"id", tool_call_id(seed, static_cast<int>(list.size()))},
                    {"type", "function"},
                    {"function", {{"name", call.name}, {"arguments", call.arguments}}}});
  message["tool_calls"] = std::move(list);
  return message;
}

json::object BatchWriter::chat(const BatchBody& body, const std::vector<Answer>& answers) const {
  json::array choices;
  const Request& request = body.requests[0];
  for (const Answer& answer : answers) {
    bool calls = false;
    json::object message = message_of(body, answer, calls);
    json::object choice{{"index", std::ssize(choices)},
                        {"message", std::move(message)},
                        {"logprobs", nullptr},
                        {"finish_reason", calls ? "tool_calls" : name_of(answer.finish_reason)},
                        {"stop_reason", stop_reason(answer)}};
    if (request.params.logprobs) choice["logprobs"] = chat_logprobs(body, answer);
    if (body.return_token_ids) choice["token_ids"] = ids_of(answer.token_ids);
    choices.push_back(std::move(choice));
  }
  json::object out{{"choices", std::move(choices)}};
  if (request.params.prompt_logprobs) out["prompt_logprobs"] = prompt_logprobs(body, 0, answers[0]);
  if (body.return_token_ids) out["prompt_token_ids"] = ids_of(request.prompt_token_ids);
  return out;
}

json::object BatchWriter::chat_logprobs(const BatchBody& body, const Answer& answer) const {
  const auto entry = [&](int32_t id, float logprob) {
    json::object object{{"token", name_of_token(id, body.tokens_as_token_ids)}, {"logprob", json_logprob(logprob)}};
    json::array bytes;
    if (tokenizer_ != nullptr)
      for (const char c : tokenizer_->id_to_piece(id)) bytes.push_back(static_cast<unsigned char>(c));
    object["bytes"] = std::move(bytes);
    return object;
  };
  json::array content;
  for (size_t i = 0; i < answer.logprobs.size(); ++i) {
    json::object row = entry(answer.token_ids[i], answer.logprobs[i].logprob);
    json::array top;
    for (const auto* list : {&answer.logprobs[i].top, &answer.logprobs[i].listed})
      for (const ops::TokenLogprob& t : *list) top.push_back(entry(t.id, t.logprob));
    row["top_logprobs"] = std::move(top);
    content.push_back(std::move(row));
  }
  return {{"content", std::move(content)}};
}

json::object BatchWriter::embeddings(const BatchBody& body, const std::vector<std::vector<Answer>>& answers) const {
  json::array rows;
  for (const std::vector<Answer>& choices : answers)
    rows.push_back({{"index", std::ssize(rows)},
                    {"object", "embedding"},
                    {"embedding", embedding_of(choices[0].embedding, body)}});
  return {{"data", std::move(rows)}};
}

}  // namespace calandra::apps
