// Real pools whose content says which tokens it came from, and sequences that write it: a page or slot that is shared,
// copied or freed wrongly shows in the bytes.
#pragma once

#include <gtest/gtest.h>

#include <cstring>
#include <numeric>
#include <string>
#include <vector>

#include "backends/reference/reference.h"
#include "engine/prefix_cache.h"

namespace calandra {

using Keys = std::vector<TokenKey>;

inline Keys text(const std::string& tokens) { return Keys(tokens.begin(), tokens.end()); }

// Layer 0: two paged tensors. Layer 1: state, and inputs of pending tokens. Layer 2: MTP pages.
inline std::vector<CacheSpec> specs_for_test() {
  std::vector<CacheSpec> specs(3);
  specs[0].paged = {{DType::kI32, 2, 3}, {DType::kI32, 1, 1}};
  specs[1].slotted = {{"state", DType::kI32, {2, 3}, false}, {"inputs", DType::kI32, {5}, true}};
  specs[2].paged = {{DType::kI32, 1, 2}};
  return specs;
}

// A sequence that runs: pages of [0, P), the last one written up to P.
struct RunningSequence {
  std::string space;
  Keys keys;  // of what was run
  std::vector<int32_t> pages;
  int64_t mtp_begin = 0;
  int64_t P() const { return std::ssize(keys); }
};

class World {
 public:
  World(int64_t page_count, int64_t slot_count, int64_t page_tokens)
      : pages(specs_for_test(), page_count, page_tokens, Buffer::host),
        slots(specs_for_test(), 4, DType::kF32, slot_count, 2, Buffer::host),
        reading(pages, slots, backend(), 0) {}

  static ReferenceBackend& backend() {
    static ReferenceBackend backend;
    return backend;
  }
  static void copy(void* to, const void* from, size_t bytes) { std::memcpy(to, from, bytes); }

  // One more token; with `mtp` also its MTP entry, else the valid ones begin anew behind it. False without a free page.
  bool extend(RunningSequence& run, TokenKey key, bool mtp = true) {
    const int64_t at = run.P(), in_page = at % pages.page_tokens();
    if (in_page == 0) {
      const auto page = pages.take();
      if (!page) return false;
      run.pages.push_back(*page);
    }
    run.keys.push_back(key);
    if (!mtp) run.mtp_begin = at + 1;
    const uint64_t hash = hash_of(run.keys);
    each_element(run.pages.back(), in_page, [&](int layer, int32_t& element, int64_t salt) {
      element = layer == 2 && !mtp ? -7 : value(hash, salt);
    });
    return true;
  }
  bool extend(RunningSequence& run, const Keys& keys, bool mtp = true) {
    for (const TokenKey key : keys)
      if (!extend(run, key, mtp)) return false;
    return true;
  }

  // Goes on from a checkpoint: shares its full pages, copies the partial one. False without a free page.
  bool resume(RunningSequence& run, const Checkpoint& from, const Keys& keys) {
    const int64_t full = from.P / pages.page_tokens(), rest = from.P % pages.page_tokens();
    std::optional<int32_t> own;
    if (rest > 0 && !(own = pages.take())) return false;
    run.pages.assign(from.pages.begin(), from.pages.begin() + full);
    for (const int32_t page : run.pages) pages.add_reference(page);
    if (own) {
      run.pages.push_back(*own);
      pages.copy(from.pages.back(), *own, rest, copy);
    }
    run.keys.assign(keys.begin(), keys.begin() + from.P);
    run.mtp_begin = from.mtp_begin;
    return true;
  }

  // A state of where the run stands; it goes on. Needs a free slot.
  Checkpoint checkpoint(const RunningSequence& run) {
    for (const int32_t page : run.pages) pages.add_reference(page);
    return {run.P(), new_slot(run.keys), run.pages, run.mtp_begin, static_cast<int32_t>(run.P() * 3), Tier::kDevice};
  }
  // Hands the run's pages over.
  Checkpoint finish(RunningSequence& run) {
    Checkpoint last = checkpoint(run);
    release(run);
    return last;
  }
  void release(RunningSequence& run) {
    for (const int32_t page : run.pages) pages.release(page);
    run = {};
  }
  // A whole run from nothing.
  Checkpoint from_nothing(const Keys& keys, int64_t mtp_begin = 0) {
    RunningSequence run;
    for (int64_t i = 0; i < std::ssize(keys); ++i) EXPECT_TRUE(extend(run, keys[i], i >= mtp_begin));
    return finish(run);
  }

  // Do slot and pages hold what these keys make of them?
  void verify(const Checkpoint& checkpoint, const Keys& keys) {
    ASSERT_EQ(std::ssize(keys), checkpoint.P);
    EXPECT_EQ(checkpoint.position_delta, checkpoint.P * 3);
    std::vector<std::byte> found(static_cast<size_t>(slots.bytes_per_slot()));
    slots.copy_out(checkpoint.slot, found.data(), copy);
    ASSERT_TRUE(found == slot_content(keys)) << "slot after " << checkpoint.P;
    uint64_t hash = hash_of({});
    for (int64_t at = 0; at < checkpoint.P; ++at) {
      hash = next(hash, keys[at]);
      each_element(checkpoint.pages[at / pages.page_tokens()], at % pages.page_tokens(),
                   [&](int layer, const int32_t& element, int64_t salt) {
                     if (layer == 2 && (at == 0 || at < checkpoint.mtp_begin)) return;
                     ASSERT_EQ(element, value(hash, salt)) << "layer " << layer << " token " << at;
                   });
    }
  }

  PagePool pages;
  SlotPool slots;
  CheckpointStore reading;  // for read_checkpoint

  std::vector<std::byte> slot_content(const Keys& keys) const {
    std::vector<int32_t> words(static_cast<size_t>(slots.bytes_per_slot() / 4));
    const uint64_t hash = hash_of(keys);
    for (size_t i = 0; i < words.size(); ++i) words[i] = value(hash, 1000 + static_cast<int64_t>(i));
    const auto accepted = static_cast<int32_t>(keys.size() > 1);
    const size_t counts = words.size() - 3 * 4 - 2;  // before the hidden rows
    words[counts] = static_cast<int32_t>(keys.size()) - accepted;
    words[counts + 1] = accepted;
    const auto bytes = std::as_bytes(std::span(words));
    return {bytes.begin(), bytes.end()};
  }

 private:
  // A function of all tokens up to one.
  static uint64_t next(uint64_t hash, TokenKey key) {
    hash = (hash ^ key) * 0x9e3779b97f4a7c15u;
    return hash ^ (hash >> 29);
  }
  static uint64_t hash_of(const Keys& keys) { return std::accumulate(keys.begin(), keys.end(), uint64_t{1}, next); }
  static int32_t value(uint64_t hash, int64_t salt) {
    return static_cast<int32_t>((hash + static_cast<uint64_t>(salt)) * 0xbf58476d1ce4e5b9u >> 33);
  }
  template <class Visit>
  void each_element(int32_t page, int64_t in_page, const Visit& visit) {
    int64_t salt = 0;
    for (int layer = 0; layer < 3; ++layer)
      for (const Tensor& tensor : pages.layer(layer))
        for (int64_t head = 0; head < tensor.size(1); ++head)
          for (int64_t d = 0; d < tensor.size(3); ++d)
            visit(layer, tensor[page][head][in_page].as<int32_t>()[d], ++salt);
  }
  int32_t new_slot(const Keys& keys) {
    const int32_t slot = *slots.take();
    slots.copy_in(slot, slot_content(keys).data(), copy);
    return slot;
  }
};

}  // namespace calandra
