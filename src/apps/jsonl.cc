#include "apps/jsonl.h"

#include <fmt/format.h>

#include <charconv>

#include "apps/input_text.h"
#include "apps/output.h"
#include "base/error.h"

namespace calandra::apps {

int answer_rows(const std::function<json::object(const json::object& row)>& answer) {
  const auto failed = [](const char* kind, const char* message) {
    return json::object{{"error", {{"class", kind}, {"message", message}}}};
  };
  std::string line;
  while (read_line(line)) {
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
    json::object result;
    try {
      const json::value row = parse_json(line, "the row");
      if (!row.is_object()) throw UsageError("the row must be a JSON object");
      result = answer(row.get_object());
    } catch (const UsageError& error) {
      result = failed("UsageError", error.what());
    } catch (const LoadError& error) {
      result = failed("LoadError", error.what());
    }
    print_json(result);
  }
  return 0;
}

std::vector<int32_t> parse_ids(std::string_view text, std::string_view what) {
  constexpr std::string_view kBlanks = " \t\r\n";
  const auto trim = [&](std::string_view part) {
    part.remove_prefix(std::min(part.find_first_not_of(kBlanks), part.size()));
    return part.substr(0, part.find_last_not_of(kBlanks) + 1);
  };
  const auto fail = [&](std::string_view part) {
    throw UsageError(fmt::format("{} must be token ids like 1,2,3, found '{}'", what, part.substr(0, 60)));
  };
  std::string_view rest = trim(text);
  if (rest.size() > 1 && rest.front() == '[' && rest.back() == ']') rest = trim(rest.substr(1, rest.size() - 2));
  std::vector<int32_t> ids;
  for (bool more = true; more;) {
    const size_t comma = rest.find(',');
    more = comma != std::string_view::npos;
    const std::string_view part = trim(rest.substr(0, comma));
    int32_t id = 0;
    const char* const end = part.data() + part.size();
    const auto [stop, error] = std::from_chars(part.data(), end, id);
    if (error != std::errc{} || stop != end || id < 0) fail(part);
    ids.push_back(id);
    rest.remove_prefix(more ? comma + 1 : rest.size());
  }
  return ids;
}

}  // namespace calandra::apps
