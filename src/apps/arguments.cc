#include "apps/arguments.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdlib>
#include <map>
#include <numeric>
#include <span>
#include <utility>

#include "apps/config_file.h"
#include "apps/foreign_flags.h"
#include "base/error.h"

namespace calandra::apps {
namespace {

bool is_help(const std::string& word) { return word == "--help" || word == "-h"; }

bool takes_value(const CLI::Option& option) { return option.get_items_expected_max() > 0; }

bool is_repeatable(const CLI::Option& option) {
  return option.get_multi_option_policy() == CLI::MultiOptionPolicy::TakeAll;
}

// Of the command line that is planned (the same names as vLLM's where it has them).
constexpr std::string_view kLaterVerbs[] = {"pull", "quantize", "collect-env", "bench startup", "bench plan"};
constexpr std::string_view kLaterFlags[] = {"--distributed-timeout", "--pipeline-layers"};

bool is_one_of(std::span<const std::string_view> names, std::string_view name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

// Letters to insert, delete or replace until one is the other.
size_t distance(std::string_view a, std::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), size_t{0});
  for (size_t i = 0; i < a.size(); ++i) {
    size_t corner = std::exchange(row[0], i + 1);
    for (size_t j = 0; j < b.size(); ++j) {
      const size_t replaced = corner + (a[i] == b[j] ? 0 : 1);
      corner = row[j + 1];
      row[j + 1] = std::min({replaced, row[j] + 1, corner + 1});
    }
  }
  return row.back();
}

// "; did you mean --seed?" for the name that is written nearly so, or nothing.
std::string did_you_mean(std::string word, const std::vector<std::string>& names) {
  std::replace(word.begin(), word.end(), '_', '-');
  const std::string* best = nullptr;
  size_t least = 3;
  for (const std::string& name : names) {
    const size_t d = name.size() < 4 ? 3 : distance(word, name);
    if (d < least) {
      least = d;
      best = &name;
    }
  }
  return best == nullptr ? "" : fmt::format("; did you mean {}?", *best);
}

std::vector<std::string> flags_of(const CLI::App& verb) {
  std::vector<std::string> names;
  for (const CLI::Option* option : verb.get_options())
    for (const std::string& name : option->get_lnames()) names.push_back("--" + name);
  return names;
}

// The verb that the first arguments name, counted in `used`; null when help was asked for instead.
const CLI::App* find_verb(const CLI::App& app, const std::vector<std::string>& args, std::string& name, size_t& used) {
  const CLI::App* at = &app;
  while (at->get_require_subcommand_min() > 0) {
    std::vector<const CLI::App*> verbs = at->get_subcommands([](const CLI::App*) { return true; });
    const auto name_of = [](const CLI::App* verb) { return verb->get_name(); };
    std::vector<std::string> names(verbs.size());
    std::transform(verbs.begin(), verbs.end(), names.begin(), name_of);
    const std::string of = name.empty() ? "" : name + " ";
    if (used == args.size()) throw UsageError(fmt::format("{}needs a verb: {}", of, fmt::join(names, ", ")));
    if (is_help(args[used])) return nullptr;
    const auto found = std::find(names.begin(), names.end(), args[used]);
    if (found == names.end() && is_one_of(kLaterVerbs, of + args[used]))
      throw UsageError(
          fmt::format("{}{} is not in this version yet; verbs are {}", of, args[used], fmt::join(names, ", ")));
    if (found == names.end())
      throw UsageError(fmt::format("there is no verb {}{}{}; verbs are {}", of, args[used],
                                   did_you_mean(args[used], names), fmt::join(names, ", ")));
    at = verbs[found - names.begin()];
    name = of + args[used++];
  }
  return at;
}

// Reads the flags of one verb.
class FlagReader {
 public:
  FlagReader(const CLI::App& verb, std::string name, Arguments& to) : verb_(verb), name_(std::move(name)), to_(to) {}

  // The arguments from `at` on.
  void read(const std::vector<std::string>& args, size_t at) {
    for (; at < args.size(); ++at) {
      const std::string& arg = args[at];
      if (arg == "--") {
        to_.words.insert(to_.words.end(), args.begin() + static_cast<std::ptrdiff_t>(at) + 1, args.end());
        break;
      }
      if (arg.size() < 2 || arg[0] != '-') {
        to_.words.push_back(arg);
        continue;
      }
      const size_t equals = arg.find('=');
      const std::string flag = arg.substr(0, equals);
      const CLI::Option* option = verb_.get_option_no_throw(flag);
      std::string name = flag;  // of ours
      if (const ForeignFlag* foreign = option == nullptr ? foreign_of(flag) : nullptr) {
        if (foreign->kind == ForeignFlag::Kind::kAlways) {
          if (equals != std::string::npos) throw UsageError(flag + " takes no value");
          continue;
        }
        if (foreign->kind == ForeignFlag::Kind::kAlias) {
          name = foreign->means;
          option = verb_.get_option_no_throw(name);
        } else {
          if (equals == std::string::npos && at + 1 == args.size()) throw UsageError(flag + " needs a value");
          const std::string value = equals == std::string::npos ? args[++at] : arg.substr(equals + 1);
          if (foreign->kind == ForeignFlag::Kind::kOnly)
            check_only_value(*foreign, flag, value);
          else
            to_.words.insert(to_.words.begin(), value);
          continue;
        }
      }
      if (option == nullptr && is_one_of(kLaterFlags, flag)) throw UsageError(flag + " is not in this version yet");
      if (option == nullptr)
        throw UsageError(
            fmt::format("{} has no flag {}{}; {} --help lists them, and -- stands before words that begin with -",
                        name_, flag, flag.starts_with("--") ? did_you_mean(flag, flags_of(verb_)) : "", name_));
      // CLI11 would take "=" into the value of "-i=FILE".
      const bool is_short = !name.starts_with("--") && !option->get_lnames().empty();
      std::string whole = (is_short ? "--" + option->get_lnames()[0] : name) + arg.substr(flag.size());
      if (equals == std::string::npos && takes_value(*option)) {
        if (at + 1 == args.size()) throw UsageError(flag + " needs a value");
        if (args[at + 1].starts_with("--") && verb_.get_option_no_throw(args[at + 1]) != nullptr)
          throw UsageError(fmt::format("{} needs a value; {} is a flag", flag, args[at + 1]));
        whole += "=" + args[++at];
      }
      if (whole.back() == '=' && whole.find('=') == whole.size() - 1) throw UsageError(flag + ": the value is empty");
      const auto [first, is_first] = given_.emplace(option, flag);
      if (!is_first && first->second != flag) throw UsageError(fmt::format("give {} or {}", first->second, flag));
      if (!is_first && takes_value(*option) && !is_repeatable(*option)) throw UsageError(flag + " is given twice");
      if (flag == "--config")
        config_ = whole.substr(flag.size() + 1);
      else
        to_.flags.push_back(std::move(whole));
    }
    if (!config_.empty()) read_file();
    read_environment();
  }

 private:
  // What a flag that the verb does not have means; null when nobody has it. Throws UsageError for one that is not
  // there.
  const ForeignFlag* foreign_of(const std::string& flag) const {
    const ForeignFlag* foreign = find_foreign_flag(flag);
    const bool has_model = verb_.get_option_no_throw("--max-model-len") != nullptr;  // and all that goes with it
    if (foreign == nullptr || !has_model) return nullptr;
    const bool has_other =
        foreign->kind == ForeignFlag::Kind::kAlias && verb_.get_option_no_throw(std::string(foreign->means)) != nullptr;
    if (foreign->kind == ForeignFlag::Kind::kMissing || (foreign->kind == ForeignFlag::Kind::kAlias && !has_other))
      refuse_missing(*foreign, flag);
    return foreign;
  }

  // The same for a key of the file: it becomes that of ours, or empty when it asks for what is always so. False: nobody
  // has it.
  bool read_foreign(ConfigEntry& entry) const {
    try {
      const ForeignFlag* foreign = foreign_of("--" + entry.key);
      if (foreign == nullptr || foreign->kind == ForeignFlag::Kind::kModel) return false;
      if (foreign->kind == ForeignFlag::Kind::kOnly)
        for (const std::string& value : entry.values) check_only_value(*foreign, entry.key, value);
      if (foreign->kind == ForeignFlag::Kind::kAlways && entry.values != std::vector<std::string>{"true"})
        throw UsageError(entry.key + " can only be true");
      entry.key = foreign->kind == ForeignFlag::Kind::kAlias ? foreign->means.substr(2) : std::string_view();
      return true;
    } catch (const UsageError& error) {
      throw UsageError(entry.where + ": " + error.what());
    }
  }

  void read_file() {
    std::map<const CLI::Option*, std::string> keys;
    for (ConfigEntry& entry : read_config(config_)) {
      const auto fail = [&](const std::string& what) { throw UsageError(entry.where + ": " + what); };
      const bool is_model = entry.key == "model" && verb_.get_option_no_throw("MODEL") != nullptr;
      const CLI::Option* option = is_model ? nullptr : verb_.get_option_no_throw("--" + entry.key);
      if (!is_model && option == nullptr && read_foreign(entry)) {
        if (!entry.key.empty()) option = verb_.get_option_no_throw("--" + entry.key);
        if (option == nullptr) continue;
      }
      if (!is_model && (option == nullptr || entry.key == "help" || entry.key == "config"))
        fail(fmt::format("{} has no flag --{}{}", name_, entry.key, did_you_mean("--" + entry.key, flags_of(verb_))));
      if (const auto [first, is_first] = keys.emplace(option, entry.key); !is_first)
        fail(fmt::format("give {} or {}", first->second, entry.key));
      if (entry.values.size() > 1 && (is_model || !is_repeatable(*option)))
        fail(entry.key + " takes one value, no list");
      for (const std::string& value : entry.values) {
        if (value.empty()) fail(entry.key + ": the value is empty");
        if (is_model) {
          to_.config_model = value;
        } else if (!takes_value(*option) && value != "true" && value != "false") {
          fail(entry.key + " must be true or false, found " + value);
        } else if (!given_.contains(option)) {
          to_.flags.push_back("--" + entry.key + "=" + value);
          to_.sources["--" + entry.key] = entry.where;
        }
      }
    }
    for (const auto& [option, key] : keys)
      if (option != nullptr) given_.emplace(option, "--" + key);
  }

  // Flags of command line and file win. (For CLI11's own envname the variable wins over the flag.)
  void read_environment() {
    for (const auto& [flag, variable] : {std::pair{"--backend", "CALANDRA_BACKEND"},
                                         {"--threads", "CALANDRA_THREADS"},
                                         {"--enable-admin-endpoints", "VLLM_SERVER_DEV_MODE"}}) {
      const CLI::Option* const option = verb_.get_option_no_throw(flag);
      const char* const value = std::getenv(variable);
      if (option == nullptr || given_.contains(option) || value == nullptr || *value == '\0') continue;
      to_.flags.push_back(std::string(flag) + "=" + value);
      to_.sources[flag] = variable;
    }
  }

  const CLI::App& verb_;
  const std::string name_;
  Arguments& to_;
  std::map<const CLI::Option*, std::string> given_;  // under which name
  std::string config_;
};

}  // namespace

Arguments read_arguments(const CLI::App& app, std::vector<std::string> args) {
  if (!args.empty() && args[0] == "--version") args[0] = "version";
  if (!args.empty() && args[0] == "help") {  // help VERB
    args.erase(args.begin());
    args.emplace_back("--help");
  }
  Arguments result;
  size_t used = 0;
  const CLI::App* verb = find_verb(app, args, result.verb, used);
  result.flags.assign(args.begin(), args.begin() + static_cast<std::ptrdiff_t>(used));
  if (verb == nullptr) {
    result.verb.clear();
    result.flags.emplace_back("--help");
    return result;
  }
  FlagReader(*verb, "calandra " + result.verb, result).read(args, used);
  return result;
}

}  // namespace calandra::apps
