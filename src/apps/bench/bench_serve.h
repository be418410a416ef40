// `calandra bench serve`: its flags, and the conversations that it sends.
#pragma once

#include <optional>
#include <random>
#include <string>
#include <vector>

#include "apps/bench/bench_serve_flags.h"

namespace CLI {
class App;
}

namespace calandra::apps {

void add_bench_serve_flags(CLI::App* app, BenchServeFlags& flags);
void check_bench_serve(const BenchServeFlags& flags);  // throws UsageError for flags that do nothing together

// Limits of a request in milliseconds; absent: none.
struct Goodput {
  std::optional<double> ttft, tpot, e2el;
};
Goodput read_goodput(const std::string& text);  // "ttft:200,tpot:50,e2el:1000"; throws UsageError

struct ServedTurn {
  std::string text;
  int64_t output_len;
};
// Each turn of a conversation is asked with all that came before, the answers too.
struct ServedConversation {
  std::vector<ServedTurn> turns;
  double arrival = 0;  // seconds from the start
};
// `random` is used up to. Throws LoadError for a wrong file.
std::vector<ServedConversation> served_conversations(const BenchServeFlags& flags, std::mt19937_64& random);

// Seconds between arrivals: gamma of shape `burstiness` with the mean 1 / rate, so 1 is a Poisson process (vLLM's
// get_request).
std::vector<double> arrivals(int64_t count, double rate, double burstiness, std::mt19937_64& random);

}  // namespace calandra::apps
