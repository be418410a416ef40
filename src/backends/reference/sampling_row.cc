#include "backends/reference/sampling_row.h"

#include <algorithm>
#include <cfloat>
#include <cmath>

#include "backends/reference/sampling_parts.h"

namespace calandra::reference {
namespace {

void report_distribution(std::vector<Candidate>& kept, ops::SampledRow& out) {
  std::sort(kept.begin(), kept.end(), [](const Candidate& a, const Candidate& b) { return a.id < b.id; });
  double sum = 0;
  for (const Candidate& c : kept) sum += std::exp(static_cast<double>(c.z));
  for (const Candidate& c : kept) {
    const double p = std::exp(static_cast<double>(c.z)) / sum;
    if (p == 0) continue;
    out.distribution_ids.push_back(c.id);
    out.distribution_probs.push_back(p);
  }
}

// The row of the processed logits: z where kept, -inf elsewhere; shifted back when the logits themselves are wanted.
void write_kept(const std::vector<Candidate>& kept, const Vocabulary& vocabulary, float shift, std::vector<float>& l) {
  l.assign(vocabulary.V, kMinusInfinity);
  for (const Candidate& c : kept) l[vocabulary.column(c.id)] = c.z + shift;
}

}  // namespace

RowMaximum row_maximum(const float* l, int64_t V) {
  RowMaximum best{kMinusInfinity, 0, true};
  constexpr int64_t kLanes = 8;
  int64_t begin = 0;
  for (; begin + kBlock <= V;
       begin += kBlock) {  // lanes without branches; the place is looked for only where the maximum grows
    float lane[kLanes];
    int32_t finite[kLanes];
    for (int64_t j = 0; j < kLanes; ++j) lane[j] = kMinusInfinity, finite[j] = -1;
    for (int64_t i = 0; i < kBlock; i += kLanes)
      for (int64_t j = 0; j < kLanes; ++j) {
        const float v = l[begin + i + j];
        lane[j] = v > lane[j] ? v : lane[j];
        finite[j] &= v <= FLT_MAX ? -1 : 0;
      }
    float top = lane[0];
    for (int64_t j = 0; j < kLanes; ++j) {
      top = lane[j] > top ? lane[j] : top;
      best.finite = best.finite && finite[j] != 0;
    }
    if (top > best.value) {
      best.value = top;
      best.column = begin;
      while (l[best.column] != top) ++best.column;
    }
  }
  for (; begin < V; ++begin) {
    if (l[begin] > best.value) best.value = l[begin], best.column = begin;
    if (!(l[begin] <= FLT_MAX)) best.finite = false;
  }
  return best;
}

namespace {

bool grammar_allows(const ops::SamplingBatch& batch, const ops::SamplingRow& row, int32_t id) {
  return row.grammar < 0 || (batch.grammar[row.grammar + id / 32] >> (id % 32) & 1) != 0;
}

}  // namespace

bool changes_logits(const ops::SamplingRow& row) {
  const bool penalties = row.repetition_penalty != 1 || row.frequency_penalty != 0 || row.presence_penalty != 0;
  return row.grammar >= 0 || !row.allowed.empty() || !row.forbidden.empty() || !row.bias.empty() ||
         (penalties && !row.counts.empty());
}

void mask_by_grammar(const float* logits, const ops::SamplingBatch& batch, const ops::SamplingRow& row,
                     const Vocabulary& vocabulary, std::vector<float>& l) {
  l.assign(logits, logits + vocabulary.V);
  if (row.grammar < 0) return;
  for (int64_t c = 0; c < vocabulary.V; ++c)
    if (!grammar_allows(batch, row, vocabulary.id(c))) l[c] = kMinusInfinity;
}

void process_logits(const float* logits, const ops::SamplingBatch& batch, const ops::SamplingRow& row,
                    const Vocabulary& vocabulary, std::vector<float>& l) {
  if (row.allowed.empty()) {
    mask_by_grammar(logits, batch, row, vocabulary, l);
  } else {
    l.assign(vocabulary.V, kMinusInfinity);
    for (int32_t i = row.allowed.begin; i < row.allowed.end; ++i) {
      const int64_t c = vocabulary.column(batch.ids[i]);
      if (c >= 0 && grammar_allows(batch, row, batch.ids[i])) l[c] = logits[c];
    }
  }
  for (int32_t i = row.forbidden.begin; i < row.forbidden.end; ++i)
    if (const int64_t c = vocabulary.column(batch.ids[i]); c >= 0) l[c] = kMinusInfinity;
  for (int32_t i = row.bias.begin; i < row.bias.end; ++i)
    if (const int64_t c = vocabulary.column(batch.bias[i].id); c >= 0) l[c] += batch.bias[i].bias;
  for (int32_t i = row.counts.begin; i < row.counts.end; ++i) {
    const auto [id, outputs] = batch.counts[i];
    const int64_t c = vocabulary.column(id);
    if (c < 0) continue;
    float v = l[c];
    v = v > 0 ? v / row.repetition_penalty : v * row.repetition_penalty;
    if (outputs > 0) {
      v -= row.frequency_penalty * static_cast<float>(outputs);
      v -= row.presence_penalty;
    }
    // An extreme penalty must neither mask a token nor make one infinite.
    l[c] = l[c] == kMinusInfinity ? l[c] : std::clamp(v, -FLT_MAX, FLT_MAX);
  }
}

void sample_row(const float* logits, int64_t V, const ops::SamplingBatch& batch, const ops::SamplingRow& row,
                ops::SamplingScratch& scratch, ops::SampledRow& out) {
  const Vocabulary vocabulary{V, batch.token_ids};
  out.token = out.greedy_id = -1;
  out.status = ops::RowStatus::kOk;
  out.logprobs.top.clear();
  out.logprobs.listed.clear();
  out.distribution_ids.clear();
  out.distribution_probs.clear();

  RowMaximum top = row_maximum(logits, V);
  if (!top.finite) {
    out.status = ops::RowStatus::kNotFinite;
    return;
  }
  const float* l = logits;
  if (changes_logits(row)) {
    process_logits(logits, batch, row, vocabulary, scratch.logits);
    l = scratch.logits.data();
    top = row_maximum(l, V);
  }
  if (top.value == kMinusInfinity) {
    out.status = ops::RowStatus::kAllMasked;
    return;
  }
  out.greedy_id = vocabulary.id(top.column);

  const bool greedy = row.temperature < ops::kGreedyBelow;
  const bool wants_logprobs = row.num_logprobs != ops::kNoLogprobs;
  const bool processed = row.logprobs_mode >= ops::LogprobsMode::kProcessedLogprobs;
  const Scale scale{top.value, row.temperature};
  scratch.kept.clear();
  if (greedy) {
    out.token = out.greedy_id;
    scratch.kept.push_back({0, out.token});
  } else {
    const int32_t index = row.token_index + (row.moved_by < 0 ? 0 : batch.moves.as<int32_t>()[row.moved_by]);
    const NoiseKey key{row.seed, static_cast<uint32_t>(index), static_cast<uint32_t>(row.choice)};
    if (has_filter(row, V) || row.distribution || (wants_logprobs && processed)) {
      filter(l, vocabulary, row, scale, scratch);
      out.token = draw(scratch.kept, key, out.greedy_id);
    } else {
      out.token = draw(l, vocabulary, key, scale, out.greedy_id);
    }
  }
  if (row.distribution) report_distribution(scratch.kept, out);
  if (!wants_logprobs) return;
  if (!processed) {
    l = logits;
    if (row.grammar >= 0) {
      mask_by_grammar(logits, batch, row, vocabulary, scratch.logits);
      l = scratch.logits.data();
    }
  } else if (!greedy) {
    const float shift = row.logprobs_mode == ops::LogprobsMode::kProcessedLogits ? top.value / row.temperature : 0;
    write_kept(scratch.kept, vocabulary, shift, scratch.logits);
    l = scratch.logits.data();
  }
  read_logprobs(l, vocabulary, batch, row, row.scored_id >= 0 ? row.scored_id : out.token, scratch, out.logprobs);
}

}  // namespace calandra::reference
