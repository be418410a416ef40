// What `bench throughput` sends through an engine, and how long it took: conversations, most of them of one turn.
#pragma once

#include <functional>
#include <span>
#include <string>
#include <vector>

#include "base/json.h"
#include "engine/engine_core.h"

namespace calandra::apps {

// Each turn's prompt is all that came before, the answers too, and its own tokens.
struct BenchConversation {
  std::vector<int32_t> prefix;  // shared with others
  std::vector<std::vector<int32_t>> turns;
  double arrival = 0;  // seconds from the start; further turns come when the one before has its answer
};

// Token ids to make prompts of: those of a text, from a different place for each prompt, or else random ones.
class PromptSource {
 public:
  PromptSource(std::vector<int32_t> text, int64_t vocab_size, uint64_t seed);
  std::vector<int32_t> take(int64_t count);
  double exponential();  // drawn, of mean 1

 private:
  double uniform();  // in (0, 1)
  uint64_t word();

  const std::vector<int32_t> text_;
  const int64_t vocab_size_;
  const uint64_t seed_;
  uint64_t drawn_ = 0;
};

struct RequestTimes {
  int64_t prompt_tokens = 0, cached_tokens = 0;
  int64_t reusable_tokens = 0;  // of the prompt: what an earlier turn or conversation had, answers included
  int64_t output_tokens = 0;
  double arrival = 0, first_token = 0, last_token = 0;  // seconds from the start
  std::vector<double> gaps = {};                        // between steps that gave it tokens
  std::vector<int32_t> answer = {};
  bool failed = false;
};

struct LoadTimes {
  std::vector<RequestTimes> requests;  // by conversation, then by turn
  double seconds = 0;
  double idle_seconds = 0;  // of those: there was nothing to run
};

// At most `concurrency` conversations at once; the others wait, and their times count from their start, if they had
// arrived. `request` has what all requests have in common; `change`, if there is one, is told of each with its prompt.
LoadTimes run_load(EngineCore& core, std::span<const BenchConversation> conversations, int64_t concurrency,
                   const Request& request, const std::function<void(Request&)>& change = {});

struct TimeSummary {
  double mean = 0, median = 0, p99 = 0, deviation = 0;
};
// Percentiles as numpy interpolates them; all 0 of nothing.
TimeSummary summary_of(std::vector<double> values);

// vLLM's figures (vllm bench serve).
struct LoadSummary {
  int64_t completed = 0, failed = 0, input_tokens = 0, output_tokens = 0, cached_tokens = 0, reusable_tokens = 0;
  double duration = 0;
  TimeSummary ttft, tpot, itl,
      e2el;  // seconds; tpot of a request: the time after its first token by the tokens after it
  explicit LoadSummary(const LoadTimes& times);
  // In vLLM's names.
  void add_to(json::object& line) const;
  // As a table on standard output.
  void print() const;
};

}  // namespace calandra::apps
