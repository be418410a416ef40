#include "engine/engine.h"

#include <algorithm>
#include <random>

#include "base/log.h"
#include "base/philox.h"
#include "engine/sampling_row.h"

namespace calandra {

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

namespace {

// repetition_detection: the output ends with min_count copies of a pattern of an allowed size.
bool repeats(const Sequence& s) {
  const SamplingParams::RepetitionDetection& r = s.params.repetition_detection;
  for (int64_t size = std::max(1, r.min_pattern_size); size <= r.max_pattern_size; ++size) {
    const int64_t window = size * r.min_count;
    if (window > s.outputs()) break;
    const auto end = s.tokens.end();
    if (std::equal(end - window + size, end, end - window))
      return true;  // every token equals the one a pattern earlier
  }
  return false;
}

}  // namespace

// One choice while it runs.
struct Engine::Running {
  size_t request;
  Sequence sequence;
  std::optional<Detokenizer> detokenizer;
  Answer* answer;
  int64_t longest = 0;  // tokens at which max_tokens or max_model_len ends it
};

Engine::Engine(ModelRunner& runner, const Tokenizer* tokenizer, EngineOptions options)
    : runner_(runner), tokenizer_(tokenizer), options_(std::move(options)) {
  if (!options_.seed) options_.seed = std::random_device{}() | uint64_t{std::random_device{}()} << 32;
  std::erase_if(options_.eos_token_ids, [&](int32_t id) {
    const bool outside = id < 0 || id >= runner.model().vocab_size();
    if (outside)
      log_warning("eos_token_id {} is outside the vocabulary of {} and has no effect", id, runner.model().vocab_size());
    return outside;
  });
}

// Seeds of requests without one: a fixed sequence of the engine's seed.
uint64_t Engine::next_seed() {
  const auto words = philox4x32({static_cast<uint32_t>(seeds_drawn_), static_cast<uint32_t>(seeds_drawn_ >> 32), 0, 1},
                                *options_.seed);
  ++seeds_drawn_;
  return words[0] | uint64_t{words[1]} << 32;
}

std::optional<RequestError> Engine::check(const Request& request) const {
  const auto bad = [](std::string param, std::string message, std::string code = "invalid_request_error") {
    return RequestError{400, std::move(code), std::move(param), std::move(message)};
  };
  const int64_t size = static_cast<int64_t>(request.prompt_token_ids.size());
  if (size == 0) return bad("prompt", "the prompt is empty");
  for (const int32_t id : request.prompt_token_ids)
    if (id < 0 || id >= runner_.model().vocab_size())
      return bad("prompt", "token id " + std::to_string(id) + " is outside the vocabulary of " +
                               std::to_string(runner_.model().vocab_size()));
  if (size >= runner_.limits().max_model_len)
    return bad("prompt",
               "the prompt has " + std::to_string(size) + " tokens; prompt and answer together may have " +
                   std::to_string(runner_.limits().max_model_len) + " (--max-model-len)",
               "context_length_exceeded");
  if (!request.params.stop.empty() && tokenizer_ == nullptr)
    return bad("stop", "stop strings need a tokenizer; use stop_token_ids");
  const SamplingParams& params = request.params;
  if (params.prompt_logprobs) return bad("prompt_logprobs", "prompt_logprobs are not supported yet");
  if (params.thinking_token_budget) return bad("thinking_token_budget", "thinking_token_budget is not supported yet");
  if (!params.bad_words.empty() && tokenizer_ == nullptr) return bad("bad_words", "bad_words need a tokenizer");
  return params.check({.vocab_size = runner_.model().vocab_size(), .max_n = 1024, .max_logprobs = -1});
}

std::vector<std::vector<Answer>> Engine::run(const std::vector<Request>& requests, const OnToken& on_token,
                                             const OnPrefill& on_prefill) {
  std::vector<std::vector<Answer>> answers(requests.size());
  std::vector<std::unique_ptr<Running>> waiting;
  int64_t prompt_total = 0;
  for (size_t i = 0; i < requests.size(); ++i) {
    const Request& request = requests[i];
    const std::optional<RequestError> error = check(request);
    answers[i].resize(error ? 1 : request.params.n);
    if (error) {
      answers[i][0].error = error;
      continue;
    }
    const uint64_t seed = request.params.seed ? *request.params.seed : next_seed();
    for (int32_t choice = 0; choice < request.params.n; ++choice) {
      auto running = std::make_unique<Running>();
      running->request = i;
      running->answer = &answers[i][choice];
      Sequence& s = running->sequence;
      s.tokens = request.prompt_token_ids;
      s.prompt_size = s.size();
      s.images = request.images;
      s.positions = request.positions;
      s.position_delta = request.position_delta;
      s.params = request.params;
      s.seed = seed;
      s.choice = choice;
      if (tokenizer_ != nullptr && !s.params.bad_words.empty()) {
        for (std::vector<int32_t>& word : tokenize_bad_words(*tokenizer_, s.params.bad_words))
          s.params.bad_words_token_ids.push_back(std::move(word));
      }
      running->longest = runner_.limits().max_model_len;
      if (s.params.max_tokens) running->longest = std::min(running->longest, s.prompt_size + *s.params.max_tokens);
      if (tokenizer_ != nullptr && s.params.detokenize)
        running->detokenizer.emplace(
            *tokenizer_, DetokenizerOptions{.skip_special = s.params.skip_special_tokens,
                                            .stop = s.params.stop,
                                            .include_stop_str_in_output = s.params.include_stop_str_in_output,
                                            .min_tokens = s.params.min_tokens});
      prompt_total += s.prompt_size;
      waiting.push_back(std::move(running));
    }
  }

  // However this ends (a step or a callback may throw), pages and slots go back.
  struct Active : std::vector<std::unique_ptr<Running>> {
    explicit Active(ModelRunner& runner) : runner(runner) {}
    ~Active() {
      for (const auto& running : *this) runner.release(running->sequence);
    }
    ModelRunner& runner;
  } active(runner_);
  int64_t prompt_done = 0;
  size_t next = 0;
  while (next < waiting.size() || !active.empty()) {
    // First come, first served: a sequence enters when its pages, to its longest end, and a slot are free.
    while (next < waiting.size() && static_cast<int64_t>(active.size()) < runner_.limits().max_num_seqs &&
           runner_.reserve(waiting[next]->sequence, waiting[next]->longest))
      active.push_back(std::move(waiting[next++]));
    if (active.empty()) {  // alone and still too large for the caches
      Answer& answer = *waiting[next++]->answer;
      answer.error = RequestError{
          400, "context_length_exceeded", "max_tokens",
          "the caches are too small for this request; raise --num-gpu-blocks-override or lower max_tokens"};
      continue;
    }

    // Decoding rows first, then prompts in order, up to the token budget.
    std::vector<ModelRunner::Part> parts;
    std::vector<Running*> choosing;
    std::vector<int32_t> last_rows;
    int64_t budget = runner_.limits().max_num_batched_tokens, row = 0;
    for (const bool decoding : {true, false}) {
      for (const auto& running : active) {
        Sequence& s = running->sequence;
        if ((s.outputs() > 0) != decoding || budget == 0) continue;
        const int64_t rows = std::min(budget, s.size() - s.computed);
        parts.push_back({&s, rows});
        budget -= rows;
        row += rows;
        if (s.computed < s.prompt_size) prompt_done += rows;
        if (s.computed + rows == s.size()) {
          choosing.push_back(running.get());
          last_rows.push_back(static_cast<int32_t>(row - 1));
        }
      }
    }
    const Tensor hidden = runner_.forward(parts);
    if (on_prefill && prompt_done <= prompt_total) on_prefill(prompt_done, prompt_total);
    for (size_t first = 0; first < choosing.size(); first += ModelRunner::kLogitRows) {
      const size_t count = std::min<size_t>(ModelRunner::kLogitRows, choosing.size() - first);
      choose(hidden, {choosing.data() + first, count}, {last_rows.data() + first, count}, on_token);
    }
    // A cancelled choice takes the others of its request along, those that still wait too.
    const auto end_with = [&](const Running& cancelled, Running& other) {
      if (other.request != cancelled.request || other.sequence.finished) return;
      other.sequence.finished = true;
      other.answer->finish_reason = FinishReason::kCancelled;
    };
    for (const auto& running : active) {
      if (!running->sequence.finished || running->answer->finish_reason != FinishReason::kCancelled) continue;
      for (const auto& other : active) end_with(*running, *other);
      for (size_t i = next; i < waiting.size(); ++i) end_with(*running, *waiting[i]);
    }
    while (next < waiting.size() && waiting[next]->sequence.finished) ++next;
    std::erase_if(active, [&](const std::unique_ptr<Running>& running) {
      if (!running->sequence.finished) return false;
      runner_.release(running->sequence);
      return true;
    });
  }
  return answers;
}

void Engine::choose(const Tensor& hidden, std::span<Running* const> running, std::span<const int32_t> rows,
                    const OnToken& on_token) {
  const Tensor logits = runner_.logits(hidden, rows);
  sampling_batch_.clear();
  for (size_t i = 0; i < running.size(); ++i)
    add_sampling_row(sampling_batch_, running[i]->sequence, static_cast<int32_t>(i), options_.eos_token_ids);
  runner_.sample(logits, sampling_batch_, sampling_result_);
  for (size_t i = 0; i < running.size(); ++i) accept(*running[i], sampling_result_.rows[i], on_token);
}

void Engine::accept(Running& running, const ops::SampledRow& sampled, const OnToken& on_token) {
  Sequence& s = running.sequence;
  Answer& answer = *running.answer;
  if (sampled.status != ops::RowStatus::kOk) {
    answer.error =
        RequestError{500, "internal_error", "",
                     sampled.status == ops::RowStatus::kNotFinite
                         ? "the model computed NaN or infinity; the answer ends here"
                         : "no token is left to choose from: allowed_token_ids, bad_words and logit_bias exclude all"};
    s.finished = true;
    if (on_token) on_token({running.request, s.choice, -1, "", true});
    return;
  }
  const int32_t token = sampled.token;
  s.tokens.push_back(token);
  answer.token_ids.push_back(token);
  if (s.params.logprobs) answer.logprobs.push_back(sampled.logprobs);

  // A token that stops: an end-of-text id or one of the request's; its text is left out unless asked for.
  const bool is_eos =
      !s.params.ignore_eos && std::count(options_.eos_token_ids.begin(), options_.eos_token_ids.end(), token) > 0;
  const bool is_stop = std::count(s.params.stop_token_ids.begin(), s.params.stop_token_ids.end(), token) > 0;
  const bool stops = (is_eos || is_stop) && s.outputs() >= s.params.min_tokens;
  std::string text;
  if (running.detokenizer && !(stops && !s.params.include_stop_str_in_output)) text = running.detokenizer->push(token);
  if (stops) {
    s.finished = true;
    answer.finish_reason = FinishReason::kStop;
    if (is_stop) answer.stop_token = token;
  } else if (running.detokenizer && running.detokenizer->stopped()) {
    s.finished = true;
    answer.finish_reason = FinishReason::kStop;
    answer.stop_reason = running.detokenizer->stop_reason();
  } else if (repeats(s)) {
    s.finished = true;
    answer.finish_reason = FinishReason::kStop;
    answer.stop_reason = "repetition_detection";
  } else if (s.size() >= running.longest) {
    s.finished = true;
    answer.finish_reason = FinishReason::kLength;
  }
  if (s.finished && running.detokenizer) text += running.detokenizer->flush();
  if (running.detokenizer) answer.text += text;
  if (on_token && !on_token({running.request, s.choice, token, text, s.finished}) && !s.finished) {
    s.finished = true;
    answer.finish_reason = FinishReason::kCancelled;
  }
}

}  // namespace calandra
