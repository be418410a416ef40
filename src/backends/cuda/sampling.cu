// The sampler (ops/sampling.h): one launch for all rows, a cluster of 8 blocks of 1024 threads for each, and only the
// results come back. A row is read once, into the shared memory of its blocks, an eighth each; masks, biases and
// penalties change it there, and every later pass reads it there.
//   top_k    each block finds a bound, the k-th largest of its threads' maxima, and lists what is not below it in the
//            first block, which ends the row alone, without the barriers of a cluster
//   top_p    the key of the value at which the mass reaches its limit, by histograms of keys (device/select.cuh)
//   draw     with noise only where a token can still win
//   logprobs of the likeliest tokens: listed as for top_k
// If a block has more to list than there is room for, ties for example, the whole cluster goes on. What is kept is a
// bound on (value, column), so nothing is sorted, and sums are of integers: the order of threads changes no bit.
//
// The host takes the rows that report a distribution or want more than 64 logprobs, vocabularies that shared memory
// cannot hold, batches whose lists find no memory, and log() of the sum of masses, so that logprobs have the
// reference's bits. Compiled with -fmad=false. Expected: one read of the row, then bound by the latency of barriers.
#include "backends/cuda/device/launch.cuh"
#include "backends/cuda/device/select.cuh"
#include "backends/cuda/device/tiles.cuh"
#include "backends/cuda/sampling_memory.h"

namespace calandra::cuda {
namespace {

constexpr int kMostListed = 512;  // by each block

struct Choice {
  int token;
  Kept kept;
};

// A block's shared memory, in front of its columns of the row.
struct SamplerMemory {
  SelectMemory select;
  alignas(16) float maxima[kSelectThreads];  // of the threads' columns
  // Of the first block: what all have listed, each in its own part. Minus infinity where there is nothing.
  alignas(16) float list[kClusterBlocks * kMostListed];
  int32_t list_columns[kClusterBlocks * kMostListed];
  // Told by every block to all: how many it has listed, or would have, and the key of its bound.
  int32_t listed[kClusterBlocks];
  uint32_t bound[kClusterBlocks];
  int32_t own_listed;
  int32_t taken;  // of the first block
  Choice choice;  // told by the first block
  alignas(16) SamplingInput input;
};
static_assert(sizeof(SamplingInput) % sizeof(uint32_t) == 0);
static_assert(sizeof(SamplerMemory) % 16 == 0);
static_assert(kClusterBlocks * kMostListed == 4 * kSelectThreads);  // a thread has four of the list
static_assert(kMostColumns % (4 * kClusterBlocks) == 0);
constexpr size_t kMostShared = sizeof(SamplerMemory) + kMostColumns / kClusterBlocks * sizeof(float);
static_assert(kMostShared <= 227 * 1024);

__device__ __forceinline__ SamplerMemory& sampler_memory() { return *block_memory_as<SamplerMemory>(); }
constexpr int kMaximaAt = offsetof(SamplerMemory, maxima) / sizeof(float);
constexpr int kListAt = offsetof(SamplerMemory, list) / sizeof(float);
constexpr int kListColumnsAt = offsetof(SamplerMemory, list_columns) / sizeof(float);
constexpr int kRowAt = sizeof(SamplerMemory) / sizeof(float);

// Columns of a block: a multiple of 4.
__host__ __device__ constexpr int columns_of_block(int V) {
  return (V + 4 * kClusterBlocks - 1) / (4 * kClusterBlocks) * 4;
}

// Larger values first, then lower columns (or ids); 0 is below all.
__device__ __forceinline__ uint64_t ranked(float value, int column) {
  return uint64_t{~key_of(value)} << 32 | ~static_cast<uint32_t>(column);
}
__device__ __forceinline__ int column_of(uint64_t rank) { return static_cast<int>(~static_cast<uint32_t>(rank)); }
__device__ __forceinline__ float value_of_rank(uint64_t rank) { return value_of(~static_cast<uint32_t>(rank >> 32)); }

// Of a thread's logits the largest, and whether all are finite.
struct Best {
  float value = -INFINITY;
  int column = 0;  // the first of it
  bool finite = true;
  __device__ void offer(float v, int c) {
    if (v > value) value = v, column = c;
    finite = finite && v <= FLT_MAX;
  }
  __device__ uint64_t rank() const { return value > -INFINITY ? ranked(value, column) : 0; }
};

// The best (score, lowest id) so far.
struct Winner {
  float score;
  int id;
  __device__ bool can_be_beaten_by(float z, float noise) const { return z + noise >= score; }
  __device__ void offer(float z, uint32_t word, int candidate) {
    if (!can_be_beaten_by(z, gumbel_bound(word))) return;
    const float s = z + gumbel(word);
    if (s > score || (s == score && candidate < id)) score = s, id = candidate;
  }
};

// Of an id among ascending ones; -1: none.
__device__ __noinline__ int column_among(const int32_t* ids, int V, int id) {
  int low = 0, high = V;
  while (low < high) {
    const int middle = (low + high) / 2;
    if (ids[middle] < id)
      low = middle + 1;
    else
      high = middle;
  }
  return low < V && ids[low] == id ? low : -1;
}

// Of `count` numbers of the block's row, which begins with column `first`.
__device__ __noinline__ Best best_of_row(int first, int count) {
  const auto* own = reinterpret_cast<const float4*>(block_memory_as<float>() + kRowAt);
  Best best;
#pragma unroll 4
  for (int i = 4 * static_cast<int>(threadIdx.x); i < count; i += 4 * kSelectThreads) {
    const float4 v = own[i / 4];
    best.offer(v.x, first + i);
    best.offer(v.y, first + i + 1);
    best.offer(v.z, first + i + 2);
    best.offer(v.w, first + i + 3);
  }
  return best;
}

// One row, in the hands of a cluster.
struct RowSampler {
  const SamplingArgs& a;
  SamplerMemory& memory;
  const SamplingInput& in;
  const ops::SamplingRow& row;
  const float* raw;
  int rank, first, count;  // the block's columns
  int turn = 0;            // of reductions

  __device__ explicit RowSampler(const SamplingArgs& args)
      : a(args),
        memory(sampler_memory()),
        in(memory.input),
        row(in.row),
        raw(args.logits + row.logit_row * args.stride),
        rank(static_cast<int>(block_rank())) {
    const int each = columns_of_block(a.V);
    first = rank * each;
    count = max(0, min(each, a.V - first));
  }

  __device__ static float* own() { return block_memory_as<float>() + kRowAt; }
  __device__ View own_row(float shift, float scale) const { return {kRowAt, 0, first, count, shift, scale}; }
  __device__ bool is_leader() const { return rank == 0 && threadIdx.x == 0; }
  template <class F>
  __device__ void each_of_list(ops::ListRange list, F f) const {
#pragma unroll 1
    for (int i = list.begin + static_cast<int>(threadIdx.x); i < list.end; i += kSelectThreads) f(i);
  }

  __device__ int id(int column) const { return a.token_ids == nullptr ? column : a.token_ids[column]; }
  __device__ int column(int id) const {  // -1: none
    if (a.token_ids != nullptr) return column_among(a.token_ids, a.V, id);
    return id >= 0 && id < a.V ? id : -1;
  }
  // Where in own() the logit of an id is; -1: not in this block.
  __device__ int place(int id) const {
    const int c = column(id) - first;
    return c >= 0 && c < count ? c : -1;
  }
  // The number of any column, in whichever block it is.
  __device__ float number_of(int column) const {
    const int each = columns_of_block(a.V);
    return *in_block(own()[column % each], column / each);
  }
  __device__ bool grammar_allows(int id) const {
    return row.grammar < 0 || (a.grammar[row.grammar + id / 32] >> (id % 32) & 1) != 0;
  }

  // Reads this block's columns of the raw logits, all at once.
  __device__ void load() const {
    const float* from = raw + first;
    int i = threadIdx.x;
    if (reinterpret_cast<uintptr_t>(raw) % sizeof(float4) == 0) {
      for (; i < count / 4; i += kSelectThreads) copy_16_async(own() + 4 * i, from + 4 * i, true);
      i = count / 4 * 4 + static_cast<int>(threadIdx.x);
    }
    for (; i < count; i += kSelectThreads) own()[i] = from[i];
    if (static_cast<int>(threadIdx.x) < (4 - count % 4) % 4) own()[count + threadIdx.x] = -INFINITY;
    wait_copies_of_all();
    __syncthreads();
  }

  // Minus infinity for all columns, or for those that the grammar forbids.
  __device__ void mask(bool all) const {
    if (!all && row.grammar < 0) return;
    for (int i = threadIdx.x; i < count; i += kSelectThreads)
      if (all || !grammar_allows(id(first + i))) own()[i] = -INFINITY;
    __syncthreads();
  }

  __device__ void change_logits() const {
    __syncthreads();
    mask(!row.allowed.empty());
    if (!row.allowed.empty()) {
      each_of_list(row.allowed, [&](int i) {
        const int c = place(a.ids[i]);
        if (c >= 0 && grammar_allows(a.ids[i])) own()[c] = raw[first + c];
      });
      __syncthreads();
    }
    if (!row.forbidden.empty()) {
      each_of_list(row.forbidden, [&](int i) {
        if (const int c = place(a.ids[i]); c >= 0) own()[c] = -INFINITY;
      });
      __syncthreads();
    }
    if (!row.bias.empty()) {
      each_of_list(row.bias, [&](int i) {
        if (const int c = place(a.bias[i].id); c >= 0) own()[c] += a.bias[i].bias;
      });
      __syncthreads();
    }
    each_of_list(row.counts, [&](int i) {
      const int c = place(a.counts[i].id), outputs = a.counts[i].outputs;
      if (c < 0 || own()[c] == -INFINITY) return;
      float v = own()[c];
      v = v > 0 ? v / row.repetition_penalty : v * row.repetition_penalty;
      if (outputs > 0) {
        v -= row.frequency_penalty * static_cast<float>(outputs);
        v -= row.presence_penalty;
      }
      own()[c] = v < -FLT_MAX ? -FLT_MAX : FLT_MAX < v ? FLT_MAX : v;
    });
    __syncthreads();
  }

  // In the first block, whose list nobody uses.
  __device__ void clear_list() const {
    reinterpret_cast<float4*>(memory.list)[threadIdx.x] = {-INFINITY, -INFINITY, -INFINITY, -INFINITY};
  }

  // Lists in the first block, whose list is clear, what is not below `floor`, but for what is below the `most` largest.
  // Returns how many that are; -1 if there are more than it has room for: then `bound` bounds the keys of the `most`
  // largest. As View with the same shift and scale; memory.maxima are in place.
  __device__ int list_largest(float shift, float scale, float floor, int most, uint32_t& bound) {
    const Team block{false};
    if (threadIdx.x == 0) memory.own_listed = 0;
    const View maxima{kMaximaAt, 0, 0, kSelectThreads, shift, scale};
    const Kept large{floor, select(block, maxima, {floor}, Weigh::kNumber, most).key};
    own_row(shift, scale).each(large, [&](float value, int i) {
      if (!large(value, 0)) return;
      const int place = atomicAdd(&memory.own_listed, 1);
      if (place >= kMostListed) return;
      *in_block(memory.list[rank * kMostListed + place], 0) = own()[i];
      *in_block(memory.list_columns[rank * kMostListed + place], 0) = first + i;
    });
    __syncthreads();
    if (threadIdx.x < kClusterBlocks) {
      *in_block(memory.listed[rank], static_cast<int>(threadIdx.x)) = memory.own_listed;
      *in_block(memory.bound[rank], static_cast<int>(threadIdx.x)) = large.edge;
    }
    cooperative_groups::this_cluster().sync();
    int sum = 0;
    bool room = true;
    bound = 0xffffffffu;
    for (int other = 0; other < kClusterBlocks; ++other) {
      sum += memory.listed[other];
      room = room && memory.listed[other] <= kMostListed;
      bound = min(bound, memory.bound[other]);
    }
    return room ? sum : -1;
  }
  __device__ static View listed(float shift, float scale) {
    return {kListAt, kListColumnsAt, 0, kClusterBlocks * kMostListed, shift, scale};
  }

  __device__ void keep_top_p(Team team, const View& values, Kept& kept) {
    const Selected border = select(team, values, kept, Weigh::kMass, static_cast<double>(row.top_p));
    kept.edge = border.key;
    const uint64_t mass = exp_mass(value_of(border.key)), ties = mass > 0 ? border.at / mass : 0;
    uint64_t low = 0, high = ties;  // how many of them stay: those before which less than the limit lies
    while (low < high) {
      const uint64_t middle = (low + high) / 2;
      if (static_cast<double>(border.before + middle * mass) < border.limit)
        low = middle + 1;
      else
        high = middle;
    }
    if (low < ties) kept.end = end_of(team, values, kept, low);
  }

  // Of the elements at the edge those with the first `number` columns: the column behind them.
  __device__ static uint32_t end_of(Team team, const View& values, const Kept& kept, uint64_t number) {
    if (number == 0) return 0;
    return select(team, values, kept, Weigh::kColumns, static_cast<double>(number)).key + 1;
  }

  // argmax of z + noise, ties to the lower id.
  __device__ int draw(Team team, const View& values, const Kept& kept, int greedy_id) {
    const NoiseKey key{row.seed,
                       static_cast<uint32_t>(row.token_index + (row.moved_by < 0 ? 0 : a.moves[row.moved_by])),
                       static_cast<uint32_t>(row.choice), 0};
    const auto word_of = [&](int id) {
      const PhiloxCounter words = noise_words(key, static_cast<uint32_t>(id / 4));
      const int i = id % 4;
      return i < 2 ? (i == 0 ? words[0] : words[1]) : (i == 2 ? words[2] : words[3]);
    };
    // Every thread begins with the likeliest token's score, which spares most tokens the whole noise.
    Winner winner{gumbel(word_of(greedy_id)), greedy_id};
    const bool share_words = values.columns == 0 && a.token_ids == nullptr;  // four columns do
    for (int i = 4 * static_cast<int>(threadIdx.x); i < values.count; i += 4 * kSelectThreads) {
      const float4 four = values.four(i);
      const float top = values.value(largest_of(four));
      if (!kept.may_have(top) || !winner.can_be_beaten_by(top, kMaxGumbel)) continue;
      PhiloxCounter words;
      if (share_words) {
        words = noise_words(key, static_cast<uint32_t>((values.first + i) / 4));
        const uint32_t least = min(min(words[0], words[1]), min(words[2], words[3]));
        if (!winner.can_be_beaten_by(top, gumbel_bound(least))) continue;
      }
#pragma unroll 1
      for (int j = 0; j < 4 && i + j < values.count; ++j) {
        const float z = values.value(j < 2 ? (j == 0 ? four.x : four.y) : (j == 2 ? four.z : four.w));
        const int c = values.column(i + j);
        if (!kept(z, c) || !winner.can_be_beaten_by(z, kMaxGumbel)) continue;
        const int candidate = id(c);
        const uint32_t shared = j < 2 ? (j == 0 ? words[0] : words[1]) : (j == 2 ? words[2] : words[3]);
        winner.offer(z, share_words ? shared : word_of(candidate), candidate);
      }
    }
    return column_of(reduce(team, turn, ranked(winner.score, winner.id), Larger{}));
  }

  // Tells everyone in the cluster; `kept` is the first block's.
  __device__ Choice sample(float max, int greedy_id) {
    Kept kept;
    if (row.min_p >= FLT_MIN) kept.floor = log_f32(row.min_p);
    if (row.top_p < 1) kept.floor = fmaxf(kept.floor, kNoMass);
    Team team{true};
    View values = own_row(max, row.temperature);
    if (row.top_k > 0 && row.top_k < a.V) {
      uint32_t bound = 0;
      if (list_largest(max, row.temperature, kept.floor, row.top_k, bound) >= 0) {
        if (rank > 0) return {};
        team = {false};
        values = listed(max, row.temperature);
      } else {
        kept.edge = bound;
      }
      kept.edge = select(team, values, kept, Weigh::kNumber, row.top_k).key;
    }
    if (row.top_p < 1) keep_top_p(team, values, kept);
    return {draw(team, values, kept, greedy_id), kept};
  }

  // The likeliest of the values, to the host.
  __device__ void write_tops(Team team, const View& values, int number) const {
    Kept top{-INFINITY};
    const Selected last = select(team, values, top, Weigh::kNumber, number);
    top.edge = last.key;
    if (number - last.before < last.at) top.end = end_of(team, values, top, number - last.before);
    if (is_leader()) memory.taken = 0;
    team.sync();
    values.each(top, [&](float v, int i) {
      const int c = values.column(i);
      if (!top(v, c)) return;
      const int place = atomicAdd(in_block(memory.taken, 0), 1);
      if (place < kMostTops) a.tops[int64_t{in.place} * kMostTops + place] = {id(c), v};
    });
    team.sync();  // the counter stays until everyone has counted
  }

  // `best` is of this thread's logits, max of all.
  __device__ void read_logprobs(const Choice& choice, Best best, float max, bool greedy, SamplingOutcome& out) {
    const bool processed = row.logprobs_mode >= ops::LogprobsMode::kProcessedLogprobs;
    const Team cluster{true};
    const bool as_read = !processed && in.changed != 0, as_kept = processed && !greedy;
    if (as_read) {
      load();
      mask(false);
    } else if (as_kept) {
      const View values = own_row(max, row.temperature);
      const float shift = row.logprobs_mode == ops::LogprobsMode::kProcessedLogits ? max / row.temperature : 0;
      for (int i = threadIdx.x; i < count; i += kSelectThreads) {
        const float z = values.value(own()[i]);
        own()[i] = choice.kept(z, first + i) ? z + shift : -INFINITY;
      }
      __syncthreads();
    }
    float largest = max;
    if (as_read || as_kept) {
      best = best_of_row(first, count);
      const uint64_t top = reduce(cluster, turn, best.rank(), Larger{});
      largest = top != 0 ? value_of_rank(top) : -INFINITY;
    }
    const int chosen_column = column(row.scored_id >= 0 ? row.scored_id : choice.token);
    const float chosen = chosen_column < 0 ? -INFINITY : number_of(chosen_column);
    if (rank == 0)
      each_of_list(row.logprob_ids, [&](int i) {
        const int c = column(a.ids[i]);
        a.listed[in.listed + i - row.logprob_ids.begin] = c < 0 ? -INFINITY : number_of(c);
      });
    uint64_t mass = 0, at_least = 0;
    const View values = own_row(0, 1);
    values.each({-INFINITY}, [&](float v, int) {
      mass += exp_mass(v - largest);
      at_least += v >= chosen ? 1 : 0;
    });
    mass = reduce(cluster, turn, mass, Sum{});
    at_least = reduce(cluster, turn, at_least, Sum{});
    const int number = min(row.num_logprobs, a.V);
    if (is_leader()) {
      out.mass = mass;
      out.max = largest;
      out.chosen = chosen;
      out.rank = static_cast<int32_t>(at_least);
      out.tops = number;
    }
    if (number == 0) return;
    memory.maxima[threadIdx.x] = best.value;
    uint32_t bound = 0;
    if (list_largest(0, 1, -FLT_MAX, number, bound) < number)  // no room, or some of them are minus infinity
      write_tops(cluster, values, number);
    else if (rank == 0)
      write_tops({false}, listed(0, 1), number);
  }
};

__global__ void __cluster_dims__(kClusterBlocks, 1, 1) __launch_bounds__(kSelectThreads)
    sample_rows(const __grid_constant__ SamplingArgs a) {
  const auto cluster = cooperative_groups::this_cluster();
  const int number = static_cast<int>(blockIdx.x) / kClusterBlocks;
  const SamplingInput& in = sampler_memory().input;
  if (threadIdx.x < sizeof(SamplingInput) / sizeof(uint32_t)) {
    const SamplingInput* from = a.rows != nullptr ? a.rows + number : a.few + number;
    reinterpret_cast<uint32_t*>(&sampler_memory().input)[threadIdx.x] =
        reinterpret_cast<const uint32_t*>(from)[threadIdx.x];
  }
  __syncthreads();
  const ops::SamplingRow& row = in.row;
  RowSampler s(a);
  s.clear_list();
  auto started = cluster.barrier_arrive();
  s.load();
  Best best = best_of_row(s.first, s.count);
  const bool finite = best.finite;  // the raw ones
  if (in.changed != 0) {
    s.change_logits();
    best = best_of_row(s.first, s.count);
  }
  s.memory.maxima[threadIdx.x] = best.value;
  cluster.barrier_wait(std::move(started));  // all blocks are there, and the first block's list is clear
  const uint64_t top = reduce(Team{true}, s.turn, finite ? best.rank() : ~uint64_t{0}, Larger{});
  SamplingOutcome& out = a.outcomes[in.place];
  if (top == 0 || top == ~uint64_t{0}) {
    if (s.is_leader()) {
      out.token = out.greedy_id = -1;
      if (a.tokens != nullptr) a.tokens[in.place] = -1;
      out.status = static_cast<int32_t>(top == 0 ? ops::RowStatus::kAllMasked : ops::RowStatus::kNotFinite);
    }
    return;
  }
  const float max = value_of_rank(top);
  const int greedy_id = s.id(column_of(top));
  const bool greedy = row.temperature < ops::kGreedyBelow;
  Choice choice{greedy_id, {}};
  if (!greedy) choice = s.sample(max, greedy_id);
  if (s.is_leader()) {
    out.token = choice.token;
    if (a.tokens != nullptr) a.tokens[in.place] = choice.token;
    out.greedy_id = greedy_id;
    out.status = static_cast<int32_t>(ops::RowStatus::kOk);
  }
  if (row.num_logprobs == ops::kNoLogprobs) return;
  if (s.rank == 0) {
    if (threadIdx.x < kClusterBlocks) *in_block(s.memory.choice, static_cast<int>(threadIdx.x)) = choice;
    s.clear_list();
  }
  cluster.sync();
  s.read_logprobs(s.memory.choice, best, max, greedy, out);
}

}  // namespace

void launch_sampler(cudaStream_t stream, const SamplingArgs& args, int rows) {
  allow_shared<sample_rows>(kMostShared);
  const size_t shared = sizeof(SamplerMemory) + static_cast<size_t>(columns_of_block(args.V)) * sizeof(float);
  sample_rows<<<static_cast<unsigned>(rows) * kClusterBlocks, kSelectThreads, shared, stream>>>(args);
}

}  // namespace calandra::cuda
