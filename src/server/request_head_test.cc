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
