// A thread for what the sockets' thread must not wait for.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>

namespace calandra::apps {

class WorkThread {
 public:
  WorkThread() : thread_([this] { run(); }) {}
  ~WorkThread() { stop(); }
  WorkThread(const WorkThread&) = delete;
  WorkThread& operator=(const WorkThread&) = delete;

  // `work` is done soon, behind what was added before; it must not throw. After stop() the caller does it himself.
  void add(std::function<void()> work);
  // Does what there is, and ends.
  void stop();

 private:
  void run();

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::function<void()>> waiting_;
  bool stopped_ = false;
  std::thread thread_;
};

}  // namespace calandra::apps
