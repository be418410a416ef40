// What a connection's coroutine waits on: news of its reply, or that its client has left.
#pragma once

#include <atomic>
#include <boost/asio.hpp>
#include <chrono>
#include <memory>

#include "server/http.h"

namespace calandra::server {

inline std::chrono::steady_clock::duration duration_of(double seconds) {
  return std::chrono::duration_cast<std::chrono::steady_clock::duration>(std::chrono::duration<double>(seconds));
}

// Of the sockets' thread, but `posted`.
struct WakeSignal {
  explicit WakeSignal(boost::asio::io_context& context) : io(context), timer(context) {}
  void notify() {
    is_set = true;
    timer.cancel();
  }

  boost::asio::io_context& io;
  boost::asio::steady_timer timer;
  std::atomic<bool> posted = false;
  bool is_set = false;
  bool gone = false;  // the client
  bool over = false;  // nobody waits any more
};

inline Wake wake_of(const std::shared_ptr<WakeSignal>& signal) {
  return [signal] {
    if (signal->posted.exchange(true)) return;
    boost::asio::post(signal->io, [signal] {
      signal->posted = false;
      signal->notify();
    });
  };
}

// Until notify(), or until `seconds` are over.
inline boost::asio::awaitable<void> wait(WakeSignal& signal, double seconds) {
  if (!signal.is_set) {
    boost::system::error_code ignored;
    signal.timer.expires_after(duration_of(seconds));
    co_await signal.timer.async_wait(boost::asio::redirect_error(boost::asio::use_awaitable, ignored));
  }
  signal.is_set = false;
}

}  // namespace calandra::server
