#include "engine/sampling_row.h"

#include <algorithm>
#include <bit>

#include "base/check.h"

namespace calandra {
namespace {

// Returns false when the grammar refuses one of the drafts; then the batch is as before.
bool add_grammar(ops::SamplingBatch& batch, ops::SamplingRow& row, Grammar& grammar, std::span<const int32_t> drafts,
                 int64_t vocab_size) {
  CHECK_GT(vocab_size, 0);
  const size_t begin = batch.grammar.size(), words = static_cast<size_t>(vocab_size + 31) / 32;
  batch.grammar.resize(begin + words);
  if (!grammar.mask(drafts, std::span(batch.grammar).subspan(begin))) {
    batch.grammar.resize(begin);
    return false;
  }
  row.grammar = static_cast<int32_t>(begin);
  return true;
}

// Whether a grammar allows nothing but to end the text.
bool must_end(std::span<const uint32_t> words, std::span<const int32_t> eos_token_ids) {
  bool any = false;
  for (size_t i = 0; i < words.size(); ++i)
    for (uint32_t word = words[i]; word != 0; word &= word - 1) {
      const auto id = static_cast<int32_t>(i * 32 + static_cast<size_t>(std::countr_zero(word)));
      if (std::find(eos_token_ids.begin(), eos_token_ids.end(), id) == eos_token_ids.end()) return false;
      any = true;
    }
  return any;
}

// A bad word forbids its last token when the outputs end with the others; none before min_tokens ends the text, unless
// it `must_end`.
void forbid_by_params(const SamplingParams& p, const Prefix& prefix, std::span<const int32_t> eos_token_ids,
                      bool must_end, RowEdits& edits) {
  for (const std::vector<int32_t>& word : p.bad_words_token_ids)
    if (!word.empty() && prefix.outputs_end_with(std::span(word).first(word.size() - 1))) edits.forbid(word.back());
  if (prefix.outputs() < p.min_tokens && !must_end) {
    edits.forbid(p.stop_token_ids);
    if (!p.ignore_eos) edits.forbid(eos_token_ids);
  }
}

bool has_penalties(const SamplingParams& p) {
  return p.repetition_penalty != 1 || p.frequency_penalty != 0 || p.presence_penalty != 0;
}

bool has_thinking_budget(const SamplingParams& p, const SamplingContext& context) {
  return p.thinking_token_budget && !context.thinking.empty();
}

}  // namespace

bool reads_drafts(const Sequence& s, const SamplingContext& context) {
  return s.grammar != nullptr || !s.processors.empty() || has_penalties(s.params) ||
         !s.params.bad_words_token_ids.empty() || has_thinking_budget(s.params, context);
}

bool add_sampling_row(ops::SamplingBatch& batch, Sequence& s, std::span<const int32_t> drafts, int32_t logit_row,
                      const SamplingContext& context, bool want_logprobs) {
  const SamplingParams& p = s.params;
  const Prefix prefix(s.tokens, s.prompt_size, drafts);
  ops::SamplingRow row;
  if (s.grammar && !add_grammar(batch, row, *s.grammar, drafts, context.vocab_size)) return false;
  row.logit_row = logit_row;
  row.temperature = p.temperature;
  row.top_k = p.top_k;
  row.top_p = p.top_p;
  row.min_p = p.min_p;
  row.repetition_penalty = p.repetition_penalty;
  row.frequency_penalty = p.frequency_penalty;
  row.presence_penalty = p.presence_penalty;
  row.seed = s.seed;
  row.token_index = static_cast<int32_t>(prefix.size());
  row.choice = s.choice;

  if (has_penalties(p)) {
    s.counts.update(s.tokens, s.prompt_size);
    row.counts = s.counts.append_to(batch.counts, drafts);
  }
  RowEdits edits(batch, row, p.allowed_token_ids, p.logit_bias);
  const bool form_ends = s.grammar && prefix.outputs() < p.min_tokens &&
                         must_end(std::span(batch.grammar).subspan(row.grammar), context.eos_token_ids);
  forbid_by_params(p, prefix, context.eos_token_ids, form_ends, edits);
  if (has_thinking_budget(p, context))
    ThinkingBudget(*p.thinking_token_budget, context.thinking, s.thinking).apply(prefix, edits);
  for (const auto& processor : s.processors) processor->apply(prefix, edits);

  if (want_logprobs) {
    if (p.logprobs) row.num_logprobs = *p.logprobs;
    row.logprobs_mode = p.logprobs_mode;
    row.logprob_ids.begin = static_cast<int32_t>(batch.ids.size());
    batch.ids.insert(batch.ids.end(), p.logprob_token_ids.begin(), p.logprob_token_ids.end());
    row.logprob_ids.end = static_cast<int32_t>(batch.ids.size());
  }
  batch.rows.push_back(row);
  return true;
}

}  // namespace calandra
