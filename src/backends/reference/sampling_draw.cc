// The draw, argmax of z + noise, evaluated only where a token can still win; and logprobs.
#include <cmath>

#include "backends/reference/sampling_parts.h"

namespace calandra::reference {
namespace {

// Best (score, lowest id) so far. Scores do not depend on the order in which tokens are offered.
struct Winner {
  float score;
  int32_t id;

  Winner(const NoiseKey& key, int32_t first) : score(gumbel(noise_words(key, first / 4)[first % 4])), id(first) {}

  bool can_be_beaten_by(float z) const { return z + kMaxGumbel >= score; }
  bool can_be_beaten_by(float z, uint32_t word) const { return z + gumbel_bound(word) >= score; }
  void offer(float z, uint32_t word, int32_t candidate) {
    if (!can_be_beaten_by(z, word)) return;
    const float s = z + gumbel(word);
    if (s > score || (s == score && candidate < id)) score = s, id = candidate;
  }
};

// PERF: by value, which compiles to one instruction; std::max and std::min became branches that no predictor guesses.
float larger(float a, float b) { return a > b ? a : b; }
uint32_t smaller(uint32_t a, uint32_t b) { return a < b ? a : b; }

// Noise words of ids that come mostly in ascending order.
class NoiseReader {
 public:
  explicit NoiseReader(const NoiseKey& key) : key_(key) {}
  uint32_t word(int32_t id) {
    if (id / 4 != block_) {
      block_ = id / 4;
      words_ = noise_words(key_, block_);
    }
    return words_[id % 4];
  }

 private:
  const NoiseKey& key_;
  int32_t block_ = -1;
  PhiloxCounter words_{};
};

}  // namespace

int32_t draw(std::span<const Candidate> kept, const NoiseKey& key, int32_t first) {
  Winner winner(key, first);
  NoiseReader noise(key);
  for (const Candidate& c : kept)
    if (winner.can_be_beaten_by(c.z)) winner.offer(c.z, noise.word(c.id), c.id);
  return winner.id;
}

int32_t draw(const float* l, const Vocabulary& vocabulary, const NoiseKey& key, Scale scale, int32_t first) {
  Winner winner(key, first);
  NoiseReader noise(key);
  float z[kBlock];
  for (int64_t begin = 0; begin < vocabulary.V; begin += kBlock) {
    scale_block(l, begin, vocabulary.V, scale, z);
    if (!vocabulary.token_ids.empty()) {
      for (int64_t i = 0; i < kBlock; ++i)
        if (z[i] > kMinusInfinity && winner.can_be_beaten_by(z[i])) {
          const int32_t id = vocabulary.id(begin + i);
          winner.offer(z[i], noise.word(id), id);
        }
      continue;
    }
    for (int64_t i = 0; i < kBlock; i += 4) {  // four columns share their random words
      const float top = larger(larger(z[i], z[i + 1]), larger(z[i + 2], z[i + 3]));
      if (!winner.can_be_beaten_by(top)) continue;
      const auto id = static_cast<int32_t>(begin + i);
      const PhiloxCounter words = noise_words(key, static_cast<uint32_t>(id / 4));
      const uint32_t least = smaller(smaller(words[0], words[1]), smaller(words[2], words[3]));
      if (!winner.can_be_beaten_by(top, least)) continue;
      for (int32_t j = 0; j < 4; ++j) winner.offer(z[i + j], words[j], id + j);
    }
  }
  return winner.id;
}

double log_of_mass(uint64_t mass) { return std::log(static_cast<double>(mass)) - 44 * 0.69314718055994531; }

namespace {

// log of the sum of exp(l - max).
double log_sum(const float* l, int64_t V, float max) {
  float z[kBlock];
  uint64_t mass[kBlock], sum = 0;
  for (int64_t begin = 0; begin < V; begin += kBlock) {
    scale_block(l, begin, V, {max, 1}, z);
    exp_mass(z, mass, kBlock);
    for (int64_t i = 0; i < kBlock; ++i) sum += mass[i];
  }
  return log_of_mass(sum);
}

int32_t count_at_least(const float* l, int64_t V, float least) {
  int32_t count = 0;
  int64_t c = 0;
  for (; c + kBlock <= V; c += kBlock)
    for (int64_t i = 0; i < kBlock; ++i) count += l[c + i] >= least ? 1 : 0;
  for (; c < V; ++c) count += l[c] >= least ? 1 : 0;
  return count;
}

bool likelier(const ops::TokenLogprob& a, const ops::TokenLogprob& b) {
  return a.logprob > b.logprob || (a.logprob == b.logprob && a.id < b.id);
}

// The `count` largest logits, best first: a heap whose front is the worst of them.
void find_top(const float* l, const Vocabulary& vocabulary, int64_t count, std::vector<ops::TokenLogprob>& heap) {
  heap.clear();
  for (int64_t c = 0; c < vocabulary.V && count > 0; ++c) {
    if (static_cast<int64_t>(heap.size()) == count) {
      if (!(l[c] > heap.front().logprob)) continue;  // an equal one has the higher id
      std::pop_heap(heap.begin(), heap.end(), likelier);
      heap.pop_back();
    }
    heap.push_back({vocabulary.id(c), l[c]});
    std::push_heap(heap.begin(), heap.end(), likelier);
  }
  std::sort_heap(heap.begin(), heap.end(), likelier);
}

}  // namespace

void read_logprobs(const float* l, const Vocabulary& vocabulary, const ops::SamplingBatch& batch,
                   const ops::SamplingRow& row, int32_t token, ops::SamplingScratch& scratch, ops::TokenLogprobs& out) {
  const bool logits_wanted =
      row.logprobs_mode == ops::LogprobsMode::kRawLogits || row.logprobs_mode == ops::LogprobsMode::kProcessedLogits;
  const float max = row_maximum(l, vocabulary.V).value;
  const double log_total = logits_wanted ? 0 : log_sum(l, vocabulary.V, max);
  const auto logprob = [&](float v) {
    return logits_wanted ? v : static_cast<float>(static_cast<double>(v) - max - log_total);
  };
  const auto logit = [&](int32_t id) {
    const int64_t column = vocabulary.column(id);
    return column < 0 ? kMinusInfinity : l[column];
  };

  const float chosen = logit(token);
  out.logprob = logprob(chosen);
  out.rank = count_at_least(l, vocabulary.V, chosen);

  const int64_t count = row.num_logprobs < 0 ? vocabulary.V : std::min<int64_t>(row.num_logprobs, vocabulary.V);
  find_top(l, vocabulary, count, scratch.heap);
  for (const ops::TokenLogprob& t : scratch.heap) out.top.push_back({t.id, logprob(t.logprob)});
  for (int32_t i = row.logprob_ids.begin; i < row.logprob_ids.end; ++i)
    out.listed.push_back({batch.ids[i], logprob(logit(batch.ids[i]))});
}

}  // namespace calandra::reference
