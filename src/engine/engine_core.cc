#include "engine/engine_core.h"

#include <algorithm>
#include <chrono>
#include <random>

#include "base/log.h"
#include "base/philox.h"

namespace calandra {
namespace {

constexpr double kWarmUpSeconds = 0.5;

double system_clock() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
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
  if (options_.thinking.end_contains_start())
    throw LoadError("the tokens that end the model's reasoning contain those that start it; no budget could end it");
  sampling_ = {options_.eos_token_ids, options_.thinking, vocab_size};
  if (options_.checkpoint_bytes > 0 || options_.host_checkpoint_bytes > 0)
    cache_ = std::make_unique<PrefixCache>(
        runner.pages(), runner.slots(),
        PrefixCacheOptions{options_.checkpoint_bytes, options_.host_checkpoint_bytes, &runner.backend(), {}});
  SchedulerOptions scheduling = options_.scheduler;
  if (options_.speculative && options_.speculative->num_speculative_tokens > 0) {
    speculator_ = std::make_unique<Speculator>(runner, *options_.speculative, sampling_, options_.clock,
                                               options_.async_scheduling && runner.backend().stream() != nullptr);
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
  if (!options_.async_scheduling) return;
  const bool drafts_by_lookup = speculator_ && options_.speculative->method == DraftMethod::kNgram;
  if (runner.backend().stream() == nullptr || drafts_by_lookup)
    log_warning("asynchronous scheduling has no effect {}",
                drafts_by_lookup ? "together with drafts by prompt lookup" : "on a device without a stream");
  else
    look_ahead_ =
        std::make_unique<LookAhead>(runner, *scheduler_, speculator_.get(), options_.eos_token_ids, options_.clock);
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
  int64_t end = 0;  // of the picture before
  for (const PictureRows& picture : request.pictures) {
    if (picture.begin < end || picture.count < 1 || picture.end() > size || picture.first_row < 0 ||
        picture.first_row + picture.count > encoder_->rows_of(*picture.input))
      return bad("prompt", "a picture does not fit its place in the prompt");
    end = picture.end();
  }
  if (!request.positions.empty() && std::ssize(request.positions) != size)
    return bad("prompt", "there are " + std::to_string(request.positions.size()) + " positions for " +
                             std::to_string(size) + " tokens");
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
  state->arrival = state->request.arrival ? *state->request.arrival : options_.clock();
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
    if (request.grammar) s.grammar = request.grammar->clone();
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
  if (chosen.status != Choice::Status::kRunning) return;
  if (look_ahead_) look_ahead_->drop(chosen);
  scheduler_->preempt(chosen);
}

void EngineCore::end_cancelled() {
  const double now = deadlines_.empty() ? 0 : options_.clock();
  while (!deadlines_.empty() && deadlines_.begin()->first <= now) {
    RequestState& state = *requests_.at(deadlines_.begin()->second);
    deadlines_.erase(deadlines_.begin());
    fail(state, {504, "deadline_exceeded", "", "the request's time was up"});
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
    deadlines_.erase({state.request.deadline, id});
    requests_.erase(id);
  }
  if (encoder_) encoder_->enforce_limit();  // of pictures that these held, or prompts that were read meanwhile
}

// Ends a request before the next step, those of its choices that still run with the error.
void EngineCore::fail(RequestState& state, const RequestError& error) {
  for (const auto& choice : state.choices)
    if (!choice->sequence.finished) choice->answer.error = error;
  cancel(state.id);
}

// What is left of a choice after its last event.
void EngineCore::end(Choice& choice) {
  const Answer& answer = choice.answer;
  // Who gives up while a prompt is read often asks again. An answer that was broken off is not asked for.
  const bool kept = !answer.error && choice.request.request.pooling == Pooling::kNone &&
                    (answer.finish_reason != FinishReason::kCancelled || choice.sequence.outputs() == 0);
  if (look_ahead_) look_ahead_->drop(choice);
  scheduler_->remove(choice, kept);
  if (!answer.error && answer.finish_reason != FinishReason::kCancelled) note_times(choice);
  if (answer.error)
    ++stats_.finished_error;
  else
    ++(answer.finish_reason == FinishReason::kStop     ? stats_.finished_stop
       : answer.finish_reason == FinishReason::kLength ? stats_.finished_length
                                                       : stats_.finished_abort);
}

void EngineCore::note_times(const Choice& choice) {
  const Sequence& s = choice.sequence;
  const RequestState& request = choice.request;
  EngineTimes& times = stats_.times;
  const double started = request.started.value_or(request.arrival);
  times.request_prompt_tokens.add(static_cast<double>(s.prompt_size));
  times.request_queue_time.add(started - request.arrival);
  if (s.outputs() == 0) {  // pooled
    times.e2e_request_latency.add(now_ - request.arrival);
    return;
  }
  const double decode = choice.last_token_at - choice.first_token_at;
  times.e2e_request_latency.add(choice.last_token_at - request.arrival);
  times.request_prefill_time.add(choice.first_token_at - started);
  times.request_decode_time.add(decode);
  times.request_inference_time.add(choice.last_token_at - started);
  times.request_generation_tokens.add(static_cast<double>(s.outputs()));
  if (s.outputs() > 1) times.time_per_output_token.add(decode / static_cast<double>(s.outputs() - 1));
}

void EngineCore::tell(Choice& choice, int32_t token, std::string_view text) {
  RequestState& state = choice.request;
  if (!state.on_token) return;
  if (!state.on_token({state.id, choice.sequence.choice, token, text, choice.sequence.finished, choice.answer}))
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
      fail(choice.request, {500, "internal_error", "", error.what()});
      return 0;
    }
    // After a preemption an earlier picture may be needed for the first time.
    const auto behind = std::find_if(s.images.begin(), s.images.end(),
                                     [&](const ImageSpan& other) { return other.begin > picture.begin; });
    s.images.insert(
        behind, {picture.begin, choice.embeds[i]->rows.slice(0, picture.first_row, picture.first_row + picture.count)});
  }
  return rows;
}

bool EngineCore::step() {
  end_cancelled();
  encoder_budget_ = options_.encoder_budget;
  LookAhead::Launched* const launched = look_ahead_ && look_ahead_->pending() ? &look_ahead_->begin() : nullptr;
  const bool ahead = launched != nullptr && !launched->plan.empty();
  const Plan plan = ahead ? Plan(launched->plan) : scheduler_->schedule(!speculator_ || speculator_->wants_room());
  if (plan.empty()) {
    const bool ended = !cancelled_.empty();  // a picture that could not be encoded
    end_cancelled();
    return ended;
  }
  ++stats_.steps;
  finished_.clear();
  const int64_t tokens_before = stats_.prompt_rows + stats_.generation_tokens;
  if (ahead) {
    ++stats_.steps_ahead;
    first_rows_ = launched->rows;
    sample(plan, launched->hidden);
    if (const auto seconds = launched->seconds(); speculator_ && seconds)
      speculator_->observe_step(launched->shape, *seconds);
  } else {
    if (speculator_) speculator_->draft(plan);
    forward(plan);
  }
  finish_step(plan);
  stats_.times.iteration_tokens.add(static_cast<double>(stats_.prompt_rows + stats_.generation_tokens - tokens_before));
  end_cancelled();
  return true;
}

// Checkpoints, forks and ends, after all tokens were taken.
void EngineCore::finish_step(Plan plan) {
  // Entries of the drafter: of prompts, whose hidden rows the next step may overwrite, and wherever pages will be
  // shared.
  const bool ahead = look_ahead_ && look_ahead_->pending();
  complete_.clear();
  for (const Scheduler::Planned& planned : plan) {
    Choice& choice = *planned.choice;
    if (choice.request.request.pooling != Pooling::kNone) {
      if (choice.sequence.finished) {
        stats_.prompt_tokens += choice.sequence.prompt_size;
        tell(choice, -1, "");
      }
      if (!choice.request.caches) continue;
    }
    const bool ends_well = choice.sequence.finished && !choice.answer.error;
    const bool read_prompt = choice.sequence.computed - planned.rows < choice.sequence.prompt_size;
    if (planned.rows > 1 || read_prompt || ends_well || (!ahead && scheduler_->will_publish(planned)))
      complete_.push_back(&choice);
  }
  if (speculator_ && !complete_.empty())
    speculator_->complete_entries(complete_, [&] {
      if (ahead) look_ahead_->set_aside();
    });
  for (const Scheduler::Planned& planned : plan) {
    Choice& choice = *planned.choice;
    if (choice.sequence.computed < choice.sequence.prompt_size || choice.embeds.empty()) continue;
    choice.embeds.clear();  // the prompt was read
    choice.sequence.images.clear();
  }
  // Nobody leaves a checkpoint where a step was launched ahead.
  if (!ahead) scheduler_->publish(plan);
  for (const Scheduler::Planned& planned : plan) {
    RequestState& state = planned.choice->request;
    if (state.choices.size() == 1 || planned.choice->sequence.outputs() != 1) continue;
    born_.clear();
    for (const auto& choice : state.choices)
      if (choice->status == Choice::Status::kUnborn && !choice->sequence.finished) born_.push_back(choice.get());
    if (!born_.empty() && !state.cancelled) scheduler_->fork(*planned.choice, born_);
  }
  for (Choice* choice : finished_) end(*choice);
  ended_ids_.clear();
  for (const Choice* choice : finished_) ended_ids_.push_back(choice->request.id);
  finished_.clear();
  for (const RequestId id : ended_ids_) {
    const auto found = requests_.find(id);
    if (found == requests_.end() || found->second->cancelled) continue;  // erased, or soon
    const auto& choices = found->second->choices;
    if (!std::all_of(choices.begin(), choices.end(), [](const auto& choice) { return choice->finished(); })) continue;
    deadlines_.erase({found->second->request.deadline, id});
    requests_.erase(found);
  }
}

const EngineStats& EngineCore::stats() {
  stats_.requests_running = std::ssize(scheduler_->running());
  stats_.requests_waiting = scheduler_->waiting();
  stats_.pages = runner_.pages().pages();
  stats_.pages_used = stats_.pages - runner_.pages().free_pages() - runner_.pages().cached_only_pages();
  stats_.slots = runner_.slots().slots();
  stats_.slots_used = stats_.slots - runner_.slots().free_slots();
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

void EngineCore::warm_up() {
  CHECK(idle());
  runner_.record_steps(kWarmUpSeconds, options_.clock);
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
  size_t ended = 0;  // so many at the front
  const auto left = [&] {
    while (ended < ids.size() && !requests_.contains(ids[ended])) ++ended;
    return ended < ids.size();
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
  for (const auto& choice : found->second->choices) {
    if (look_ahead_) look_ahead_->drop(*choice);
    scheduler_->remove(*choice, false);
  }
  deadlines_.erase({found->second->request.deadline, id});
  std::erase(cancelled_, id);
  requests_.erase(found);
}

}  // namespace calandra
