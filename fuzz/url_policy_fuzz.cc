// Arbitrary bytes as a URL and as the answer of the resolver (acceptance F12): nothing but a public address of an
// allowed host is ever about to be connected to. No connection is made: the stub says no to all.
//   line 1: addresses that the name has, one letter each, see kAddresses   the rest: the URL
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "base/log.h"
#include "net/fetch.h"

namespace {

struct Known {
  const char* text;
  bool is_public;
};
// By hand, not by is_public, which is under test.
constexpr Known kAddresses[] = {{"93.184.216.34", true},
                                {"2606:2800:220:1::1", true},
                                {"8.8.8.8", true},
                                {"127.0.0.1", false},
                                {"10.0.0.1", false},
                                {"169.254.169.254", false},
                                {"192.168.0.1", false},
                                {"172.16.0.1", false},
                                {"0.0.0.0", false},
                                {"100.64.0.1", false},
                                {"224.0.0.1", false},
                                {"255.255.255.255", false},
                                {"::1", false},
                                {"::", false},
                                {"::ffff:127.0.0.1", false},
                                {"64:ff9b::a00:1", false},
                                {"fd00::1", false},
                                {"fe80::1", false},
                                {"2002:7f00:1::", false},
                                {"2001:db8::1", false},
                                {"ff02::1", false},
                                {"198.18.0.1", false},
                                {"203.0.113.1", false},
                                {"192.0.2.1", false}};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size) {
  using namespace calandra;
  set_log_level(LogLevel::kOff);
  const std::string_view input(reinterpret_cast<const char*>(bytes), size);
  const std::string_view letters = input.substr(0, input.find('\n'));
  const std::string_view url = letters.size() == size ? std::string_view() : input.substr(letters.size() + 1);
  bool all_public = !letters.empty();
  std::vector<net::Address> addresses;
  for (const char letter : letters) {
    const Known& known = kAddresses[static_cast<uint8_t>(letter) % std::size(kAddresses)];
    all_public = all_public && known.is_public;
    addresses.push_back(net::parse_address(known.text).value());
  }
  const net::FetchRules rules{{"images.example.com", "other.example.org:8443"}, 1, 1000};
  bool looked_up = false;
  const auto resolve = [&](const std::string& host) {
    if (host != "images.example.com" && host != "other.example.org") std::abort();
    looked_up = true;
    return addresses;
  };
  const auto connect = [&](const net::Address& address, int port) -> std::optional<uint16_t> {
    const bool is_known = std::find(addresses.begin(), addresses.end(), address) != addresses.end();
    if (!looked_up || !all_public || !is_known || (port != 80 && port != 443 && port != 8443)) std::abort();
    return std::nullopt;
  };
  const auto result = net::fetch(url, rules, {}, {resolve, connect});
  if (std::holds_alternative<std::string>(result)) std::abort();  // from where?
  return 0;
}
