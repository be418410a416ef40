// The sampler (ops/sampling.h): one launch for all rows, a cluster of 8 blocks of 1024 threads for each, and only the
// results come back. Every step is a pass of the cluster over the row, which stays in the caches: the maximum; top_k as
// the key of the k-th largest (first among the threads' maxima, which bound it), top_p as the key at which the mass
// reaches its limit, both by histograms of key bits (device/select.cuh, 16 KB of shared memory); the draw, with noise
// only where a token can still win; logprobs. What is kept is a bound on (z, column), so nothing is sorted. Rows that
// masks, biases or penalties change are copied first; that memory grows with the rows that ask for it.
//
// The host takes the rows that report a distribution or want more than 64 logprobs, those of a batch for which there is
// no memory left, and log() of the sum of masses, so that logprobs have the reference's bits. Compiled with
// -fmad=false. Expected: bound by the latency of barriers, 4 (greedy) to 20 passes.
#include <cfloat>

#include "backends/cuda/device/noise.cuh"
#include "backends/cuda/device/select.cuh"
#include "backends/cuda/sampling_memory.h"

namespace calandra::cuda {
namespace {

// Noise words of ids that come mostly in ascending order.
class NoiseReader {
 public:
  __device__ NoiseReader(const ops::SamplingRow& row, const int32_t* moves)
      : key_{row.seed, static_cast<uint32_t>(row.token_index + (row.moved_by < 0 ? 0 : moves[row.moved_by])),
             static_cast<uint32_t>(row.choice), 0} {}
  __device__ uint32_t word(int id) {
    if (id / 4 != block_) {
      block_ = id / 4;
      const PhiloxCounter words = noise_words(key_, static_cast<uint32_t>(block_));
      word_[0] = words[0], word_[1] = words[1], word_[2] = words[2], word_[3] = words[3];
    }
    const int i = id % 4;
    return i < 2 ? (i == 0 ? word_[0] : word_[1]) : (i == 2 ? word_[2] : word_[3]);
  }

 private:
  NoiseKey key_;
  int block_ = -1;
  uint32_t word_[4] = {};
};

// Tokens that stay: z from `floor` up, and keys below `edge`, of those at it the columns before `end`.
struct Kept {
  float floor = -INFINITY;
  uint32_t edge = 0xffffffffu;
  uint32_t end = 0xffffffffu;
  __device__ bool above_floor(float z) const { return z >= floor && z > -INFINITY; }
  __device__ bool before_edge(uint32_t key, uint32_t column) const {
    return key < edge || (key == edge && column < end);
  }
  __device__ bool operator()(float z, int column) const {
    return above_floor(z) && before_edge(key_of(z), static_cast<uint32_t>(column));
  }
};

// Larger values first, then lower columns (or ids); 0 is below all.
__device__ __forceinline__ uint64_t ranked(float value, int column) {
  return uint64_t{~key_of(value)} << 32 | ~static_cast<uint32_t>(column);
}
__device__ __forceinline__ int column_of(uint64_t rank) { return static_cast<int>(~static_cast<uint32_t>(rank)); }

// One row, in the hands of a cluster.
struct RowSampler {
  const SamplingArgs& a;
  const SamplingInput& in;
  const ops::SamplingRow& row;
  SelectMemory& memory;
  const float* raw;
  const float* l;  // after masks, bias and penalties
  float max = 0;
  Kept kept;

  __device__ int thread() const {
    return static_cast<int>(cooperative_groups::this_cluster().block_rank()) * kSelectThreads +
           static_cast<int>(threadIdx.x);
  }
  static constexpr int kThreads = kClusterBlocks * kSelectThreads;

  // Columns of this thread, four neighbours at a time, which share their random words.
  template <class F>
  __device__ void each_column(F f) const {
    for (int c = 4 * thread(); c < a.V; c += 4 * kThreads)
      for (int j = 0; j < 4 && c + j < a.V; ++j) f(c + j);
  }
  template <class F>
  __device__ void each_of(ops::ListRange list, F f) const {
    for (int i = list.begin + thread(); i < list.end; i += kThreads) f(i);
  }
  __device__ int id(int column) const { return a.token_ids == nullptr ? column : a.token_ids[column]; }
  __device__ int column(int id) const {  // -1: none
    if (a.token_ids == nullptr) return id >= 0 && id < a.V ? id : -1;
    int low = 0, high = a.V;
    while (low < high) {
      const int middle = (low + high) / 2;
      if (a.token_ids[middle] < id)
        low = middle + 1;
      else
        high = middle;
    }
    return low < a.V && a.token_ids[low] == id ? low : -1;
  }
  __device__ bool grammar_allows(int id) const {
    return row.grammar < 0 || (a.grammar[row.grammar + id / 32] >> (id % 32) & 1) != 0;
  }
  __device__ float z(int column) const { return (l[column] - max) / row.temperature; }

  __device__ void process_logits() {
    const auto cluster = cooperative_groups::this_cluster();
    float* copy = a.copies + int64_t{in.copy} * a.V;
    const bool listed = row.allowed.begin != row.allowed.end;
    each_column([&](int c) { copy[c] = listed || !grammar_allows(id(c)) ? -INFINITY : raw[c]; });
    cluster.sync();
    each_of(row.allowed, [&](int i) {
      const int c = column(a.ids[i]);
      if (c >= 0 && grammar_allows(a.ids[i])) copy[c] = raw[c];
    });
    cluster.sync();
    each_of(row.forbidden, [&](int i) {
      if (const int c = column(a.ids[i]); c >= 0) copy[c] = -INFINITY;
    });
    cluster.sync();
    each_of(row.bias, [&](int i) {
      if (const int c = column(a.bias[i].id); c >= 0) copy[c] += a.bias[i].bias;
    });
    cluster.sync();
    each_of(row.counts, [&](int i) {
      const int c = column(a.counts[i].id), outputs = a.counts[i].outputs;
      if (c < 0 || copy[c] == -INFINITY) return;
      float v = copy[c];
      v = v > 0 ? v / row.repetition_penalty : v * row.repetition_penalty;
      if (outputs > 0) {
        v -= row.frequency_penalty * static_cast<float>(outputs);
        v -= row.presence_penalty;
      }
      copy[c] = v < -FLT_MAX ? -FLT_MAX : FLT_MAX < v ? FLT_MAX : v;
    });
    cluster.sync();
    l = copy;
  }

  // The best of this thread's columns; all bits when the raw logits are not finite.
  __device__ uint64_t own_top() const {
    uint64_t best = 0;
    bool finite = true;
    each_column([&](int c) {
      finite = finite && raw[c] <= FLT_MAX;
      if (l[c] > -INFINITY) best = larger_of(best, ranked(l[c], c));
    });
    return finite ? best : ~uint64_t{0};
  }

  __device__ void keep_top_k(uint64_t own) {
    const double k = row.top_k;
    const auto limit = [&](uint64_t) { return k; };
    // Not below the k-th largest of the threads' maxima, if so many threads have any.
    const uint32_t bound = select(
                               memory,
                               [&](auto add) {
                                 const float own_z = own != 0 ? z(column_of(own)) : -INFINITY;
                                 if (kept.above_floor(own_z)) add(key_of(own_z), 1);
                               },
                               limit)
                               .key;
    kept.edge = select(
                    memory,
                    [&](auto add) {
                      each_column([&](int c) {
                        const float value = z(c);
                        if (const uint32_t key = key_of(value); kept.above_floor(value) && key <= bound) add(key, 1);
                      });
                    },
                    limit)
                    .key;
  }

  // Of equal elements those with the first `count` columns: the column behind them.
  template <class IsOne>
  __device__ uint32_t end_of(uint64_t count, IsOne is_one) {
    if (count == 0) return 0;
    const auto add_ones = [&](auto add) {
      each_column([&](int c) {
        if (is_one(c)) add(static_cast<uint32_t>(c), 1);
      });
    };
    return select(memory, add_ones, [&](uint64_t) { return static_cast<double>(count); }).key + 1;
  }

  __device__ void keep_top_p() {
    const Selected border = select(
        memory,
        [&](auto add) {
          each_column([&](int c) {
            const float value = z(c);
            if (kept(value, c)) add(key_of(value), exp_mass(value));
          });
        },
        [&](uint64_t total) { return static_cast<double>(row.top_p) * static_cast<double>(total); });
    const uint64_t mass = exp_mass(value_of(border.key)), ties = mass > 0 ? border.at / mass : 0;
    uint64_t low = 0, high = ties;  // how many of them stay: those before which less than the limit lies
    while (low < high) {
      const uint64_t middle = (low + high) / 2;
      if (static_cast<double>(border.before + middle * mass) < border.limit)
        low = middle + 1;
      else
        high = middle;
    }
    if (low < ties)
      kept.end = end_of(low, [&](int c) {
        const float value = z(c);
        return kept(value, c) && key_of(value) == border.key;
      });
    kept.edge = border.key;
  }

  __device__ void filter(uint64_t own) {
    if (row.min_p >= FLT_MIN) kept.floor = log_f32(row.min_p);
    if (row.top_p < 1) kept.floor = fmaxf(kept.floor, kNoMass);
    if (row.top_k > 0 && row.top_k < a.V) keep_top_k(own);
    if (row.top_p < 1) keep_top_p();
  }

  // argmax of z + noise, ties to the lower id.
  __device__ int draw(int first) const {
    NoiseReader noise(row, a.moves);
    float score = gumbel(noise.word(first));
    int best = first;
    each_column([&](int c) {
      const float value = z(c);
      if (!(value + kMaxGumbel >= score) || !kept(value, c)) return;
      const int candidate = id(c);
      const uint32_t word = noise.word(candidate);
      if (!(value + gumbel_bound(word) >= score)) return;
      const float s = value + gumbel(word);
      if (s > score || (s == score && candidate < best)) score = s, best = candidate;
    });
    return column_of(cluster_max(memory, ranked(score, best)));
  }

  // Logits whose logprobs are wanted: `value` gives that of a column.
  template <class Value>
  __device__ void read_logprobs(int token, bool leader, int* taken, Value value, SamplingOutcome& out) {
    uint64_t best = 0;
    each_column([&](int c) {
      if (const float v = value(c); v > -INFINITY) best = larger_of(best, ranked(v, c));
    });
    best = cluster_max(memory, best);
    const float largest = best != 0 ? value(column_of(best)) : -INFINITY;
    const int chosen_column = column(row.scored_id >= 0 ? row.scored_id : token);
    const float chosen = chosen_column < 0 ? -INFINITY : value(chosen_column);
    uint64_t mass = 0, rank = 0;
    each_column([&](int c) {
      const float v = value(c);
      mass += exp_mass(v - largest);
      rank += v >= chosen ? 1 : 0;
    });
    mass = cluster_sum(memory, mass);
    rank = cluster_sum(memory, rank);

    const auto count = static_cast<uint64_t>(min(row.num_logprobs, a.V));
    if (count > 0) {
      const auto add_all = [&](auto add) { each_column([&](int c) { add(key_of(value(c)), 1); }); };
      const Selected last = select(memory, add_all, [&](uint64_t) { return static_cast<double>(count); });
      Kept top{-INFINITY, last.key};
      if (count - last.before < last.at)
        top.end = end_of(count - last.before, [&](int c) { return key_of(value(c)) == last.key; });
      const auto cluster = cooperative_groups::this_cluster();
      int* slots = cluster.map_shared_rank(taken, 0);
      if (leader) *taken = 0;
      cluster.sync();
      each_column([&](int c) {
        const float v = value(c);
        if (!top.before_edge(key_of(v), static_cast<uint32_t>(c))) return;
        const int slot = atomicAdd(slots, 1);
        if (slot < kMostTops) a.tops[int64_t{in.place} * kMostTops + slot] = {id(c), v};
      });
      cluster.sync();  // the counter stays until everyone has counted
    }
    each_of(row.logprob_ids, [&](int i) {
      const int c = column(a.ids[i]);
      a.listed[in.listed + i - row.logprob_ids.begin] = c < 0 ? -INFINITY : value(c);
    });
    if (leader) {
      out.mass = mass;
      out.max = largest;
      out.chosen = chosen;
      out.rank = static_cast<int32_t>(rank);
      out.tops = static_cast<int32_t>(count);
    }
  }
};

__global__ void __cluster_dims__(kClusterBlocks, 1, 1) __launch_bounds__(kSelectThreads)
    sample_rows(const __grid_constant__ SamplingArgs a) {
  __shared__ SelectMemory memory;
  __shared__ int taken;
  const SamplingInput& in = a.rows[blockIdx.x / kClusterBlocks];
  const ops::SamplingRow& row = in.row;
  const float* raw = a.logits + row.logit_row * a.stride;
  RowSampler s{a, in, row, memory, raw, raw};
  const bool leader = s.thread() == 0;
  SamplingOutcome& out = a.outcomes[in.place];
  if (in.copy >= 0) s.process_logits();
  const uint64_t own = s.own_top(), top = cluster_max(memory, own);
  if (top == 0 || top == ~uint64_t{0}) {
    if (leader) {
      out.token = out.greedy_id = -1;
      if (a.tokens != nullptr) a.tokens[in.place] = -1;
      out.status = static_cast<int32_t>(top == 0 ? ops::RowStatus::kAllMasked : ops::RowStatus::kNotFinite);
    }
    return;
  }
  s.max = s.l[column_of(top)];
  const int greedy_id = s.id(column_of(top));
  const bool greedy = row.temperature < ops::kGreedyBelow;
  int token = greedy_id;
  if (!greedy) {
    s.filter(own);
    token = s.draw(greedy_id);
  }
  if (leader) {
    out.token = token;
    if (a.tokens != nullptr) a.tokens[in.place] = token;
    out.greedy_id = greedy_id;
    out.status = static_cast<int32_t>(ops::RowStatus::kOk);
  }
  if (row.num_logprobs == ops::kNoLogprobs) return;
  const bool processed = row.logprobs_mode >= ops::LogprobsMode::kProcessedLogprobs;
  const float shift = row.logprobs_mode == ops::LogprobsMode::kProcessedLogits ? s.max / row.temperature : 0;
  s.read_logprobs(
      token, leader, &taken,
      [&](int c) {
        if (!processed) return s.grammar_allows(s.id(c)) ? raw[c] : -INFINITY;
        if (greedy) return s.l[c];
        const float z = s.z(c);
        return s.kept(z, c) ? z + shift : -INFINITY;
      },
      out);
}

}  // namespace

void launch_sampler(cudaStream_t stream, const SamplingArgs& args, int rows) {
  sample_rows<<<static_cast<unsigned>(rows) * kClusterBlocks, kSelectThreads, 0, stream>>>(args);
}

}  // namespace calandra::cuda
