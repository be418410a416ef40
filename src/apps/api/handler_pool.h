// HandlerPool: threads for requests that take long before the engine has them. Handled there they hold up neither the
// sockets nor other requests: those that bring pictures, those that wait for a grammar, and those of admins have a pool
// each.
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

class HandlerPool {
 public:
  using Result = std::variant<server::HttpReply, std::unique_ptr<server::PendingReply>>;
  // `gone` says whether the client has left, or the pool ends.
  using Work = std::function<Result(const std::function<bool()>& gone)>;

  explicit HandlerPool(int threads = 4);
  ~HandlerPool() { stop(); }

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
