// A grammar and a logits processor that say something about every prefix.
#pragma once

#include <algorithm>

#include "base/check.h"
#include "engine/grammar.h"
#include "engine/logits_processor.h"
#include "tests/hashsim/hash_rules.h"

namespace calandra::hashsim {

// What may follow is a hash of what was accepted: about two thirds of all ids, never none. After `length` tokens
// nothing but an end-of-text id may follow; where there is no such id, it never ends.
class ToyGrammar final : public Grammar {
 public:
  ToyGrammar(uint64_t seed, int64_t length, std::vector<int32_t> eos_token_ids, int64_t vocab_size)
      : place_{seed, 0, false}, length_(length), eos_(std::move(eos_token_ids)), vocab_size_(vocab_size) {}

  bool mask(std::span<const int32_t> drafts, std::span<uint32_t> words) override {
    Place place = place_;
    for (const int32_t draft : drafts) {
      if (place.ended || !allows(place, draft)) return false;
      step(place, draft);
    }
    for (int32_t id = 0; id < vocab_size_; ++id)
      if (allows(place, id)) words[id / 32] |= uint32_t{1} << (id % 32);
    return true;
  }
  void accept(int32_t token) override {
    CHECK_MSG(allows(place_, token), "the grammar was given a token that it refuses");
    step(place_, token);
  }
  bool finished() const override { return place_.ended || (place_.tokens >= length_ && !eos_.empty()); }
  std::unique_ptr<Grammar> clone() const override { return std::make_unique<ToyGrammar>(*this); }

 private:
  struct Place {
    uint64_t hash;
    int64_t tokens;
    bool ended;
  };
  bool is_eos(int32_t id) const { return std::find(eos_.begin(), eos_.end(), id) != eos_.end(); }
  bool allows(const Place& place, int32_t id) const {
    if (is_eos(id)) return true;
    if (!eos_.empty() && (place.ended || place.tokens >= length_)) return false;
    const uint64_t word = mix(place.hash, static_cast<uint64_t>(id));
    return word % 3 != 0 || static_cast<int64_t>(place.hash % static_cast<uint64_t>(vocab_size_)) == id;
  }
  void step(Place& place, int32_t token) const {
    place.hash = mix(place.hash, static_cast<uint64_t>(token) + 1);
    ++place.tokens;
    place.ended = place.ended || is_eos(token);
  }

  Place place_;
  int64_t length_;
  std::vector<int32_t> eos_;
  int64_t vocab_size_;
};

// Forbids a token and favours another, by a hash of the last two tokens and the length.
class ToyProcessor final : public LogitsProcessor {
 public:
  ToyProcessor(uint64_t seed, int64_t vocab_size) : seed_(seed), vocab_size_(static_cast<uint64_t>(vocab_size)) {}

  void apply(const Prefix& prefix, RowEdits& edits) const override {
    uint64_t hash = mix(seed_, static_cast<uint64_t>(prefix.outputs()));
    for (int64_t i = std::max<int64_t>(0, prefix.size() - 2); i < prefix.size(); ++i)
      hash = mix(hash, static_cast<uint64_t>(prefix[i]));
    edits.forbid(static_cast<int32_t>(hash % vocab_size_));
    edits.add_bias(static_cast<int32_t>(mix(hash, 1) % vocab_size_), 2);
  }

 private:
  uint64_t seed_, vocab_size_;
};

}  // namespace calandra::hashsim
