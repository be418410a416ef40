// Addresses of the internet, and those among them that anybody may be sent to.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

struct sockaddr;

namespace calandra::net {

struct Address {
  bool is_v6 = false;
  std::array<uint8_t, 16> bytes = {};  // of an IPv4 address the first four
  bool operator==(const Address&) const = default;
};

// A numeric address: "93.184.216.34", "2606:2800::1". Nothing else is read: no name, no zone, no octal or hexadecimal.
std::optional<Address> parse_address(const std::string& text);
std::optional<Address> address_of(const sockaddr& given);
std::string to_string(const Address& address);

// Whether it is one of the public internet: neither private, loopback, link-local, shared, documentation, benchmark,
// multicast nor reserved, and no IPv6 form that carries an IPv4 address. Sources: IANA's special-purpose registries,
// RFC 6890 and RFC 4291.
bool is_public(const Address& address);

// All addresses of a name, by the system's resolver; may block. Empty when there are none.
std::vector<Address> resolve(const std::string& host);

}  // namespace calandra::net
