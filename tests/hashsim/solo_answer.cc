#include "tests/hashsim/solo_answer.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

namespace calandra::hashsim {
namespace {

Sequence begin(const Request& request, uint64_t seed, int32_t choice) {
  Sequence s;
  s.tokens = request.prompt_token_ids;
  s.prompt_size = s.size();
  s.params = request.params;
  s.seed = seed;
  s.choice = request.first_choice + choice;
  s.processors = request.processors;
  if (request.grammar) s.grammar = request.grammar->clone();
  s.positions = request.positions;
  s.position_delta = request.position_delta;
  return s;
}

bool among(int32_t token, std::span<const int32_t> ids) {
  return std::find(ids.begin(), ids.end(), token) != ids.end();
}

// The outputs end with `count` equal patterns of an allowed size.
bool repeats(const SamplingParams::RepetitionDetection& rule, std::span<const int32_t> outputs) {
  const auto n = static_cast<int32_t>(outputs.size());
  for (int32_t size = std::max(1, rule.min_pattern_size); size <= rule.max_pattern_size; ++size) {
    if (size * rule.min_count > n) continue;
    bool all = true;
    for (int32_t i = 0; i < size * rule.min_count; ++i) all = all && outputs[n - 1 - i] == outputs[n - 1 - i % size];
    if (all) return true;
  }
  return false;
}

bool same_bits(float a, float b) { return std::bit_cast<uint32_t>(a) == std::bit_cast<uint32_t>(b); }

}  // namespace

const ops::SampledRow& SoloSampler::sample(std::span<const float> logits, const ops::SamplingBatch& batch) {
  ExecContext ctx{backend_, workspace_, communicator_};
  const Tensor rows(const_cast<float*>(logits.data()), DType::kF32, {1, std::ssize(logits)});
  result_.rows.clear();  // nothing of an earlier row may be left
  ops::sample(ctx, rows, batch, result_);
  return result_.rows.front();
}

SoloAnswer::SoloAnswer(const SoloRules& rules, SoloSampler& sampler, const Request& request,
                       std::span<const uint64_t> images, uint64_t seed, int32_t choice)
    : shadow(rules.model), so_far(begin(request, seed, choice)) {
  for (int64_t i = 0; i < so_far.prompt_size; ++i)
    shadow.append(so_far.tokens[i], {so_far.position(i, 0), so_far.position(i, 1), so_far.position(i, 2)}, images[i]);
  if (request.params.prompt_logprobs && choice == 0) score_prompt(rules, sampler);
  if (request.pooling != Pooling::kNone)
    pool(request.pooling);
  else
    generate(rules, sampler, begin(request, seed, choice));
}

void SoloAnswer::score_prompt(const SoloRules&, SoloSampler& sampler) {
  using Mode = ops::LogprobsMode;
  const SamplingParams& p = so_far.params;
  for (int64_t i = 1; i < so_far.prompt_size; ++i) {
    ops::SamplingBatch batch;
    ops::SamplingRow& row = batch.rows.emplace_back();
    row.temperature = 0;
    row.scored_id = so_far.tokens[i];
    row.num_logprobs = *p.prompt_logprobs;
    const bool logits = p.logprobs_mode == Mode::kRawLogits || p.logprobs_mode == Mode::kProcessedLogits;
    row.logprobs_mode = logits ? Mode::kRawLogits : Mode::kRawLogprobs;
    batch.ids = p.prompt_logprob_token_ids;
    row.logprob_ids = {0, static_cast<int32_t>(batch.ids.size())};
    const ops::SampledRow& scored = sampler.sample(shadow.logits(i - 1), batch);
    answer.prompt_logprobs.push_back(scored.logprobs);
    if (scored.status != ops::RowStatus::kOk)
      answer.prompt_logprobs.back() = {-std::numeric_limits<float>::infinity(), 0, {}, {}};
  }
}

void SoloAnswer::pool(Pooling pooling) {
  const int64_t n = so_far.prompt_size;
  std::vector<float> row(kHiddenSize), sum(kHiddenSize);
  for (int64_t i = pooling == Pooling::kMean ? 0 : n - 1; i < n; ++i) {
    put_hidden(row.data(), shadow.hidden(i));
    if (so_far.tokens[i] == shadow.config().nan_token) row[0] = std::numeric_limits<float>::quiet_NaN();
    for (int d = 0; d < kHiddenSize; ++d) sum[d] += row[d];
  }
  if (pooling == Pooling::kMean)
    for (float& value : sum) value /= static_cast<float>(n);
  if (std::all_of(sum.begin(), sum.end(), [](float value) { return std::isfinite(value); }))
    answer.embedding = sum;
  else
    answer.error = RequestError{500, "internal_error", "", "the model computed NaN"};
  answer.finish_reason = FinishReason::kStop;
}

void SoloAnswer::generate(const SoloRules& rules, SoloSampler& sampler, Sequence s) {
  const SamplingParams& p = s.params;
  const int64_t end = p.max_tokens ? std::min(rules.longest, s.prompt_size + *p.max_tokens) : rules.longest;
  for (;;) {
    ops::SamplingBatch batch;
    CHECK(add_sampling_row(batch, s, {}, 0, rules.context()));
    const ops::SampledRow& row = sampler.sample(shadow.logits(s.size() - 1), batch);
    if (row.status != ops::RowStatus::kOk) {
      if (row.status == ops::RowStatus::kNotFinite)
        answer.error = RequestError{500, "internal_error", "", "the model computed NaN"};
      else
        answer.error = RequestError{400, "invalid_request_error", "", "no token"};
      return;
    }
    const int32_t token = row.token;
    s.tokens.push_back(token);
    shadow.append(token, {s.position(s.size() - 1, 0), s.position(s.size() - 1, 1), s.position(s.size() - 1, 2)});
    if (s.grammar) s.grammar->accept(token);
    answer.token_ids.push_back(token);
    if (p.logprobs) answer.logprobs.push_back(row.logprobs);
    const bool enough = s.outputs() >= p.min_tokens, is_stop = among(token, p.stop_token_ids),
               is_end = among(token, rules.eos_token_ids);
    // Before min_tokens an end is there only where a grammar has nothing else.
    if ((enough || (is_end && s.grammar)) && (is_stop || (!p.ignore_eos && is_end))) {
      answer.finish_reason = FinishReason::kStop;
      if (is_stop) answer.stop_token = token;
      return;
    }
    if (enough && repeats(p.repetition_detection, answer.token_ids)) {
      answer.finish_reason = FinishReason::kStop;
      answer.stop_reason = "repetition_detection";
      return;
    }
    if (s.size() == end) return;  // kLength
  }
}

void SoloAnswer::advance(int32_t token) {
  so_far.tokens.push_back(token);
  if (so_far.grammar) so_far.grammar->accept(token);
}

std::vector<int32_t> SoloAnswer::mtp_drafts(const SoloRules& rules, SoloSampler& sampler, int64_t k,
                                            int64_t first_key) {
  std::vector<int32_t> drafts;
  bool ended = false;
  const SamplingContext context = rules.context();
  const auto choose = [&](std::span<const float> logits, int64_t) {
    ops::SamplingBatch batch;
    ended = ended || !add_sampling_row(batch, so_far, drafts, 0, context, false);
    if (ended) return 0;
    const ops::SampledRow& row = sampler.sample(logits, batch);
    ended = row.status != ops::RowStatus::kOk;
    if (ended) return 0;
    drafts.push_back(row.token);
    return row.token;
  };
  shadow.drafts(so_far.size() - 1, k, first_key, choose);
  return drafts;
}

std::vector<int32_t> SoloAnswer::ngram_drafts(int least, int most, int64_t k) const {
  const std::vector<int32_t>& t = so_far.tokens;
  const int64_t size = so_far.size();
  for (int64_t n = std::min<int64_t>(most, size - 1); n >= least; --n)
    for (int64_t end = size - 1; end >= n; --end) {
      if (!std::equal(t.end() - n, t.end(), t.begin() + (end - n))) continue;
      std::vector<int32_t> all = t;
      for (int64_t i = 0; i < k; ++i) all.push_back(all[end + i]);
      return {all.begin() + size, all.end()};
    }
  return {};
}

std::string difference(const ops::TokenLogprobs& got, const ops::TokenLogprobs& want) {
  const auto same = [](const std::vector<ops::TokenLogprob>& a, const std::vector<ops::TokenLogprob>& b) {
    return std::equal(a.begin(), a.end(), b.begin(), b.end(),
                      [](const auto& x, const auto& y) { return x.id == y.id && same_bits(x.logprob, y.logprob); });
  };
  if (!same_bits(got.logprob, want.logprob)) return fmt::format("logprob {}, not {}", got.logprob, want.logprob);
  if (got.rank != want.rank) return fmt::format("rank {}, not {}", got.rank, want.rank);
  if (!same(got.top, want.top)) return "other likeliest tokens";
  if (!same(got.listed, want.listed)) return "other listed tokens";
  return {};
}

}  // namespace calandra::hashsim
