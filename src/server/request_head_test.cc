#include "server/request_head.h"

#include <gtest/gtest.h>

#include <vector>

namespace calandra::server {
namespace {

TEST(RequestHead, PathsAreDecodedOnce) {
  EXPECT_EQ(decode_path("/v1/models/Qwen%2FQwen3.5-0.8B?x=%41"), "/v1/models/Qwen/Qwen3.5-0.8B");
  EXPECT_EQ(decode_path("/a%2541"), "/a%41");
  for (const char* wrong : {"", "v1", "http://host/", "/a%4", "/a%zz", "/a%00b", "*"})
    EXPECT_FALSE(decode_path(wrong)) << wrong;
}

TEST(RequestHead, QueriesAreReadByName) {
  EXPECT_EQ(query_of("/sleep?level=1&x=a%20b#c?d"), "level=1&x=a%20b");
  EXPECT_EQ(query_of("/sleep"), "");
  EXPECT_EQ(query_values("tags=weights&level=1&tags=kv%5Fcache", "tags"),
            (std::vector<std::string>{"weights", "kv_cache"}));
  EXPECT_EQ(query_values("&&a&a=&b=a&a=%zz&a=b=c&", "a"), (std::vector<std::string>{"", "", "b=c"}));
  EXPECT_TRUE(query_values("", "a").empty());
}

TEST(RequestHead, WhatOthersMayReadDifferentlyIsRefused) {
  const auto status = [](const std::string& fields, const char* version = "HTTP/1.1") {
    const auto fault = fault_of_head(std::string("POST /a ") + version + fields, 4);
    return fault ? fault->status : 200;
  };
  for (const char* right : {"", "\r\nHost: x", "\r\nContent-Length: 5", "\r\nTransfer-Encoding: Chunked",
                            "\r\nA:", "\r\nA: b\tc", "\r\nA: \xc3\xa9", "\r\nA: 1\r\nA: 2\r\nB: 3\r\nC: 4"})
    EXPECT_EQ(status(right), 200) << right;
  for (const char* wrong :
       {"\r\nA", "\r\n a: b", "\r\nA: b\r\n folded", "\r\nA: b\nC: d", "\r\nA: b\rC: d", "\r\nA: \x7f",
        "\r\nContent-Length:", "\r\nContent-Length: +5", "\r\nContent-Length: 5, 5", "\r\nContent-Length: 0x5",
        "\r\nContent-Length: 5\r\nContent-Length: 5", "\r\nContent-Length: 5\r\ntransfer-encoding: chunked",
        "\r\nTransfer-Encoding: gzip", "\r\nTransfer-Encoding:", "\r\nTransfer-Encoding: chunked, chunked"})
    EXPECT_EQ(status(wrong), 400) << wrong;
  EXPECT_EQ(status(std::string("\r\nA: \0b", 7)), 400);
  EXPECT_EQ(status("\r\nTransfer-Encoding: chunked", "HTTP/1.0"), 400);
  EXPECT_EQ(status("\r\nA: 1\r\nA: 2\r\nB: 3\r\nC: 4\r\nD: 5"), 431);
}

TEST(RequestHead, KeysMustBeWhole) {
  const std::vector<std::string> keys = {"secret", "other"};
  EXPECT_TRUE(has_key(keys, "Bearer secret", ""));
  EXPECT_TRUE(has_key(keys, "bearer other", ""));
  EXPECT_TRUE(has_key(keys, "", "secret"));
  for (const char* wrong :
       {"", "secret", "Bearer", "Bearer ", "Bearer secre", "Bearer secretsecret", "Bearer secret ", "Basic secret"})
    EXPECT_FALSE(has_key(keys, wrong, "")) << wrong;
  EXPECT_FALSE(has_key(keys, "", "secre"));
}

TEST(RequestHead, IdsCannotBreakHeadersOrLogs) {
  EXPECT_TRUE(is_plain_id("a-B_3.z"));
  EXPECT_TRUE(is_plain_id(make_request_id()));
  for (const char* wrong : {"", "a b", "a\r\nSet-Cookie: x", "a\"b", "ä"}) EXPECT_FALSE(is_plain_id(wrong)) << wrong;
  EXPECT_FALSE(is_plain_id(std::string(129, 'a')));
}

TEST(RequestHead, OriginsAreEchoedWhenAllowed) {
  const std::vector<std::string> all = {"*"}, one = {"http://localhost:3000"};
  EXPECT_EQ(allowed_origin(all, "http://x"), "http://x");
  EXPECT_EQ(allowed_origin(one, "http://localhost:3000"), "http://localhost:3000");
  EXPECT_FALSE(allowed_origin(one, "http://localhost:3001"));
  EXPECT_FALSE(allowed_origin(all, ""));
}

}  // namespace
}  // namespace calandra::server
