// Stamps: which allocation of an arena a tensor belongs to. Hostile, sanitized and unoptimized builds check the stamp
// wherever a tensor's memory is asked for, so that a tensor that outlives its step, its layer or its scope aborts
// instead of reading what came after it. Other builds have none.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#if defined(CALANDRA_HOSTILE) || defined(__SANITIZE_ADDRESS__) || !defined(__OPTIMIZE__)
#define CALANDRA_STAMPS 1
#else
#define CALANDRA_STAMPS 0
#endif

namespace calandra {

// The allocations of one stack of memory, numbered as they come.
class StampLedger {
 public:
  // `name`: of the memory, for messages.
  explicit StampLedger(const char* name) : name_(name) { ends_.reserve(kEnds); }

  const char* name() const { return name_; }
  uint64_t next() { return ++last_; }  // the number of a new allocation
  void end_from(size_t offset);        // ends the allocations there are at `offset` bytes and above
  bool lives(size_t offset, uint64_t number) const;

 private:
  struct End {
    size_t offset;
    uint64_t last;  // number of the last allocation that it ended
  };
  static constexpr size_t kEnds = 256;  // no step of a model comes near it, and none may allocate
  const char* name_;
  uint64_t last_ = 0;
  std::vector<End> ends_;  // ascending in both; what a later and lower one covers is gone
};

struct Stamp {
  const StampLedger* ledger = nullptr;  // must outlive the tensor's use; null: memory that nobody takes back
  size_t offset = 0;
  uint64_t number = 0;
};

}  // namespace calandra
