// EngineCore's step between plan and bookkeeping: rows through the model, and tokens out of its logits.
#include <algorithm>
#include <cmath>
#include <limits>

#include "engine/engine_core.h"
#include "engine/take_token.h"

namespace calandra {
namespace {

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

void EngineCore::forward(Plan plan) {
  StepTimer timer(runner_, options_.clock);
  timer.launch();
  const double start = options_.clock();
  StepShape shape;
  bool reads_prompts = false;
  parts_.clear();
  first_rows_.clear();
  int64_t row = 0;
  for (const Scheduler::Planned& planned : plan) {
    Choice& choice = *planned.choice;
    if (choice.drafts_at.empty())
      parts_.push_back({&choice.sequence, planned.rows, choice.drafts, planned.cuts});
    else
      parts_.push_back({&choice.sequence, planned.rows, {}, planned.cuts, choice.drafts_at});
    first_rows_.push_back(row);
    const int64_t rows = planned.rows + choice.draft_rows();
    row += rows;
    shape.add(rows, choice.sequence.computed + rows, choice.left() == planned.rows ? 1 + choice.draft_rows() : 0);
    if (!choice.request.started) choice.request.started = start;
    if (choice.decodes()) continue;
    reads_prompts = true;
    stats_.prompt_rows += planned.rows;
  }
  const Tensor hidden = runner_.forward(parts_);
  scheduler_->after_forward();
  if (speculator_ && speculator_->finish()) timer.start();  // the device turns to the step about now
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
  if (const auto seconds = timer.seconds(); speculator_ && !reads_prompts && seconds)
    speculator_->observe_step(shape, *seconds);
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
  now_ = options_.clock();
  if (all_finite(choice.pooled))
    choice.answer.embedding = std::move(choice.pooled);
  else
    choice.answer.error = RequestError{500, "internal_error", "", "the model computed NaN or infinity"};
  choice.sequence.finished = true;
  choice.answer.finish_reason = FinishReason::kStop;
  finished_.push_back(&choice);
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
  bool whole = true;  // all rows are in one block
  for (size_t i = 0; i < plan.size(); ++i) {
    const Scheduler::Planned& planned = plan[i];
    Choice& choice = *planned.choice;
    if (choice.left() > 0 || choice.request.request.pooling != Pooling::kNone) continue;
    const size_t rows = 1 + choice.drafts.size();
    if (logit_rows_.size() + rows > static_cast<size_t>(ModelRunner::kLogitRows)) {
      sample_block(hidden, {});
      whole = false;
      begin_block();
    }
    // All choices of a request sample their first token from the row of the prompt's last one.
    const auto logit_row = static_cast<int32_t>(logit_rows_.size());
    const auto add_rows = [&](Choice& from) {
      size_t sampled = 0;
      for (; sampled < rows; ++sampled) {
        const auto before = std::span<const int32_t>(from.drafts).first(sampled);
        if (!add_sampling_row(sampling_batch_, from.sequence, before, logit_row + static_cast<int32_t>(sampled),
                              sampling_))
          break;
      }
      sampled_.push_back({&from, sampled});
    };
    if (choice.sequence.outputs() > 0)
      add_rows(choice);
    else
      for (const auto& sibling : choice.request.choices) add_rows(*sibling);
    for (size_t j = 0; j < rows; ++j)
      logit_rows_.push_back(static_cast<int32_t>(first_rows_[i] + planned.rows - 1 + static_cast<int64_t>(j)));
  }
  sample_block(hidden, whole ? plan : Plan());
}

// `step`: the whole step, when these are all of its rows.
void EngineCore::sample_block(const Tensor& hidden, Plan step) {
  if (logit_rows_.empty()) return;
  const Tensor logits = runner_.logits(hidden, logit_rows_);
  if (look_ahead_ && !step.empty())
    look_ahead_->sample(step, logits, sampling_batch_, sampling_result_);
  else
    runner_.sample(logits, sampling_batch_, sampling_result_);
  now_ = options_.clock();
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
  const int accepted = choice.drafts.empty() ? 0 : static_cast<int>(std::max<int64_t>(0, emitted - 1));
  if (!(look_ahead_ && look_ahead_->took(choice, accepted)) && !choice.drafts.empty()) runner_.accept(s, accepted);
  if (s.finished) {
    finished_.push_back(&choice);
    if (look_ahead_) look_ahead_->ended(choice, choice.answer.error ? -1 : s.tokens.back());
  }
  stats_.generation_tokens += emitted;
  if (emitted > 0) {
    if (before == 0)
      stats_.times.time_to_first_token.add(now_ - choice.request.arrival);
    else
      stats_.times.inter_token_latency.add(now_ - choice.last_token_at);
    if (before == 0) choice.first_token_at = now_;
    choice.last_token_at = now_;
  }
  if (before == 0 && s.choice == choice.request.request.first_choice) stats_.prompt_tokens += s.prompt_size;
  if (choice.drafts.empty()) return;
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

}  // namespace calandra
