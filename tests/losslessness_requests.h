// Requests of every kind that a user may make, each with its plain answer: alone, without drafts and prefix cache, and
// never preempted.
#pragma once

#include <string>
#include <vector>

#include "engine/engine_core.h"
#include "tests/losslessness_subjects.h"

namespace calandra::lossless {

struct AskedRequest {
  std::string name;
  Request request;
  std::vector<Answer> plain;  // by choice
};

// Ids around the reasoning, for thinking_token_budget.
ThinkingTokens thinking_of(const Subject& subject);

// The request for the engine: with a grammar of its own.
Request copy_of(const Request& request);

// Runs it plainly: one engine for each choice.
AskedRequest ask(Subject& subject, const std::string& name, const Request& request);

// Token ids of the subject's corpus, from `first` on, round and round.
std::vector<int32_t> text_of(const Subject& subject, int64_t first, int64_t count);

// Made once per subject and kept: one of each kind, further turns of some of them (prompt, answer, and more), and
// enough others that 33 run at once.
const std::vector<AskedRequest>& requests_of(Subject& subject);

// What differs from the plain answer, bit for bit; empty: nothing.
std::string difference(const Answer& got, const Answer& plain);

}  // namespace calandra::lossless
