#include "server/trace_exporter.h"

#include <fmt/format.h>

#include <condition_variable>
#include <deque>
#include <mutex>
#include <random>
#include <thread>
#include <utility>

#include "base/error.h"
#include "base/log.h"
#include "server/http_client.h"

namespace calandra::server {
namespace {

constexpr size_t kTraceDigits = 32, kSpanDigits = 16;

bool is_id(std::string_view text) {
  return text.find_first_not_of("0123456789abcdef") == std::string_view::npos &&
         text.find_first_not_of('0') != std::string_view::npos;
}

std::string random_id(size_t digits) {
  thread_local std::mt19937_64 generator{std::random_device{}()};
  std::string id;
  while (id.size() < digits) id += fmt::format("{:016x}", generator() | 1);  // never all zeros
  return id;
}

HttpTarget target_of(const std::string& endpoint) {
  try {
    HttpTarget target = read_target(endpoint);
    if (target.path.empty()) target.path = "/v1/traces";
    return target;
  } catch (const UsageError& error) {
    throw UsageError(fmt::format("--otlp-traces-endpoint: {}", error.what()));
  }
}

// Posts one message.
class Sender : public HttpUser {
 public:
  explicit Sender(std::string message) : message_(std::move(message)) {}
  double due() const override { return 0; }
  bool next(HttpCall& call, double) override {
    call.body = std::move(message_);
    return !std::exchange(asked_, true);
  }
  void head(int status, std::string_view) override { status_ = status; }
  void body(std::string_view, double) override {}
  void end(std::string_view error, double) override { error_ = error; }
  // Empty, or what went wrong.
  std::string fault() const {
    return !error_.empty() || status_ / 100 == 2 ? error_ : fmt::format("status {}", status_);
  }

 private:
  std::string message_, error_;
  bool asked_ = false;
  int status_ = 0;
};

json::object attribute(std::string_view key, const json::value& value) {
  json::object wrapped;
  if (value.is_string())
    wrapped["stringValue"] = value;
  else if (value.is_int64())
    wrapped["intValue"] = std::to_string(value.get_int64());  // 64 bits are texts in protobuf's JSON
  else
    wrapped["doubleValue"] = value;
  return {{"key", json::string(key)}, {"value", std::move(wrapped)}};
}

std::string nanoseconds(std::chrono::system_clock::time_point time) {
  return std::to_string(std::chrono::duration_cast<std::chrono::nanoseconds>(time.time_since_epoch()).count());
}

json::object span_object(const Span& span) {
  constexpr int kServer = 2, kError = 2;
  json::array attributes;
  for (const auto& member : span.attributes) attributes.push_back(attribute(member.key(), member.value()));
  json::object object{{"traceId", span.parent ? span.parent->trace_id : random_id(kTraceDigits)},
                      {"spanId", random_id(kSpanDigits)},
                      {"name", span.name},
                      {"kind", kServer},
                      {"startTimeUnixNano", nanoseconds(span.start)},
                      {"endTimeUnixNano", nanoseconds(span.end)},
                      {"attributes", std::move(attributes)}};
  if (span.parent) object["parentSpanId"] = span.parent->span_id;
  if (span.failed) object["status"] = {{"code", kError}};
  return object;
}

}  // namespace

std::optional<TraceParent> read_traceparent(std::string_view header) {
  constexpr size_t kTrace = 3, kSpan = kTrace + kTraceDigits + 1, kFlags = kSpan + kSpanDigits + 1, kSize = kFlags + 2;
  constexpr std::string_view kHex = "0123456789abcdef";
  if (header.size() < kSize || header[kTrace - 1] != '-' || header[kSpan - 1] != '-' || header[kFlags - 1] != '-')
    return std::nullopt;
  const std::string_view version = header.substr(0, 2), flags = header.substr(kFlags, 2);
  if (version.find_first_not_of(kHex) != std::string_view::npos || version == "ff") return std::nullopt;
  if (header.size() > kSize && (version == "00" || header[kSize] != '-')) return std::nullopt;  // later ones may add
  const size_t digit = kHex.find(flags[1]);
  TraceParent parent{std::string(header.substr(kTrace, kTraceDigits)), std::string(header.substr(kSpan, kSpanDigits))};
  if (!is_id(parent.trace_id) || !is_id(parent.span_id) || flags.find_first_not_of(kHex) != std::string_view::npos)
    return std::nullopt;
  parent.sampled = (digit & 1) != 0;
  return parent;
}

struct TraceExporter::Impl {
  explicit Impl(Options o) : options(std::move(o)), target(target_of(options.endpoint)) {}

  void run() {
    std::unique_lock lock(mutex);
    while (true) {
      work.wait(lock, [this] { return stopping || !waiting.empty(); });
      if (waiting.empty() || (stopping && std::chrono::steady_clock::now() >= last)) return;
      std::vector<Span> batch;
      while (!waiting.empty() && batch.size() < options.batch) {
        batch.push_back(std::move(waiting.front()));
        waiting.pop_front();
      }
      lock.unlock();
      const std::string fault = send(batch);
      lock.lock();
      (fault.empty() ? counts.sent : counts.dropped) += std::ssize(batch);
      if (!fault.empty()) log_warning_once("traces cannot be sent to {}: {}", options.endpoint, fault);
    }
  }

  std::string message(const std::vector<Span>& batch) const {
    json::array spans;
    for (const Span& span : batch) spans.push_back(span_object(span));
    const json::object scope{{"scope", {{"name", "calandra"}}}, {"spans", std::move(spans)}};
    const json::object resource{
        {"attributes", json::array{attribute("service.name", json::string(options.service_name))}}};
    return to_json(json::object{
        {"resourceSpans", json::array{json::object{{"resource", resource}, {"scopeSpans", json::array{scope}}}}}});
  }

  // Empty, or what went wrong.
  std::string send(const std::vector<Span>& batch) const {
    Sender sender(message(batch));
    HttpUser* const user = &sender;
    try {
      run_users(target, {&user, 1}, 0, options.seconds);
    } catch (const LoadError& error) {  // no such host
      return error.what();
    }
    return sender.fault();
  }

  const Options options;
  const HttpTarget target;
  mutable std::mutex mutex;
  std::condition_variable work;
  std::deque<Span> waiting;
  Counts counts;
  bool stopping = false;
  std::chrono::steady_clock::time_point last;  // of sending, once it stops
  std::thread thread;                          // uses all before it
};

TraceExporter::TraceExporter(Options options) : impl_(std::make_unique<Impl>(std::move(options))) {
  impl_->thread = std::thread([this] { impl_->run(); });
}

TraceExporter::~TraceExporter() {
  {
    const std::lock_guard lock(impl_->mutex);
    impl_->stopping = true;
    impl_->last = std::chrono::steady_clock::now() + std::chrono::duration_cast<std::chrono::milliseconds>(
                                                         std::chrono::duration<double>(impl_->options.seconds));
  }
  impl_->work.notify_all();
  impl_->thread.join();
  Counts all = impl_->counts;
  all.dropped += std::ssize(impl_->waiting);
  log_info("traces: {} spans sent, {} dropped", all.sent, all.dropped);
}

void TraceExporter::add(Span span) {
  if (span.parent && !span.parent->sampled) return;
  {
    const std::lock_guard lock(impl_->mutex);
    if (impl_->waiting.size() >= impl_->options.queue) {
      ++impl_->counts.dropped;
      return;
    }
    impl_->waiting.push_back(std::move(span));
  }
  impl_->work.notify_one();
}

TraceExporter::Counts TraceExporter::counts() const {
  const std::lock_guard lock(impl_->mutex);
  return impl_->counts;
}

}  // namespace calandra::server
