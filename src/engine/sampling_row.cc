#include "engine/sampling_row.h"

#include <algorithm>

namespace calandra {
namespace {

ops::ListRange append(std::vector<int32_t>& list, std::span<const int32_t> ids) {
  const auto begin = static_cast<int32_t>(list.size());
  list.insert(list.end(), ids.begin(), ids.end());
  return {begin, static_cast<int32_t>(list.size())};
}

// A bad word forbids its last token when the output ends with the others.
bool is_begun(const std::vector<int32_t>& word, std::span<const int32_t> outputs) {
  const size_t before = word.size() - 1;
  return before <= outputs.size() && std::equal(word.begin(), word.end() - 1, outputs.end() - before);
}

}  // namespace

void add_sampling_row(ops::SamplingBatch& batch, Sequence& s, int32_t logit_row,
                      std::span<const int32_t> eos_token_ids) {
  const SamplingParams& p = s.params;
  ops::SamplingRow row;
  row.logit_row = logit_row;
  row.temperature = p.temperature;
  row.top_k = p.top_k;
  row.top_p = p.top_p;
  row.min_p = p.min_p;
  row.repetition_penalty = p.repetition_penalty;
  row.frequency_penalty = p.frequency_penalty;
  row.presence_penalty = p.presence_penalty;
  row.seed = s.seed;
  row.token_index = static_cast<int32_t>(s.size());
  row.choice = s.choice;

  if (p.repetition_penalty != 1 || p.frequency_penalty != 0 || p.presence_penalty != 0) {
    s.counts.update(s.tokens, s.prompt_size);
    row.counts.begin = static_cast<int32_t>(batch.counts.size());
    batch.counts.insert(batch.counts.end(), s.counts.entries().begin(), s.counts.entries().end());
    row.counts.end = static_cast<int32_t>(batch.counts.size());
  }
  if (!p.logit_bias.empty()) {
    row.bias.begin = static_cast<int32_t>(batch.bias.size());
    batch.bias.insert(batch.bias.end(), p.logit_bias.begin(), p.logit_bias.end());
    row.bias.end = static_cast<int32_t>(batch.bias.size());
  }
  row.allowed = append(batch.ids, p.allowed_token_ids);

  const std::span<const int32_t> outputs = std::span(s.tokens).subspan(s.prompt_size);
  row.forbidden.begin = static_cast<int32_t>(batch.ids.size());
  for (const std::vector<int32_t>& word : p.bad_words_token_ids)
    if (!word.empty() && is_begun(word, outputs)) batch.ids.push_back(word.back());
  if (s.outputs() < p.min_tokens) {
    append(batch.ids, p.stop_token_ids);
    if (!p.ignore_eos) append(batch.ids, eos_token_ids);
  }
  row.forbidden.end = static_cast<int32_t>(batch.ids.size());

  if (p.logprobs) row.num_logprobs = *p.logprobs;
  row.logprobs_mode = p.logprobs_mode;
  row.logprob_ids = append(batch.ids, p.logprob_token_ids);
  batch.rows.push_back(row);
}

}  // namespace calandra
