// min_p, top_k, top_p without sorting the vocabulary: a threshold that rises while candidates are gathered (top_k),
// then a histogram of probability mass over z, of which only the bucket at the border is ordered (top_p).
#include <array>
#include <cfloat>

#include "backends/reference/sampling_parts.h"

namespace calandra::reference {
namespace {

bool limits_k(const ops::SamplingRow& row, int64_t V) { return row.top_k > 0 && row.top_k < V; }
bool limits_p(const ops::SamplingRow& row) { return row.top_p < 1; }
bool limits_min_p(const ops::SamplingRow& row) { return row.min_p >= FLT_MIN; }

bool by_z(const Candidate& a, const Candidate& b) { return a.z > b.z; }
bool by_z_then_id(const Candidate& a, const Candidate& b) { return a.z > b.z || (a.z == b.z && a.id < b.id); }

// Drops what is below the k-th largest, which is returned.
float keep_largest(std::vector<Candidate>& kept, int64_t k) {
  std::nth_element(kept.begin(), kept.begin() + (k - 1), kept.end(), by_z);
  const float kth = kept[k - 1].z;
  std::erase_if(kept, [&](const Candidate& c) { return c.z < kth; });
  return kth;
}

// Candidates with z >= floor; with k > 0 only those that are not below the k-th largest.
void gather(const float* l, const Vocabulary& vocabulary, Scale scale, float floor, int64_t k,
            std::vector<Candidate>& kept) {
  const size_t room = static_cast<size_t>(2 * k + kBlock);
  size_t full = room;  // when to raise the floor; doubled beyond the ties that stay, so that a row of ties costs O(V)
  float z[kBlock];
  Candidate found[kBlock];
  for (int64_t begin = 0; begin < vocabulary.V; begin += kBlock) {
    scale_block(l, begin, vocabulary.V, scale, z);
    int64_t count = 0;
    for (int64_t i = 0; i < kBlock; ++i) {
      found[count] = {z[i], static_cast<int32_t>(begin + i)};
      count += z[i] >= floor && z[i] > kMinusInfinity ? 1 : 0;
    }
    for (int64_t i = 0; i < count; ++i) found[i].id = vocabulary.id(found[i].id);
    kept.insert(kept.end(), found, found + count);
    if (k > 0 && kept.size() >= full) {
      floor = keep_largest(kept, k);
      full = std::max(room, 2 * kept.size());
    }
  }
  if (k > 0 && static_cast<int64_t>(kept.size()) > k) keep_largest(kept, k);
}

uint64_t mass_of(std::span<const Candidate> candidates) {
  uint64_t sum = 0;
  float z[kBlock];
  uint64_t mass[kBlock];
  for (size_t begin = 0; begin < candidates.size(); begin += kBlock) {
    const int64_t n = std::min<int64_t>(kBlock, candidates.size() - begin);
    for (int64_t i = 0; i < n; ++i) z[i] = candidates[begin + i].z;
    exp_mass(z, mass, n);
    for (int64_t i = 0; i < n; ++i) sum += mass[i];
  }
  return sum;
}

// Where top_p ends: buckets of z above `bucket` stay whole, those below go; in it, tokens stay while less than `limit`
// lies before them, `before` lying above the bucket.
struct Border {
  int bucket;
  uint64_t before;
  double limit;
};

constexpr int kBuckets = 256;
int bucket_of(float z) { return static_cast<int>(std::max(z, -31.9f) * -8.0f); }

// `load(begin, z)` gives kBlock values from `begin` on, -inf beyond `n`.
template <class Load>
Border find_border(int64_t n, float top_p, Load load) {
  // PERF: two histograms in turn, as neighbours often share a bucket.
  std::array<std::array<uint64_t, kBuckets>, 2> in_bucket{};
  float z[kBlock];
  uint64_t mass[kBlock];
  int32_t bucket[kBlock];
  for (int64_t begin = 0; begin < n; begin += kBlock) {
    load(begin, z);
    exp_mass(z, mass, kBlock);
    for (int64_t i = 0; i < kBlock; ++i) bucket[i] = bucket_of(z[i]);
    for (int64_t i = 0; i < kBlock; i += 2) {
      in_bucket[0][bucket[i]] += mass[i];
      in_bucket[1][bucket[i + 1]] += mass[i + 1];
    }
  }
  uint64_t total = 0;
  for (int b = 0; b < kBuckets; ++b) total += in_bucket[0][b] += in_bucket[1][b];
  Border border{0, 0, static_cast<double>(top_p) * static_cast<double>(total)};
  while (border.bucket < kBuckets - 1 &&
         static_cast<double>(border.before + in_bucket[0][border.bucket]) < border.limit)
    border.before += in_bucket[0][border.bucket++];
  return border;
}

// How many of `edge` stay, put first: those before which less than `limit` lies. `before`: mass of all that is above
// the edge.
int64_t keep_at_edge(std::span<Candidate> edge, uint64_t before, double limit) {
  int64_t low = 0, high = static_cast<int64_t>(edge.size());
  while (high - low > 64) {
    const int64_t middle = low + (high - low) / 2;
    std::nth_element(edge.begin() + low, edge.begin() + middle, edge.begin() + high, by_z_then_id);
    const uint64_t upper = mass_of(edge.subspan(low, middle - low));
    if (static_cast<double>(before + upper) >= limit) {
      high = middle;
    } else {
      before += upper;
      low = middle;
    }
  }
  std::sort(edge.begin() + low, edge.begin() + high, by_z_then_id);
  for (; low < high && static_cast<double>(before) < limit; ++low) before += mass_of(edge.subspan(low, 1));
  return low;
}

// Of candidates that hold all that lies above the border: what stays.
void cut_at(const Border& border, std::vector<Candidate>& kept, std::vector<Candidate>& edge) {
  edge.clear();
  std::erase_if(kept, [&](const Candidate& c) {
    const int bucket = bucket_of(c.z);
    if (bucket == border.bucket) edge.push_back(c);
    return bucket >= border.bucket;
  });
  edge.resize(keep_at_edge(edge, border.before, border.limit));
  kept.insert(kept.end(), edge.begin(), edge.end());
}

}  // namespace

bool has_filter(const ops::SamplingRow& row, int64_t V) {
  return limits_k(row, V) || limits_p(row) || limits_min_p(row);
}

void filter(const float* l, const Vocabulary& vocabulary, const ops::SamplingRow& row, Scale scale,
            ops::SamplingScratch& scratch) {
  const int64_t k = limits_k(row, vocabulary.V) ? row.top_k : 0;
  float floor = kMinusInfinity;
  if (limits_min_p(row)) floor = log_f32(row.min_p);
  if (limits_p(row)) floor = std::max(floor, kNoMass);
  std::vector<Candidate>& kept = scratch.kept;
  kept.clear();
  if (!limits_p(row)) {
    gather(l, vocabulary, scale, floor, k, kept);
  } else if (k > 0) {
    gather(l, vocabulary, scale, floor, k, kept);
    const auto n = static_cast<int64_t>(kept.size());
    cut_at(find_border(n, row.top_p,
                       [&](int64_t begin, float* z) {
                         for (int64_t i = 0; i < kBlock; ++i) z[i] = begin + i < n ? kept[begin + i].z : kMinusInfinity;
                       }),
           kept, scratch.edge);
  } else {  // the border is found in the row, and only what may stay is gathered
    const Border border = find_border(vocabulary.V, row.top_p, [&](int64_t begin, float* z) {
      scale_block(l, begin, vocabulary.V, scale, z);
      for (int64_t i = 0; i < kBlock; ++i) z[i] = z[i] >= floor ? z[i] : kMinusInfinity;
    });
    gather(l, vocabulary, scale, std::max(floor, static_cast<float>(border.bucket + 1) / -8.0f), 0, kept);
    cut_at(border, kept, scratch.edge);
  }
}

}  // namespace calandra::reference
