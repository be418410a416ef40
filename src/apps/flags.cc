#include "apps/flags.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>
#include <cmath>

#include "apps/jsonl.h"
#include "base/error.h"

namespace calandra::apps {
namespace {

// Long values are cut in messages.
std::string shown(const std::string& text) {
  constexpr size_t kMost = 60;
  return text.size() <= kMost ? text : text.substr(0, kMost) + fmt::format("… ({} bytes)", text.size());
}

[[noreturn]] void wrong(const char* name, const std::string& rule, const std::string& text) {
  throw UsageError(fmt::format("{} must be {}, got {}", name, rule, shown(text)));
}

// `read` gets every value that was given.
template <class Read>
CLI::Option* add(CLI::App* app, const char* name, const char* type, const char* help, const Read& read) {
  const auto read_all = [=](const CLI::results_t& values) {
    for (const std::string& value : values) {
      if (value.empty()) throw UsageError(std::string(name) + ": the value is empty");
      read(value);
    }
    return true;
  };
  return app->add_option(name, read_all, help)->type_name(type);
}

CLI::Option* repeatable(CLI::Option* option) { return option->multi_option_policy(CLI::MultiOptionPolicy::TakeAll); }

template <class T>
T read_integer(const char* name, const std::string& text, T least, T most) {
  T value{};
  const char* const end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, value);
  if (error != std::errc{} || stop != end || value < least || value > most)
    wrong(name, fmt::format("a whole number from {} to {}", least, most), text);
  return value;
}

double read_number(const char* name, const std::string& text, Range range) {
  double value = 0;
  const char* const end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, value);
  const bool inside = value <= range.most && (range.without_least ? value > range.least : value >= range.least);
  if (error != std::errc{} || stop != end || !inside)  // NaN is not inside
    wrong(name,
          range.without_least ? fmt::format("above {} and at most {}", range.least, range.most)
                              : fmt::format("a number from {} to {}", range.least, range.most),
          text);
  return value;
}

// The parts of a list 1,2,3.
std::vector<std::string> parts_of(const std::string& text) {
  std::vector<std::string> parts;
  for (size_t begin = 0; begin <= text.size();) {
    const size_t end = std::min(text.find(',', begin), text.size());
    parts.push_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
  return parts;
}

json::object read_object(const char* name, const std::string& text) {
  json::value value;
  try {
    value = parse_json(text, name);
  } catch (const LoadError& error) {
    throw UsageError(error.what());
  }
  if (!value.is_object()) wrong(name, "a JSON object", text);
  return std::move(value.get_object());
}

int64_t read_size(const char* name, const std::string& text, int64_t least, int64_t most) {
  constexpr std::string_view kDecimal = "kmgt", kBinary = "KMGT";
  const char suffix = text.empty() ? '\0' : text.back();
  const size_t decimal = kDecimal.find(suffix), binary = kBinary.find(suffix);
  if (suffix == '\0' || (decimal == std::string::npos && binary == std::string::npos))
    return read_integer<int64_t>(name, text, least, most);
  const char* const end = text.data() + text.size() - 1;
  double number = 0;
  const auto [stop, error] = std::from_chars(text.data(), end, number, std::chars_format::fixed);
  const double value = binary != std::string::npos
                           ? number * std::pow(1024, static_cast<double>(binary + 1))
                           : std::round(number * std::pow(1000, static_cast<double>(decimal + 1)));
  if (error != std::errc{} || stop != end || (binary != std::string::npos && number != std::floor(number)) ||
      !(value >= static_cast<double>(least) && value <= static_cast<double>(most)))
    wrong(name, fmt::format("a whole number from {} to {}, or one like 25.6k (25600) or 4K (4096)", least, most), text);
  return static_cast<int64_t>(value);
}

}  // namespace

CLI::Option* add_text(CLI::App* app, const char* name, std::string& to, const char* help) {
  return add(app, name, "TEXT", help, [&to](const std::string& text) { to = text; });
}

CLI::Option* add_repeatable(CLI::App* app, const char* name, std::vector<std::string>& to, const char* help) {
  return repeatable(add(app, name, "TEXT", help, [&to](const std::string& text) { to.push_back(text); }));
}

CLI::Option* add_choice(CLI::App* app, const char* name, std::string& to, std::vector<std::string> choices,
                        const char* help) {
  const std::string type = fmt::format("{}", fmt::join(choices, "|"));
  CLI::Option* option = add(app, name, type.c_str(), help, [=, &to](const std::string& text) {
    if (std::find(choices.begin(), choices.end(), text) == choices.end())
      wrong(name, fmt::format("one of {}", fmt::join(choices, ", ")), text);
    to = text;
  });
  return to.empty() ? option : option->default_str(to);
}

CLI::Option* add_number(CLI::App* app, const char* name, std::optional<double>& to, Range range, const char* help) {
  return add(app, name, "NUMBER", help, [=, &to](const std::string& text) { to = read_number(name, text, range); });
}

CLI::Option* add_numbers(CLI::App* app, const char* name, std::vector<double>& to, Range range, const char* help) {
  return add(app, name, "NUMBERS", help, [=, &to](const std::string& text) {
    to.clear();
    for (const std::string& part : parts_of(text)) to.push_back(read_number(name, part, range));
  });
}

CLI::Option* add_wholes(CLI::App* app, const char* name, std::vector<int64_t>& to, int64_t least, int64_t most,
                        const char* help) {
  CLI::Option* option = add(app, name, "N,N", help, [=, &to](const std::string& text) {
    std::vector<int64_t> numbers;
    for (const std::string& part : parts_of(text)) numbers.push_back(read_whole(name, part, least, most));
    to = std::move(numbers);
  });
  return to.empty() ? option : option->default_str(fmt::format("{}", fmt::join(to, ",")));
}

CLI::Option* add_ids(CLI::App* app, const char* name, std::vector<int32_t>& to, const char* help) {
  return repeatable(add(app, name, "IDS", help, [=, &to](const std::string& text) {
    const std::vector<int32_t> ids = parse_ids(text, name);
    to.insert(to.end(), ids.begin(), ids.end());
  }));
}

CLI::Option* add_object(CLI::App* app, const char* name, json::object& to, const char* help) {
  return add(app, name, "JSON", help, [=, &to](const std::string& text) { to = read_object(name, text); });
}

CLI::Option* add_object(CLI::App* app, const char* name, std::optional<json::object>& to, const char* help) {
  return add(app, name, "JSON", help, [=, &to](const std::string& text) { to = read_object(name, text); });
}

int64_t read_whole(const char* name, const std::string& text, int64_t least, int64_t most) {
  return read_integer<int64_t>(name, text, least, most);
}

CLI::Option* add_whole(CLI::App* app, const char* name, std::optional<int64_t>& to, int64_t least, int64_t most,
                       const char* help) {
  return add(app, name, "N", help, [=, &to](const std::string& text) { to = read_whole(name, text, least, most); });
}

CLI::Option* add_whole(CLI::App* app, const char* name, int64_t& to, int64_t least, int64_t most, const char* help) {
  return add(app, name, "N", help, [=, &to](const std::string& text) { to = read_whole(name, text, least, most); })
      ->default_str(std::to_string(to));
}

CLI::Option* add_size(CLI::App* app, const char* name, std::optional<int64_t>& to, int64_t least, int64_t most,
                      const char* help) {
  return add(app, name, "SIZE", help, [=, &to](const std::string& text) { to = read_size(name, text, least, most); });
}

CLI::Option* add_whole_or(CLI::App* app, const char* name, const char* word, std::optional<int64_t>& to, int64_t least,
                          int64_t most, const char* help) {
  const std::string type = fmt::format("N|{}", word);
  return add(app, name, type.c_str(), help,
             [=, &to](const std::string& text) { to = text == word ? 0 : read_whole(name, text, least, most); });
}

CLI::Option* add_seed(CLI::App* app, std::optional<uint64_t>& to) {
  return add(app, "--seed", "N", "Makes what is random repeatable; without it every run differs",
             [&to](const std::string& text) {
               to = read_integer<uint64_t>("--seed", text, 0, std::numeric_limits<uint64_t>::max());
             });
}

}  // namespace calandra::apps
