#include "text/parsers/argument_types.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <optional>

#include "text/parsers/output_events.h"
#include "text/parsers/python_literal.h"

namespace calandra {
namespace {

std::string_view trimmed(std::string_view text) {
  const size_t begin = skip_space(text, 0);
  const size_t end = text.find_last_not_of(kOutputSpace);
  return end == std::string_view::npos ? std::string_view() : text.substr(begin, end + 1 - begin);
}

std::string lower(std::string_view text) {
  std::string out(text);
  for (char& c : out)
    if (c >= 'A' && c <= 'Z') c += 'a' - 'A';
  return out;
}

void add_types(const json::value& type, std::vector<std::string>& types) {
  if (type.is_string()) types.push_back(lower(trimmed(type.get_string())));
  if (type.is_array())
    for (const json::value& one : type.get_array())
      if (one.is_string()) types.push_back(lower(trimmed(one.get_string())));
}

// Python's int(): any number of digits.
std::optional<std::string> whole_number(std::string_view text) {
  text = trimmed(text);
  const bool negative = text.starts_with('-');
  if (negative || text.starts_with('+')) text.remove_prefix(1);
  std::string digits;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '_' && i > 0 && i + 1 < text.size() && text[i - 1] != '_') continue;
    if (text[i] < '0' || text[i] > '9') return std::nullopt;
    digits += text[i];
  }
  if (digits.empty()) return std::nullopt;
  digits.erase(0, std::min(digits.find_first_not_of('0'), digits.size() - 1));
  return negative && digits != "0" ? "-" + digits : digits;
}

// Python's float(), written as an integer when it is one.
std::optional<std::string> real_number(std::string_view text) {
  text = trimmed(text);
  if (text.starts_with('+')) text.remove_prefix(1);
  if (text.starts_with('+')) return std::nullopt;
  double value = 0;
  const auto [end, failed] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (failed != std::errc() || end != text.data() + text.size() || !std::isfinite(value)) return std::nullopt;
  if (value == std::trunc(value) && std::abs(value) < 9e15) return std::to_string(static_cast<int64_t>(value));
  return to_json(json::value(value));
}

std::optional<json::value> parse_text(std::string_view text) {
  boost::system::error_code failed;
  json::parse_options options;
  options.max_depth = 256;
  json::value value = json::parse(text, failed, {}, options);
  if (failed) return std::nullopt;
  return value;
}

// An array or object as JSON, or else as Python writes it; again when that is a string that holds one.
std::string structure(std::string_view text) {
  std::optional<json::value> value = parse_text(text);
  if (value && !value->is_string()) return std::string(trimmed(text));  // numbers keep all their digits
  if (!value) value = parse_python_literal(text);
  if (!value) return json_string(text);
  if (value->is_string() && std::string_view(value->get_string()) != text)
    if (const std::optional<json::value> inner = parse_python_literal(value->get_string())) return to_json(*inner);
  return to_json(*value);
}

}  // namespace

bool ArgumentType::is_string() const {
  static constexpr std::string_view kStrings[] = {"string", "str", "text", "varchar", "char", "enum"};
  return std::find(std::begin(kStrings), std::end(kStrings), name) != std::end(kStrings);
}

ArgumentType argument_type(const json::value* schema) {
  ArgumentType type;
  if (schema == nullptr || !schema->is_object()) return type;
  std::vector<std::string> types;
  const json::object& object = schema->get_object();
  if (const json::value* given = object.if_contains("type")) {
    add_types(*given, types);
  } else if (const json::value* options = object.if_contains("anyOf"); options != nullptr && options->is_array()) {
    for (const json::value& option : options->get_array())
      if (option.is_object())
        if (const json::value* given = option.get_object().if_contains("type")) add_types(*given, types);
  }
  type.nullable = std::erase(types, "null") > 0;
  if (!types.empty()) type.name = types.front();
  return type;
}

std::string argument_json(std::string_view text, const ArgumentType& type) {
  const std::string lowered = text.size() <= 5 ? lower(text) : std::string();
  if ((lowered == "null" || lowered == "none") && (type.nullable || !type.is_string())) return "null";
  if (type.is_string()) return json_string(text);
  const auto among = [&](std::initializer_list<std::string_view> starts) {
    return std::any_of(starts.begin(), starts.end(),
                       [&](std::string_view start) { return type.name.starts_with(start); });
  };
  if (among({"int", "uint", "long", "short", "unsigned"})) return whole_number(text).value_or(json_string(text));
  if (among({"num", "float"})) return real_number(text).value_or(json_string(text));
  if (type.name == "boolean" || type.name == "bool" || type.name == "binary")
    return lowered == "true" ? "true" : "false";
  return structure(text);
}

std::string json_string(std::string_view text) { return to_json(json::value(json::string(text))); }

}  // namespace calandra
