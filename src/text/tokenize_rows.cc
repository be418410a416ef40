#include "text/tokenize_rows.h"

#include "base/error.h"
#include "text/detokenizer.h"
#include "text/utf8.h"

namespace calandra {
namespace {

[[noreturn]] void wrong(std::string_view key, std::string_view expected) {
  throw UsageError("tokenize row: \"" + std::string(key) + "\" must be " + std::string(expected));
}

std::string_view string_of(const json::value& value, std::string_view key) {
  if (!value.is_string()) wrong(key, "a string");
  return value.get_string();
}

bool flag_of(const json::object& row, std::string_view key, bool otherwise) {
  const json::value* value = row.if_contains(key);
  if (value == nullptr) return otherwise;
  if (!value->is_bool()) wrong(key, "true or false");
  return value->get_bool();
}

std::vector<int32_t> ids_of(const json::value& value) {
  if (!value.is_array()) wrong("ids", "an array of ids");
  std::vector<int32_t> ids;
  for (const json::value& id : value.get_array()) {
    if (!id.is_int64() || id.get_int64() < 0 || id.get_int64() > INT32_MAX) wrong("ids", "an array of ids");
    ids.push_back(static_cast<int32_t>(id.get_int64()));
  }
  return ids;
}

int hex_digit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

std::string bytes_of(std::string_view hex) {
  std::string bytes;
  for (size_t i = 0; i < hex.size(); i += 2) {
    const int high = hex_digit(hex[i]), low = i + 1 < hex.size() ? hex_digit(hex[i + 1]) : -1;
    if (high < 0 || low < 0) wrong("bytes_hex", "pairs of hexadecimal digits");
    bytes += static_cast<char>(high << 4 | low);
  }
  return bytes;
}

json::array to_array(const std::vector<int32_t>& ids) { return json::array(ids.begin(), ids.end()); }

json::object decode_row(const Tokenizer& tokenizer, const std::vector<int32_t>& ids) {
  Detokenizer detokenizer(tokenizer, {.skip_special = false});
  json::array pieces;
  for (const int32_t id : ids) pieces.emplace_back(detokenizer.push(id));
  const std::string flush = detokenizer.flush();
  return {{"text", tokenizer.decode(ids)},
          {"pieces", std::move(pieces)},
          {"flush", flush},
          {"text_skip_special", tokenizer.decode(ids, /*skip_special=*/true)}};
}

json::object stop_row(const Tokenizer& tokenizer, const std::vector<int32_t>& ids, const json::object& row) {
  DetokenizerOptions options{.skip_special = false};
  const json::value& stop = row.at("stop");
  if (!stop.is_array()) wrong("stop", "an array of strings");
  for (const json::value& text : stop.get_array()) {
    if (string_of(text, "stop").empty()) wrong("stop", "an array of strings that are not empty");
    options.stop.emplace_back(string_of(text, "stop"));
  }
  options.include_stop_str_in_output = flag_of(row, "include_stop_str_in_output", false);
  if (const json::value* least = row.if_contains("min_tokens")) {
    if (!least->is_int64() || least->get_int64() < 0) wrong("min_tokens", "a number of tokens");
    options.min_tokens = least->get_int64();
  }
  Detokenizer detokenizer(tokenizer, std::move(options));
  json::array released;
  for (const int32_t id : ids) {
    released.emplace_back(detokenizer.push(id));
    if (detokenizer.stopped()) break;
  }
  const std::string at_end = detokenizer.flush();
  return {{"text", detokenizer.text()},
          {"stop_reason", detokenizer.stopped() ? json::value(detokenizer.stop_reason()) : json::value(nullptr)},
          {"tokens_used", detokenizer.tokens_used()},
          {"released", std::move(released)},
          {"released_at_end", at_end}};
}

}  // namespace

json::object tokenize_row(const Tokenizer& tokenizer, const json::object& row) {
  const EncodeOptions options{.parse_special = flag_of(row, "specials", true)};
  if (const json::value* hex = row.if_contains("bytes_hex")) {
    const std::string text = replace_invalid_utf8(bytes_of(string_of(*hex, "bytes_hex")));
    return {{"text", text}, {"ids", to_array(tokenizer.encode(text, options))}};
  }
  const json::value* ids = row.if_contains("ids");
  const json::value* text = row.if_contains("text");
  if (ids != nullptr && row.contains("stop")) return stop_row(tokenizer, ids_of(*ids), row);
  if (ids != nullptr && (text == nullptr || row.contains("pieces"))) return decode_row(tokenizer, ids_of(*ids));
  if (text != nullptr) return {{"ids", to_array(tokenizer.encode(string_of(*text, "text"), options))}};
  throw UsageError("tokenize row: there is none of \"text\", \"bytes_hex\" and \"ids\"");
}

}  // namespace calandra
