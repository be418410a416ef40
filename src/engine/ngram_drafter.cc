#include "engine/ngram_drafter.h"

#include <algorithm>
#include <bit>

#include "base/check.h"

namespace calandra {
namespace {

// The finaliser of splitmix64 (Steele, Lea, Flood, OOPSLA 2014).
uint64_t mix(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

uint64_t add(uint64_t hash, int32_t token) { return mix(hash + 0x9e3779b97f4a7c15u + static_cast<uint32_t>(token)); }

constexpr size_t kFewestPlaces = 16;

}  // namespace

NgramDrafter::NgramDrafter(int prompt_lookup_min, int prompt_lookup_max, uint64_t hash_seed)
    : least_(prompt_lookup_min), seed_(hash_seed) {
  CHECK_LE(1, prompt_lookup_min);
  CHECK_LE(prompt_lookup_min, prompt_lookup_max);
  indices_.resize(static_cast<size_t>(prompt_lookup_max - prompt_lookup_min + 1));
}

void NgramDrafter::reserve(int64_t tokens) {
  CHECK_LE(tokens, INT32_MAX);
  tokens_.reserve(static_cast<size_t>(tokens));
  const size_t places = std::bit_ceil(std::max(kFewestPlaces, 2 * static_cast<size_t>(tokens)));
  for (size_t i = 0; i < indices_.size(); ++i)
    if (indices_[i].ends.size() < places) resize(indices_[i], least_ + static_cast<int>(i), places);
}

// From the last token backwards, so that one pass gives the hashes of all lengths.
uint64_t NgramDrafter::hash(int64_t end, int n) const {
  uint64_t h = seed_;
  for (int i = 1; i <= n; ++i) h = add(h, tokens_[end - i]);
  return h;
}

size_t NgramDrafter::find(const Index& index, int64_t end, int n, uint64_t hash) const {
  const int32_t* wanted = tokens_.data() + end - n;
  const size_t mask = index.ends.size() - 1;
  for (size_t place = hash & mask;; place = (place + 1) & mask) {
    const int32_t other = index.ends[place];
    if (other == 0 || std::equal(wanted, wanted + n, tokens_.data() + other - n)) return place;
  }
}

void NgramDrafter::resize(Index& index, int n, size_t places) {
  std::vector<int32_t> ends(places, 0);
  ends.swap(index.ends);
  for (const int32_t end : ends)
    if (end != 0) index.ends[find(index, end, n, hash(end, n))] = end;
}

void NgramDrafter::note(Index& index, int n, uint64_t hash) {
  if (2 * (index.used + 1) > static_cast<int64_t>(index.ends.size()))
    resize(index, n, std::max(kFewestPlaces, 2 * index.ends.size()));
  int32_t& end = index.ends[find(index, size(), n, hash)];
  index.earlier = end;
  if (end == 0) ++index.used;
  end = static_cast<int32_t>(size());
}

void NgramDrafter::append(int32_t token) {
  CHECK_LT(size(), INT32_MAX);
  tokens_.push_back(token);
  const int most = least_ + static_cast<int>(indices_.size()) - 1;
  uint64_t h = seed_;
  for (int n = 1; n <= most && n <= size(); ++n) {
    h = add(h, tokens_[size() - n]);
    if (n >= least_) note(indices_[n - least_], n, h);
  }
}

void NgramDrafter::propose(int k, std::vector<int32_t>& drafts) const {
  drafts.clear();
  const auto longest =
      std::find_if(indices_.rbegin(), indices_.rend(), [](const Index& index) { return index.earlier != 0; });
  if (longest == indices_.rend()) return;
  for (int64_t i = 0, from = longest->earlier; i < k; ++i, ++from)
    drafts.push_back(from < size() ? tokens_[from] : drafts[from - size()]);
}

int64_t NgramDrafter::memory_bytes() const {
  size_t numbers = tokens_.capacity();
  for (const Index& index : indices_) numbers += index.ends.capacity();
  return static_cast<int64_t>(numbers * sizeof(int32_t));
}

}  // namespace calandra
