// Which URLs of a client may be fetched: http and https, of hosts that the operator named, and nothing in them that two
// readers could read in two ways. The reader is libcurl's own, whose result is what is then connected to: rules that
// one parser checks and another one undoes are how such checks were passed (vLLM, CVE-2026-24779 and CVE-2026-25960).
#pragma once

#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "base/error.h"
#include "net/curl_library.h"

namespace calandra::net {

inline constexpr size_t kLongestUrl = 8192;

// A host as the operator names it: "images.example.com" for the usual ports, "images.example.com:8443" for that one.
// Exact: of no other host of the domain. Throws UsageError for anything else; `flag` names it.
std::string checked_domain(const std::string& flag, const std::string& domain);

struct CheckedUrl {
  CurlUrl url;
  std::string host;  // lower case, no brackets
  int port = 0;
};

// Error: 400 with the reason; or that libcurl is not installed. Nothing is looked up or connected to.
std::variant<CheckedUrl, RequestError> check_url(std::string_view url, const std::vector<std::string>& allowed_domains);

}  // namespace calandra::net
