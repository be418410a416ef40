#include "net/url_policy.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <optional>

namespace calandra::net {
namespace {

RequestError refused(std::string message) { return {400, "invalid_url", "", std::move(message)}; }

bool is_host_character(char c) {
  return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '-' || c == '.' || c == '_';
}

// Letters, digits, "-", "_" and single dots inside. IPv6 addresses are no names that anybody has to be allowed.
bool is_plain_host(std::string_view host) {
  constexpr size_t kLongest = 253;
  return !host.empty() && host.size() <= kLongest && host.front() != '.' && host.back() != '.' &&
         host.find("..") == std::string_view::npos && std::all_of(host.begin(), host.end(), is_host_character);
}

std::string lower(std::string text) {
  for (char& c : text)
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  return text;
}

std::optional<int> port_of(std::string_view digits) {
  int port = 0;
  const auto [end, failure] = std::from_chars(digits.data(), digits.data() + digits.size(), port);
  if (failure != std::errc() || end != digits.data() + digits.size() || port < 1 || port > 65535) return std::nullopt;
  return port;
}

// A part of the URL, or nothing when it has none.
std::optional<std::string> part(const CurlLibrary& curl, CURLU* url, CURLUPart which, unsigned flags = 0) {
  char* text = nullptr;
  if (curl.url_get(url, which, &text, flags) != CURLUE_OK || text == nullptr) return std::nullopt;
  std::string copy(text);
  curl.free(text);
  return copy;
}

}  // namespace

std::string checked_domain(const std::string& flag, const std::string& domain) {
  const std::string name = lower(domain);
  const size_t colon = name.find(':');
  if (!is_plain_host(std::string_view(name).substr(0, colon)) ||
      (colon != std::string::npos && !port_of(std::string_view(name).substr(colon + 1))))
    throw UsageError(fmt::format(
        "{}: {} is no host name; write images.example.com, or images.example.com:8443 for another port", flag, domain));
  return name;
}

std::variant<CheckedUrl, RequestError> check_url(std::string_view url,
                                                 const std::vector<std::string>& allowed_domains) {
  if (allowed_domains.empty())
    return refused(
        "URLs are not fetched here: send the file in a data: URL, or start the server with "
        "--allowed-media-domains");
  if (url.size() > kLongestUrl) return refused(fmt::format("the URL has more than {} bytes", kLongestUrl));
  for (const char c : url)
    if (c <= ' ' || c == '\x7f' || c == '\\')  // bytes above 0x7f are negative
      return refused(
          "the URL has characters that must be percent-encoded; a host name in other letters is written in "
          "its xn-- form");
  const CurlLibrary* curl = CurlLibrary::get();
  if (curl == nullptr)
    return RequestError{501, "unsupported_url", "", "URLs cannot be fetched: libcurl is not installed on the server"};
  CheckedUrl checked{CurlUrl(curl->url(), curl->url_cleanup), {}, 0};
  CURLU* const parsed = checked.url.get();
  if (parsed == nullptr || curl->url_set(parsed, CURLUPART_URL, std::string(url).c_str(), 0) != CURLUE_OK)
    return refused("the URL cannot be read: it must be http://HOST/… or https://HOST/…");
  const std::string scheme = part(*curl, parsed, CURLUPART_SCHEME).value_or("");
  if (scheme != "http" && scheme != "https") return refused("the URL must begin with http:// or https://");
  for (const CURLUPart which : {CURLUPART_USER, CURLUPART_PASSWORD, CURLUPART_OPTIONS, CURLUPART_ZONEID})
    if (part(*curl, parsed, which)) return refused("the URL must have no user, password, options or zone");
  checked.host = lower(part(*curl, parsed, CURLUPART_HOST).value_or(""));
  const auto port = port_of(part(*curl, parsed, CURLUPART_PORT, CURLU_DEFAULT_PORT).value_or(""));
  if (!is_plain_host(checked.host) || !port) return refused("the URL's host is no plain host name");
  checked.port = *port;
  const bool is_usual = checked.port == (scheme == "https" ? 443 : 80);
  const std::string with_port = fmt::format("{}:{}", checked.host, checked.port);
  const bool is_allowed = std::any_of(allowed_domains.begin(), allowed_domains.end(), [&](const std::string& allowed) {
    return (is_usual && allowed == checked.host) || allowed == with_port;
  });
  if (!is_allowed) return refused("the URL's host is not among those of --allowed-media-domains");
  return checked;
}

}  // namespace calandra::net
