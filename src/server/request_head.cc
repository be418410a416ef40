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

bool is_letter_or_digit(char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }

}  // namespace

std::optional<std::string> decode_path(std::string_view target) {
  target = target.substr(0, target.find_first_of("?#"));
  if (target.empty() || target[0] != '/') return std::nullopt;
  std::string path;
  for (size_t i = 0; i < target.size(); ++i) {
    if (target[i] != '%') {
      path += target[i];
      continue;
    }
    if (i + 2 >= target.size()) return std::nullopt;
    const int high = hex_value(target[i + 1]), low = hex_value(target[i + 2]);
    if (high < 0 || low < 0 || (high == 0 && low == 0)) return std::nullopt;
    path += static_cast<char>(high * 16 + low);
    i += 2;
  }
  return path;
}

bool has_key(std::span<const std::string> keys, std::string_view authorization, std::string_view api_key) {
  constexpr std::string_view kBearer = "bearer ";
  std::string_view bearer;
  if (authorization.size() > kBearer.size() &&
      std::equal(kBearer.begin(), kBearer.end(), authorization.begin(),
                 [](char wanted, char c) { return wanted == (c >= 'A' && c <= 'Z' ? c - 'A' + 'a' : c); }))
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
