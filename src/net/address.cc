#include "net/address.h"

#include <arpa/inet.h>
#include <netdb.h>
#include <sys/socket.h>

#include <algorithm>
#include <cstring>
#include <memory>

namespace calandra::net {
namespace {

// The addresses that begin with these bits.
struct Block {
  std::array<uint8_t, 16> bytes;
  int bits;
};

constexpr Block kNotPublicV4[] = {
    {{0}, 8},              // this network
    {{10}, 8},             // private
    {{100, 64}, 10},       // shared by carriers
    {{127}, 8},            // loopback
    {{169, 254}, 16},      // link-local; metadata services of clouds
    {{172, 16}, 12},       // private
    {{192, 0, 0}, 24},     // protocol assignments
    {{192, 0, 2}, 24},     // documentation
    {{192, 88, 99}, 24},   // relays of 6to4
    {{192, 168}, 16},      // private
    {{198, 18}, 15},       // benchmarks
    {{198, 51, 100}, 24},  // documentation
    {{203, 0, 113}, 24},   // documentation
    {{224}, 4},            // multicast
    {{240}, 4},            // reserved; broadcast
};
constexpr Block kGlobalV6 = {{0x20}, 3};
constexpr Block kNotPublicV6[] = {
    {{0x20, 0x01, 0x00}, 23},        // protocol assignments: Teredo, ORCHID, benchmarks
    {{0x20, 0x01, 0x0d, 0xb8}, 32},  // documentation
    {{0x20, 0x02}, 16},              // 6to4, which carries an IPv4 address
    {{0x3f, 0xff, 0x00}, 20},        // documentation
};

bool is_in(const Address& address, const Block& block) {
  for (int bit = 0; bit < block.bits; bit += 8) {
    const int left = std::min(8, block.bits - bit);
    const auto mask = static_cast<uint8_t>(0xff << (8 - left));
    const auto byte = static_cast<size_t>(bit / 8);
    if ((address.bytes[byte] & mask) != block.bytes[byte]) return false;
  }
  return true;
}

}  // namespace

std::optional<Address> parse_address(const std::string& text) {
  Address address;
  if (inet_pton(AF_INET, text.c_str(), address.bytes.data()) == 1) return address;
  address.is_v6 = true;
  if (inet_pton(AF_INET6, text.c_str(), address.bytes.data()) == 1) return address;
  return std::nullopt;
}

std::optional<Address> address_of(const sockaddr& given) {
  Address address;
  if (given.sa_family == AF_INET) {
    sockaddr_in v4;
    std::memcpy(&v4, &given, sizeof(v4));
    std::memcpy(address.bytes.data(), &v4.sin_addr, sizeof(v4.sin_addr));
    return address;
  }
  if (given.sa_family != AF_INET6) return std::nullopt;
  sockaddr_in6 v6;
  std::memcpy(&v6, &given, sizeof(v6));
  address.is_v6 = true;
  std::memcpy(address.bytes.data(), &v6.sin6_addr, sizeof(v6.sin6_addr));
  return address;
}

std::string to_string(const Address& address) {
  char text[INET6_ADDRSTRLEN] = {};
  inet_ntop(address.is_v6 ? AF_INET6 : AF_INET, address.bytes.data(), text, sizeof(text));
  return text;
}

bool is_public(const Address& address) {
  const auto holds = [&](const Block& block) { return is_in(address, block); };
  if (!address.is_v6) return std::none_of(std::begin(kNotPublicV4), std::end(kNotPublicV4), holds);
  return is_in(address, kGlobalV6) && std::none_of(std::begin(kNotPublicV6), std::end(kNotPublicV6), holds);
}

std::vector<Address> resolve(const std::string& host) {
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  if (getaddrinfo(host.c_str(), nullptr, &hints, &found) != 0) return {};
  const std::unique_ptr<addrinfo, decltype(&freeaddrinfo)> owner(found, freeaddrinfo);
  std::vector<Address> addresses;
  for (const addrinfo* at = found; at != nullptr; at = at->ai_next)
    if (const auto address = address_of(*at->ai_addr)) addresses.push_back(*address);
  return addresses;
}

}  // namespace calandra::net
