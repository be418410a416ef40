// Spans of requests for an OpenTelemetry collector, as OTLP in JSON over HTTP. Source: opentelemetry-proto's
// trace_service, W3C Trace Context; names of attributes: vLLM's (tracing/utils.py), OpenTelemetry's GenAI and HTTP.
#pragma once

#include <chrono>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "base/json.h"

namespace calandra::server {

// What a `traceparent` header names.
struct TraceParent {
  std::string trace_id, span_id;  // 32 and 16 digits
  bool sampled = true;
};
// Nothing when the header is absent or wrong: then the request begins a trace.
std::optional<TraceParent> read_traceparent(std::string_view header);

struct Span {
  std::string name;
  std::optional<TraceParent> parent = {};
  std::chrono::system_clock::time_point start = {}, end = {};
  json::object attributes = {};  // texts, whole numbers, numbers
  bool failed = false;
};

// Sends spans from a thread of its own. A collector that is slow or away costs no request anything: what does not fit
// in the queue is dropped, and counted.
class TraceExporter {
 public:
  struct Options {
    std::string endpoint;  // "http://localhost:4318/v1/traces"
    std::string service_name = "calandra";
    size_t queue = 2048;  // spans
    size_t batch = 256;   // of one message
    double seconds = 5;   // for one message
  };
  struct Counts {
    int64_t sent = 0, dropped = 0;
  };

  // Throws UsageError when the endpoint is none.
  explicit TraceExporter(Options options);
  // Sends what waits, within the time of one message.
  ~TraceExporter();
  TraceExporter(const TraceExporter&) = delete;
  TraceExporter& operator=(const TraceExporter&) = delete;

  // Any thread may call it; it never waits. A span whose parent is not sampled is left out.
  void add(Span span);
  Counts counts() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace calandra::server
