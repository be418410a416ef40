// URLs that must not be fetched (acceptance C5), and those that may.
#include "net/url_policy.h"

#include <gtest/gtest.h>

#include "net/address.h"

namespace calandra::net {
namespace {

const std::vector<std::string> kAllowed = {"images.example.com", "other.example.org:8443"};

std::string verdict(const std::string& url, const std::vector<std::string>& allowed = kAllowed) {
  const auto checked = check_url(url, allowed);
  if (const auto* error = std::get_if<RequestError>(&checked)) return error->code;
  const auto& target = std::get<CheckedUrl>(checked);
  return target.host + ":" + std::to_string(target.port);
}

TEST(UrlPolicy, AllowedUrls) {
  for (const char* url :
       {"https://images.example.com/a.png", "HTTPS://IMAGES.example.COM/a.png", "https://images.example.com",
        "https://images.example.com:443/", "https://images.example.com/a?b=c&d=%2F#e", "https://images.example.com/..",
        "https://images.example.com/http://127.0.0.1/", "https://images.example.com/?u=http://10.0.0.1@x"})
    EXPECT_EQ(verdict(url), "images.example.com:443") << url;
  EXPECT_EQ(verdict("http://images.example.com/a"), "images.example.com:80");
  EXPECT_EQ(verdict("https://other.example.org:8443/a"), "other.example.org:8443");
}

TEST(UrlPolicy, NothingIsFetchedByDefault) {
  EXPECT_EQ(verdict("https://images.example.com/a.png", {}), "invalid_url");
}

// Every form of a host that is not the allowed one, under both schemes, with and without port and path.
TEST(UrlPolicy, OtherHostsInEveryForm) {
  const std::vector<std::string> hosts = {
      "127.0.0.1", "127.1", "127.0.1", "0", "0.0.0.0", "2130706433", "0x7f000001", "0x7f.1", "0x7F.0.0.0x1",
      "017700000001", "0177.0.0.1", "0000000177.1", "127.0.0.1.", "127.000.000.001", "4294967295", "10.0.0.1",
      "169.254.169.254", "0xa9fea9fe", "2852039166", "[::1]", "[::]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]",
      "[0:0:0:0:0:ffff:169.254.169.254]", "[64:ff9b::7f00:1]", "[2002:7f00:1::]", "[fe80::1%25lo]", "[fe80::1%lo]",
      "[fd00::1]", "[2606:2800:220:1::1]", "localhost", "LOCALHOST", "localhost.", "metadata.google.internal",
      // nearly the allowed one
      "images.example.com.", "images.example.com..", ".images.example.com", "a.images.example.com", "example.com",
      "images.example.com.evil.net", "evil-images.example.com", "images.example.comevil", "images-example.com",
      "images.example.com%00.evil.net", "images.example.com%2eevil.net", "images%2eexample%2ecom%2fevil",
      "images.example.com%20", "%20images.example.com", "images.example.com%0d%0ahost:x", "images.example.com%5cevil",
      "images.example.com%40evil.net", "evil.net%2523images.example.com", "evil.net%3f.images.example.com",
      "evil.net%2f.images.example.com", "evil.net%23.images.example.com",
      // letters that only look like it, or that some readers make equal
      "images.ex\xc3\xa4mple.com", "\xef\xbd\x89mages.example.com",
      "images\xe3\x80\x82"
      "example\xe3\x80\x82"
      "com",
      "xn--mages-xvb.example.com", "\xe2\x91\xa0\xe2\x91\xa1\xe2\x91\xa6.0.0.1",
      "imag\xc2\xad"
      "es.example.com",
      // user information and other parts
      "images.example.com@evil.net", "images.example.com:443@evil.net", "evil.net@images.example.com",
      "user:password@images.example.com", ":@images.example.com", "@images.example.com",
      "images.example.com:pw;AUTH=x@evil.net", "evil.net#@images.example.com", "evil.net?@images.example.com",
      "evil.net\\@images.example.com", "images.example.com\\@evil.net", "evil.net\\.images.example.com", "",
      "evil.net/@images.example.com", "other.example.org", "evil.net;images.example.com"};
  int cases = 0;
  for (const char* scheme : {"http://", "https://"})
    for (const std::string& host : hosts)
      for (const char* rest : {"", "/a.png", ":8080/a.png"}) {
        const std::string url = scheme + host + rest;
        EXPECT_EQ(verdict(url), "invalid_url") << url;
        ++cases;
      }
  EXPECT_GE(cases, 300);
}

TEST(UrlPolicy, OtherPortsOfAnAllowedHost) {
  for (const char* url :
       {"https://images.example.com:80/", "http://images.example.com:443/", "https://images.example.com:22/",
        "https://images.example.com:0/", "https://images.example.com:65536/", "https://images.example.com:-1/",
        "https://images.example.com:x/", "https://images.example.com:443:443/", "https://other.example.org/",
        "https://other.example.org:443/"})
    EXPECT_EQ(verdict(url), "invalid_url") << url;
}

TEST(UrlPolicy, OtherSchemesAndBrokenUrls) {
  for (const std::string url : {"file:///etc/passwd",
                                "file://images.example.com/etc/passwd",
                                "ftp://images.example.com/a",
                                "ftp://images.example.com:80/a",
                                "gopher://images.example.com:443/_x",
                                "smb://images.example.com:80/a",
                                "https://images.example.com/a\\b",
                                "gopher://images.example.com/_x",
                                "dict://images.example.com/",
                                "ldap://images.example.com/",
                                "scp://images.example.com/",
                                "smb://images.example.com/",
                                "ws://images.example.com/",
                                "data:,x",
                                "javascript:alert(1)",
                                "images.example.com/a.png",
                                "//images.example.com/a.png",
                                "https:",
                                "https://",
                                "https",
                                " https://images.example.com/",
                                "https://images.example.com/ ",
                                "https://images.example.com/a b",
                                "https://images.example.com/\r\nHost: evil",
                                "https://images.example.com/\x7f",
                                "https://images.example.com/\xc3\xa4",
                                "https:\\\\images.example.com/",
                                "\thttps://images.example.com/",
                                "https://[images.example.com]/",
                                "https://[::1/",
                                "https://images.example.com]/",
                                "netdoc:///etc/passwd",
                                "jar:https://images.example.com/!/"})
    EXPECT_EQ(verdict(url), "invalid_url") << url;
  EXPECT_EQ(verdict("https://images.example.com/" + std::string(kLongestUrl, 'a')), "invalid_url");
  EXPECT_EQ(verdict(std::string("https://images.example.com\0.evil.net/", 37)), "invalid_url");
}

TEST(UrlPolicy, DomainsOfTheOperator) {
  EXPECT_EQ(checked_domain("--x", "Images.Example.com"), "images.example.com");
  EXPECT_EQ(checked_domain("--x", "a.example:8443"), "a.example:8443");
  for (const char* domain : {"", "*.example.com", "https://example.com", "example.com/", "example.com:", "a b",
                             "example.com:99999", ".example.com", "[::1]", "user@example.com"})
    EXPECT_THROW(checked_domain("--x", domain), UsageError) << domain;
}

TEST(Addresses, PublicOnes) {
  for (const char* text : {"93.184.216.34", "1.1.1.1", "8.8.8.8", "100.63.255.255", "100.128.0.0", "172.15.255.255",
                           "172.32.0.0", "192.0.1.0", "198.17.255.255", "198.20.0.0", "223.255.255.255", "11.0.0.0",
                           "2606:2800:220:1::1", "2a00::1", "2003::1", "3ffe::1"})
    EXPECT_TRUE(is_public(parse_address(text).value())) << text;
}

TEST(Addresses, OnesThatNoClientMayReach) {
  for (const char* text : {"0.0.0.0",
                           "0.255.255.255",
                           "10.0.0.0",
                           "10.255.255.255",
                           "100.64.0.0",
                           "100.127.255.255",
                           "127.0.0.1",
                           "127.255.255.255",
                           "169.254.169.254",
                           "172.16.0.0",
                           "172.31.255.255",
                           "192.0.0.1",
                           "192.0.2.1",
                           "192.88.99.1",
                           "192.168.0.0",
                           "192.168.255.255",
                           "198.18.0.0",
                           "198.19.255.255",
                           "198.51.100.1",
                           "203.0.113.255",
                           "224.0.0.1",
                           "239.255.255.255",
                           "240.0.0.0",
                           "255.255.255.255",
                           "::",
                           "::1",
                           "::ffff:8.8.8.8",
                           "::ffff:127.0.0.1",
                           "::127.0.0.1",
                           "64:ff9b::808:808",
                           "64:ff9b:1::1",
                           "100::1",
                           "2001::1",
                           "2001:db8::1",
                           "2001:1ff::1",
                           "2002:808:808::1",
                           "3fff::1",
                           "5f00::1",
                           "fc00::1",
                           "fdff::1",
                           "fe80::1",
                           "febf::1",
                           "fec0::1",
                           "ff02::1"})
    EXPECT_FALSE(is_public(parse_address(text).value())) << text;
  for (const char* text : {"", "1.2.3", "1.2.3.4.5", "0x7f.0.0.1", "0177.0.0.1", "fe80::1%lo", "[::1]", "localhost"})
    EXPECT_FALSE(parse_address(text)) << text;
}

}  // namespace
}  // namespace calandra::net
