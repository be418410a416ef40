#include "engine/engine_core.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>
#include <random>

#include "base/log.h"
#include "base/philox.h"
#include "engine/take_token.h"

namespace calandra {
namespace {

double system_clock() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

bool all_finite(std::span<const float> values) {
  return std::all_of(values.begin(), values.end(), [](float value) { return std::isfinite(value); });
}

// Of a token of the prompt whose row has NaN or infinity: nothing is likelier, nothing is known.
const ops::TokenLogprobs kNotScored{-std::numeric_limits<float>::infinity(), 0, {}, {}};

// A row whose logprobs are those of `token`, as the model gave them: prompts know no processing.
void add_scoring_row(ops::SamplingBatch& batch, const SamplingParams& params, int32_t token, int32_t logit_row) {
  ops::SamplingRow row;
  row.logit_row = logit_row;
  row.temperature = 0;
  row.scored_id = token;
  row.num_logprobs = *params.prompt_logprobs;
  const bool logits = params.logprobs_mode == ops::LogprobsMode::kRawLogits ||
                      params.logprobs_mode == ops::LogprobsMode::kProcessedLogits;
  row.logprobs_mode = logits ? ops::LogprobsMode::kRawLogits : ops::LogprobsMode::kRawLogprobs;
  row.logprob_ids.begin = static_cast<int32_t>(batch.ids.size());
  batch.ids.insert(batch.ids.end(), params.prompt_logprob_token_ids.begin(), params.prompt_logprob_token_ids.end());
  row.logprob_ids.end = static_cast<int32_t>(batch.ids.size());
  batch.rows.push_back(row);
}

}  // namespace

std::string_view name_of(FinishReason reason) {
  switch (reason) {
    case FinishReason::kStop:
      return "stop";
    case FinishReason::kLength:
      return "length";
    case FinishReason::kCancelled:
      return "abort";
  }
  return "?";
}

EngineCore::EngineCore(ModelRunner& runner, const Tokenizer* tokenizer, EngineOptions options)
    : runner_(runner), tokenizer_(tokenizer), options_(std::move(options)) {
  if (!options_.seed) options_.seed = std::random_device{}() | uint64_t{std::random_device{}()} << 32;
  if (!options_.clock) options_.clock = system_clock;
  const int64_t vocab_size = runner.model().vocab_size();
  std::erase_if(options_.eos_token_ids, [&](int32_t id) {
    const bool outside = id < 0 || id >= vocab_size;
    if (outside) log_warning("eos_token_id {} is outside the vocabulary of {} and has no effect", id, vocab_size);
    return outside;
  });
  sampling_ = {options_.eos_token_ids, options_.thinking, vocab_size};
  if (options_.checkpoint_bytes > 0 || options_.host_checkpoint_bytes > 0)
    cache_ = std::make_unique<PrefixCache>(
        runner.pages(), runner.slots(),
        PrefixCacheOptions{options_.checkpoint_bytes,
                           options_.host_checkpoint_bytes,
                           [&backend = runner.backend()](void* to, const void* from, size_t bytes) {
                             backend.copy_bytes(to, from, bytes);
                           },
                           {}});
  SchedulerOptions scheduling = options_.scheduler;
  if (options_.speculative && options_.speculative->num_speculative_tokens > 0) {
    speculator_ =
        std::make_unique<Speculator>(runner, *options_.speculative, options_.speed, sampling_, options_.clock);
    scheduling.most_drafts = speculator_->most_drafts();
  }
  if (const VisionEncoder* encoder = runner.model().vision())
    encoder_ = std::make_unique<EncoderCache>(*encoder, runner.backend(), options_.encoder_cache_bytes);
  scheduler_ = std::make_unique<Scheduler>(
      runner, cache_.get(), scheduling,
      [this](std::span<Choice* const> choices) {
        if (speculator_) speculator_->complete_entries(choices);
      },
      [this](Choice& choice, int64_t rows) { return encode_pictures(choice, rows); });
}

EngineCore::~EngineCore() {
  for (const auto& [id, state] : requests_)
    for (const auto& choice : state->choices) scheduler_->remove(*choice, false);
}

// Seeds of requests without one: a fixed sequence of the engine's seed.
uint64_t EngineCore::next_seed() {
  const auto words = philox4x32({static_cast<uint32_t>(seeds_drawn_), static_cast<uint32_t>(seeds_drawn_ >> 32), 0, 1},
                                *options_.seed);
  ++seeds_drawn_;
  return words[0] | uint64_t{words[1]} << 32;
}

std::optional<RequestError> EngineCore::check(const Request& request) const {
  const auto bad = [](std::string param, std::string message, std::string code = "invalid_request_error") {
    return RequestError{400, std::move(code), std::move(param), std::move(message)};
  };
  const int64_t size = std::ssize(request.prompt_token_ids), vocab_size = runner_.model().vocab_size();
  if (size == 0) return bad("prompt", "the prompt is empty");
  for (const int32_t id : request.prompt_token_ids)
    if (id < 0 || id >= vocab_size)
      return bad("prompt",
                 "token id " + std::to_string(id) + " is outside the vocabulary of " + std::to_string(vocab_size));
  if (size > scheduler_->longest() - (request.pooling == Pooling::kNone)) {
    const bool by_flag = scheduler_->longest() == runner_.limits().max_model_len;
    return bad("prompt",
               "the prompt has " + std::to_string(size) + " tokens; prompt and answer together may have " +
                   std::to_string(scheduler_->longest()) +
                   (by_flag ? " (--max-model-len)" : " (all pages, --num-gpu-blocks-override)"),
               "context_length_exceeded");
  }
  const SamplingParams& params = request.params;
  if (!params.stop.empty() && tokenizer_ == nullptr)
    return bad("stop", "stop strings need a tokenizer; use stop_token_ids");
  if (!params.bad_words.empty() && tokenizer_ == nullptr) return bad("bad_words", "bad_words need a tokenizer");
  if (params.thinking_token_budget && options_.thinking.empty())
    return bad("thinking_token_budget", "this model has no reasoning that a thinking_token_budget could end");
  if (!request.pictures.empty() && !encoder_) return bad("prompt", "this model takes no pictures");
  for (const PictureRows& picture : request.pictures)
    if (picture.begin < 0 || picture.count < 1 || picture.end() > size || picture.first_row < 0 ||
        picture.first_row + picture.count > encoder_->rows_of(*picture.input))
      return bad("prompt", "a picture does not fit its place in the prompt");
  if (request.pooling != Pooling::kNone && (params.n != 1 || params.prompt_logprobs))
    return bad(params.n != 1 ? "n" : "prompt_logprobs", "a prompt that is pooled has no answer");
  return params.check({.vocab_size = vocab_size, .max_n = 1024, .max_logprobs = -1});
}

std::variant<RequestId, RequestError> EngineCore::add(Request request, OnToken on_token) {
  if (auto error = check(request)) return *std::move(error);
  auto state = std::make_unique<RequestState>();
  state->id = next_id_++;
  state->request = std::move(request);
  state->on_token = std::move(on_token);
  state->space = prefix_space(state->request.cache_salt, "");
  state->caches = cache_ != nullptr && state->request.images.empty();
  make_choices(*state);
  if (state->request.deadline > 0) deadlines_.insert({state->request.deadline, state->id});
  scheduler_->add(*state->choices.front());
  const RequestId id = state->id;
  requests_.emplace(id, std::move(state));
  return id;
}

void EngineCore::make_choices(RequestState& state) {
  const Request& request = state.request;
  const uint64_t seed = request.params.seed ? *request.params.seed : next_seed();
  for (int32_t i = 0; i < request.params.n; ++i) {
    Choice& choice = *state.choices.emplace_back(std::make_unique<Choice>(state));
    Sequence& s = choice.sequence;
    s.tokens = request.prompt_token_ids;
    s.prompt_size = s.size();
    s.params = request.params;
    s.seed = seed;
    s.choice = request.first_choice + i;
    s.processors = request.processors;
    if (i > 0) s.params.prompt_logprobs.reset();  // the first one runs the prompt
    if (request.grammar) s.grammar = i == 0 ? request.grammar : std::shared_ptr<Grammar>(request.grammar->clone());
    s.images = request.images;
    s.positions = request.positions;
    s.position_delta = request.position_delta;
    choice.longest = scheduler_->longest();
    if (s.params.max_tokens) choice.longest = std::min(choice.longest, s.prompt_size + *s.params.max_tokens);
    if (tokenizer_ == nullptr) continue;
    for (std::vector<int32_t>& word : tokenize_bad_words(*tokenizer_, s.params.bad_words))
      s.params.bad_words_token_ids.push_back(std::move(word));
    if (s.params.detokenize)
      choice.detokenizer.emplace(*tokenizer_,
                                 DetokenizerOptions{.skip_special = s.params.skip_special_tokens,
                                                    .stop = s.params.stop,
                                                    .include_stop_str_in_output = s.params.include_stop_str_in_output,
                                                    .min_tokens = s.params.min_tokens});
  }
}

void EngineCore::cancel(RequestId id) {
  const auto found = requests_.find(id);
  if (found == requests_.end() || found->second->cancelled) return;
  found->second->cancelled = true;
  cancelled_.push_back(id);
}

void EngineCore::preempt(RequestId id, int32_t choice) {
  Choice& chosen = *requests_.at(id)->choices.at(static_cast<size_t>(choice));
  if (chosen.status == Choice::Status::kRunning) scheduler_->preempt(chosen);
}

void EngineCore::end_cancelled() {
  const double now = deadlines_.empty() ? 0 : options_.clock();
  while (!deadlines_.empty() && deadlines_.begin()->first <= now) {
    const auto found = requests_.find(deadlines_.begin()->second);
    deadlines_.erase(deadlines_.begin());
    if (found == requests_.end()) continue;
    for (const auto& choice : found->second->choices)
      if (!choice->finished())
        choice->answer.error = RequestError{504, "deadline_exceeded", "", "the request's time was up"};
    cancel(found->first);
  }
  while (!cancelled_.empty()) {  // tell() may cancel further ones
    const RequestId id = cancelled_.back();
    cancelled_.pop_back();
    RequestState& state = *requests_.at(id);
    for (const auto& choice : state.choices) {
      if (choice->finished()) continue;
      if (!choice->sequence.finished) {
        choice->sequence.finished = true;
        choice->answer.finish_reason = FinishReason::kCancelled;
        if (choice->detokenizer) choice->answer.text += choice->detokenizer->flush();
        tell(*choice, -1, "");
      }
      end(*choice);
    }
    requests_.erase(id);
  }
}

// What is left of a choice after its last event.
void EngineCore::end(Choice& choice) {
  const Answer& answer = choice.answer;
  const bool kept = !answer.error && answer.finish_reason != FinishReason::kCancelled &&
                    choice.request.request.pooling == Pooling::kNone;
  scheduler_->remove(choice, kept);
  if (answer.error)
    ++stats_.finished_error;
  else
    ++(answer.finish_reason == FinishReason::kStop     ? stats_.finished_stop
       : answer.finish_reason == FinishReason::kLength ? stats_.finished_length
                                                       : stats_.finished_abort);
}

void EngineCore::tell(Choice& choice, int32_t token, std::string_view text) {
  RequestState& state = choice.request;
  if (!state.on_token) return;
  const bool finished = choice.sequence.finished;
  if (!state.on_token({state.id, choice.sequence.choice, token, text, finished, choice.answer}) && !finished)
    cancel(state.id);
}

// Encodes the pictures that the choice's next rows read, as far as the step's budget goes; the rows before the first
// that has to wait can run.
int64_t EngineCore::encode_pictures(Choice& choice, int64_t rows) {
  const std::vector<PictureRows>& pictures = choice.request.request.pictures;
  Sequence& s = choice.sequence;
  choice.embeds.resize(pictures.size());
  for (size_t i = 0; i < pictures.size(); ++i) {
    const PictureRows& picture = pictures[i];
    if (choice.embeds[i] || picture.end() <= s.computed) continue;
    if (picture.begin >= s.computed + rows) break;
    const int64_t cost = encoder_->contains(*picture.input) ? 0 : encoder_->rows_of(*picture.input);
    if (cost > encoder_budget_ && encoder_budget_ < options_.encoder_budget)
      return std::max<int64_t>(0, picture.begin - s.computed);
    encoder_budget_ = std::max<int64_t>(0, encoder_budget_ - cost);
    try {
      choice.embeds[i] = encoder_->encode(*picture.input);
    } catch (const LoadError& error) {
      choice.answer.error = RequestError{500, "internal_error", "", error.what()};
      cancel(choice.request.id);
      return 0;
    }
    s.images.push_back(
        {picture.begin, choice.embeds[i]->rows.slice(0, picture.first_row, picture.first_row + picture.count)});
  }
  return rows;
}

bool EngineCore::step() {
  end_cancelled();
  encoder_budget_ = options_.encoder_budget;
  const Plan plan = scheduler_->schedule();
  if (plan.empty()) return false;
  ++stats_.steps;
  if (speculator_) speculator_->draft(plan);
  forward(plan);
  finish_step(plan);
  end_cancelled();
  return true;
}

void EngineCore::forward(Plan plan) {
  const double start = options_.clock();
  StepShape shape;
  parts_.clear();
  first_rows_.clear();
  int64_t row = 0;
  for (const Scheduler::Planned& planned : plan) {
    Choice& choice = *planned.choice;
    parts_.push_back({&choice.sequence, planned.rows, choice.drafts, planned.cuts});
    first_rows_.push_back(row);
    const int64_t rows = planned.rows + std::ssize(choice.drafts);
    row += rows;
    shape.add(rows, choice.sequence.computed + rows, choice.left() == planned.rows ? 1 + std::ssize(choice.drafts) : 0);
    if (!choice.decodes()) stats_.prompt_rows += planned.rows;
  }
  const Tensor hidden = runner_.forward(parts_);
  scheduler_->after_forward();
  for (size_t i = 0; i < plan.size(); ++i) {
    Scheduler::Planned& planned = plan[i];
    const int64_t begin = planned.choice->sequence.computed - planned.rows;
    planned.finite.clear();
    for (const ModelRunner::Cut& cut : planned.cuts)
      planned.finite.push_back(all_finite(runner_.read_row(hidden[first_rows_[i] + cut.end - 1 - begin])));
    // Rows that are sampled are looked at by the sampler.
    planned.choice->finite = planned.choice->left() == 0 || !planned.choice->request.caches ||
                             all_finite(runner_.read_row(hidden[first_rows_[i] + planned.rows - 1]));
    if (planned.choice->request.request.pooling != Pooling::kNone) pool(planned, hidden, first_rows_[i]);
    if (planned.choice->sequence.params.prompt_logprobs) score_prompt(planned, hidden, first_rows_[i]);
  }
  sample(plan, hidden);
  if (speculator_) speculator_->observe_step(shape, options_.clock() - start);
}

// Adds the step's hidden rows of a prompt to its vector.
void EngineCore::pool(const Scheduler::Planned& planned, const Tensor& hidden, int64_t row) {
  Choice& choice = *planned.choice;
  const Sequence& s = choice.sequence;
  const bool mean = choice.request.request.pooling == Pooling::kMean, ends = s.computed == s.prompt_size;
  if (s.computed == planned.rows) choice.pooled.clear();  // it may have been preempted
  choice.pooled.resize(static_cast<size_t>(hidden.size(1)));
  for (int64_t i = mean ? 0 : planned.rows - 1; i < planned.rows; ++i) {
    const std::span<const float> values = runner_.read_row(hidden[row + i]);
    for (size_t d = 0; d < values.size(); ++d) choice.pooled[d] = mean ? choice.pooled[d] + values[d] : values[d];
  }
  if (!ends) return;
  if (mean)
    for (float& value : choice.pooled) value /= static_cast<float>(s.prompt_size);
  choice.answer.embedding = std::move(choice.pooled);
}

// Logprobs of the prompt's tokens that the step's rows predict.
void EngineCore::score_prompt(const Scheduler::Planned& planned, const Tensor& hidden, int64_t row) {
  Choice& choice = *planned.choice;
  Sequence& s = choice.sequence;
  const int64_t begin = s.computed - planned.rows;
  // A preempted choice runs its prompt again.
  const int64_t first = begin + 1 + std::max<int64_t>(0, std::ssize(choice.answer.prompt_logprobs) - begin);
  const int64_t end = std::min(s.computed + 1, s.prompt_size);
  for (int64_t token = first; token < end; token += ModelRunner::kLogitRows) {
    const int64_t count = std::min(ModelRunner::kLogitRows, end - token);
    logit_rows_.clear();
    sampling_batch_.clear();
    for (int64_t i = 0; i < count; ++i) {
      logit_rows_.push_back(static_cast<int32_t>(row + token + i - 1 - begin));
      add_scoring_row(sampling_batch_, s.params, s.tokens[token + i], static_cast<int32_t>(i));
    }
    runner_.sample(runner_.logits(hidden, logit_rows_), sampling_batch_, sampling_result_);
    for (int64_t i = 0; i < count; ++i) {
      const ops::SampledRow& scored = sampling_result_.rows[i];
      const bool finite = scored.status == ops::RowStatus::kOk;
      choice.answer.prompt_logprobs.push_back(finite ? scored.logprobs : kNotScored);
    }
  }
}

void EngineCore::sample(Plan plan, const Tensor& hidden) {
  const auto begin_block = [&] {
    logit_rows_.clear();
    sampling_batch_.clear();
    sampled_.clear();
  };
  begin_block();
  for (size_t i = 0; i < plan.size(); ++i) {
    const Scheduler::Planned& planned = plan[i];
    Choice& choice = *planned.choice;
    if (choice.left() > 0 || choice.request.request.pooling != Pooling::kNone) continue;
    const size_t rows = 1 + choice.drafts.size();
    if (logit_rows_.size() + rows > static_cast<size_t>(ModelRunner::kLogitRows)) {
      sample_block(hidden);
      begin_block();
    }
    // All choices of a request sample their first token from the row of the prompt's last one.
    const bool forks = choice.sequence.outputs() == 0;
    for (const auto& sibling : choice.request.choices) {
      if (!forks && sibling.get() != &choice) continue;
      const auto logit_row = static_cast<int32_t>(logit_rows_.size());
      size_t sampled = 0;
      for (; sampled < (forks ? 1 : rows); ++sampled) {
        const auto before = std::span<const int32_t>(choice.drafts).first(sampled);
        if (!add_sampling_row(sampling_batch_, sibling->sequence, before, logit_row + static_cast<int32_t>(sampled),
                              sampling_))
          break;
      }
      sampled_.push_back({sibling.get(), sampled});
    }
    for (size_t j = 0; j < rows; ++j)
      logit_rows_.push_back(static_cast<int32_t>(first_rows_[i] + planned.rows - 1 + static_cast<int64_t>(j)));
  }
  sample_block(hidden);
}

void EngineCore::sample_block(const Tensor& hidden) {
  if (logit_rows_.empty()) return;
  runner_.sample(runner_.logits(hidden, logit_rows_), sampling_batch_, sampling_result_);
  size_t row = 0;
  for (const Sampled& sampled : sampled_) {
    take_tokens(*sampled.choice, std::span(sampling_result_.rows).subspan(row, sampled.rows));
    row += sampled.rows;
  }
}

// The tokens of a choice's rows, as long as its drafts were what was sampled.
void EngineCore::take_tokens(Choice& choice, std::span<const ops::SampledRow> rows) {
  Sequence& s = choice.sequence;
  const int64_t before = s.outputs();
  for (size_t j = 0; j < rows.size(); ++j) {
    std::string text;
    const bool finished = take_token(choice, rows[j], options_.eos_token_ids, text);
    tell(choice, choice.answer.error ? -1 : s.tokens.back(), text);
    if (finished || choice.request.cancelled || j == choice.drafts.size() || s.tokens.back() != choice.drafts[j]) break;
  }
  const int64_t emitted = s.outputs() - before;
  stats_.generation_tokens += emitted;
  if (before == 0 && s.choice == choice.request.request.first_choice) stats_.prompt_tokens += s.prompt_size;
  if (choice.drafts.empty()) return;
  const int accepted = static_cast<int>(std::max<int64_t>(0, emitted - 1));
  runner_.accept(s, accepted);
  speculator_->observe(choice, accepted);
  const size_t drafted = choice.drafts.size();
  Answer& answer = choice.answer;
  if (answer.drafted.size() < drafted) {
    answer.drafted.resize(drafted);
    answer.accepted.resize(drafted);
  }
  ++stats_.drafts;
  stats_.draft_tokens += static_cast<int64_t>(drafted);
  stats_.accepted_tokens += accepted;
  for (size_t j = 0; j < drafted; ++j) {
    const int64_t is_accepted = j < static_cast<size_t>(accepted);
    ++answer.drafted[j];
    ++stats_.drafted_per_position[j];
    answer.accepted[j] += is_accepted;
    stats_.accepted_per_position[j] += is_accepted;
  }
}

// Checkpoints, forks and ends, after all tokens were taken.
void EngineCore::finish_step(Plan plan) {
  // Entries of the drafter: of prompts, whose hidden rows the next step may overwrite, and wherever pages will be
  // shared.
  complete_.clear();
  for (const Scheduler::Planned& planned : plan) {
    Choice& choice = *planned.choice;
    if (choice.request.request.pooling != Pooling::kNone) {
      if (choice.left() == 0) {
        choice.sequence.finished = true;
        choice.answer.finish_reason = FinishReason::kStop;
        stats_.prompt_tokens += choice.sequence.prompt_size;
        tell(choice, -1, "");
      }
      if (!choice.request.caches) continue;
    }
    const bool ends_well = choice.sequence.finished && !choice.answer.error;
    const bool read_prompt = choice.sequence.computed - planned.rows < choice.sequence.prompt_size;
    if (planned.rows > 1 || read_prompt || ends_well || scheduler_->will_publish(planned)) complete_.push_back(&choice);
  }
  if (speculator_ && !complete_.empty()) speculator_->complete_entries(complete_);
  for (const Scheduler::Planned& planned : plan) {
    Choice& choice = *planned.choice;
    if (choice.sequence.computed < choice.sequence.prompt_size || choice.embeds.empty()) continue;
    choice.embeds.clear();  // the prompt was read
    choice.sequence.images.clear();
  }
  scheduler_->publish();
  for (const Scheduler::Planned& planned : plan) {
    RequestState& state = planned.choice->request;
    if (state.choices.size() == 1 || planned.choice->sequence.outputs() != 1) continue;
    ended_.clear();
    for (const auto& choice : state.choices)
      if (choice->status == Choice::Status::kUnborn && !choice->sequence.finished) ended_.push_back(choice.get());
    if (!ended_.empty() && !state.cancelled) scheduler_->fork(*planned.choice, ended_);
  }
  ended_.clear();
  for (const Scheduler::Planned& planned : plan)
    for (const auto& choice : planned.choice->request.choices)
      if (choice->sequence.finished && !choice->finished()) {
        end(*choice);
        ended_.push_back(choice.get());
      }
  for (const Choice* choice : ended_) ended_ids_.push_back(choice->request.id);
  for (const RequestId id : ended_ids_) {
    const auto found = requests_.find(id);
    if (found == requests_.end() || found->second->cancelled) continue;  // erased, or soon
    const auto& choices = found->second->choices;
    if (!std::all_of(choices.begin(), choices.end(), [](const auto& choice) { return choice->finished(); })) continue;
    deadlines_.erase({found->second->request.deadline, id});
    requests_.erase(found);
  }
  ended_ids_.clear();
}

const EngineStats& EngineCore::stats() {
  stats_.requests_running = std::ssize(scheduler_->running());
  stats_.requests_waiting = scheduler_->waiting();
  stats_.pages = runner_.pages().pages();
  stats_.pages_used = stats_.pages - runner_.pages().free_pages() - runner_.pages().cached_only_pages();
  stats_.preemptions = scheduler_->stats().preemptions;
  stats_.checkpoints_skipped = scheduler_->stats().checkpoints_skipped;
  stats_.waits_for_prefix = scheduler_->stats().waits_for_prefix;
  if (cache_) {
    stats_.prefix = cache_->stats();
    stats_.checkpoint_bytes = cache_->bytes(Tier::kDevice);
    stats_.host_checkpoint_bytes = cache_->bytes(Tier::kHost);
    stats_.checkpoints = cache_->size();
  }
  if (encoder_) {
    stats_.encoder_queries = encoder_->queries();
    stats_.encoder_hits = encoder_->hits();
    stats_.encoder_bytes = encoder_->bytes();
  }
  return stats_;
}

std::vector<std::vector<Answer>> EngineCore::run(const std::vector<Request>& requests, const OnToken& on_token,
                                                 const OnPrefill& on_prefill) {
  std::vector<std::vector<Answer>> answers(requests.size());
  std::vector<RequestId> ids;
  int64_t prompt_total = 0;
  for (size_t i = 0; i < requests.size(); ++i) {
    const Request& request = requests[i];
    const auto on_event = [&, i](const TokenEvent& event) {
      const bool goes_on =
          !on_token || on_token({i, event.choice, event.token, event.text, event.finished, event.answer});
      if (event.finished)
        answers[i][static_cast<size_t>(event.choice - requests[i].first_choice)] = std::move(event.answer);
      return goes_on;
    };
    auto added = add(request, on_event);
    if (auto* error = std::get_if<RequestError>(&added)) {
      answers[i].resize(1);
      answers[i][0].error = std::move(*error);
      continue;
    }
    ids.push_back(std::get<RequestId>(added));
    answers[i].resize(static_cast<size_t>(request.params.n));
    prompt_total += std::ssize(request.prompt_token_ids);
  }
  // However this ends (a step or a callback may throw), the requests go.
  struct Ending {
    ~Ending() {
      for (const RequestId id : ids) core.forget(id);
    }
    EngineCore& core;
    const std::vector<RequestId>& ids;
  } ending{*this, ids};
  const auto left = [&] {
    return std::any_of(ids.begin(), ids.end(), [&](RequestId id) { return requests_.contains(id); });
  };
  const int64_t rows_before = stats_.prompt_rows;
  while (left()) {
    const bool ran = step();
    CHECK_MSG(ran || !left(), "requests wait, and nothing can run");
    if (on_prefill) on_prefill(std::min(stats_.prompt_rows - rows_before, prompt_total), prompt_total);
  }
  return answers;
}

// Takes a request out without telling.
void EngineCore::forget(RequestId id) {
  const auto found = requests_.find(id);
  if (found == requests_.end()) return;
  for (const auto& choice : found->second->choices) scheduler_->remove(*choice, false);
  deadlines_.erase({found->second->request.deadline, id});
  std::erase(cancelled_, id);
  requests_.erase(found);
}

}  // namespace calandra
