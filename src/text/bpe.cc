#include "text/bpe.h"

#include <algorithm>
#include <utility>

#include "text/utf8.h"

namespace calandra {
namespace {

constexpr uint32_t kNone = UINT32_MAX;

bool is_printable(int byte) {
  return (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) || (byte >= 0xAE && byte <= 0xFF);
}

struct ByteSpelling {
  std::array<char32_t, 256> character;
  std::array<int, 0x144> byte;  // by character; -1: not in the alphabet

  ByteSpelling() {
    byte.fill(-1);
    char32_t extra = 0x100;
    for (int b = 0; b < 256; ++b) {
      character[b] = is_printable(b) ? static_cast<char32_t>(b) : extra++;
      byte[character[b]] = b;
    }
  }
};

const ByteSpelling& byte_spelling() {
  static const ByteSpelling table;
  return table;
}

// Heap order: the front is the lowest rank, then the leftmost place.
bool comes_later(const Bpe::Scratch::Run& a, const Bpe::Scratch::Run& b) {
  return a.rank != b.rank ? a.rank > b.rank : a.at > b.at;
}

}  // namespace

std::string to_byte_spelling(std::string_view bytes) {
  std::string spelling;
  for (const char c : bytes) append_utf8(spelling, byte_spelling().character[static_cast<unsigned char>(c)]);
  return spelling;
}

std::string from_byte_spelling(std::string_view spelling) {
  const auto& byte = byte_spelling().byte;
  std::string bytes;
  for (size_t at = 0; at < spelling.size();) {
    const Utf8Step step = next_utf8(spelling, at);
    if (!step.valid || step.code >= byte.size() || byte[step.code] < 0) return std::string(spelling);
    bytes += static_cast<char>(byte[step.code]);
    at += step.length;
  }
  return bytes;
}

Bpe::Bpe(std::array<int32_t, 256> byte_ids, const std::vector<BpeMerge>& merges, TokenIds whole_words)
    : byte_ids_(byte_ids), whole_words_(std::move(whole_words)) {
  merges_.reserve(merges.size());
  for (size_t rank = 0; rank < merges.size(); ++rank) {
    const BpeMerge& merge = merges[rank];
    merges_[pair_key(merge.left, merge.right)] = {static_cast<uint32_t>(rank),
                                                  merge.joined};  // the last of equals counts
  }
}

void Bpe::propose(Scratch& scratch, uint32_t left, uint32_t right) const {
  const auto found = merges_.find(pair_key(scratch.symbols[left].id, scratch.symbols[right].id));
  if (found == merges_.end()) return;
  const auto [rank, joined] = found->second;
  std::vector<Scratch::Candidate>& candidates = scratch.candidates;
  uint32_t place = scratch.free;
  if (place == kNone) {
    place = static_cast<uint32_t>(candidates.size());
    candidates.push_back({left, kNone});
  } else {
    scratch.free = std::exchange(candidates[place], {left, kNone}).next;
  }
  Scratch::Tail& tail = scratch.tails[rank % scratch.tails.size()];
  if (tail.last != kNone && tail.rank == rank && candidates[tail.last].at < left) {
    candidates[tail.last].next = place;
  } else {
    scratch.queue.push_back({rank, left, place, joined});
    std::push_heap(scratch.queue.begin(), scratch.queue.end(), comes_later);
  }
  tail = {rank, place};
}

// The candidate of the lowest rank, the leftmost of these, as the run that began with it.
Bpe::Scratch::Run Bpe::take_first(Scratch& scratch) {
  std::vector<Scratch::Run>& queue = scratch.queue;
  std::pop_heap(queue.begin(), queue.end(), comes_later);
  const Scratch::Run top = queue.back();
  Scratch::Candidate& first = scratch.candidates[top.first];
  const uint32_t next = std::exchange(first.next, scratch.free);
  scratch.free = top.first;
  if (next != kNone) {
    queue.back() = {top.rank, scratch.candidates[next].at, next, top.joined};
    std::push_heap(queue.begin(), queue.end(), comes_later);
  } else {
    queue.pop_back();
    Scratch::Tail& tail = scratch.tails[top.rank % scratch.tails.size()];
    if (tail.last == top.first) tail.last = kNone;
  }
  return top;
}

void Bpe::encode(std::string_view word, Scratch& scratch, std::vector<int32_t>& ids) const {
  if (!whole_words_.empty()) {
    if (const auto found = whole_words_.find(word); found != whole_words_.end()) {
      ids.push_back(found->second);
      return;
    }
  }
  std::vector<Scratch::Symbol>& symbols = scratch.symbols;
  symbols.clear();
  scratch.candidates.clear();
  scratch.free = kNone;
  scratch.tails.fill({0, kNone});
  for (const char c : word) {
    const int32_t id = byte_ids_[static_cast<unsigned char>(c)];
    if (id < 0) continue;
    const auto at = static_cast<uint32_t>(symbols.size());
    symbols.push_back({id, at - 1, at + 1});  // the first one's `previous` wraps to kNone
  }
  if (symbols.empty()) return;
  symbols.back().next = kNone;
  for (uint32_t at = 0; at + 1 < symbols.size(); ++at) propose(scratch, at, at + 1);

  while (!scratch.queue.empty()) {
    const Scratch::Run top = take_first(scratch);
    Scratch::Symbol& left = symbols[top.at];
    if (left.id < 0 || left.next == kNone) continue;
    // The pair may have changed since it was proposed. tokenizers compares the joined token only, and so do we.
    const auto merge = merges_.find(pair_key(left.id, symbols[left.next].id));
    if (merge == merges_.end() || merge->second.joined != top.joined) continue;

    Scratch::Symbol& right = symbols[left.next];
    left.id = top.joined;
    left.next = right.next;
    right.id = -1;
    if (left.next != kNone) symbols[left.next].previous = top.at;
    if (left.previous != kNone) propose(scratch, left.previous, top.at);
    if (left.next != kNone) propose(scratch, top.at, left.next);
  }
  for (uint32_t at = 0; at != kNone; at = symbols[at].next) ids.push_back(symbols[at].id);
}

}  // namespace calandra
