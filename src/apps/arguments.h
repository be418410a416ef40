// The arguments of the program before CLI11 sees them: the verb, its words, and its flags with those of --config.
#pragma once

#include <map>
#include <string>
#include <vector>

namespace CLI {
class App;
}

namespace calandra::apps {

struct Arguments {
  std::string verb;                // "bench ops"; empty: help of the program or of a group of verbs
  std::vector<std::string> flags;  // for CLI11: the verb, then "--flag=value", each complete
  std::vector<std::string> words;  // everything that is no flag; behind "--" everything
  std::string config_model;        // key `model` of the --config file
  // Where flags stand that are not of the command line: {"--seed", "flags.yaml line 3"}, {"--threads",
  // "CALANDRA_THREADS"}.
  std::map<std::string, std::string> sources;
};

// Flags of the command line win over those of the file. Throws UsageError: no such verb or flag, a missing or empty
// value, a wrong file.
Arguments read_arguments(const CLI::App& app, std::vector<std::string> args);

}  // namespace calandra::apps
