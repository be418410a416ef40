#include "server/request_head.h"

#include <fmt/format.h>

#include <algorithm>
#include <random>

namespace calandra::server {
namespace {

int hex_value(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

// Looks at all of `given` whatever `key` is.
bool equal(std::string_view key, std::string_view given) {
  unsigned different = key.size() == given.size() ? 0 : 1;
  for (size_t i = 0; i < given.size(); ++i)
    different |= static_cast<unsigned char>(given[i]) ^ static_cast<unsigned char>(key[i % key.size()]);
  return different == 0;
}

bool same_letters(std::string_view lower, std::string_view text) {
  return std::equal(lower.begin(), lower.end(), text.begin(), text.end(),
                    [](char wanted, char c) { return wanted == (c >= 'A' && c <= 'Z' ? c - 'A' + 'a' : c); });
}

std::string_view trimmed(std::string_view text) {
  constexpr const char* kBlanks = " \t";
  const size_t begin = text.find_first_not_of(kBlanks);
  if (begin == std::string_view::npos) return {};
  return text.substr(begin, text.find_last_not_of(kBlanks) + 1 - begin);
}

bool is_control(char c) { return (static_cast<unsigned char>(c) < 0x20 && c != '\t') || c == 0x7f; }

bool is_letter_or_digit(char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }

// "a%2Fb" -> "a/b". Nothing when an escape is wrong.
std::optional<std::string> without_escapes(std::string_view text) {
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] != '%') {
      out += text[i];
      continue;
    }
    if (i + 2 >= text.size()) return std::nullopt;
    const int high = hex_value(text[i + 1]), low = hex_value(text[i + 2]);
    if (high < 0 || low < 0 || (high == 0 && low == 0)) return std::nullopt;
    out += static_cast<char>(high * 16 + low);
    i += 2;
  }
  return out;
}

}  // namespace

std::optional<RequestError> fault_of_head(std::string_view head, size_t most_fields) {
  const auto bad = [](std::string_view why) {
    return RequestError{400, "bad_request", "", fmt::format("this is no HTTP/1.1 request: {}", why)};
  };
  const size_t first_end = std::min(head.find("\r\n"), head.size());
  const bool is_1_1 = head.substr(0, first_end).ends_with(" HTTP/1.1");
  size_t fields = 0, lengths = 0, encodings = 0;
  for (size_t begin = 0; begin <= head.size();) {
    const size_t end = std::min(head.find("\r\n", begin), head.size());
    const std::string_view line = head.substr(begin, end - begin);
    if (std::any_of(line.begin(), line.end(), is_control)) return bad("a control character");
    if (begin > 0) {
      const size_t colon = line.find(':');
      if (line.starts_with(' ') || line.starts_with('\t')) return bad("a folded header");
      if (colon == std::string_view::npos) return bad("a header without a colon");
      const std::string_view name = line.substr(0, colon), value = trimmed(line.substr(colon + 1));
      if (++fields > most_fields)
        return RequestError{431, "headers_too_large", "", fmt::format("more than {} headers", most_fields)};
      if (same_letters("content-length", name)) {
        ++lengths;
        if (value.empty() || value.find_first_not_of("0123456789") != std::string_view::npos)
          return bad("Content-Length is no number");
      }
      if (same_letters("transfer-encoding", name)) {
        ++encodings;
        if (!is_1_1 || !same_letters("chunked", value)) return bad("Transfer-Encoding can only be chunked");
      }
    }
    begin = end + 2;
  }
  if (lengths + encodings > 1) return bad("the body has more than one length");
  return std::nullopt;
}

std::optional<std::string> decode_path(std::string_view target) {
  target = target.substr(0, target.find_first_of("?#"));
  if (target.empty() || target[0] != '/') return std::nullopt;
  return without_escapes(target);
}

std::string_view query_of(std::string_view target) {
  target = target.substr(0, target.find('#'));
  const size_t mark = target.find('?');
  return mark == std::string_view::npos ? std::string_view() : target.substr(mark + 1);
}

std::vector<std::string> query_values(std::string_view query, std::string_view name) {
  std::vector<std::string> values;
  while (!query.empty()) {
    const std::string_view field = query.substr(0, query.find('&'));
    query.remove_prefix(std::min(query.size(), field.size() + 1));
    const size_t equals = std::min(field.find('='), field.size());
    if (field.substr(0, equals) != name) continue;
    auto value = without_escapes(field.substr(std::min(field.size(), equals + 1)));
    if (value) values.push_back(*std::move(value));
  }
  return values;
}

bool has_key(std::span<const std::string> keys, std::string_view authorization, std::string_view api_key) {
  constexpr std::string_view kBearer = "bearer ";
  std::string_view bearer;
  if (authorization.size() > kBearer.size() && same_letters(kBearer, authorization.substr(0, kBearer.size())))
    bearer = authorization.substr(kBearer.size());
  bool found = false;
  for (const std::string& key : keys) {
    found |= !bearer.empty() && equal(key, bearer);
    found |= !api_key.empty() && equal(key, api_key);
  }
  return found;
}

bool is_plain_id(std::string_view id) {
  constexpr size_t kLongest = 128;
  return !id.empty() && id.size() <= kLongest && std::all_of(id.begin(), id.end(), [](char c) {
    return is_letter_or_digit(c) || c == '-' || c == '_' || c == '.';
  });
}

std::string make_request_id() {
  thread_local std::mt19937_64 generator{std::random_device{}()};
  return fmt::format("req-{:016x}{:016x}", generator(), generator());
}

std::optional<std::string> allowed_origin(std::span<const std::string> allowed, std::string_view origin) {
  if (origin.empty()) return std::nullopt;
  for (const std::string& one : allowed)
    if (one == "*" || one == origin) return std::string(origin);
  return std::nullopt;
}

}  // namespace calandra::server
