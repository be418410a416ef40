#include "tests/losslessness_requests.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <map>

#include "tests/hashsim/toy_rules.h"
#include "vision/placeholders.h"

namespace calandra::lossless {
namespace {

constexpr int64_t kShared = 37;  // tokens that most prompts begin with: they share two pages and a part of a third

// Prompts and answers are short where the model is slow.
struct Kinds {
  explicit Kinds(Subject& subject) : subject(subject) {}

  // Its prompt begins as others do, unless `alone`.
  Request& add(const std::string& name, int64_t length, float temperature, bool alone = false) {
    Request request;
    const int64_t first = 100 + 61 * std::ssize(kinds);
    request.prompt_token_ids = alone ? text_of(subject, first, length) : text_of(subject, 0, kShared);
    if (!alone)
      for (const int32_t id : text_of(subject, first, length - kShared)) request.prompt_token_ids.push_back(id);
    request.params.temperature = temperature;
    request.params.seed = 1000 + static_cast<uint64_t>(kinds.size());
    request.params.max_tokens = subject.demo ? 12 : 20;
    request.params.ignore_eos = kinds.size() % 2 == 0;
    request.params.logprobs = 2;
    kinds.push_back({name, request, {}});
    return kinds.back().request;
  }

  Subject& subject;
  std::vector<AskedRequest> kinds;
};

std::vector<int32_t> frequent_ids(const Subject& subject, size_t count) {
  std::map<int32_t, int> times;
  for (const int32_t id : subject.corpus) ++times[id];
  std::vector<std::pair<int, int32_t>> order;
  for (const auto& [id, n] : times) order.push_back({-n, id});
  std::sort(order.begin(), order.end());
  std::vector<int32_t> ids;
  for (size_t i = 0; i < std::min(count, order.size()); ++i) ids.push_back(order[i].second);
  std::sort(ids.begin(), ids.end());
  return ids;
}

// Kinds that stop somewhere: the place is chosen from what they answer when they do not.
void add_stops(Kinds& all) {
  Subject& subject = all.subject;
  const auto ends_at = [&](const std::string& name, float temperature, bool late) {
    Request request = all.add(name, 44, temperature);
    request.params.ignore_eos = true;
    const AskedRequest whole = ask(subject, name, request);
    const std::vector<int32_t>& ids = whole.plain[0].token_ids;
    request.params.stop_token_ids = {ids.at(4), ids.at(7)};
    if (late) request.params.min_tokens = 9;
    all.kinds.back().request = request;
    return whole.plain[0].text;
  };
  ends_at("stop id", 0, false);
  ends_at("stop id, temperature", 0.8f, false);
  ends_at("min_tokens", 0.8f, true);
  Request& eos = all.add("end of text", 50, 1);
  eos.params.ignore_eos = false;
  for (const int32_t id : subject.config.eos_token_ids) eos.params.logit_bias.push_back({id, subject.demo ? 7.f : 2.f});
  std::sort(eos.params.logit_bias.begin(), eos.params.logit_bias.end(),
            [](const auto& a, const auto& b) { return a.id < b.id; });
  if (!subject.demo) return;
  for (const bool included : {false, true}) {
    const std::string text = ends_at(included ? "stop string, included" : "stop string", included ? 0.8f : 0.f, false);
    SamplingParams& p = all.kinds.back().request.params;
    p.stop_token_ids.clear();
    p.stop = {text.substr(text.size() / 3, 4), "never said"};
    p.include_stop_str_in_output = included;
  }
}

void add_kinds(Kinds& all) {
  Subject& subject = all.subject;
  all.add("greedy", 16, 0, true).params.logprobs = 3;
  all.add("top_p", 40, 0.8f).params.top_p = 0.9f;
  all.add("top_k", 48, 0.8f).params.top_k = 20;
  all.add("min_p", 45, 0.8f).params.min_p = 0.05f;
  SamplingParams& penalties = all.add("penalties", 52, 0.7f).params;
  penalties.repetition_penalty = 1.2f;
  penalties.frequency_penalty = 0.3f;
  penalties.presence_penalty = 0.4f;
  all.add("greedy, penalties", 41, 0).params.repetition_penalty = 1.3f;
  const std::vector<int32_t> frequent = frequent_ids(subject, 40);
  SamplingParams& bias = all.add("logit_bias", 47, 0.8f).params;
  for (size_t i = 0; i < 20; ++i) bias.logit_bias.push_back({frequent[i], i % 3 == 0 ? -100.f : 2.f});
  all.add("allowed ids", 38, 1).params.allowed_token_ids = frequent;
  SamplingParams& words = all.add("bad words", 43, 0.8f).params;
  words.bad_words_token_ids = {{frequent[0]}, {frequent[1], frequent[2]}, {frequent[3], frequent[3]}};
  if (subject.demo) words.bad_words = {"the", "a little"};
  SamplingParams& seed = all.add("seed 0, logprobs of the filtered", 1, 0.8f, true).params;
  seed.seed = 0;
  seed.logprobs_mode = ops::LogprobsMode::kProcessedLogprobs;
  seed.logprob_token_ids = {3, 1};
  SamplingParams& largest = all.add("largest seed, raw logits", 33, 1.3f, true).params;
  largest.seed = ~uint64_t{0};
  largest.logprobs_mode = ops::LogprobsMode::kRawLogits;
  SamplingParams& scored = all.add("prompt_logprobs", 49, 0.8f).params;
  scored.prompt_logprobs = 2;
  scored.max_tokens = 6;
  SamplingParams& forks = all.add("n = 4", 48, 0.8f).params;
  forks.n = 4;
  forks.top_p = 0.95f;
  all.add("n = 3, greedy", 32, 0, true).params.n = 3;
  SamplingParams& repeats = all.add("repetition_detection", 46, 0).params;
  repeats.allowed_token_ids = {frequent[0], frequent[1]};
  repeats.repetition_detection = {.max_pattern_size = 3, .min_pattern_size = 1, .min_count = 3};
  Request& thinking = all.add("thinking_token_budget", 42, 0.8f);
  thinking.prompt_token_ids[40] = thinking_of(subject).start[0];
  thinking.params.thinking_token_budget = 4;
  const int64_t V = subject.model->vocab_size();
  all.add("grammar", 39, 0.8f).grammar = std::make_shared<hashsim::ToyGrammar>(5, 1000, std::vector<int32_t>{}, V);
  all.add("processor", 44, 0.8f).processors = {std::make_shared<hashsim::ToyProcessor>(7, V)};
  Request& hints = all.add("checkpoint hints", 60, 0);
  hints.checkpoint_hints = {16, 31, 40, 47, 58};
  add_stops(all);
}

std::shared_ptr<const EncoderInput> picture(const Subject& subject, uint32_t content, const PatchGrid& grid) {
  const VisionEncoder& tower = *subject.model->vision();
  EncoderInput input{{}, grid, {content}};
  uint32_t x = content;
  const int64_t side = tower.patch_size();
  for (int64_t i = grid.patches() * 3 * tower.temporal_patch_size() * side * side; i > 0; --i)
    input.patches.push_back(static_cast<float>((x = x * 1664525u + 1013904223u) >> 8) * 0x1p-23f - 1);
  return std::make_shared<const EncoderInput>(std::move(input));
}

std::array<int32_t, 3> text_position(int64_t position) {
  const auto p = static_cast<int32_t>(position);
  return {p, p, p};
}

// Prompts that differ in nothing but what a picture shows, or in its shape alone.
void add_pictures(Kinds& all) {
  const Subject& subject = all.subject;
  const auto id = [&](const char* key) { return static_cast<int32_t>(subject.config.config.at(key).as_int64()); };
  const VisionTokens tokens = {id("image_token_id"), id("video_token_id"), id("vision_start_token_id"),
                               id("vision_end_token_id")};
  const ExpansionRule rule{.tokens = tokens, .merge_size = subject.model->vision()->spatial_merge_size()};
  const auto add = [&](const char* name, const std::vector<std::pair<uint32_t, PatchGrid>>& pictures) -> Request& {
    Request& request = all.add(name, kShared, 0.8f);
    std::vector<PatchGrid> grids;
    std::vector<int32_t>& ids = request.prompt_token_ids;
    ids.resize(20);
    for (const auto& [content, grid] : pictures) {
      const int64_t rows = grid.patches() / (rule.merge_size * rule.merge_size);
      ids.push_back(tokens.vision_start);
      request.pictures.push_back({std::ssize(ids), rows, picture(subject, content, grid)});
      ids.insert(ids.end(), static_cast<size_t>(rows), tokens.image_pad);
      ids.push_back(tokens.vision_end);
      grids.push_back(grid);
    }
    for (const int32_t text : text_of(subject, 900, 5)) ids.push_back(text);
    const ExpandedPrompt prompt = std::get<ExpandedPrompt>(locate_placeholders(ids, grids, {}, rule));
    const size_t T = ids.size();
    for (size_t i = 0; i < T; ++i)
      request.positions.push_back({prompt.positions[i], prompt.positions[T + i], prompt.positions[2 * T + i]});
    request.position_delta = static_cast<int32_t>(prompt.position_delta);
    request.params.seed = 77;
    return request;
  };
  add("picture", {{1, {1, 4, 8}}});
  add("another picture", {{2, {1, 4, 8}}});
  add("picture of another shape", {{1, {1, 8, 4}}});
  add("two pictures, n = 2", {{1, {1, 4, 8}}, {2, {1, 2, 2}}}).params.n = 2;
}

// The next turn: what was asked and answered, and more.
void add_turns(Kinds& all) {
  for (const char* of :
       {"greedy", "top_p", "penalties", "stop id", "n = 4", "stop id, temperature", "checkpoint hints", "picture"}) {
    const auto found =
        std::find_if(all.kinds.begin(), all.kinds.end(), [&](const AskedRequest& asked) { return asked.name == of; });
    if (found == all.kinds.end()) continue;  // a model without eyes
    Request turn = found->request;
    const std::vector<int32_t>& answer = found->plain.back().token_ids;
    turn.prompt_token_ids.insert(turn.prompt_token_ids.end(), answer.begin(), answer.end());
    turn.params.stop_token_ids.clear();
    for (const int32_t id : text_of(all.subject, 700, 5)) turn.prompt_token_ids.push_back(id);
    if (!turn.positions.empty())
      for (auto i = std::ssize(turn.positions); i < std::ssize(turn.prompt_token_ids); ++i)
        turn.positions.push_back(text_position(i + turn.position_delta));
    turn.params.n = 1;
    turn.params.max_tokens = 8;
    all.kinds.push_back(ask(all.subject, std::string(of) + ", next turn", turn));
  }
}

std::string word(const ops::TokenLogprobs& a, const ops::TokenLogprobs& b) {
  const auto same = [](const std::vector<ops::TokenLogprob>& x, const std::vector<ops::TokenLogprob>& y) {
    return std::equal(x.begin(), x.end(), y.begin(), y.end(), [](const auto& p, const auto& q) {
      return p.id == q.id && std::bit_cast<uint32_t>(p.logprob) == std::bit_cast<uint32_t>(q.logprob);
    });
  };
  if (std::bit_cast<uint32_t>(a.logprob) != std::bit_cast<uint32_t>(b.logprob))
    return fmt::format("{} for {}", a.logprob, b.logprob);
  if (a.rank != b.rank) return "rank";
  return same(a.top, b.top) && same(a.listed, b.listed) ? "" : "other tokens";
}

std::string differs(const char* what, const std::vector<ops::TokenLogprobs>& got,
                    const std::vector<ops::TokenLogprobs>& plain) {
  if (got.size() != plain.size()) return fmt::format("{} {} for {}", got.size(), what, plain.size());
  for (size_t i = 0; i < got.size(); ++i)
    if (const std::string w = word(got[i], plain[i]); !w.empty()) return fmt::format("{} {}: {}", what, i, w);
  return "";
}

}  // namespace

ThinkingTokens thinking_of(const Subject& subject) {
  const int64_t V = subject.model->vocab_size();
  return {{static_cast<int32_t>(V - 40)}, {static_cast<int32_t>(V - 39), static_cast<int32_t>(V - 41)}};
}

Request copy_of(const Request& request) {
  Request copy = request;
  if (copy.grammar) copy.grammar = copy.grammar->clone();
  return copy;
}

std::vector<int32_t> text_of(const Subject& subject, int64_t first, int64_t count) {
  std::vector<int32_t> ids;
  for (int64_t i = first; i < first + count; ++i) ids.push_back(subject.corpus[i % std::ssize(subject.corpus)]);
  return ids;
}

AskedRequest ask(Subject& subject, const std::string& name, const Request& request) {
  AskedRequest asked{name, request, {}};
  ModelRunner runner(*subject.model, *subject.backend,
                     {.max_num_seqs = 1, .max_num_batched_tokens = 256, .max_model_len = 256});
  for (int32_t choice = 0; choice < request.params.n; ++choice) {
    EngineCore core(runner, subject.text(),
                    {.eos_token_ids = subject.config.eos_token_ids, .seed = 1, .thinking = thinking_of(subject)});
    Request one = copy_of(request);
    one.params.n = 1;
    one.first_choice = choice;
    if (choice > 0) one.params.prompt_logprobs.reset();
    asked.plain.push_back(core.run({one})[0][0]);
    CHECK_MSG(!asked.plain.back().error, name + ": " + asked.plain.back().error->message);
  }
  return asked;
}

const std::vector<AskedRequest>& requests_of(Subject& subject) {
  static std::map<std::string, std::vector<AskedRequest>> made;
  std::vector<AskedRequest>& asked = made[subject.name];
  if (!asked.empty()) return asked;
  Kinds all(subject);
  add_kinds(all);
  if (subject.model->vision() != nullptr) add_pictures(all);
  for (AskedRequest& kind : all.kinds) kind = ask(subject, kind.name, kind.request);
  add_turns(all);
  asked = std::move(all.kinds);
  return asked;
}

std::string difference(const Answer& got, const Answer& plain) {
  if (got.error) return "error: " + got.error->message;
  const auto at =
      std::mismatch(got.token_ids.begin(), got.token_ids.end(), plain.token_ids.begin(), plain.token_ids.end()).first -
      got.token_ids.begin();
  if (got.token_ids != plain.token_ids)
    return fmt::format("token {} of {}, {} without drafts", at, got.token_ids.size(), plain.token_ids.size());
  if (got.finish_reason != plain.finish_reason || got.stop_reason != plain.stop_reason ||
      got.stop_token != plain.stop_token)
    return fmt::format("finish reason {} for {}", name_of(got.finish_reason), name_of(plain.finish_reason));
  if (got.text != plain.text) return fmt::format("text '{}' for '{}'", got.text, plain.text);
  if (const std::string d = differs("logprobs", got.logprobs, plain.logprobs); !d.empty()) return d;
  return differs("prompt_logprobs", got.prompt_logprobs, plain.prompt_logprobs);
}

}  // namespace calandra::lossless
