// Large tables run a part in CI, which the commit's hash chooses, and all of it by hand.
#pragma once

#include <cstdint>

namespace calandra::testing {

// CALANDRA_MATRIX=all: everything, by hand; 3/16: the third of sixteen parts of it, for as many processes at once.
// Otherwise a small part.
struct TablePart {
  bool whole = false;  // a part of all that there is, not of what CI runs
  uint64_t number = 0, of = 1;

  // Of a list of things numbered from 0.
  bool takes(uint64_t index) const { return index % of == number; }
};

// `of` in CI: how many parts there are then.
TablePart table_part(uint64_t of);

// Of HEAD; without git always the same one.
uint64_t number_of_commit();

}  // namespace calandra::testing
