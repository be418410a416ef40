// Requests with pictures, handled on threads of their own: fetching and decoding must hold up neither the sockets nor
// requests without pictures.
#pragma once

#include <atomic>
#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "server/http.h"

namespace calandra::apps {

class MediaPool {
 public:
  using Result = std::variant<server::HttpReply, std::unique_ptr<server::PendingReply>>;
  // `gone` says whether the client has left, or the pool ends.
  using Work = std::function<Result(const std::function<bool()>& gone)>;

  explicit MediaPool(int threads = 4);
  ~MediaPool() { stop(); }

  // A reply that becomes that of `work`; its kind is known when is_ready. 503 when too many wait.
  Result defer(Work work, server::Wake wake);
  // Ends what runs and waits for it. Later work is refused.
  void stop();

 private:
  struct Job;
  class Reply;
  void run();

  std::mutex mutex_;
  std::condition_variable waiting_;
  std::deque<std::shared_ptr<Job>> jobs_;
  std::atomic<bool> stopped_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace calandra::apps
