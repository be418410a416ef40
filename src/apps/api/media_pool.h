// Requests that take long before the engine has them, handled on threads of their own: fetching and decoding pictures
// must hold up neither the sockets nor requests without pictures. So for those that wait for a grammar to be compiled,
// and those of admins, which have others.
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

  // A reply that becomes that of `work`; its kind is known when is_ready. 503 when too many wait, or at the end.
  Result defer(Work work, server::Wake wake);
  // What waits and what runs become a 503, soon; later work is refused. Does not wait.
  void give_up();
  // The same, and waits for it: then no `wake` is called any more.
  void stop();
  // Whether no work runs.
  bool is_idle();

 private:
  struct Job;
  class Reply;
  void run();

  std::mutex mutex_;
  std::condition_variable waiting_;
  std::deque<std::shared_ptr<Job>> jobs_;
  std::atomic<bool> stopped_ = false;
  int running_ = 0;
  std::vector<std::thread> threads_;
};

}  // namespace calandra::apps
