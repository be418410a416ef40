#include "apps/config_file.h"

#include <fmt/format.h>

#include <algorithm>

#include "apps/input_text.h"
#include "base/error.h"

namespace calandra::apps {
namespace {

constexpr size_t kMostBytes = size_t{1} << 20;

std::string_view trimmed(std::string_view text) {
  const size_t begin = text.find_first_not_of(" \t\r");
  if (begin == std::string_view::npos) return {};
  return text.substr(begin, text.find_last_not_of(" \t\r") + 1 - begin);
}

// How many of its bytes a quoted scalar takes, both quotes included; npos when it does not end.
size_t quoted_size(std::string_view text) {
  for (size_t i = 1; i < text.size(); ++i) {
    if (text[0] == '"' && text[i] == '\\') {
      ++i;
    } else if (text[i] == text[0]) {
      if (text[0] == '"' || i + 1 == text.size() || text[i + 1] != '\'') return i + 1;
      ++i;  // '' is a quote
    }
  }
  return std::string_view::npos;
}

// What stands before a comment. A " #" inside double quotes (of JSON) begins none.
std::string_view without_comment(std::string_view text) {
  bool quoted = false;
  for (size_t i = 0; i < text.size(); ++i) {
    if (quoted && text[i] == '\\')
      ++i;
    else if (text[i] == '"')
      quoted = !quoted;
    else if (!quoted && text[i] == '#' && (i == 0 || text[i - 1] == ' ' || text[i - 1] == '\t'))
      return trimmed(text.substr(0, i));
  }
  return trimmed(text);
}

class ConfigReader {
 public:
  explicit ConfigReader(const std::string& file) : file_(file) {}

  void read_line(std::string_view line) {
    ++number_;
    const std::string_view text = trimmed(line);
    if (text.empty() || text[0] == '#' || (entries_.empty() && text == "---")) return;
    if (text == "-" || text.starts_with("- ")) return add_item(text.substr(1));
    if (line[0] == ' ' || line[0] == '\t')
      fail("is indented; write a nested mapping as JSON on one line: key: {\"a\": 1}");
    finish();
    const size_t colon = text.find(':');
    if (colon == std::string_view::npos || (colon + 1 < text.size() && text[colon + 1] != ' '))
      fail("expected `flag-name: value`");
    ConfigEntry entry{std::string(trimmed(text.substr(0, colon))), {}, where()};
    std::replace(entry.key.begin(), entry.key.end(), '_', '-');
    for (const ConfigEntry& other : entries_)
      if (other.key == entry.key) fail(entry.key + " is there twice");
    const std::string_view value = trimmed(text.substr(colon + 1));
    if (!value.empty() && value[0] != '#') entry.values = values_of(value);
    entries_.push_back(std::move(entry));
    list_ = entries_.back().values.empty();
  }

  std::vector<ConfigEntry> finish() {
    if (!entries_.empty() && entries_.back().values.empty())
      throw UsageError(entries_.back().where + ": " + entries_.back().key + " has no value");
    return entries_;
  }

 private:
  std::string where() const { return fmt::format("{} line {}", file_, number_); }
  [[noreturn]] void fail(const std::string& what) const { throw UsageError(where() + ": " + what); }

  void add_item(std::string_view text) {
    if (!list_) fail("a list item stands behind a key without a value");
    std::vector<std::string> item = values_of(trimmed(text));
    if (item.size() != 1) fail("a list cannot hold lists");
    entries_.back().values.push_back(std::move(item[0]));
  }

  std::vector<std::string> values_of(std::string_view text) const {
    if (text.empty()) fail("the value is empty");
    if (text[0] == '"' || text[0] == '\'') return {quoted(text)};
    if (text[0] == '{' || text[0] == '[') return values_of_json(std::string(without_comment(text)));
    constexpr std::string_view kSpecial = "|>&*!%@`,]}?";
    if (kSpecial.find(text[0]) != std::string_view::npos)
      fail(fmt::format("a value that begins with {} must be quoted", text[0]));
    const std::string_view plain = trimmed(text.substr(0, text.find(" #")));
    if (plain.empty() || plain == "~" || plain == "null") fail("the value is empty");
    if (plain.find(": ") != std::string_view::npos) fail("a value with \": \" must be quoted");
    return {std::string(plain)};
  }

  std::string quoted(std::string_view text) const {
    const size_t size = quoted_size(text);
    if (size == std::string_view::npos) fail("the quoted value does not end on its line");
    if (!without_comment(text.substr(size)).empty()) fail("there is more behind the quoted value");
    if (text[0] == '"') return std::string(parse(std::string(text.substr(0, size))).get_string());
    std::string value;
    for (size_t i = 1; i + 1 < size; ++i) {
      value += text[i];
      if (text[i] == '\'') ++i;
    }
    return value;
  }

  std::vector<std::string> values_of_json(const std::string& text) const {
    const json::value value = parse(text);
    if (!value.is_array()) return {to_json(value)};
    std::vector<std::string> values;
    for (const json::value& item : value.get_array())
      values.push_back(item.is_string() ? std::string(item.get_string()) : to_json(item));
    if (values.empty()) fail("the list is empty");
    return values;
  }

  json::value parse(const std::string& text) const {
    try {
      return parse_json(text, text);
    } catch (const LoadError& error) {
      fail(error.what());
    }
  }

  const std::string& file_;
  std::vector<ConfigEntry> entries_;
  size_t number_ = 0;
  bool list_ = false;  // the last key may take list items
};

}  // namespace

std::vector<ConfigEntry> read_config(const std::string& file) {
  std::string text;
  try {
    text = read_text(file, kMostBytes);
  } catch (const LoadError& error) {
    throw UsageError(std::string("--config: ") + error.what());
  }
  ConfigReader reader(file);
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    reader.read_line(std::string_view(text).substr(begin, end - begin));
    begin = end + 1;
  }
  return reader.finish();
}

}  // namespace calandra::apps
