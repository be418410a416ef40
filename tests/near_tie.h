// Where two runs of a request part that differ only in the order of their sums: at a token that is as good as another,
// within what rounding explains, or where rounding makes a router choose other experts.
#pragma once

#include "tests/losslessness_requests.h"

namespace calandra::lossless {

struct Parting {
  std::string request;
  int64_t token;         // the first that differs, counted from the answer's begin
  double gap;            // by which the plain run preferred its own: of processed logits with their noise
  double explained;      // by rounding, of that gap
  bool edge = false;     // the other token was dropped by a filter there: a tie of probabilities' sums, no gap
  double disturbed = 0;  // where that does not explain it (and the prompt has no pictures): by which the gap became
                         // smaller when each layer's result was moved as its roundings may
  bool is_near_tie() const { return edge || gap <= explained || gap <= disturbed; }
};

// Of an answer whose tokens are not those of the plain one. Runs the request again.
Parting parting_of(Subject& subject, const AskedRequest& asked, size_t choice, const Answer& got);

}  // namespace calandra::lossless
