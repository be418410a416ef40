// The file of --config, in vLLM's form: a flat YAML mapping of flag names to values.
#pragma once

#include <string>
#include <vector>

namespace calandra::apps {

struct ConfigEntry {
  std::string key;                  // with dashes: "max-model-len"
  std::vector<std::string> values;  // as they would stand on the command line; one, unless it was a list
  std::string where;                // "FILE line 3", for errors
};

// The plain part of YAML that such files use: `key: value`, quoted strings, lists of `- value` lines, JSON objects and
// arrays on one line, comments. Throws UsageError naming file and line for the rest, for a key that is there twice and
// for a file that cannot be read.
std::vector<ConfigEntry> read_config(const std::string& file);

}  // namespace calandra::apps
