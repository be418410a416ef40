#include "server/trace_exporter.h"

#include <gtest/gtest.h>

#include <chrono>
#include <thread>

#include "base/error.h"

namespace calandra::server {
namespace {

constexpr const char* kTrace = "0af7651916cd43dd8448eb211c80319c";
constexpr const char* kSpan = "b7ad6b7169203331";

std::string header(const std::string& version, const std::string& flags) {
  return version + "-" + kTrace + "-" + kSpan + "-" + flags;
}

TEST(TraceParent, ReadsTheW3CForm) {
  const auto parent = read_traceparent(header("00", "01"));
  ASSERT_TRUE(parent);
  EXPECT_EQ(parent->trace_id, kTrace);
  EXPECT_EQ(parent->span_id, kSpan);
  EXPECT_TRUE(parent->sampled);
  EXPECT_FALSE(read_traceparent(header("00", "02"))->sampled);
  EXPECT_TRUE(read_traceparent(header("cc", "01") + "-more"));  // a later version
}

TEST(TraceParent, RefusesOtherForms) {
  const std::string zeros(32, '0');
  for (const std::string& wrong :
       {std::string(), std::string("00"), header("ff", "01"), header("0g", "01"), header("00", "0"), header("00", "0A"),
        header("00", "01") + "-more", header("01", "01") + "more", "00-" + zeros + "-" + kSpan + "-01",
        std::string("00-") + kTrace + "-0000000000000000-01", "00-" + std::string(32, 'A') + "-" + kSpan + "-01",
        std::string("00_") + kTrace + "-" + kSpan + "-01"})
    EXPECT_FALSE(read_traceparent(wrong)) << wrong;
}

TEST(TraceExporter, RefusesEndpointsThatAreNone) {
  for (const char* wrong : {"", "localhost:4317", "http://", "http://:80/", "http://a:b/", "http://a:123456/",
                            "http://user@a/", "http://a/ b", "grpc://a:1"})
    EXPECT_THROW(TraceExporter({.endpoint = wrong}), UsageError) << wrong;
  for (const char* right :
       {"http://localhost:4318/v1/traces", "http://[::1]:4318", "http://collector", "https://collector"})
    EXPECT_NO_THROW(TraceExporter({.endpoint = right})) << right;
}

// Nobody listens: a full queue drops, and nobody waits.
TEST(TraceExporter, CountsWhatItDrops) {
  TraceExporter exporter({.endpoint = "http://127.0.0.1:1/v1/traces", .queue = 4, .batch = 2, .seconds = 1});
  for (int i = 0; i < 100; ++i) exporter.add({.name = "a"});
  exporter.add({.name = "left out", .parent = TraceParent{kTrace, kSpan, false}});
  for (int wait = 0; wait < 1000 && exporter.counts().dropped < 100; ++wait)
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  EXPECT_EQ(exporter.counts().dropped, 100);
  EXPECT_EQ(exporter.counts().sent, 0);
}

}  // namespace
}  // namespace calandra::server
