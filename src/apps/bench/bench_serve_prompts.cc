// What `bench serve` sends. Prompts are text, since a server of any kind takes text: a word of these is one token for
// every common tokenizer, and how many tokens a prompt had is what the server says.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <sstream>

#include "apps/bench/bench_serve.h"
#include "base/error.h"

namespace calandra::apps {
namespace {

constexpr int64_t kUsualInput = 1024, kUsualOutput = 128;
constexpr int64_t kUsualPrefix = 256, kUsualAgentPrefix = 512;
constexpr int64_t kBytesPerToken = 4;  // of answers whose lengths a dataset gives as text

constexpr std::array kWords = {
    "the", "of",   "and",   "to",   "in",    "is",    "was",  "for",   "on",   "that", "with",  "as",   "be",
    "by",  "at",   "from",  "his",  "her",   "it",    "an",   "are",   "this", "had",  "not",   "but",  "have",
    "one", "all",  "were",  "they", "which", "their", "has",  "been",  "who",  "will", "more",  "when", "there",
    "can", "its",  "time",  "up",   "out",   "other", "some", "could", "into", "then", "two",   "new",  "only",
    "man", "made", "about", "over", "may",   "such",  "day",  "our",   "like", "what", "first", "water"};

std::string words(int64_t count, std::mt19937_64& random) {
  std::string text;
  for (int64_t i = 0; i < count; ++i) {
    if (i > 0) text += ' ';
    text += kWords[random() % kWords.size()];
  }
  return text;
}

// Lengths from length (1 - ratio) to length (1 + ratio), at least one.
int64_t about(int64_t length, double ratio, std::mt19937_64& random) {
  const auto least = static_cast<int64_t>(std::floor(static_cast<double>(length) * (1 - ratio)));
  const auto most = static_cast<int64_t>(std::ceil(static_cast<double>(length) * (1 + ratio)));
  return std::max<int64_t>(1, std::uniform_int_distribution<int64_t>(least, most)(random));
}

std::string joined(const std::string& prefix, std::string text) {
  return prefix.empty() ? std::move(text) : prefix + " " + text;
}

std::string text_of(const json::object& row, std::string_view key, const std::string& place) {
  const json::value* value = row.if_contains(key);
  if (value == nullptr || !value->is_string()) throw LoadError(fmt::format("{}: {} must be a text", place, key));
  return std::string(value->get_string());
}

// {"prompt", "output_len"} or ShareGPT's {"conversations": [{"from": "human", "value"}, {"from": "gpt", "value"}, …]},
// of which the first question is asked. Nothing for a conversation without one.
std::optional<ServedTurn> turn_of(const json::value& row, const BenchServeFlags& flags, const std::string& place) {
  if (!row.is_object()) throw LoadError(place + " is no JSON object");
  const json::object& object = row.get_object();
  ServedTurn turn{"", flags.output_len.value_or(kUsualOutput)};
  if (object.contains("prompt")) {
    turn.text = text_of(object, "prompt", place);
    if (const json::value* length = object.if_contains("output_len"); length != nullptr && !flags.output_len) {
      if (!length->is_int64() || length->get_int64() < 1) throw LoadError(place + ": output_len must be 1 or more");
      turn.output_len = length->get_int64();
    }
    return turn;
  }
  const json::value* said = object.if_contains("conversations");
  if (said == nullptr || !said->is_array()) throw LoadError(place + " has neither prompt nor conversations");
  const json::array& messages = said->get_array();
  if (messages.size() < 2 || !messages[0].is_object() || !messages[1].is_object()) return std::nullopt;
  turn.text = text_of(messages[0].get_object(), "value", place);
  const std::string answer = text_of(messages[1].get_object(), "value", place);
  if (!flags.output_len) turn.output_len = std::max<int64_t>(1, std::ssize(answer) / kBytesPerToken);
  return turn;
}

std::vector<ServedConversation> of_file(const BenchServeFlags& flags, std::mt19937_64& random) {
  const std::string text = read_text_file(flags.dataset_path, size_t{2} << 30);
  std::vector<ServedConversation> rows;
  const auto add = [&](const json::value& row, int64_t number) {
    if (auto turn = turn_of(row, flags, fmt::format("{}, row {}", flags.dataset_path, number)))
      rows.push_back({{std::move(*turn)}});
  };
  int64_t number = 0;
  if (text.find_first_not_of(" \t\r\n") != std::string::npos && text[text.find_first_not_of(" \t\r\n")] == '[') {
    const json::value all = parse_json(text, flags.dataset_path);
    for (const json::value& row : all.get_array()) add(row, ++number);
  } else {
    std::istringstream lines(text);
    for (std::string line; std::getline(lines, line);)
      if (++number; line.find_first_not_of(" \t\r") != std::string::npos)
        add(parse_json(line, fmt::format("{}, row {}", flags.dataset_path, number)), number);
  }
  if (rows.empty()) throw LoadError(flags.dataset_path + " has no conversation");
  std::shuffle(rows.begin(), rows.end(), random);
  const size_t known = rows.size(), wanted = static_cast<size_t>(flags.num_prompts);
  for (size_t i = 0; rows.size() < wanted; ++i) rows.push_back(rows[i % known]);
  rows.resize(wanted);
  return rows;
}

}  // namespace

std::vector<ServedConversation> served_conversations(const BenchServeFlags& flags, std::mt19937_64& random) {
  std::vector<ServedConversation> all;
  const int64_t input = flags.input_len.value_or(kUsualInput), output = flags.output_len.value_or(kUsualOutput);
  if (flags.dataset_name == "sharegpt") {
    all = of_file(flags, random);
  } else if (flags.dataset_name == "random") {
    const std::string prefix = words(flags.prefix_len.value_or(0), random);
    const double ratio = flags.random_range_ratio.value_or(0);
    for (int64_t i = 0; i < flags.num_prompts; ++i)
      all.push_back({{{joined(prefix, words(about(input, ratio, random), random)), about(output, ratio, random)}}});
  } else if (flags.dataset_name == "prefix_repetition") {
    std::vector<std::string> prefixes;
    for (int64_t i = 0; i < flags.num_prefixes; ++i)
      prefixes.push_back(words(flags.prefix_len.value_or(kUsualPrefix), random));
    for (int64_t i = 0; i < flags.num_prompts; ++i)
      all.push_back({{{joined(prefixes[static_cast<size_t>(i) % prefixes.size()], words(input, random)), output}}});
    std::shuffle(all.begin(), all.end(), random);
  } else {
    const std::string prefix = words(flags.prefix_len.value_or(kUsualAgentPrefix), random);
    for (int64_t i = 0; i < flags.num_prompts; ++i) {
      ServedConversation& conversation = all.emplace_back();
      for (int64_t turn = 0; turn < flags.num_turns; ++turn)
        conversation.turns.push_back({joined(turn == 0 ? prefix : "", words(input, random)), output});
    }
  }
  if (flags.request_rate) {
    const std::vector<double> times =
        arrivals(std::ssize(all), *flags.request_rate, flags.burstiness.value_or(1), random);
    for (size_t i = 0; i < all.size(); ++i) all[i].arrival = times[i];
  }
  return all;
}

std::vector<double> arrivals(int64_t count, double rate, double burstiness, std::mt19937_64& random) {
  std::gamma_distribution<double> gap(burstiness, 1 / (rate * burstiness));
  std::vector<double> times;
  double at = 0;
  for (int64_t i = 0; i < count; ++i) times.push_back(at += gap(random));
  return times;
}

}  // namespace calandra::apps
