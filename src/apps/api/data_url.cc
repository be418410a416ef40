#include "apps/api/data_url.h"

#include <array>
#include <cstdint>

namespace calandra::apps {
namespace {

constexpr uint8_t kNone = 0xff;

constexpr std::array<uint8_t, 256> kDigits = [] {
  constexpr std::string_view kAlphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::array<uint8_t, 256> digits{};
  digits.fill(kNone);
  for (size_t i = 0; i < kAlphabet.size(); ++i) digits[static_cast<uint8_t>(kAlphabet[i])] = static_cast<uint8_t>(i);
  return digits;
}();

std::string lower(std::string_view text) {
  std::string out(text);
  for (char& c : out)
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  return out;
}

}  // namespace

std::variant<DataUrl, RequestError> read_data_url(std::string_view url) {
  const auto refused = [](const char* message) { return RequestError{400, "invalid_url", "", message}; };
  if (lower(url.substr(0, 5)) != "data:") return refused("this is no data: URL");
  const size_t comma = url.find(',');
  constexpr size_t kLongestHead = 256;
  if (comma == std::string_view::npos || comma > kLongestHead) return refused("the data: URL has no comma");
  const std::string head = lower(url.substr(5, comma - 5));
  constexpr std::string_view kBase64 = ";base64";
  if (!head.ends_with(kBase64)) return refused("the data: URL must be base64: data:image/png;base64,…");
  return DataUrl{head.substr(0, head.find(';')), url.substr(comma + 1)};
}

std::optional<std::string> decode_base64(std::string_view text) {
  if (text.size() % 4 == 0)
    for (int i = 0; i < 2 && text.ends_with('='); ++i) text.remove_suffix(1);
  if (text.size() % 4 == 1) return std::nullopt;
  std::string bytes;
  bytes.reserve(text.size() / 4 * 3 + 2);
  uint32_t bits = 0;
  int count = 0;
  for (const char c : text) {
    const uint8_t digit = kDigits[static_cast<uint8_t>(c)];
    if (digit == kNone) return std::nullopt;
    bits = bits << 6 | digit;
    count += 6;
    if (count < 8) continue;
    count -= 8;
    bytes += static_cast<char>(bits >> count & 0xff);
  }
  return bytes;
}

}  // namespace calandra::apps
