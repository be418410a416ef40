// The server over loopback with small limits. Nothing is measured in time: a guard that does not work makes a test wait
// for ever, until the test runner ends it.
#include "server/http_server.h"

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <condition_variable>
#include <mutex>
#include <thread>
#include <utility>

#include "base/error.h"

namespace calandra::server {
namespace {

// Counts the replies that were given up or ended.
struct Ends {
  std::mutex mutex;
  std::condition_variable changed;
  int count = 0;
  void add() {
    const std::lock_guard lock(mutex);
    ++count;
    changed.notify_all();
  }
  void wait_for(int wanted) {
    std::unique_lock lock(mutex);
    changed.wait(lock, [&] { return count >= wanted; });
  }
};

// A stream of so many bytes in parts, one that never says anything (parts 0), or a whole reply that fails (-1).
class Parts : public PendingReply {
 public:
  Parts(Ends& ends, int parts, size_t bytes, Wake wake)
      : ends_(ends), left_(parts), silent_(parts == 0), bytes_(bytes), wake_(std::move(wake)) {}
  ~Parts() override { ends_.add(); }
  bool is_stream() const override { return left_ >= 0; }
  bool advance(HttpReply& reply) override {
    if (left_ < 0) throw std::runtime_error("a fault of the reply");
    reply.content_type = "text/event-stream";
    if (silent_) return false;
    reply.body += std::string(bytes_, 'x');
    if (--left_ > 0) wake_();
    return left_ == 0;
  }

 private:
  Ends& ends_;
  int left_;
  const bool silent_;
  const size_t bytes_;
  const Wake wake_;
};

class Client {
 public:
  explicit Client(uint16_t port, int receive_buffer = 0) : fd_(socket(AF_INET, SOCK_STREAM, 0)) {
    if (receive_buffer > 0) setsockopt(fd_, SOL_SOCKET, SO_RCVBUF, &receive_buffer, sizeof receive_buffer);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(port);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    connected_ = connect(fd_, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0;
  }
  ~Client() { close(); }
  Client(Client&& other) noexcept : fd_(std::exchange(other.fd_, -1)), connected_(other.connected_) {}
  void close() {
    if (fd_ >= 0) ::close(fd_);
    fd_ = -1;
  }
  bool connected() const { return connected_; }
  void send(std::string_view text) {
    [[maybe_unused]] const auto sent = ::send(fd_, text.data(), text.size(), MSG_NOSIGNAL);
  }
  // What comes until `end`, or until the server closes.
  std::string read_until(std::string_view end) {
    std::string text;
    char buffer[4096];
    while (end.empty() || text.find(end) == std::string::npos) {
      const ssize_t count = recv(fd_, buffer, sizeof buffer, 0);
      if (count <= 0) break;
      text.append(buffer, static_cast<size_t>(count));
    }
    return text;
  }
  std::string read_all() { return read_until(""); }
  bool is_closed() const {
    char byte = 0;
    return recv(fd_, &byte, 1, MSG_PEEK | MSG_DONTWAIT) == 0 || errno == ECONNRESET;
  }

 private:
  int fd_;
  bool connected_ = false;
};

class HttpServerTest : public testing::Test {
 protected:
  void start(ServerOptions options) {
    options.port = 0;
    server_.emplace(
        std::move(options),
        [this](const HttpRequest& request, Wake wake) -> std::variant<HttpReply, std::unique_ptr<PendingReply>> {
          if (request.path == "/silent") return std::make_unique<Parts>(ends_, 0, 0, std::move(wake));
          if (request.path == "/parts") return std::make_unique<Parts>(ends_, 3, 5, std::move(wake));
          if (request.path == "/much") return std::make_unique<Parts>(ends_, 100'000, 1 << 16, std::move(wake));
          if (request.path == "/fails") return std::make_unique<Parts>(ends_, -1, 0, std::move(wake));
          if (request.path == "/throw") throw std::runtime_error("a fault of the handler");
          return HttpReply{.body = request.body};
        });
    thread_ = std::thread([this] { server_->run(); });
  }
  void TearDown() override {
    if (!thread_.joinable()) return;
    server_->stop();
    thread_.join();
  }
  Client client(int receive_buffer = 0) { return Client(server_->port(), receive_buffer); }
  std::string ask(const std::string& text) {
    Client one = client();
    one.send(text);
    return one.read_all();
  }

  Ends ends_;
  std::optional<HttpServer> server_;
  std::thread thread_;
};

constexpr const char* kEnd = "Host: x\r\nConnection: close\r\n\r\n";

TEST_F(HttpServerTest, AnswersAndKeepsTheConnection) {
  start({});
  Client one = client();
  for (int i = 0; i < 3; ++i) {
    one.send("POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello");
    const std::string reply = one.read_until("hello");
    EXPECT_TRUE(reply.starts_with("HTTP/1.1 200 OK\r\n")) << reply;
    EXPECT_NE(reply.find("X-Request-Id: req-"), std::string::npos);
  }
  // Two requests in one packet.
  one.send(
      "POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nabPOST /b HTTP/1.1\r\nHost: x\r\nContent-Length: "
      "2\r\nConnection: close\r\n\r\ncd");
  const std::string both = one.read_all();
  EXPECT_NE(both.find("ab"), std::string::npos);
  EXPECT_NE(both.find("cd"), std::string::npos);
}

TEST_F(HttpServerTest, StreamsInChunks) {
  start({});
  const std::string reply = ask(std::string("GET /parts HTTP/1.1\r\n") + kEnd);
  EXPECT_NE(reply.find("Transfer-Encoding: chunked"), std::string::npos);
  EXPECT_NE(reply.find("\r\n\r\n5\r\nxxxxx\r\n5\r\nxxxxx\r\n5\r\nxxxxx\r\n0\r\n\r\n"), std::string::npos) << reply;
  EXPECT_NE(ask("GET /parts HTTP/1.0\r\n\r\n").find("\r\n\r\nxxxxxxxxxxxxxxx"), std::string::npos);  // without chunks
}

TEST_F(HttpServerTest, SilentStreamsSayThatTheyLive) {
  start({.ping_seconds = 0.01});
  Client one = client();
  one.send(std::string("GET /silent HTTP/1.1\r\n") + kEnd);
  EXPECT_NE(one.read_until(kPing).find(kPing), std::string::npos);
}

TEST_F(HttpServerTest, ALeavingClientEndsItsReply) {
  start({});
  {
    Client one = client();
    one.send(std::string("GET /silent HTTP/1.1\r\n") + kEnd);
    one.read_until("\r\n\r\n");
  }
  ends_.wait_for(1);
}

TEST_F(HttpServerTest, AClientThatLeavesBehindMoreThanItsRequestEndsItsReply) {
  start({});
  {
    Client one = client();
    one.send(std::string("GET /silent HTTP/1.1\r\n") + kEnd);
    one.read_until("\r\n\r\n");
    one.send("\r\n");
  }
  ends_.wait_for(1);
}

TEST_F(HttpServerTest, AReplyThatFailsIsTold) {
  start({});
  EXPECT_TRUE(ask("GET /fails HTTP/1.1\r\nHost: x\r\n\r\n").starts_with("HTTP/1.1 500 "));
  ends_.wait_for(1);
}

TEST_F(HttpServerTest, NoContentHasNoLength) {
  start({});
  Client one = client();
  for (int i = 0; i < 2; ++i) {  // the connection is kept
    one.send("OPTIONS /a HTTP/1.1\r\nHost: x\r\n\r\n");
    const std::string reply = one.read_until("\r\n\r\n");
    EXPECT_TRUE(reply.starts_with("HTTP/1.1 204 ")) << reply;
    EXPECT_EQ(reply.find("Content-"), std::string::npos) << reply;
  }
}

TEST_F(HttpServerTest, AClientThatDoesNotReadIsGivenUp) {
  start({.write_seconds = 0.05});
  Client one = client(2304);
  one.send(std::string("GET /much HTTP/1.1\r\n") + kEnd);
  ends_.wait_for(1);
}

TEST_F(HttpServerTest, AClientThatSendsSlowlyIsGivenUp) {
  start({.header_seconds = 0.05, .body_seconds = 0.05, .idle_seconds = 0.05});
  EXPECT_EQ(client().read_all(), "");  // nothing
  Client head = client();
  head.send("GET /a HTTP/1.1\r\nHost");
  EXPECT_EQ(head.read_all(), "");
  Client body = client();
  body.send("POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nhal");
  EXPECT_EQ(body.read_all(), "");
}

TEST_F(HttpServerTest, AFirstByteBuysNoTime) {
  start({.header_seconds = 0.4});
  Client first = client(), second = client();
  std::this_thread::sleep_for(std::chrono::milliseconds(200));
  first.send("G");
  EXPECT_EQ(second.read_all(), "");
  EXPECT_TRUE(first.is_closed());  // it came before
}

TEST_F(HttpServerTest, WhatIsTooLongIsRefusedUnread) {
  start({.header_bytes = 2000, .body_bytes = 1000});
  EXPECT_TRUE(ask("POST /a HTTP/1.1\r\nContent-Length: 1001\r\n\r\n").starts_with("HTTP/1.1 413 "));
  EXPECT_TRUE(
      ask("POST /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3e9\r\n" + std::string(1001, 'x') + "\r\n0\r\n\r\n")
          .starts_with("HTTP/1.1 413 "));
  EXPECT_TRUE(ask("GET /a HTTP/1.1\r\nX: " + std::string(3000, 'x') + "\r\n\r\n").starts_with("HTTP/1.1 431 "));
  const std::string largest =
      ask("POST /a HTTP/1.1\r\nConnection: close\r\nContent-Length: 1000\r\n\r\n" + std::string(1000, 'y'));
  EXPECT_TRUE(largest.starts_with("HTTP/1.1 200 "));
  EXPECT_TRUE(largest.ends_with(std::string(1000, 'y')));
}

TEST_F(HttpServerTest, BodiesTogetherAreBounded) {
  start({.body_bytes = 1000, .all_body_bytes = 1500});
  Client one = client();
  one.send("POST /a HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 1000\r\n\r\n");
  one.read_until("100 Continue");
  const std::string small = std::string("POST /a HTTP/1.1\r\nContent-Length: 600\r\n") + kEnd + std::string(600, 'z');
  EXPECT_TRUE(ask(small).starts_with("HTTP/1.1 200 "));  // what is announced takes nothing
  one.send(std::string(999, 'x'));
  std::string refused;
  for (int i = 0; i < 1000 && !refused.starts_with("HTTP/1.1 503 "); ++i) refused = ask(small);  // until it has come
  EXPECT_TRUE(refused.starts_with("HTTP/1.1 503 ")) << refused;
  EXPECT_NE(refused.find("Retry-After: "), std::string::npos);
  one.send("x");
  one.read_until("xx");
  EXPECT_TRUE(ask(small).starts_with("HTTP/1.1 200 "));
}

TEST_F(HttpServerTest, ABodyCountsUntilItIsHandled) {
  start({.body_bytes = 1000, .all_body_bytes = 1500});
  const std::string body =
      "Transfer-Encoding: chunked\r\nHost: x\r\n\r\n190\r\n" + std::string(400, 'x') + "\r\n0\r\n\r\n";
  std::vector<Client> streams;
  for (int i = 0; i < 5; ++i) {
    streams.push_back(client());
    streams.back().send("POST /silent HTTP/1.1\r\n" + body);
    EXPECT_TRUE(streams.back().read_until("\r\n\r\n").starts_with("HTTP/1.1 200 ")) << i;
  }
}

TEST_F(HttpServerTest, NoHttpIsRefused) {
  start({});
  for (const char* wrong :
       {"hello\r\n\r\n", "GET /a\r\n\r\n", "GET a HTTP/1.1\r\n\r\n", "GET /%zz HTTP/1.1\r\n\r\n",
        "GET /a HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        "GET /a HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx", "GET /a HTTP/1.1\r\nA B: c\r\n\r\n"})
    EXPECT_TRUE(ask(wrong).starts_with("HTTP/1.1 400 ")) << wrong;
  EXPECT_TRUE(
      ask("POST /a HTTP/1.1\r\nContent-Encoding: gzip\r\nContent-Length: 1\r\n\r\nx").starts_with("HTTP/1.1 415 "));
  EXPECT_TRUE(ask(std::string("GET /throw HTTP/1.1\r\n") + kEnd).starts_with("HTTP/1.1 500 "));
  EXPECT_TRUE(ask(std::string("GET /a HTTP/1.1\r\n") + kEnd).starts_with("HTTP/1.1 200 "));
}

TEST_F(HttpServerTest, KeysOpenAllButHealth) {
  start({.api_keys = {"secret"}});
  const std::string refused = ask(std::string("GET /a HTTP/1.1\r\n") + kEnd);
  EXPECT_TRUE(refused.starts_with("HTTP/1.1 401 "));
  EXPECT_NE(refused.find("Authorization: Bearer KEY or x-api-key: KEY"), std::string::npos) << refused;
  EXPECT_TRUE(
      ask(std::string("GET /a HTTP/1.1\r\nAuthorization: Bearer secret\r\n") + kEnd).starts_with("HTTP/1.1 200 "));
  EXPECT_TRUE(ask(std::string("GET /health HTTP/1.1\r\n") + kEnd).starts_with("HTTP/1.1 200 "));
}

TEST_F(HttpServerTest, ConnectionsAreBounded) {
  start({.connections = 1});
  Client one = client();
  one.send("GET /a HTTP/1.1\r\nHost: x\r\n\r\n");
  EXPECT_NE(one.read_until("\r\n\r\n").find(" 200 "), std::string::npos);
  const std::string refused = client().read_all();
  EXPECT_TRUE(refused.starts_with("HTTP/1.1 503 ")) << refused;
  EXPECT_NE(refused.find("Retry-After: "), std::string::npos);
}

TEST_F(HttpServerTest, WhoeverComesWhileItStopsIsTold) {
  start({});
  Client one = client();
  one.send(std::string("GET /silent HTTP/1.1\r\n") + kEnd);
  one.read_until("\r\n\r\n");
  server_->stop();
  std::string late;
  while (!late.starts_with("HTTP/1.1 503 ")) {
    late = ask(std::string("GET /a HTTP/1.1\r\n") + kEnd);
    ASSERT_TRUE(late.starts_with("HTTP/1.1 200 ") || late.starts_with("HTTP/1.1 503 ")) << late;
  }
  EXPECT_NE(late.find("Retry-After: "), std::string::npos);
  one.close();
}

TEST_F(HttpServerTest, StoppingWaitsAndThenGivesUp) {
  start({.shutdown_seconds = 0.05});
  Client one = client();
  one.send(std::string("GET /silent HTTP/1.1\r\n") + kEnd);
  one.read_until("\r\n\r\n");
  server_->stop();
  thread_.join();
  EXPECT_FALSE(client().connected());
  server_.reset();
  ends_.wait_for(1);
}

TEST(HttpServer, AddressesAndCertificatesAreChecked) {
  EXPECT_THROW(HttpServer({.host = "no such host"}, {}), LoadError);
  EXPECT_THROW(HttpServer({.port = 0, .ssl_certfile = "/nowhere", .ssl_keyfile = "/nowhere"}, {}), LoadError);
  HttpServer first({.port = 0}, {});
  EXPECT_THROW(HttpServer({.port = first.port()}, {}), LoadError);
}

}  // namespace
}  // namespace calandra::server
