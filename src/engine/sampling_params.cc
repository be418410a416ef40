#include "engine/sampling_params.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>

#include "base/json_member.h"
#include "text/tokenizer.h"

namespace calandra {
namespace {

RequestError wrong(std::string_view param, std::string message) {
  return {400, "invalid_value", std::string(param), fmt::format("{} {}", param, message)};
}

std::optional<RequestError> check_number(std::string_view name, float value, bool fine, std::string_view rule) {
  if (fine && std::isfinite(value)) return std::nullopt;
  return wrong(name, fmt::format("must be {}, got {}", rule, value));
}

std::optional<RequestError> check_numbers(const SamplingParams& p) {
  const auto within_two = [](float v) { return v >= -2 && v <= 2; };
  if (auto e = check_number("temperature", p.temperature, p.temperature >= 0, "a number that is not negative"))
    return e;
  if (auto e = check_number("top_p", p.top_p, p.top_p > 0 && p.top_p <= 1, "in (0, 1]")) return e;
  if (auto e = check_number("min_p", p.min_p, p.min_p >= 0 && p.min_p <= 1, "in [0, 1]")) return e;
  if (p.top_k < -1) return wrong("top_k", fmt::format("must be 0 or -1 (off) or at least 1, got {}", p.top_k));
  if (auto e = check_number("repetition_penalty", p.repetition_penalty, p.repetition_penalty > 0, "above 0")) return e;
  if (auto e = check_number("frequency_penalty", p.frequency_penalty, within_two(p.frequency_penalty), "in [-2, 2]"))
    return e;
  return check_number("presence_penalty", p.presence_penalty, within_two(p.presence_penalty), "in [-2, 2]");
}

std::optional<RequestError> check_counts(const SamplingParams& p, const SamplingLimits& limits) {
  if (p.n < 1 || p.n > limits.max_n) return wrong("n", fmt::format("must be in [1, {}], got {}", limits.max_n, p.n));
  if (p.max_tokens.value_or(1) < 1)
    return wrong("max_tokens", fmt::format("must be at least 1, got {}", *p.max_tokens));
  if (p.min_tokens < 0) return wrong("min_tokens", fmt::format("must not be negative, got {}", p.min_tokens));
  if (p.max_tokens && p.min_tokens > *p.max_tokens)
    return wrong("min_tokens", fmt::format("must be at most max_tokens = {}, got {}", *p.max_tokens, p.min_tokens));
  for (const auto& [name, wanted] : {std::pair{"logprobs", p.logprobs}, {"prompt_logprobs", p.prompt_logprobs}}) {
    if (!wanted) continue;
    const int32_t value = *wanted;
    if (value < ops::kAllLogprobs) return wrong(name, fmt::format("must be -1 (all) or at least 0, got {}", value));
    if (limits.max_logprobs >= 0 && (value > limits.max_logprobs || value == ops::kAllLogprobs))
      return wrong(name, fmt::format("must be at most {} (--max-logprobs), got {}", limits.max_logprobs, value));
  }
  if (p.thinking_token_budget && *p.thinking_token_budget < 0)
    return wrong("thinking_token_budget", fmt::format("must not be negative, got {}", *p.thinking_token_budget));
  const auto& r = p.repetition_detection;
  if (r.max_pattern_size < 0 || r.min_pattern_size < 0 || r.min_pattern_size > r.max_pattern_size)
    return wrong("repetition_detection", "needs 0 <= min_pattern_size <= max_pattern_size");
  if (r.max_pattern_size > 0 && r.min_count < 2) return wrong("repetition_detection", "needs min_count of at least 2");
  return std::nullopt;
}

std::optional<RequestError> check_ids(std::string_view name, const std::vector<int32_t>& ids, size_t most,
                                      int64_t vocab_size) {
  if (ids.size() > most) return wrong(name, fmt::format("has {} ids, at most {} are allowed", ids.size(), most));
  for (const int32_t id : ids)
    if (id < 0 || id >= vocab_size)
      return wrong(name, fmt::format("has the token id {}, the vocabulary has {} ids", id, vocab_size));
  return std::nullopt;
}

std::optional<RequestError> check_lists(const SamplingParams& p, const SamplingLimits& limits) {
  const int64_t V = limits.vocab_size;
  if (p.logit_bias.size() > limits.max_logit_bias)
    return wrong("logit_bias",
                 fmt::format("has {} entries, at most {} are allowed", p.logit_bias.size(), limits.max_logit_bias));
  for (const auto& [id, bias] : p.logit_bias) {
    if (id < 0 || id >= V)
      return wrong("logit_bias", fmt::format("has the token id {}, the vocabulary has {} ids", id, V));
    if (!(bias >= -100 && bias <= 100))
      return wrong("logit_bias", fmt::format("must be in [-100, 100], got {} for {}", bias, id));
  }
  if (auto e = check_ids("allowed_token_ids", p.allowed_token_ids, limits.max_token_list, V)) return e;
  if (auto e = check_ids("stop_token_ids", p.stop_token_ids, limits.max_token_list, V)) return e;
  const size_t most = static_cast<size_t>(limits.max_logprob_token_ids);
  if (auto e = check_ids("logprob_token_ids", p.logprob_token_ids, most, V)) return e;
  if (auto e = check_ids("prompt_logprob_token_ids", p.prompt_logprob_token_ids, most, V)) return e;

  if (p.stop.size() > limits.max_stop)
    return wrong("stop", fmt::format("has {} strings, at most {} are allowed", p.stop.size(), limits.max_stop));
  for (const std::string& stop : p.stop)
    if (stop.empty() || stop.size() > limits.max_stop_bytes)
      return wrong("stop", fmt::format("must have strings of 1 to {} bytes", limits.max_stop_bytes));
  if (!p.stop.empty() && !p.detokenize) return wrong("stop", "needs detokenize");

  if (p.bad_words.size() > limits.max_bad_words || p.bad_words_token_ids.size() > 2 * limits.max_bad_words)
    return wrong("bad_words", fmt::format("has too many words, at most {} are allowed", limits.max_bad_words));
  for (const std::string& word : p.bad_words)
    if (word.empty() || word.size() > limits.max_stop_bytes)
      return wrong("bad_words", fmt::format("must have words of 1 to {} bytes", limits.max_stop_bytes));
  for (const std::vector<int32_t>& word : p.bad_words_token_ids) {
    if (word.empty()) return wrong("bad_words", "has a word without tokens");
    if (auto e = check_ids("bad_words", word, limits.max_token_list, V)) return e;
  }
  return std::nullopt;
}

// Reads fields of a body; the first one of a wrong type is kept as the error.
class BodyReader {
 public:
  explicit BodyReader(const json::object& body) : body_(body) {}

  void read(std::string_view name, float& to) {
    const json::value* v = find(name);
    if (v == nullptr) return;
    if (v->is_number())
      to = static_cast<float>(v->to_number<double>());
    else
      fail(name, "must be a number");
  }
  void read(std::string_view name, bool& to) {
    const json::value* v = find(name);
    if (v == nullptr) return;
    if (v->is_bool())
      to = v->get_bool();
    else
      fail(name, "must be true or false");
  }
  void read(std::string_view name, int32_t& to) {
    if (const json::value* v = find(name)) integer(name, *v, to);
  }
  void read(std::string_view name, std::optional<int32_t>& to) {
    const json::value* v = find(name);
    if (v != nullptr && !integer(name, *v, to.emplace())) to.reset();
  }
  void read(std::string_view name, std::vector<int32_t>& to) {
    if (const json::value* v = find(name)) ids(name, *v, to);
  }
  void read(std::string_view name, std::vector<std::string>& to) {
    const json::value* v = find(name);
    if (v == nullptr) return;
    to.clear();
    if (v->is_string()) return void(to.emplace_back(v->get_string()));
    if (!v->is_array()) return fail(name, "must be a string or an array of strings");
    for (const json::value& s : v->get_array()) {
      if (!s.is_string()) return fail(name, "must be a string or an array of strings");
      to.emplace_back(s.get_string());
    }
  }
  // 64 bits; vLLM takes -1 for none.
  void read_seed(std::optional<uint64_t>& to) {
    const json::value* v = find("seed");
    if (v == nullptr) return;
    if (const std::optional<int64_t> number = whole_number(*v)) {
      to.reset();
      if (*number != -1) to = static_cast<uint64_t>(*number);
    } else if (v->is_uint64())
      to = v->get_uint64();
    else
      fail("seed", "must be a 64-bit integer");
  }
  void read_bias(std::vector<ops::TokenBias>& to) {
    const json::value* v = find("logit_bias");
    if (v == nullptr) return;
    to.clear();
    if (!v->is_object()) return fail("logit_bias", "must be an object of token ids and numbers");
    for (const auto& [key, bias] : v->get_object()) {
      int32_t id = 0;
      const auto [end, error] = std::from_chars(key.data(), key.data() + key.size(), id);
      if (error != std::errc{} || end != key.data() + key.size() || !bias.is_number())
        return fail("logit_bias", "must be an object of token ids and numbers");
      to.push_back({id, static_cast<float>(bias.to_number<double>())});
    }
    std::stable_sort(to.begin(), to.end(), [](const auto& a, const auto& b) { return a.id < b.id; });
    const auto same = [](const auto& a, const auto& b) { return a.id == b.id; };  // "7" and "07"
    if (std::adjacent_find(to.begin(), to.end(), same) != to.end()) fail("logit_bias", "names a token id twice");
  }
  void read_words(std::string_view name, std::vector<std::vector<int32_t>>& to) {
    const json::value* v = find(name);
    if (v == nullptr) return;
    to.clear();
    if (!v->is_array()) return fail(name, "must be an array of arrays of token ids");
    for (const json::value& word : v->get_array()) ids(name, word, to.emplace_back());
  }
  void read_repetition(SamplingParams::RepetitionDetection& to) {
    const json::value* v = find("repetition_detection");
    if (v == nullptr) return;
    if (!v->is_object()) return fail("repetition_detection", "must be an object");
    BodyReader fields(v->get_object());
    fields.read("max_pattern_size", to.max_pattern_size);
    fields.read("min_pattern_size", to.min_pattern_size);
    fields.read("min_count", to.min_count);
    if (!error_) error_ = fields.error_;
  }
  const std::optional<RequestError>& error() const { return error_; }
  // The first name of the body that was not looked for; empty: none.
  std::string_view rest() const {
    for (const auto& member : body_)
      if (std::find(names_.begin(), names_.end(), member.key()) == names_.end()) return member.key();
    return {};
  }

 private:
  const json::value* find(std::string_view name) {
    names_.push_back(name);
    const json::value* v = body_.if_contains(name);
    return v == nullptr || v->is_null() ? nullptr : v;
  }
  void fail(std::string_view name, std::string_view rule) {
    if (!error_) error_ = {400, "invalid_type", std::string(name), fmt::format("{} {}", name, rule)};
  }
  bool integer(std::string_view name, const json::value& v, int32_t& to) {
    const std::optional<int64_t> number = whole_number(v);
    if (number && *number >= INT32_MIN && *number <= INT32_MAX) {
      to = static_cast<int32_t>(*number);
      return true;
    }
    fail(name, "must be an integer of 32 bits");
    return false;
  }
  void ids(std::string_view name, const json::value& v, std::vector<int32_t>& to) {
    to.clear();
    if (!v.is_array()) return fail(name, "must be an array of token ids");
    for (const json::value& id : v.get_array())
      if (!integer(name, id, to.emplace_back())) return;
  }

  const json::object& body_;
  std::vector<std::string_view> names_;  // looked for
  std::optional<RequestError> error_;
};

}  // namespace

std::optional<RequestError> SamplingParams::check(const SamplingLimits& limits) const {
  if (auto error = check_numbers(*this)) return error;
  if (auto error = check_counts(*this, limits)) return error;
  return check_lists(*this, limits);
}

std::variant<SamplingParams, RequestError> read_sampling_params(const json::object& body, SamplingParams p,
                                                                bool others) {
  BodyReader r(body);
  r.read("n", p.n);
  r.read("temperature", p.temperature);
  r.read("top_k", p.top_k);
  r.read("top_p", p.top_p);
  r.read("min_p", p.min_p);
  r.read_seed(p.seed);
  r.read("repetition_penalty", p.repetition_penalty);
  r.read("frequency_penalty", p.frequency_penalty);
  r.read("presence_penalty", p.presence_penalty);
  r.read_bias(p.logit_bias);
  r.read("allowed_token_ids", p.allowed_token_ids);
  r.read("bad_words", p.bad_words);
  r.read_words("bad_words_ids", p.bad_words_token_ids);
  r.read("max_tokens", p.max_tokens);
  r.read("min_tokens", p.min_tokens);
  r.read("stop", p.stop);
  r.read("stop_token_ids", p.stop_token_ids);
  r.read("ignore_eos", p.ignore_eos);
  r.read("include_stop_str_in_output", p.include_stop_str_in_output);
  r.read("logprobs", p.logprobs);
  r.read("prompt_logprobs", p.prompt_logprobs);
  r.read("logprob_token_ids", p.logprob_token_ids);
  r.read("prompt_logprob_token_ids", p.prompt_logprob_token_ids);
  r.read("detokenize", p.detokenize);
  r.read("skip_special_tokens", p.skip_special_tokens);
  r.read("spaces_between_special_tokens", p.spaces_between_special_tokens);
  r.read("thinking_token_budget", p.thinking_token_budget);
  r.read_repetition(p.repetition_detection);
  if (r.error()) return *r.error();
  if (const std::string_view name = r.rest(); !others && !name.empty())
    return RequestError{400, "unknown_parameter", std::string(name), fmt::format("there is no parameter {}", name)};
  return p;
}

std::vector<std::vector<int32_t>> tokenize_bad_words(const Tokenizer& tokenizer,
                                                     const std::vector<std::string>& words) {
  std::vector<std::vector<int32_t>> result;
  for (const std::string& word : words) {
    const std::string bare = word.substr(std::min(word.find_first_not_of(" \t\n\r\v\f"), word.size()));
    std::vector<int32_t> ids = tokenizer.encode(bare, {.parse_special = false});
    std::vector<int32_t> spaced = tokenizer.encode(" " + bare, {.parse_special = false});
    const bool another = !ids.empty() && spaced.size() == ids.size() && spaced[0] != ids[0];
    if (!ids.empty()) result.push_back(std::move(ids));
    if (another) result.push_back(std::move(spaced));
  }
  return result;
}

}  // namespace calandra
