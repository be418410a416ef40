#include "server/trace_exporter.h"

#include <fmt/format.h>

#include <algorithm>
#include <boost/asio.hpp>
#include <boost/beast/core.hpp>
#include <boost/beast/http.hpp>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <random>
#include <thread>

#include "base/error.h"
#include "base/log.h"

namespace calandra::server {
namespace {

namespace net = boost::asio;
namespace beast = boost::beast;
namespace http = beast::http;
using tcp = net::ip::tcp;
using Code = boost::system::error_code;

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

struct Endpoint {
  std::string host, port = "80", path = "/v1/traces";
};

Endpoint parse_endpoint(std::string_view text) {
  const auto fail = [&](std::string_view why) {
    return UsageError(fmt::format("--otlp-traces-endpoint {}: {}", text, why));
  };
  constexpr std::string_view kScheme = "http://";
  if (text.starts_with("https://")) throw fail("https is not supported: name a collector on this machine, http://…");
  if (!text.starts_with(kScheme)) throw fail("it must look like http://localhost:4318/v1/traces");
  std::string_view rest = text.substr(kScheme.size());
  Endpoint endpoint;
  const size_t slash = std::min(rest.find('/'), rest.size());
  if (rest.size() > slash + 1) endpoint.path = std::string(rest.substr(slash));
  rest = rest.substr(0, slash);
  const size_t colon = rest.ends_with(']') ? std::string_view::npos : rest.rfind(':');
  if (colon != std::string_view::npos) endpoint.port = std::string(rest.substr(colon + 1));
  endpoint.host = std::string(rest.substr(0, colon));
  if (endpoint.host.starts_with('[') && endpoint.host.ends_with(']'))
    endpoint.host = endpoint.host.substr(1, endpoint.host.size() - 2);
  const bool is_number = !endpoint.port.empty() && endpoint.port.size() <= 5 &&
                         endpoint.port.find_first_not_of("0123456789") == std::string::npos;
  const bool is_plain = std::all_of(text.begin(), text.end(), [](char c) { return c > ' ' && c < 0x7f && c != '@'; });
  if (endpoint.host.empty() || !is_number || !is_plain) throw fail("it must look like http://localhost:4318/v1/traces");
  return endpoint;
}

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
  explicit Impl(Options o) : options(std::move(o)), endpoint(parse_endpoint(options.endpoint)) {}

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
    std::string fault = "no answer";
    net::io_context io{1};
    net::co_spawn(io, post(io, message(batch), fault), net::detached);
    io.run_for(std::chrono::duration_cast<std::chrono::milliseconds>(std::chrono::duration<double>(options.seconds)));
    return fault;
  }

  net::awaitable<void> post(net::io_context& io, std::string body, std::string& fault) const {
    Code code;
    tcp::resolver resolver(io);
    const auto found =
        co_await resolver.async_resolve(endpoint.host, endpoint.port, net::redirect_error(net::use_awaitable, code));
    beast::tcp_stream stream(io);
    if (!code) co_await stream.async_connect(found, net::redirect_error(net::use_awaitable, code));
    http::request<http::string_body> request(http::verb::post, endpoint.path, 11, std::move(body));
    request.set(http::field::host, endpoint.host);
    request.set(http::field::content_type, "application/json");
    request.set(http::field::connection, "close");
    request.prepare_payload();
    if (!code) co_await http::async_write(stream, request, net::redirect_error(net::use_awaitable, code));
    beast::flat_buffer buffer;
    http::response_parser<http::string_body> reply;
    reply.body_limit(size_t{64} << 10);
    if (!code) co_await http::async_read(stream, buffer, reply, net::redirect_error(net::use_awaitable, code));
    fault = code ? code.message() : "";
    if (!code && reply.get().result_int() / 100 != 2) fault = fmt::format("status {}", reply.get().result_int());
  }

  const Options options;
  const Endpoint endpoint;
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
