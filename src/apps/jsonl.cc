#include "apps/jsonl.h"

#include <charconv>
#include <cstdio>
#include <iostream>

#include "base/error.h"

namespace calandra::apps {

int answer_rows(const std::function<json::object(const json::object& row)>& answer) {
  std::string line;
  while (std::getline(std::cin, line)) {
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
    json::object result;
    try {
      const json::value row = parse_json(line, "the row");
      if (!row.is_object()) throw UsageError("the row must be a JSON object");
      result = answer(row.get_object());
    } catch (const UsageError& error) {
      result = {{"error", {{"class", "UsageError"}, {"message", error.what()}}}};
    } catch (const LoadError& error) {
      result = {{"error", {{"class", "LoadError"}, {"message", error.what()}}}};
    }
    std::puts(to_json(result).c_str());
    std::fflush(stdout);
  }
  return 0;
}

std::vector<int32_t> parse_ids(std::string_view text, std::string_view what) {
  std::vector<int32_t> ids;
  const char* at = text.data();
  const char* const end = at + text.size();
  const auto skip_blanks = [&] {
    while (at < end && (*at == ' ' || *at == '\n' || *at == '[' || *at == ']')) ++at;
  };
  for (skip_blanks(); at < end; skip_blanks()) {
    int32_t id = 0;
    const auto [next, error] = std::from_chars(at, end, id);
    if (error != std::errc{} || id < 0) throw UsageError(std::string(what) + " must be token ids like 1,2,3");
    ids.push_back(id);
    at = next;
    skip_blanks();
    if (at < end && *at != ',') throw UsageError(std::string(what) + " must be token ids like 1,2,3");
    if (at < end) ++at;
  }
  return ids;
}

std::string read_standard_input() {
  return std::string(std::istreambuf_iterator<char>(std::cin), std::istreambuf_iterator<char>());
}

}  // namespace calandra::apps
