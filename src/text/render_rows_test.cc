// Recorded renderings of jinja2 and transformers. What is only in ../shared is used when present.
#include "text/render_rows.h"

#include "text/chat_template.h"

#include <gtest/gtest.h>

#include <cstdio>
#include <filesystem>
#include <map>
#include <sstream>

namespace calandra {
namespace {

namespace fs = std::filesystem;

const fs::path kHere = fs::path(CALANDRA_SOURCE_DIR) / "tests/oracle/text";
const fs::path kShared = fs::path(CALANDRA_SOURCE_DIR) / "../shared";

std::vector<json::object> read_rows(const fs::path& file) {
  std::vector<json::object> rows;
  std::istringstream lines(read_text_file(file));
  for (std::string line; std::getline(lines, line);) rows.push_back(parse_json(line, file.string()).as_object());
  return rows;
}

// Equal text or output; for errors, that there is one, and its message where the template raised it.
bool agrees(const json::object& row, const json::object& result) {
  for (const char* key : {"text", "output"}) {
    if (row.contains(key)) return result.contains(key) && result.at(key) == row.at(key);
  }
  if (!result.contains("error")) return false;
  const auto& wanted = row.at("error").as_object();
  const auto& got = result.at("error").as_object();
  return wanted.at("class") != "TemplateError" ||
         (got.at("class") == "TemplateError" && got.at("message") == wanted.at("message"));
}

std::tm clock_of_goldens() { return parse_clock("2026-01-15 12:30:45"); }

// The number of rows that agree.
size_t check_rows(const std::string& name, const std::vector<json::object>& rows, std::string_view chat_template) {
  size_t right = 0;
  for (const json::object& row : rows) {
    json::object input = row;
    for (const char* key : {"text", "output", "error"}) input.erase(key);
    const json::object result = render_row(input, chat_template, clock_of_goldens());
    if (agrees(row, result))
      ++right;
    else
      ADD_FAILURE() << name << ": " << row.at("id") << "\n  row    " << to_json(row).substr(0, 2000) << "\n  result "
                    << to_json(result).substr(0, 2000);
  }
  std::printf("%s: %zu of %zu\n", name.c_str(), right, rows.size());
  return right;
}

TEST(RenderRows, Snippets) {
  std::map<std::string, std::vector<json::object>> tiers;
  for (json::object& row : read_rows(kHere / "jinja/snippets.jsonl"))
    tiers[std::string(row.at("tier").as_string())].push_back(row);
  EXPECT_EQ(tiers["core"].size() + tiers["rare"].size(), 674u);
  size_t right = 0;
  for (const auto& [tier, rows] : tiers) right += check_rows("jinja " + tier, rows, "");
  RecordProperty("jinja_goldens", static_cast<int>(right));
}

TEST(RenderRows, Styles) {
  std::map<std::string, json::object> conversations;
  const json::value inputs = parse_json(read_text_file(kHere / "inputs/conversations.json"), "conversations.json");
  for (const json::value& row : inputs.as_array())
    conversations[std::string(row.at("id").as_string())] = row.as_object();
  size_t absent = 0, right = 0;
  for (const auto& entry : fs::directory_iterator(kHere / "chat_templates/styles")) {
    if (entry.path().extension() != ".jinja") continue;
    fs::path file = fs::path(entry.path()).replace_extension(".jsonl");
    if (!fs::exists(file)) file = kShared / "oracle/text/chat_templates/styles" / file.filename();
    if (!fs::exists(file)) {
      ++absent;
      continue;
    }
    auto rows = read_rows(file);
    for (json::object& row : rows) {
      const json::object& input = conversations.at(std::string(row.at("id").as_string()));
      for (const char* key : {"messages", "tools"}) {
        if (const json::value* value = input.if_contains(key)) row[key] = *value;
      }
    }
    right += check_rows("style " + entry.path().stem().string(), rows, read_text_file(entry.path()));
  }
  RecordProperty("chat_template_goldens", static_cast<int>(right));
  if (absent > 0) GTEST_SKIP() << absent << " styles skipped: their recorded renderings are not here";
}

TEST(RenderRows, Qwen) {
  const fs::path templates = kShared / "data/templates", goldens = kShared / "oracle/text/chat_templates";
  if (!fs::exists(templates)) GTEST_SKIP() << "skipped: the model templates are not here";
  size_t right = 0;
  for (const char* name : {"qwen3_5", "qwen3_5_thinking_off"}) {
    right += check_rows(name, read_rows(goldens / (std::string(name) + ".jsonl")),
                        read_text_file(templates / (std::string(name) + ".jinja")));
  }
  RecordProperty("chat_template_goldens", static_cast<int>(right));
}

TEST(RenderRows, RowsWithoutWhatTheyNeedAreErrors) {
  EXPECT_TRUE(render_row({}, "{{ 1 }}", clock_of_goldens()).contains("error"));
  EXPECT_TRUE(render_row({{"template", 5}}, "", clock_of_goldens()).contains("error"));
}

}  // namespace
}  // namespace calandra
