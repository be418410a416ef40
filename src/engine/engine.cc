#include "engine/engine.h"

#include <chrono>
#include <numeric>

#include "base/log.h"

namespace calandra {

// What the threads share.
struct EngineInbox {
  struct Incoming {
    uint64_t ticket;
    Request request;
    std::weak_ptr<Stream> stream;
  };
  mutable std::mutex mutex;
  std::condition_variable work;     // for the loop
  std::condition_variable changed;  // something ended
  std::deque<Incoming> incoming;
  std::vector<uint64_t> cancels;  // tickets
  uint64_t next_ticket = 1;
  int64_t unfinished = 0;    // requests
  int64_t running = 0;       // of those, as of the last step
  EngineStats stats;         // as of the last step
  double last_progress = 0;  // seconds of the engine's clock
  bool stalled = false;      // reported
  bool draining = false;     // refuses what comes
  bool ending = false;       // cancels what is there
  bool stopping = false;     // the loop ends
  std::string failure;       // why it ended by itself
};

namespace {

std::chrono::duration<double> seconds_of(double seconds) { return std::chrono::duration<double>(seconds); }

RequestError unavailable(std::string message) { return {503, "service_unavailable", "", std::move(message)}; }

double ratio(int64_t part, int64_t whole) {
  return whole > 0 ? static_cast<double>(part) / static_cast<double>(whole) : 0;
}

// One line in vLLM's words.
void log_stats(const EngineStats& now, const EngineStats& before, double seconds) {
  const auto per_second = [&](int64_t count) { return static_cast<double>(count) / seconds; };
  std::string line = fmt::format(
      "Avg prompt throughput: {:.1f} tokens/s, Avg generation throughput: {:.1f} tokens/s, Running: {} reqs, Waiting: "
      "{} reqs, KV cache usage: {:.1f}%, Prefix cache hit rate: {:.1f}%",
      per_second(now.prompt_tokens - before.prompt_tokens),
      per_second(now.generation_tokens - before.generation_tokens), now.requests_running, now.requests_waiting,
      100 * ratio(now.pages_used, now.pages), 100 * ratio(now.prefix.hit_tokens, now.prefix.query_tokens));
  const int64_t drafts = now.drafts - before.drafts;
  if (drafts > 0) {
    line += fmt::format(", Mean acceptance length: {:.2f}, Per-position acceptance rate:",
                        1 + ratio(now.accepted_tokens - before.accepted_tokens, drafts));
    for (size_t j = 0; j < now.drafted_per_position.size(); ++j)
      if (const int64_t drafted = now.drafted_per_position[j] - before.drafted_per_position[j]; drafted > 0)
        line += fmt::format(" {:.3f}", ratio(now.accepted_per_position[j] - before.accepted_per_position[j], drafted));
  }
  log_info("{}", line);
}

}  // namespace

Stream::Stream(std::shared_ptr<EngineInbox> inbox, uint64_t ticket, std::vector<int32_t> choices,
               std::function<void()> on_event)
    : inbox_(std::move(inbox)), ticket_(ticket), on_event_(std::move(on_event)), open_(std::move(choices)) {}

Stream::~Stream() {
  if (!open_.empty()) cancel();
}

void Stream::push(Event event) {
  {
    const std::lock_guard lock(mutex_);
    if (event.answer) std::erase(open_, event.choice);
    events_.push_back(std::move(event));
    arrived_.notify_one();
  }
  if (on_event_) on_event_();
}

std::optional<Stream::Event> Stream::pop() {
  if (events_.empty()) return std::nullopt;
  std::optional<Event> event = std::move(events_.front());
  events_.pop_front();
  return event;
}

std::optional<Stream::Event> Stream::next() {
  std::unique_lock lock(mutex_);
  arrived_.wait(lock, [&] { return !events_.empty() || open_.empty(); });
  return pop();
}

std::optional<Stream::Event> Stream::next_for(double seconds) {
  std::unique_lock lock(mutex_);
  arrived_.wait_for(lock, seconds_of(seconds), [&] { return !events_.empty() || open_.empty(); });
  return pop();
}

bool Stream::ended() const {
  const std::lock_guard lock(mutex_);
  return events_.empty() && open_.empty();
}

void Stream::cancel() {
  const std::lock_guard lock(inbox_->mutex);
  if (inbox_->stopping || !inbox_->failure.empty()) return;  // nobody looks any more
  inbox_->cancels.push_back(ticket_);
  inbox_->work.notify_one();
}

Engine::Engine(ModelRunner& runner, const Tokenizer* tokenizer, EngineOptions options, EngineLoopOptions loop)
    : loop_options_(loop), core_(runner, tokenizer, std::move(options)), inbox_(std::make_shared<EngineInbox>()) {
  inbox_->last_progress = logged_at_ = core_.options().clock();
  inbox_->stats = core_.stats();
  loop_ = std::thread([this] { this->loop(); });
  watchdog_ = std::thread([this] { watch(); });
}

Engine::~Engine() {
  {
    const std::lock_guard lock(inbox_->mutex);
    inbox_->draining = inbox_->ending = inbox_->stopping = true;
    inbox_->work.notify_all();
    inbox_->changed.notify_all();
  }
  loop_.join();
  watchdog_.join();
}

std::variant<std::shared_ptr<Stream>, RequestError> Engine::submit(Request request, std::function<void()> on_event) {
  if (auto error = core_.check(request)) return *std::move(error);
  const std::lock_guard lock(inbox_->mutex);
  if (!inbox_->failure.empty()) return unavailable("the engine has stopped: " + inbox_->failure);
  if (inbox_->draining) return unavailable("the engine is shutting down");
  const int64_t waiting = inbox_->unfinished - inbox_->running;
  if (loop_options_.max_waiting > 0 && waiting >= loop_options_.max_waiting)
    return RequestError{429, "queue_full", "", fmt::format("{} requests wait already; try again later", waiting)};
  const uint64_t ticket = inbox_->next_ticket++;
  std::vector<int32_t> choices(static_cast<size_t>(request.params.n));
  std::iota(choices.begin(), choices.end(), request.first_choice);
  auto stream = std::make_shared<Stream>(inbox_, ticket, std::move(choices), std::move(on_event));
  const double now = core_.options().clock();
  if (!request.arrival) request.arrival = now;
  inbox_->incoming.push_back({ticket, std::move(request), stream});
  if (inbox_->unfinished++ == 0) inbox_->last_progress = now;  // nothing was to be done until now
  inbox_->work.notify_one();
  return stream;
}

bool Engine::drain(double seconds) {
  std::unique_lock lock(inbox_->mutex);
  inbox_->draining = true;
  const auto done = [&] { return inbox_->unfinished == 0 || inbox_->stopping; };
  const bool in_time = inbox_->changed.wait_for(lock, seconds_of(seconds), done);
  inbox_->ending = true;
  inbox_->work.notify_one();
  inbox_->changed.wait(lock, done);
  return in_time && inbox_->failure.empty();
}

EngineStats Engine::stats() const {
  const std::lock_guard lock(inbox_->mutex);
  return inbox_->stats;
}

bool Engine::healthy() const {
  const double now = core_.options().clock();
  const std::lock_guard lock(inbox_->mutex);
  if (!inbox_->failure.empty()) return false;
  return inbox_->unfinished == 0 || now - inbox_->last_progress < loop_options_.stall_seconds;
}

void Engine::loop() {
  try {
    while (take_work()) {
      const bool ran = core_.step();
      report_progress();
      // Who waits for memory that somebody outside holds looks again in a while.
      if (!ran && !core_.idle()) std::this_thread::sleep_for(seconds_of(0.001));
    }
  } catch (const std::exception& error) {  // memory, or the device: requests' faults are values
    fail_all(error.what());
  }
}

// Waits for something to do and hands it to the core. False: nothing is left, and the engine ends.
bool Engine::take_work() {
  std::deque<EngineInbox::Incoming> incoming;
  std::vector<uint64_t> cancels;
  bool ending = false, stopping = false;
  {
    std::unique_lock lock(inbox_->mutex);
    const auto has_work = [&] {
      return !inbox_->incoming.empty() || !inbox_->cancels.empty() || inbox_->stopping || !core_.idle();
    };
    inbox_->work.wait(lock, has_work);
    incoming.swap(inbox_->incoming);
    cancels.swap(inbox_->cancels);
    ending = inbox_->ending;
    stopping = inbox_->stopping;
  }
  // All streams are known before anything can throw.
  for (const EngineInbox::Incoming& one : incoming)
    live_.emplace(one.ticket, Live{0, one.stream, one.request.params.n});
  for (EngineInbox::Incoming& one : incoming) {
    const auto on_token = [this, ticket = one.ticket](const TokenEvent& event) { return deliver(ticket, event); };
    const auto added = core_.add(std::move(one.request), on_token);
    CHECK(std::holds_alternative<RequestId>(added));  // submit has checked it
    live_.at(one.ticket).id = std::get<RequestId>(added);
  }
  for (const uint64_t ticket : cancels)
    if (const auto found = live_.find(ticket); found != live_.end()) core_.cancel(found->second.id);
  if (ending)
    for (const auto& [ticket, live] : live_) core_.cancel(live.id);
  return !stopping || !core_.idle();
}

bool Engine::deliver(uint64_t ticket, const TokenEvent& event) {
  Live& live = live_.at(ticket);
  const std::shared_ptr<Stream> stream = live.stream.lock();
  if (stream) {
    Stream::Event out{event.choice, event.token, std::string(event.text), {}, {}};
    if (event.token >= 0 && !event.answer.logprobs.empty()) out.logprobs = event.answer.logprobs.back();
    if (event.finished) out.answer = std::move(event.answer);
    stream->push(std::move(out));
  }
  if (event.finished && --live.open == 0) {
    live_.erase(ticket);
    ++ended_;
  }
  return stream != nullptr;
}

void Engine::fail_all(const std::string& message) {
  log_error("the engine has stopped: {}", message);
  const auto fail = [&](const std::weak_ptr<Stream>& weak) {
    const std::shared_ptr<Stream> stream = weak.lock();
    if (!stream) return;
    {
      const std::lock_guard lock(stream->mutex_);
      for (const int32_t choice : stream->open_) {
        Answer answer;
        answer.error = RequestError{500, "internal_error", "", "the engine has stopped: " + message};
        stream->events_.push_back({choice, -1, "", {}, std::move(answer)});
      }
      stream->open_.clear();
      stream->arrived_.notify_all();
    }
    if (stream->on_event_) stream->on_event_();
  };
  for (const auto& [ticket, live] : live_) fail(live.stream);
  live_.clear();
  const std::lock_guard lock(inbox_->mutex);
  for (const EngineInbox::Incoming& one : inbox_->incoming) fail(one.stream);
  inbox_->incoming.clear();
  inbox_->failure = message;
  inbox_->unfinished = 0;
  inbox_->changed.notify_all();
}

void Engine::report_progress() {
  const EngineStats& stats = core_.stats();
  int64_t running = 0;  // requests; their choices stand together
  const RequestState* last = nullptr;
  for (const Choice* choice : core_.scheduler().running()) {
    running += &choice->request != last;
    last = &choice->request;
  }
  const double now = core_.options().clock();
  {
    const std::lock_guard lock(inbox_->mutex);
    if (stats.steps != inbox_->stats.steps) {
      inbox_->last_progress = now;
      inbox_->stalled = false;
    }
    inbox_->stats = stats;
    inbox_->running = running;
    inbox_->unfinished -= ended_;
    if (ended_ > 0) inbox_->changed.notify_all();
    ended_ = 0;
  }
  if (loop_options_.stats_seconds <= 0 || now - logged_at_ < loop_options_.stats_seconds) return;
  if (stats.generation_tokens != logged_.generation_tokens || stats.prompt_tokens != logged_.prompt_tokens)
    log_stats(stats, logged_, now - logged_at_);
  logged_ = stats;
  logged_at_ = now;
}

// Says once when steps do not end.
void Engine::watch() {
  std::unique_lock lock(inbox_->mutex);
  while (!inbox_->stopping) {
    inbox_->changed.wait_for(lock, seconds_of(1));
    const double silent = core_.options().clock() - inbox_->last_progress;
    if (inbox_->unfinished == 0 || inbox_->stalled || silent < loop_options_.stall_seconds) continue;
    inbox_->stalled = true;
    log_error("no step has ended for {:.0f} s while {} requests are unfinished", silent, inbox_->unfinished);
  }
}

}  // namespace calandra
