#include "tests/hashsim/engine_sim.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <utility>

namespace calandra::hashsim {
namespace {

int32_t at(const Tensor& tensor, int64_t i) { return tensor.as<int32_t>()[i]; }

std::string name_of(const TokenEvent& event) {
  return fmt::format("request {} choice {}", event.request, event.choice);
}

EngineOptions with_clock(EngineOptions options, const double& now, bool async) {
  options.clock = [&now] { return now; };
  const bool by_lookup = options.speculative && options.speculative->method == DraftMethod::kNgram;
  options.async_scheduling = async && !by_lookup;  // it would only warn
  return options;
}

}  // namespace

void SimCounts::add(const SimCounts& o) {
  seeds += o.seeds, requests += o.requests, choices += o.choices, steps += o.steps, tokens += o.tokens;
  drafted += o.drafted, accepted += o.accepted, hits += o.hits, hit_tokens += o.hit_tokens, restores += o.restores;
  evictions += o.evictions, preemptions += o.preemptions, forks += o.forks, cancels += o.cancels, errors += o.errors;
  images += o.images, steps_ahead += o.steps_ahead, filled_up += o.filled_up, checkpoints += o.checkpoints,
      waits += o.waits, states_compared += o.states_compared;
  most_natural_preemptions = std::max(most_natural_preemptions, o.most_natural_preemptions);
}

std::string SimCounts::words() const {
  return fmt::format(
      "{} seeds, {} requests, {} choices, {} forks, {} steps, {} of them launched ahead, {} tokens, {} drafted, {} "
      "accepted, {} hits of {} "
      "tokens, "
      "{} restores, {} evictions, {} checkpoints, {} preemptions (at most {} of a choice unforced), {} waits for a "
      "prefix, {} cancelled or late, {} ended by an error, {} images, {} states compared",
      seeds, requests, choices, forks, steps, steps_ahead, tokens, drafted, accepted, hits, hit_tokens, restores,
      evictions, checkpoints, preemptions, most_natural_preemptions, waits, cancels, errors, images, states_compared);
}

EngineSim::EngineSim(uint64_t seed, SimOptions options)
    : seed_(seed),
      options_(std::move(options)),
      world_(seed,
             [this](SimWorld& world) {
               if (options_.async) world.limits.upload_bytes = static_cast<int64_t>(mix(seed_, 0x57e6) % 2);
               world.limits.recorded_sizes = 1 + static_cast<int64_t>(mix(seed_, 0x57e7) % 4);
               if (options_.world) options_.world(world);
             }),
      draw_(mix(seed, 0xd157)),
      stream_(mix(seed, 0x57e4) % 3 == 0 ? 0 : mix(seed, 0x57e5), options_.faults),
      model_(world_.rules.model),
      stream_model_(model_, stream_.queue()),
      runner_(options_.async ? static_cast<CausalLM&>(stream_model_) : model_,
              options_.backend != nullptr ? *options_.backend
              : options_.async            ? static_cast<Backend&>(stream_)
                                          : backend_,
              world_.limits),
      core_(runner_, nullptr, with_clock(world_.options, now_, options_.async)),
      page_was_free_(static_cast<size_t>(runner_.pages().pages())),
      slot_was_free_(static_cast<size_t>(runner_.slots().slots())) {
  model_.before_forward([this](Batch& batch) {
    now_ += (1e-4 + 1e-6 * static_cast<double>(batch.rows())) * (0.5 + draw_.real(0, 1));
    for (int64_t i = 0; i < batch.rows(); ++i) note(static_cast<uint64_t>(at(batch.token_ids, i)));
    const int32_t* lengths = batch.seq_len.as<int32_t>();
    counts_.filled_up += std::count(lengths, lengths + batch.sequences(), 0) > 0;
    if (options_.drafts && world_.options.speculative) note_drafts(batch);
    if (options_.before_forward) options_.before_forward(*this, batch);
  });
  model_.before_draft([this](Batch& batch) {
    now_ += (1e-5 + 1e-6 * static_cast<double>(batch.rows())) * (0.5 + draw_.real(0, 1));
    if (options_.before_draft) options_.before_draft(*this, batch);
  });
}

void EngineSim::violation(const std::string& what) {
  if (violation_.empty()) violation_ = fmt::format("seed {}, step {}: {} ({})", seed_, step_, what, world_.words());
}

Choice* EngineSim::find(RequestId id, int32_t choice) {
  for (Choice* running : core_.scheduler().running())
    if (running->request.id == id && running->sequence.choice == choice) return running;
  return nullptr;
}

SoloAnswer& EngineSim::solo_of(const Choice& choice) {
  const SimRequest& request = *by_id_.at(choice.request.id);
  return *request.solo[static_cast<size_t>(choice.sequence.choice - request.request.first_choice)];
}

std::string EngineSim::run() {
  scribble();
  int64_t bound = 200;  // steps that all requests together may take once nothing disturbs them
  for (const SimRequest& request : world_.requests)
    for (const auto& solo : request.solo) bound += 20 * solo->shadow.size();
  const int64_t disturbed = std::max(world_.fault_steps, world_.requests.back().arrival);
  while (violation_.empty() && (next_request_ < world_.requests.size() || !core_.idle())) {
    arrive();
    if (step_ < world_.fault_steps)
      disturb();
    else if (step_ == world_.fault_steps)
      give_back();
    std::erase_if(verified_, [&](const Verified& v) { return v.step + 1 < step_; });
    const bool ran = core_.step(), all_there = pages_taken_.empty() && slots_taken_.empty();
    counts_.steps += ran;
    if (!ran && !core_.idle() && all_there) violation("requests wait, and nothing runs");
    if (options_.after_step) options_.after_step(*this);
    check_step();
    if (++step_ > disturbed + bound) violation(fmt::format("not done after {} steps", step_));
  }
  if (violation_.empty()) finish();
  return violation_;
}

// Requests.

void EngineSim::arrive() {
  while (next_request_ < world_.requests.size() && world_.requests[next_request_].arrival <= step_)
    submit(world_.requests[next_request_]);
}

void EngineSim::submit(SimRequest& request) {
  ++next_request_;
  Request given = request.request;
  if (given.deadline > 0) given.deadline += now_;
  if (options_.submit) options_.submit(given);
  const auto added = core_.add(given, [this, &request](const TokenEvent& event) { return on_token(request, event); });
  if (std::holds_alternative<RequestError>(added) != request.refused)
    return violation(fmt::format(
        "a request was {}", request.refused ? "not refused" : "refused: " + std::get<RequestError>(added).message));
  if (request.refused) return;
  request.id = std::get<RequestId>(added);
  request.request.deadline = given.deadline;
  by_id_[request.id] = &request;
  ++counts_.requests;
  counts_.choices += request.request.params.n;
  counts_.forks += request.request.params.n - 1;
  counts_.images += std::ssize(request.request.images) + std::ssize(request.request.pictures);
}

bool EngineSim::on_token(SimRequest& request, const TokenEvent& event) {
  note(event.request), note(static_cast<uint64_t>(event.choice)), note(static_cast<uint64_t>(event.token));
  note(event.finished);
  if (options_.on_token) options_.on_token(*this, event);
  const auto index = static_cast<size_t>(event.choice - request.request.first_choice);
  if (event.request != request.id || index >= request.told.size()) {
    violation(name_of(event) + " is not of this request");
    return false;
  }
  SimRequest::Told& told = request.told[index];
  if (event.token >= 0 && std::exchange(told.step, step_) != step_ && options_.drafts)
    if (const Choice* choice = find(event.request, event.choice)) check_drafts(*choice);  // not before it is forked
  if (told.ended) violation(name_of(event) + " ends twice");
  if (event.token >= 0) check_token(request, index, event);
  if (event.token < 0 && !event.finished) violation(name_of(event) + " has neither token nor end");
  told.ended = event.finished;
  if (event.finished) check_end(request, index, event);
  if (step_ >= world_.fault_steps) return true;
  if (draw_.chance(1) && next_request_ < world_.requests.size()) submit(world_.requests[next_request_]);
  if (draw_.chance(1)) cancel_one();
  if (!draw_.chance(1)) return true;
  request.cancelled = true;
  return false;
}

void EngineSim::check_token(SimRequest& request, size_t index, const TokenEvent& event) {
  SoloAnswer& solo = *request.solo[index];
  SimRequest::Told& told = request.told[index];
  const Answer& want = solo.answer;
  ++counts_.tokens;
  const int64_t i = told.tokens++;
  if (options_.tokens) {
    if (i >= std::ssize(want.token_ids)) return violation(name_of(event) + " has too many tokens");
    if (event.token != want.token_ids[i])
      return violation(fmt::format("{} token {}: {}, not {}", name_of(event), i, event.token, want.token_ids[i]));
    if (event.answer.token_ids.back() != event.token || std::ssize(event.answer.token_ids) != told.tokens)
      violation(name_of(event) + ": the answer is not what was told");
    if (std::ssize(event.answer.logprobs) != (want.logprobs.empty() ? 0 : told.tokens))
      violation(name_of(event) + " has other numbers of tokens and logprobs");
    else if (!want.logprobs.empty())
      if (const std::string d = difference(event.answer.logprobs.back(), want.logprobs[i]); !d.empty())
        violation(fmt::format("{} token {}: {}", name_of(event), i, d));
    const bool last = told.tokens == std::ssize(want.token_ids) && !want.error;
    if (event.finished != last) violation(name_of(event) + (last ? " does not end" : " ends early"));
  }
  solo.advance(event.token);
}

void EngineSim::check_end(SimRequest& request, size_t index, const TokenEvent& event) {
  const Answer &want = request.solo[index]->answer, &got = event.answer;
  const SimRequest::Told& told = request.told[index];
  const std::string name = name_of(event);
  counts_.most_natural_preemptions =
      std::max(counts_.most_natural_preemptions, got.preemptions - told.forced_preemptions);
  note(static_cast<uint64_t>(got.cached_tokens)), note(static_cast<uint64_t>(got.preemptions));
  if (got.cached_tokens > most_cached(request)) violation(name + " was given another one's prefix");
  if (!options_.tokens) return;
  const bool late = got.error && got.error->status == 504;
  if (event.token < 0 && (late || (got.finish_reason == FinishReason::kCancelled && !got.error))) {
    ++counts_.cancels;
    if (late ? request.request.deadline <= 0 || request.request.deadline > now_ : !request.cancelled)
      violation(name + " was ended by nobody");
    return;
  }
  if (want.error) {
    const auto is_nan = [](const RequestError& error) { return error.message.find("NaN") != std::string::npos; };
    ++counts_.errors;
    if (!got.error || got.error->status != want.error->status || told.tokens != std::ssize(want.token_ids) ||
        is_nan(*got.error) != is_nan(*want.error))
      violation(name + " does not end with its error: " + want.error->message);
    return;
  }
  if (got.error) return violation(name + " ends with an error: " + got.error->message);
  if (told.tokens != std::ssize(want.token_ids)) return violation(name + " ends without all tokens");
  if (got.finish_reason != want.finish_reason || got.stop_token != want.stop_token ||
      got.stop_reason != want.stop_reason)
    violation(fmt::format("{} ends with {} {}, not {} {}", name, calandra::name_of(got.finish_reason), got.stop_reason,
                          calandra::name_of(want.finish_reason), want.stop_reason));
  if (got.prompt_logprobs.size() != want.prompt_logprobs.size())
    return violation(fmt::format("{} has {} prompt logprobs, not {}", name, got.prompt_logprobs.size(),
                                 want.prompt_logprobs.size()));
  for (size_t i = 0; i < want.prompt_logprobs.size(); ++i)
    if (const std::string d = difference(got.prompt_logprobs[i], want.prompt_logprobs[i]); !d.empty())
      return violation(fmt::format("{} prompt logprob {}: {}", name, i, d));
  const auto same = [](float a, float b) {
    return std::bit_cast<uint32_t>(a) == std::bit_cast<uint32_t>(b) || (std::isnan(a) && std::isnan(b));
  };
  if (!std::equal(got.embedding.begin(), got.embedding.end(), want.embedding.begin(), want.embedding.end(), same))
    violation(name + " has another embedding");
}

// What requests of the same salt have in common with this one's prompt, at most.
int64_t EngineSim::most_cached(const SimRequest& request) const {
  const Request& mine = request.request;
  int64_t most = 0;
  for (const auto& [id, other] : by_id_) {
    if (other == &request || other->request.cache_salt != mine.cache_salt) continue;
    for (const auto& solo : other->solo) {
      const std::vector<int32_t>& t = solo->so_far.tokens;
      int64_t common = 0;
      while (common < std::min(std::ssize(t), std::ssize(request.tokens)) && t[common] == request.tokens[common].id &&
             request.images[common] == (common < std::ssize(other->images) ? other->images[common] : 0))
        ++common;
      most = std::max(most, common);
    }
  }
  // Its own ones, when it was preempted.
  for (const SimRequest::Told& told : request.told)
    if (told.forced_preemptions > 0) most = std::ssize(request.tokens);
  if (core_.scheduler().stats().preemptions > 0) most = std::ssize(request.tokens);
  return std::min(most, std::ssize(request.tokens) - 1);
}

// Between the steps.

void EngineSim::disturb() {
  const std::span<Choice* const> running = core_.scheduler().running();
  const auto any = [&]() -> Choice& { return *running[static_cast<size_t>(draw_.in(0, std::ssize(running) - 1))]; };
  if (!running.empty() && draw_.chance(5)) preempt_one(any());
  while (!running.empty() && draw_.chance(3)) preempt_one(any());
  if (draw_.chance(2)) cancel_one();
  if (core_.cache() != nullptr && draw_.chance(4)) core_.cache()->clear();
  if (core_.cache() != nullptr && draw_.chance(4))
    core_.cache()->reclaim(draw_.in(0, runner_.pages().pages()), draw_.in(0, runner_.slots().slots()), "0:");
  if (draw_.chance(6)) take_away();
  if (draw_.chance(12)) give_back();
  if (draw_.chance(2)) now_ += draw_.real(0, 0.02f);
}

void EngineSim::cancel_one() {
  if (by_id_.empty()) return;
  SimRequest& request = *std::next(by_id_.begin(), draw_.in(0, std::ssize(by_id_) - 1))->second;
  core_.cancel(request.id);
  request.cancelled = true;
}

void EngineSim::preempt_one(Choice& choice) {
  SimRequest& request = *by_id_.at(choice.request.id);
  const int32_t index = choice.sequence.choice - request.request.first_choice;
  ++request.told[static_cast<size_t>(index)].forced_preemptions;
  core_.preempt(request.id, index);
}

// Allocations fail for a while.
void EngineSim::take_away() {
  for (int64_t i = draw_.in(0, runner_.pages().free_pages()); i > 0; --i)
    pages_taken_.push_back(*runner_.pages().take());
  for (int64_t i = draw_.in(0, runner_.slots().free_slots()); i > 0; --i)
    slots_taken_.push_back(*runner_.slots().take());
}

void EngineSim::give_back() {
  for (const int32_t page : pages_taken_) runner_.pages().release(page);
  for (const int32_t slot : slots_taken_) runner_.slots().release(slot);
  pages_taken_.clear();
  slots_taken_.clear();
}

}  // namespace calandra::hashsim
