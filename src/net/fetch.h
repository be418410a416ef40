// A file from an http or https server, for a client who named its URL. Who can make a server fetch what he likes can
// reach what only the server can reach (SSRF), so: the host is one of those allowed (url_policy.h); all its addresses
// are looked up once and must be public; the connection goes to one of exactly these; redirects are not followed;
// proxies, cookies, netrc files and credentials are not used. Source: the validator of NVIDIA NeMo.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "base/error.h"
#include "net/address.h"

namespace calandra::net {

// What tests put in place of the system's.
struct Network {
  // Called on a thread of its own, which may outlive the fetch; must not throw.
  std::function<std::vector<Address>(const std::string& host)> resolve = net::resolve;
  // Asked before each connection; the port of this machine's loopback that is connected to instead, or nothing: none is
  // made. Empty: the address itself.
  std::function<std::optional<uint16_t>(const Address& address, int port)> instead = {};
  std::string authorities = {};  // file of the certificates that are trusted; empty: the system's
};

struct FetchRules {
  std::vector<std::string> allowed_domains = {};  // by checked_domain; empty: nothing is fetched
  double seconds = 10;                            // for all of it, the lookup too
  int64_t max_bytes = 20 << 20;
};

// The body of a reply with status 200. `gone` is asked meanwhile; true ends it.
std::variant<std::string, RequestError> fetch(std::string_view url, const FetchRules& rules,
                                              const std::function<bool()>& gone, const Network& network = {});

}  // namespace calandra::net
