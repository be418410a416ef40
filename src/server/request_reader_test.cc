#include "server/request_reader.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>

namespace calandra::server {
namespace {

// What is read of bytes that come in these parts: each request's method, target and body, or the status of the fault.
std::string read_all(std::string_view bytes, const std::vector<size_t>& cuts, const ServerOptions& options) {
  RequestReader reader(options);
  std::string out;
  std::optional<RequestError> fault;
  bool in_body = false;
  size_t begin = 0;
  for (size_t i = 0; i <= cuts.size() && !fault; ++i) {
    const std::string_view part = bytes.substr(begin, i < cuts.size() ? cuts[i] - begin : std::string_view::npos);
    begin += part.size();
    const auto room = reader.prepare(part.size());
    std::copy(part.begin(), part.end(), static_cast<char*>(room.data()));
    reader.commit(part.size());
    while (!fault) {
      if (!(in_body ? reader.read_body(fault) : reader.read_head(fault))) break;
      if (fault) break;
      if (in_body)
        out += std::string(reader.request().method_string()) + " " + std::string(reader.request().target()) + " " +
               reader.take_body() + "|";
      in_body = !in_body;
    }
  }
  if (fault) out += std::to_string(fault->status);
  return out;
}

TEST(RequestReader, HoweverTheBytesCome) {
  ServerOptions options;
  options.header_bytes = 200;
  options.headers = 4;
  options.body_bytes = 20;
  const std::string chunked = "POST /b HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n";
  const std::pair<std::string, const char*> cases[] = {
      {"GET /a HTTP/1.1\r\nHost: x\r\n\r\n", "GET /a |"},
      {"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhelloGET /b HTTP/1.1\r\n\r\n",
       "POST /a hello|GET /b |"},
      {chunked + "0\r\n\r\n", "POST /b |"},
      {chunked + "5\r\nhello\r\n3;x=1\r\nyou\r\n0\r\nA: b\r\n\r\nGET /c HTTP/1.1\r\n\r\n", "POST /b helloyou|GET /c |"},
      {chunked + "z\r\nhello", "400"},
      {chunked + "5\r\nhellohello", "400"},
      {chunked + "15\r\n012345678901234567890", "413"},
      {"POST /a HTTP/1.1\r\nContent-Length: 21\r\n\r\n", "413"},
      {"GET /a HTTP/1.1\r\nA: 1\r\nB: 1\r\nC: 1\r\nD: 1\r\nE: 1\r\n\r\n", "431"},
      {"GET /a HTTP/1.1\r\nA: " + std::string(300, 'a') + "\r\n\r\n", "431"},
      {"hello\r\n\r\n", "400"},
  };
  std::mt19937 random(5);
  for (const auto& [bytes, wanted] : cases) {
    EXPECT_EQ(read_all(bytes, {}, options), wanted) << bytes;
    std::vector<size_t> each;
    for (size_t i = 1; i < bytes.size(); ++i) each.push_back(i);
    EXPECT_EQ(read_all(bytes, each, options), wanted) << bytes;
    for (size_t i = 1; i < bytes.size(); ++i)
      EXPECT_EQ(read_all(bytes, {i}, options), wanted) << bytes << " cut at " << i;
    for (int i = 0; i < 200; ++i) {
      std::vector<size_t> cuts;
      std::copy_if(each.begin(), each.end(), std::back_inserter(cuts), [&](size_t) { return random() % 8 == 0; });
      EXPECT_EQ(read_all(bytes, cuts, options), wanted) << bytes;
    }
  }
}

TEST(RequestReader, ChunkLinesAreBounded) {
  ServerOptions options;
  options.header_bytes = 200;
  const std::string chunked = "POST /b HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n";
  EXPECT_EQ(read_all(chunked + "5;" + std::string(1000, 'x'), {}, options), "431");
  EXPECT_EQ(read_all(chunked + "0\r\nA: " + std::string(1000, 'x'), {}, options), "431");
}

}  // namespace
}  // namespace calandra::server
