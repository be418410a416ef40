#include "apps/api/handler_pool.h"

#include "base/log.h"
#include "server/api_error.h"

namespace calandra::apps {
namespace {

constexpr size_t kMostJobs = 256;  // that wait

server::HttpReply busy() {
  return server::error_reply(
      {503, "service_unavailable", "", "too many requests of this kind are waiting; try again later"});
}

server::HttpReply at_the_end() {
  return server::error_reply({503, "service_unavailable", "", "the server is shutting down"});
}

}  // namespace

struct HandlerPool::Job {
  Job(Work work, server::Wake wake) : work(std::move(work)), wake(std::move(wake)) {}
  Work work;  // until it is done
  const server::Wake wake;
  std::atomic<bool> gone = false;
  std::mutex mutex;
  std::optional<Result> result;
  void end_with(Result reply) {
    {
      const std::lock_guard lock(mutex);
      result = std::move(reply);
    }
    wake();
  }
};

// What the client waits on. It may go first; then the job is given up.
class HandlerPool::Reply : public server::PendingReply {
 public:
  explicit Reply(std::shared_ptr<Job> job) : job_(std::move(job)) {}
  ~Reply() override { job_->gone = true; }

  bool is_ready() const override {
    const std::lock_guard lock(job_->mutex);
    return job_->result.has_value();
  }
  bool is_stream() const override {
    if (!is_ready()) return false;
    const auto* inner = std::get_if<std::unique_ptr<server::PendingReply>>(&*job_->result);
    return inner != nullptr && (*inner)->is_stream();
  }
  bool advance(server::HttpReply& reply) override {
    if (!is_ready()) return false;
    if (auto* inner = std::get_if<std::unique_ptr<server::PendingReply>>(&*job_->result))
      return (*inner)->advance(reply);
    reply = std::get<server::HttpReply>(std::move(*job_->result));
    return true;
  }

 private:
  const std::shared_ptr<Job> job_;
};

HandlerPool::HandlerPool(int threads) {
  for (int i = 0; i < threads; ++i) threads_.emplace_back([this] { run(); });
}

HandlerPool::Result HandlerPool::defer(Work work, server::Wake wake) {
  auto job = std::make_shared<Job>(std::move(work), std::move(wake));
  {
    const std::lock_guard lock(mutex_);
    if (stopped_) return at_the_end();
    if (jobs_.size() >= kMostJobs) return busy();
    jobs_.push_back(job);
  }
  waiting_.notify_one();
  return std::make_unique<Reply>(std::move(job));
}

void HandlerPool::run() {
  while (true) {
    std::shared_ptr<Job> job;
    {
      std::unique_lock lock(mutex_);
      waiting_.wait(lock, [this] { return stopped_ || !jobs_.empty(); });
      if (stopped_) return;
      job = std::move(jobs_.front());
      jobs_.pop_front();
      if (job->gone) continue;
      ++running_;
    }
    std::optional<Result> result;
    try {
      result = std::exchange(job->work, {})([&] { return job->gone || stopped_; });
    } catch (const std::exception& error) {
      log_error("a request failed: {}", error.what());
      result = server::error_reply({500, "internal_error", "", "the server failed at this request"});
    }
    job->end_with(stopped_ ? at_the_end() : *std::move(result));
    const std::lock_guard lock(mutex_);
    --running_;
  }
}

bool HandlerPool::is_idle() {
  const std::lock_guard lock(mutex_);
  return running_ == 0;
}

void HandlerPool::give_up() {
  std::deque<std::shared_ptr<Job>> waiting;
  {
    const std::lock_guard lock(mutex_);
    stopped_ = true;
    waiting.swap(jobs_);
  }
  waiting_.notify_all();
  for (const std::shared_ptr<Job>& job : waiting) job->end_with(at_the_end());
}

void HandlerPool::stop() {
  give_up();
  for (std::thread& thread : threads_)
    if (thread.joinable()) thread.join();
}

}  // namespace calandra::apps
