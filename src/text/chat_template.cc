#include "text/chat_template.h"

#include "base/error.h"
#include "text/jinja/unicode.h"

#include <algorithm>
#include <charconv>
#include <chrono>

namespace calandra {
namespace {

using jinja::Failure;
using jinja::MarkedString;

// As in transformers: put behind the final content, looked for in the result. The space shows whether the template
// trims.
constexpr std::string_view kContinueTag = "CONTINUE_FINAL_MESSAGE_TAG ";

std::string_view trimmed(std::string_view text) {
  while (!text.empty()) {
    size_t next = 0;
    if (!jinja::is_space(jinja::next_char(text, next))) break;
    text.remove_prefix(next);
  }
  while (!text.empty()) {
    const size_t last = jinja::previous_offset(text, text.size());
    size_t at = last;
    if (!jinja::is_space(jinja::next_char(text, at))) break;
    text = text.substr(0, last);
  }
  return text;
}

// The text that is to be continued: the content, or its last part that has text. Throws Failure if there is none.
json::string& final_text(json::array& messages) {
  if (messages.empty() || !messages.back().is_object())
    throw Failure("IndexError", "continue_final_message needs a last message");
  json::value* content = messages.back().get_object().if_contains("content");
  if (content == nullptr) throw Failure("KeyError", "continue_final_message needs the content of the last message");
  if (content->is_array()) {
    auto& parts = content->get_array();
    for (auto part = parts.rbegin(); part != parts.rend(); ++part) {
      json::value* text = part->is_object() ? part->get_object().if_contains("text") : nullptr;
      if (text != nullptr && text->is_string()) return text->get_string();
    }
    throw Failure("ValueError",
                  "continue_final_message is set but we could not find any text to continue in the final message!");
  }
  if (!content->is_string())
    throw Failure("TypeError", "continue_final_message needs text as the content of the last message");
  return content->get_string();
}

MarkedString cut_at_tag(const MarkedString& marked, std::string_view final_text, std::string_view tag) {
  const std::string& text = marked.text();
  const size_t at = text.rfind(trimmed(tag));
  if (at == std::string::npos || text.find(trimmed(final_text)) == std::string::npos) {
    throw Failure("ValueError",
                  "continue_final_message is set but the final message does not appear in the chat after applying the "
                  "chat template!");
  }
  if (std::string_view(text).substr(at, tag.size()) == tag) return marked.slice(0, at);
  size_t end = at;
  while (end > 0) {
    const size_t last = jinja::previous_offset(text, end);
    size_t next = last;
    if (!jinja::is_space(jinja::next_char(text, next))) break;
    end = last;
  }
  return marked.slice(0, end);
}

bool is_true(const json::object& object, std::string_view key) {
  const json::value* value = object.if_contains(key);
  return value != nullptr && value->is_bool() && value->get_bool();
}

}  // namespace

ChatTemplate::ChatTemplate(std::string_view source, json::object special_tokens, jinja::Budgets budgets)
    : template_(source), special_tokens_(std::move(special_tokens)), budgets_(budgets) {}

MarkedString ChatTemplate::render_once(const json::value& messages, const json::value& tools,
                                       const json::object& kwargs, const std::tm& now) const {
  std::vector<jinja::Variable> variables;
  for (const auto& [name, value] : special_tokens_) variables.push_back({std::string(name), value, false});
  variables.push_back({"messages", messages, true});
  variables.push_back({"tools", tools.is_array() && tools.get_array().empty() ? json::value() : tools, true});
  variables.push_back({"documents", nullptr, true});
  variables.push_back({"add_generation_prompt", false, true});
  for (const auto& [name, value] : kwargs) {
    if (name != "continue_final_message") variables.push_back({std::string(name), value, true});
  }
  return template_.render(variables, now, budgets_);
}

RenderedPrompt ChatTemplate::render(const json::value& messages, const json::value& tools, const json::object& kwargs,
                                    const std::tm& now) const {
  MarkedString marked;
  if (is_true(kwargs, "continue_final_message")) {
    if (!messages.is_array()) throw Failure("TypeError", "continue_final_message needs a list of messages");
    json::array tagged = messages.get_array();
    json::string& text = final_text(tagged);
    const std::string original(text);
    // Users may write the tag too; then a longer one is used.
    const std::string all = to_json(messages);
    std::string tag(kContinueTag);
    while (all.find(trimmed(tag)) != std::string::npos) tag.insert(0, "X");
    text.append(tag);
    marked = cut_at_tag(render_once(tagged, tools, kwargs, now), original, tag);
  } else {
    marked = render_once(messages, tools, kwargs, now);
  }
  RenderedPrompt prompt{marked.text(), marked.pieces(), {}};
  if (messages.is_array()) prompt.message_ends = message_ends(prompt.text, messages.get_array(), tools, kwargs, now);
  return prompt;
}

// A message ends where the rendering of the messages up to it, without a generation prompt, is a prefix of the whole.
// Templates that write a message otherwise when more follow (tool results in one turn, dropped thinking) fail the test:
// no end there.
std::vector<size_t> ChatTemplate::message_ends(const std::string& text, const json::array& messages,
                                               const json::value& tools, json::object kwargs,
                                               const std::tm& now) const {
  kwargs["add_generation_prompt"] = false;
  const bool continues = is_true(kwargs, "continue_final_message");
  const size_t last = continues && !messages.empty() ? messages.size() - 1 : messages.size();
  const size_t first = last > kMessageEndsTried ? last - kMessageEndsTried : 0;
  std::vector<size_t> ends;
  for (size_t count = last; count > first; --count) {
    try {
      const MarkedString part = render_once(
          json::array(messages.begin(), messages.begin() + static_cast<std::ptrdiff_t>(count)), tools, kwargs, now);
      if (part.size() > 0 && text.starts_with(part.text())) ends.push_back(part.size());
    } catch (const Failure&) {
      continue;  // the template refuses such a conversation, for example one without a user's turn
    }
  }
  std::sort(ends.begin(), ends.end());
  ends.erase(std::unique(ends.begin(), ends.end()), ends.end());
  return ends;
}

json::value with_parsed_arguments(json::value messages) {
  if (!messages.is_array()) return messages;
  for (json::value& message : messages.get_array()) {
    json::value* calls = message.is_object() ? message.get_object().if_contains("tool_calls") : nullptr;
    if (calls == nullptr || !calls->is_array()) continue;
    for (json::value& call : calls->get_array()) {
      if (!call.is_object()) continue;
      json::value* inner = call.get_object().if_contains("function");
      json::object& function = inner != nullptr && inner->is_object() ? inner->get_object() : call.get_object();
      json::value* arguments = function.if_contains("arguments");
      if (arguments == nullptr || !arguments->is_string()) continue;
      try {
        json::value parsed = parse_json(arguments->get_string(), "arguments");
        if (parsed.is_object()) *arguments = std::move(parsed);
      } catch (const LoadError&) {
        continue;  // stays a string
      }
    }
  }
  return messages;
}

std::tm parse_clock(std::string_view text) {
  std::tm clock{};
  int* const parts[] = {&clock.tm_year, &clock.tm_mon, &clock.tm_mday, &clock.tm_hour, &clock.tm_min, &clock.tm_sec};
  constexpr std::string_view kForm = "0000-00-00 00:00:00";
  bool valid = text.size() == kForm.size();
  size_t part = 0;
  for (size_t at = 0; valid && at < text.size();) {
    if (kForm[at] != '0') {
      valid = text[at] == kForm[at];
      ++at;
      continue;
    }
    const size_t end = std::min(kForm.find_first_not_of('0', at), kForm.size());
    const auto [stop, error] = std::from_chars(text.data() + at, text.data() + end, *parts[part++]);
    valid = error == std::errc() && stop == text.data() + end;
    at = end;
  }
  const std::chrono::year_month_day day{std::chrono::year(clock.tm_year),
                                        std::chrono::month(static_cast<unsigned>(clock.tm_mon)),
                                        std::chrono::day(static_cast<unsigned>(clock.tm_mday))};
  if (!valid || !day.ok() || clock.tm_hour > 23 || clock.tm_min > 59 || clock.tm_sec > 59 || clock.tm_hour < 0 ||
      clock.tm_min < 0 || clock.tm_sec < 0) {
    throw UsageError("the clock '" + std::string(text) + "' is not of the form YYYY-MM-DD HH:MM:SS");
  }
  const std::chrono::sys_days date(day);
  clock.tm_wday = static_cast<int>(std::chrono::weekday(date).c_encoding());
  clock.tm_yday = static_cast<int>((date - std::chrono::sys_days(day.year() / 1 / 1)).count());
  clock.tm_year -= 1900;
  clock.tm_mon -= 1;
  clock.tm_isdst = 0;
  return clock;
}

}  // namespace calandra
