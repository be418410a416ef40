#include "net/fetch.h"

#include <fmt/format.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <mutex>
#include <thread>

#include "base/log.h"
#include "net/url_policy.h"

namespace calandra::net {
namespace {

using Clock = std::chrono::steady_clock;

RequestError failed(std::string reason) {
  return {400, "fetch_failed", "", "the URL could not be fetched: " + std::move(reason)};
}

RequestError too_slow(const FetchRules& rules) {
  return failed(fmt::format("it took more than {} seconds", rules.seconds));
}

RequestError given_up() { return failed("it was given up"); }

// A lookup cannot be interrupted. One that takes too long is left to its thread, which the resolver's own limit ends.
std::variant<std::vector<Address>, RequestError> resolve_until(Clock::time_point end, const std::string& host,
                                                               const FetchRules& rules,
                                                               const std::function<bool()>& gone,
                                                               const Network& network) {
  constexpr auto kPause = std::chrono::milliseconds(50);  // between questions whether the client has left
  struct Lookup {
    std::mutex mutex;
    std::condition_variable ended;
    std::optional<std::vector<Address>> found;
  };
  const auto lookup = std::make_shared<Lookup>();
  std::thread([lookup, host, resolve = network.resolve] {
    std::vector<Address> found = resolve(host);
    const std::lock_guard lock(lookup->mutex);
    lookup->found = std::move(found);
    lookup->ended.notify_all();
  }).detach();
  std::unique_lock lock(lookup->mutex);
  while (!lookup->found) {
    if (Clock::now() >= end) return too_slow(rules);
    if (gone && gone()) return given_up();
    lookup->ended.wait_until(lock, std::min(end, Clock::now() + kPause));
  }
  return *std::move(lookup->found);
}

// One transfer. libcurl calls back into it; nothing may be thrown through libcurl.
class Transfer {
 public:
  Transfer(const CurlLibrary& curl, const CheckedUrl& url, std::vector<Address> addresses, const FetchRules& rules,
           const std::function<bool()>& gone, const Network& network)
      : curl_(curl), url_(url), addresses_(std::move(addresses)), rules_(rules), gone_(gone), network_(network) {}

  std::variant<std::string, RequestError> run(std::chrono::milliseconds most);

 private:
  static size_t on_body(char* bytes, size_t one, size_t count, void* self);
  static int on_progress(void* self, curl_off_t, curl_off_t, curl_off_t, curl_off_t);
  static curl_socket_t on_open(void* self, curlsocktype purpose, curl_sockaddr* to);
  curl_socket_t open(curl_sockaddr& to);

  const CurlLibrary& curl_;
  const CheckedUrl& url_;
  const std::vector<Address> addresses_;
  const FetchRules& rules_;
  const std::function<bool()>& gone_;
  const Network& network_;
  std::string body_;
  bool is_too_large_ = false, is_gone_ = false;
};

size_t Transfer::on_body(char* bytes, size_t one, size_t count, void* self) {
  auto& t = *static_cast<Transfer*>(self);
  const size_t size = one * count;
  t.is_too_large_ = size > static_cast<size_t>(t.rules_.max_bytes) - t.body_.size();
  if (t.is_too_large_) return CURL_WRITEFUNC_ERROR;
  try {
    t.body_.append(bytes, size);
  } catch (const std::bad_alloc&) {
    return CURL_WRITEFUNC_ERROR;
  }
  return size;
}

int Transfer::on_progress(void* self, curl_off_t, curl_off_t, curl_off_t, curl_off_t) {
  auto& t = *static_cast<Transfer*>(self);
  t.is_gone_ = t.gone_ && t.gone_();
  return t.is_gone_ ? 1 : 0;
}

curl_socket_t Transfer::on_open(void* self, curlsocktype, curl_sockaddr* to) {
  return static_cast<Transfer*>(self)->open(*to);
}

// The last gate: whatever libcurl took the address from, only those that were checked are connected to.
curl_socket_t Transfer::open(curl_sockaddr& to) {
  const auto address = address_of(to.addr);
  if (!address || !is_public(*address) || std::find(addresses_.begin(), addresses_.end(), *address) == addresses_.end())
    return CURL_SOCKET_BAD;
  if (network_.instead) {
    const auto port = network_.instead(*address, url_.port);
    if (!port) return CURL_SOCKET_BAD;
    sockaddr_in loopback{};
    loopback.sin_family = AF_INET;
    loopback.sin_port = htons(*port);
    loopback.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    to.family = AF_INET;
    to.addrlen = sizeof(loopback);
    std::memcpy(&to.addr, &loopback, sizeof(loopback));
  }
  return socket(to.family, to.socktype | SOCK_CLOEXEC, to.protocol);
}

std::variant<std::string, RequestError> Transfer::run(std::chrono::milliseconds most) {
  const std::unique_ptr<CURL, decltype(curl_.easy_cleanup)> owner(curl_.easy_init(), curl_.easy_cleanup);
  CURL* const easy = owner.get();
  if (easy == nullptr) return failed("no memory");
  std::string pinned = fmt::format("{}:{}:", url_.host, url_.port);
  for (size_t i = 0; i < addresses_.size(); ++i) pinned += (i == 0 ? "" : ",") + to_string(addresses_[i]);
  const std::unique_ptr<curl_slist, decltype(curl_.slist_free_all)> pins(curl_.slist_append(nullptr, pinned.c_str()),
                                                                         curl_.slist_free_all);
  bool all = pins != nullptr;
  const auto set = [&](CURLoption option, auto value) {
    all = all && curl_.easy_setopt(easy, option, value) == CURLE_OK;
  };
  set(CURLOPT_CURLU, url_.url.get());
  set(CURLOPT_RESOLVE, pins.get());
  set(CURLOPT_PROTOCOLS_STR, "http,https");
  set(CURLOPT_FOLLOWLOCATION, 0L);
  set(CURLOPT_PROXY, "");  // not those of the environment either
  set(CURLOPT_NETRC, static_cast<long>(CURL_NETRC_IGNORED));
  if (!network_.authorities.empty()) set(CURLOPT_CAINFO, network_.authorities.c_str());
  set(CURLOPT_NOSIGNAL, 1L);
  set(CURLOPT_FRESH_CONNECT, 1L);
  set(CURLOPT_FORBID_REUSE, 1L);
  const long milliseconds = std::max<long>(1, most.count());  // 0 would be no limit
  set(CURLOPT_TIMEOUT_MS, milliseconds);
  set(CURLOPT_CONNECTTIMEOUT_MS, milliseconds);
  set(CURLOPT_MAXFILESIZE_LARGE, static_cast<curl_off_t>(rules_.max_bytes));
  set(CURLOPT_USERAGENT, "calandra");
  set(CURLOPT_WRITEFUNCTION, &Transfer::on_body);
  set(CURLOPT_WRITEDATA, static_cast<void*>(this));
  set(CURLOPT_NOPROGRESS, 0L);
  set(CURLOPT_XFERINFOFUNCTION, &Transfer::on_progress);
  set(CURLOPT_XFERINFODATA, static_cast<void*>(this));
  set(CURLOPT_OPENSOCKETFUNCTION, &Transfer::on_open);
  set(CURLOPT_OPENSOCKETDATA, static_cast<void*>(this));
  if (!all) return failed("this libcurl lacks options that keep it safe (7.85 or newer is needed)");

  const CURLcode code = curl_.easy_perform(easy);
  if (is_gone_) return given_up();
  if (is_too_large_ || code == CURLE_FILESIZE_EXCEEDED)
    return RequestError{400, "file_too_large", "",
                        fmt::format("the URL's file has more than {} bytes", rules_.max_bytes)};
  if (code == CURLE_OPERATION_TIMEDOUT) return too_slow(rules_);
  if (code != CURLE_OK) {
    log_warning("a file of {} could not be fetched: {}", url_.host, curl_.easy_strerror(code));
    return failed("its server does not answer as it should");
  }
  long status = 0;
  curl_.easy_getinfo(easy, CURLINFO_RESPONSE_CODE, &status);
  if (status >= 300 && status < 400) return failed("its server sends us elsewhere, and redirects are not followed");
  if (status != 200) return failed(fmt::format("its server answers with status {}", status));
  return std::move(body_);
}

}  // namespace

std::variant<std::string, RequestError> fetch(std::string_view url, const FetchRules& rules,
                                              const std::function<bool()>& gone, const Network& network) {
  const auto checked = check_url(url, rules.allowed_domains);
  if (const auto* error = std::get_if<RequestError>(&checked)) return *error;
  const auto& target = std::get<CheckedUrl>(checked);
  const Clock::time_point end =
      Clock::now() + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(rules.seconds));
  auto found = resolve_until(end, target.host, rules, gone, network);
  if (auto* error = std::get_if<RequestError>(&found)) return std::move(*error);
  auto& addresses = std::get<std::vector<Address>>(found);
  // One private address among them is enough: a name of the public has none.
  if (addresses.empty() || !std::all_of(addresses.begin(), addresses.end(), is_public))
    return RequestError{400, "invalid_url", "",
                        "the URL's host has no address, or one that is not of the public internet"};
  const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(end - Clock::now());
  return Transfer(*CurlLibrary::get(), target, std::move(addresses), rules, gone, network).run(left);
}

}  // namespace calandra::net
