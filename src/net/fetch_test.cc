// Fetching, over a network that the test makes: names are looked up in a table, and what would be connected to is a
// thread of this process, over loopback.
#include "net/fetch.h"

#include <gtest/gtest.h>
#include <netinet/in.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>
#include <sys/socket.h>
#include <unistd.h>

#include <condition_variable>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <mutex>
#include <thread>

namespace calandra::net {
namespace {

constexpr const char* kPublic = "93.184.216.34";

// A server's side of TLS for one name, and the file of its certificate, which it signs itself.
class Certificate {
 public:
  explicit Certificate(const std::string& name)
      : context_(SSL_CTX_new(TLS_server_method())),
        file_(std::filesystem::temp_directory_path() / ("calandra_certificate_" + std::to_string(getpid()) + ".pem")) {
    EVP_PKEY* const key = EVP_EC_gen("P-256");
    X509* const x509 = X509_new();
    X509_set_version(x509, X509_VERSION_3);
    ASN1_INTEGER_set(X509_get_serialNumber(x509), 1);
    X509_gmtime_adj(X509_getm_notBefore(x509), -60);
    X509_gmtime_adj(X509_getm_notAfter(x509), 3600);
    X509_set_pubkey(x509, key);
    X509_NAME* const subject = X509_get_subject_name(x509);
    X509_NAME_add_entry_by_txt(subject, "CN", MBSTRING_ASC, reinterpret_cast<const unsigned char*>(name.c_str()), -1,
                               -1, 0);
    X509_set_issuer_name(x509, subject);
    X509_EXTENSION* const names = X509V3_EXT_conf_nid(nullptr, nullptr, NID_subject_alt_name, ("DNS:" + name).c_str());
    X509_add_ext(x509, names, -1);
    X509_sign(x509, key, EVP_sha256());
    if (SSL_CTX_use_certificate(context_, x509) != 1 || SSL_CTX_use_PrivateKey(context_, key) != 1) abort();
    FILE* const out = fopen(file_.c_str(), "w");
    if (out == nullptr || PEM_write_X509(out, x509) != 1 || fclose(out) != 0) abort();
    X509_EXTENSION_free(names);
    X509_free(x509);
    EVP_PKEY_free(key);
  }
  ~Certificate() {
    SSL_CTX_free(context_);
    std::filesystem::remove(file_);
  }
  Certificate(const Certificate&) = delete;
  Certificate& operator=(const Certificate&) = delete;
  std::string file() const { return file_; }
  SSL* accept(int connection) const {
    signal(SIGPIPE, SIG_IGN);  // who does not trust us has gone while we write
    SSL* const tls = SSL_new(context_);
    SSL_set_fd(tls, connection);
    SSL_accept(tls);
    return tls;
  }

 private:
  SSL_CTX* const context_;
  const std::filesystem::path file_;
};

class FetchTest : public ::testing::Test {
 protected:
  FetchTest() : listener_(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof(address);
    auto* const at = reinterpret_cast<sockaddr*>(&address);
    if (bind(listener_, at, size) != 0 || listen(listener_, 8) != 0 || getsockname(listener_, at, &size) != 0) abort();
    port_ = ntohs(address.sin_port);
  }
  ~FetchTest() override {
    for (std::thread& server : servers_) server.join();
    close(listener_);
  }

  // What `url` gives: the body, or the error's code.
  std::string fetched(const std::string& url, std::function<bool()> gone = {}) {
    const auto result =
        fetch(url, rules_, gone, {[this](const std::string& host) { return look_up(host); }, instead(), authorities_});
    for (std::thread& server : servers_) server.join();
    servers_.clear();
    if (const auto* error = std::get_if<RequestError>(&result)) {
      message_ = error->message;
      return error->code;
    }
    return std::get<std::string>(result);
  }

  std::vector<Address> look_up(const std::string& host) {
    lookups_.push_back(host);
    std::vector<Address> addresses;
    for (const std::string& text : names_[host]) addresses.push_back(parse_address(text).value());
    return addresses;
  }

  std::function<std::optional<uint16_t>(const Address&, int)> instead() {
    return [this](const Address& address, int port) {
      connections_.push_back(to_string(address) + " " + std::to_string(port));
      servers_.emplace_back([this] { serve_one(); });
      return port_;
    };
  }

  void serve_one() {
    const int end = accept(listener_, nullptr, nullptr);
    if (certificate_) return serve_tls(end);
    std::string request(4096, '\0');
    size_t size = 0;
    while (request.find("\r\n\r\n") == std::string::npos) {
      const ssize_t count = read(end, request.data() + size, request.size() - size);
      if (count <= 0) break;
      size += static_cast<size_t>(count);
    }
    request_ = request.substr(0, size);
    for (size_t sent = 0; sent < reply_.size();) {
      const ssize_t count = send(end, reply_.data() + sent, reply_.size() - sent, MSG_NOSIGNAL);
      if (count <= 0) break;
      sent += static_cast<size_t>(count);
    }
    if (hold_) (void)!read(end, request.data(), 1);  // until the other side has had enough
    close(end);
  }

  void serve_tls(int end) {
    SSL* const tls = certificate_->accept(end);
    char request[4096];
    if (const int count = SSL_read(tls, request, sizeof(request)); count > 0) {
      request_.assign(request, static_cast<size_t>(count));
      SSL_write(tls, reply_.data(), static_cast<int>(reply_.size()));
      SSL_shutdown(tls);
    }
    SSL_free(tls);
    close(end);
  }

  static std::string ok(const std::string& body) {
    return "HTTP/1.1 200 OK\r\nContent-Length: " + std::to_string(body.size()) + "\r\n\r\n" + body;
  }

  FetchRules rules_{{"pictures.example"}, 10, 1000};
  std::map<std::string, std::vector<std::string>> names_ = {{"pictures.example", {kPublic}}};
  std::string reply_ = ok("bytes of a picture"), request_, message_;
  bool hold_ = false;
  std::optional<Certificate> certificate_;  // then it speaks TLS
  std::string authorities_;
  std::vector<std::string> lookups_, connections_;
  const int listener_;
  uint16_t port_ = 0;
  std::vector<std::thread> servers_;
};

TEST_F(FetchTest, AFile) {
  EXPECT_EQ(fetched("http://pictures.example/a.png?b#c"), "bytes of a picture");
  EXPECT_EQ(connections_, std::vector<std::string>{"93.184.216.34 80"});
  EXPECT_EQ(lookups_, std::vector<std::string>{"pictures.example"});
  EXPECT_TRUE(request_.starts_with("GET /a.png?b HTTP/1.1\r\nHost: pictures.example\r\n")) << request_;
  for (const char* header : {"Authorization", "Cookie", "Referer", "Accept-Encoding"})
    EXPECT_EQ(request_.find(header), std::string::npos) << header;
}

TEST_F(FetchTest, AFileOverTls) {
  certificate_.emplace("pictures.example");
  authorities_ = certificate_->file();
  EXPECT_EQ(fetched("https://pictures.example/a.png"), "bytes of a picture");
  EXPECT_EQ(connections_, std::vector<std::string>{"93.184.216.34 443"});
  EXPECT_TRUE(request_.starts_with("GET /a.png HTTP/1.1\r\nHost: pictures.example\r\n")) << request_;
}

// The server's name is another one; nobody known signed it; it speaks no TLS.
TEST_F(FetchTest, CertificatesThatAreNotTrustedAreRefusedBeforeAnythingIsAsked) {
  certificate_.emplace("other.example");
  authorities_ = certificate_->file();
  EXPECT_EQ(fetched("https://pictures.example/a.png"), "fetch_failed");
  certificate_.reset();
  certificate_.emplace("pictures.example");
  authorities_ = "";
  EXPECT_EQ(fetched("https://pictures.example/a.png"), "fetch_failed");
  EXPECT_EQ(request_, "");
  EXPECT_EQ(connections_.size(), 2u);
  certificate_.reset();
  EXPECT_EQ(fetched("https://pictures.example/a.png"), "fetch_failed");
}

// A name that has a private address, also beside a public one and also when asked again, is connected to never.
TEST_F(FetchTest, PrivateAddressesAreNotConnectedTo) {
  for (const char* address : {"127.0.0.1", "10.1.2.3", "169.254.169.254", "192.168.1.1", "0.0.0.0", "::1", "fd00::1",
                              "fe80::1", "::ffff:127.0.0.1", "::ffff:93.184.216.34", "64:ff9b::7f00:1",
                              "2002:7f00:1::", "100.64.0.1", "224.0.0.1", "255.255.255.255"})
    for (const bool first : {true, false}) {
      names_["pictures.example"] = {kPublic};
      auto& addresses = names_["pictures.example"];
      addresses.insert(first ? addresses.begin() : addresses.end(), address);
      EXPECT_EQ(fetched("http://pictures.example/"), "invalid_url") << address;
      addresses = {address};
      EXPECT_EQ(fetched("http://pictures.example/"), "invalid_url") << address;
    }
  names_["pictures.example"] = {};
  EXPECT_EQ(fetched("http://pictures.example/"), "invalid_url");
  EXPECT_TRUE(connections_.empty());
}

// The name is looked up once; a second answer, which a rebinding server would give, is never asked for.
TEST_F(FetchTest, TheAddressIsPinned) {
  int asked = 0;
  const Network rebinding{[&](const std::string&) {
                            return std::vector<Address>{parse_address(asked++ == 0 ? kPublic : "127.0.0.1").value()};
                          },
                          instead()};
  EXPECT_EQ(std::get<std::string>(fetch("http://pictures.example/", rules_, {}, rebinding)), "bytes of a picture");
  EXPECT_EQ(asked, 1);
  EXPECT_EQ(connections_, std::vector<std::string>{"93.184.216.34 80"});
}

TEST_F(FetchTest, RedirectsAreNotFollowed) {
  for (const char* status : {"301 Moved", "302 Found", "303 See Other", "307 Temporary", "308 Permanent"})
    for (const char* target : {"http://pictures.example/b", "http://127.0.0.1/", "file:///etc/passwd", "//evil.net/"}) {
      reply_ = std::string("HTTP/1.1 ") + status + "\r\nLocation: " + target + "\r\nContent-Length: 0\r\n\r\n";
      connections_.clear();
      EXPECT_EQ(fetched("http://pictures.example/"), "fetch_failed");
      EXPECT_EQ(connections_.size(), 1u) << target;
    }
}

TEST_F(FetchTest, ProxiesOfTheEnvironmentAreNotUsed) {
  for (const char* name : {"http_proxy", "ALL_PROXY", "all_proxy"}) setenv(name, "http://127.0.0.1:9/", 1);
  EXPECT_EQ(fetched("http://pictures.example/"), "bytes of a picture");
  EXPECT_EQ(connections_, std::vector<std::string>{"93.184.216.34 80"});
  EXPECT_TRUE(request_.starts_with("GET / HTTP/1.1\r\n"));
  for (const char* name : {"http_proxy", "ALL_PROXY", "all_proxy"}) unsetenv(name);
}

TEST_F(FetchTest, SizeIsLimited) {
  reply_ = ok(std::string(1000, 'x'));
  EXPECT_EQ(fetched("http://pictures.example/").size(), 1000u);
  reply_ = ok(std::string(1001, 'x'));
  EXPECT_EQ(fetched("http://pictures.example/"), "file_too_large");
  reply_ = "HTTP/1.1 200 OK\r\n\r\n" + std::string(100'000, 'x');  // without saying how much comes
  EXPECT_EQ(fetched("http://pictures.example/"), "file_too_large");
  reply_ = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
  for (int i = 0; i < 100; ++i) reply_ += "64\r\n" + std::string(100, 'x') + "\r\n";
  EXPECT_EQ(fetched("http://pictures.example/"), "file_too_large");
}

TEST_F(FetchTest, OtherReplies) {
  for (const char* reply :
       {"HTTP/1.1 404 Not Found\r\nContent-Length: 1\r\n\r\nx", "HTTP/1.1 204 No Content\r\n\r\n",
        "HTTP/1.1 206 Partial Content\r\nContent-Length: 1\r\n\r\nx", "HTTP/1.1 500 Oh\r\nContent-Length: 0\r\n\r\n",
        "<html>", "", "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nx", "SSH-2.0-OpenSSH\r\n"}) {
    reply_ = reply;
    EXPECT_EQ(fetched("http://pictures.example/"), "fetch_failed") << reply;
  }
}

TEST_F(FetchTest, EndsWhenTheClientHasLeft) {
  reply_ = "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nx";
  hold_ = true;
  rules_.seconds = 1000;
  int asked = 0;
  EXPECT_EQ(fetched("http://pictures.example/", [&] { return ++asked > 2; }), "fetch_failed");
  EXPECT_NE(message_.find("given up"), std::string::npos) << message_;
}

TEST_F(FetchTest, EndsWhenItTakesTooLong) {
  reply_ = "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nx";
  hold_ = true;
  rules_.seconds = 0.2;
  EXPECT_EQ(fetched("http://pictures.example/"), "fetch_failed");
  EXPECT_NE(message_.find("more than 0.2 seconds"), std::string::npos) << message_;
}

// A resolver whose servers do not answer, until the test ends.
TEST_F(FetchTest, EndsWhenTheLookupTakesTooLongOrTheClientHasLeft) {
  struct Silence {
    std::mutex mutex;
    std::condition_variable changed;
    bool over = false;
    int ended = 0;
  };
  const auto silence = std::make_shared<Silence>();
  const Network silent{[silence](const std::string&) {
                         std::unique_lock lock(silence->mutex);
                         silence->changed.wait(lock, [&] { return silence->over; });
                         ++silence->ended;
                         silence->changed.notify_all();
                         return std::vector<Address>{};
                       },
                       instead()};
  const auto message_of = [&](const std::function<bool()>& gone) {
    return std::get<RequestError>(fetch("http://pictures.example/", rules_, gone, silent)).message;
  };
  rules_.seconds = 1000;
  int asked = 0;
  EXPECT_NE(message_of([&] { return ++asked > 2; }).find("given up"), std::string::npos);
  rules_.seconds = 0.2;
  EXPECT_NE(message_of({}).find("more than 0.2 seconds"), std::string::npos);
  EXPECT_TRUE(connections_.empty());
  std::unique_lock lock(silence->mutex);
  silence->over = true;
  silence->changed.notify_all();
  silence->changed.wait(lock, [&] { return silence->ended == 2; });
}

TEST_F(FetchTest, WhatThePolicyRefusesIsNotLookedUp) {
  for (const char* url :
       {"http://127.0.0.1/", "http://evil.net/", "http://pictures.example@evil.net/", "file:///etc/passwd"})
    EXPECT_EQ(fetched(url), "invalid_url") << url;
  EXPECT_TRUE(lookups_.empty());
  EXPECT_TRUE(connections_.empty());
}

}  // namespace
}  // namespace calandra::net
