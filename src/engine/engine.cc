#include "engine/engine.h"

#include <algorithm>
#include <chrono>
#include <numeric>
#include <utility>

#include "base/log.h"
#include "engine/engine_state.h"

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
  std::vector<uint64_t> cancels;                      // tickets
  std::map<uint64_t, std::weak_ptr<Stream>> streams;  // of requests that have not ended
  uint64_t next_ticket = 1;
  int64_t unfinished = 0;    // requests
  int64_t running = 0;       // of those, as of the last step
  EngineStats stats;         // as of the last step
  double last_progress = 0;  // seconds of the engine's clock
  EngineState state;         // as the step that runs, or the last one, began
  bool in_step = false;
  bool stalled = false;                      // reported
  std::optional<RequestError> paused;        // refuses what comes, with this
  bool aborting = false;                     // cancels what is there
  std::function<void(EngineCore&)> between;  // for the loop, or empty
  bool draining = false;                     // refuses what comes
  bool ending = false;                       // cancels what is there
  bool stopping = false;                     // the loop ends
  bool loop_ended = false;
  std::string failure;  // why it ended by itself, or was given up
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
    if (std::find(open_.begin(), open_.end(), event.choice) == open_.end()) return;  // it was given up
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
  if (loop_options_.stall_seconds > 0) watchdog_ = std::thread([this] { watch(); });
}

Engine::~Engine() {
  stop(0);
  loop_.join();
  if (watchdog_.joinable()) watchdog_.join();
}

std::variant<std::shared_ptr<Stream>, RequestError> Engine::submit(Request request, std::function<void()> on_event) {
  if (auto error = core_.check(request)) return *std::move(error);
  const std::lock_guard lock(inbox_->mutex);
  if (!inbox_->failure.empty()) return unavailable(inbox_->failure);
  if (inbox_->draining) return unavailable("the engine is shutting down");
  if (inbox_->paused) return *inbox_->paused;
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
  inbox_->streams.emplace(ticket, stream);
  if (inbox_->unfinished++ == 0) {  // nothing was to be done until now
    inbox_->last_progress = now;
    inbox_->stalled = false;
  }
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

void Engine::end() {
  const std::lock_guard lock(inbox_->mutex);
  inbox_->draining = inbox_->ending = true;
  inbox_->work.notify_one();
}

bool Engine::stop(double seconds) {
  std::unique_lock lock(inbox_->mutex);
  inbox_->draining = inbox_->ending = inbox_->stopping = true;
  inbox_->work.notify_one();
  inbox_->changed.notify_all();
  return inbox_->changed.wait_for(lock, seconds_of(seconds), [&] { return inbox_->loop_ended; });
}

bool Engine::pause(const RequestError& refusal, bool abort) {
  std::unique_lock lock(inbox_->mutex);
  inbox_->paused = refusal;
  inbox_->aborting = abort;
  inbox_->work.notify_one();
  inbox_->changed.wait(lock, [&] { return inbox_->unfinished == 0 || inbox_->loop_ended; });
  inbox_->aborting = false;
  return inbox_->failure.empty() && !inbox_->loop_ended;
}

void Engine::resume() {
  const std::lock_guard lock(inbox_->mutex);
  inbox_->paused.reset();
}

bool Engine::between_steps(std::function<void(EngineCore&)> work) {
  std::unique_lock lock(inbox_->mutex);
  const auto free = [&] { return !inbox_->between || !inbox_->failure.empty() || inbox_->loop_ended; };
  inbox_->changed.wait(lock, free);
  inbox_->between = std::move(work);
  inbox_->work.notify_one();
  inbox_->changed.wait(lock, free);
  return !inbox_->between;
}

void Engine::give_up(const RequestError& error) {
  std::map<uint64_t, std::weak_ptr<Stream>> streams;
  {
    const std::lock_guard lock(inbox_->mutex);
    if (!inbox_->failure.empty()) return;
    inbox_->failure = error.message;
    inbox_->unfinished = inbox_->running = 0;
    inbox_->incoming.clear();
    streams.swap(inbox_->streams);
    inbox_->work.notify_one();
    inbox_->changed.notify_all();
  }
  for (const auto& [ticket, weak] : streams) {
    const std::shared_ptr<Stream> stream = weak.lock();
    if (!stream) continue;
    {
      const std::lock_guard lock(stream->mutex_);
      for (const int32_t choice : stream->open_) {
        Answer answer;
        answer.error = error;
        stream->events_.push_back({choice, -1, "", {}, std::move(answer)});
      }
      stream->open_.clear();
      stream->arrived_.notify_all();
    }
    if (stream->on_event_) stream->on_event_();
  }
}

EngineStats Engine::stats() const {
  const std::lock_guard lock(inbox_->mutex);
  return inbox_->stats;
}

bool Engine::healthy() const {
  const double now = core_.options().clock();
  const std::lock_guard lock(inbox_->mutex);
  if (!inbox_->failure.empty()) return false;
  return inbox_->unfinished == 0 || loop_options_.stall_seconds <= 0 ||
         now - inbox_->last_progress < loop_options_.stall_seconds;
}

void Engine::loop() {
  try {
    while (take_work()) {
      note_state();
      const bool ran = core_.step();
      report_progress();
      // Who waits for memory that somebody outside holds looks again in a while.
      if (!ran && !core_.idle()) std::this_thread::sleep_for(seconds_of(0.001));
    }
  } catch (const std::exception& error) {  // memory, or the device: requests' faults are values
    log_error("the engine has stopped: {}", error.what());
    give_up({500, "internal_error", "", std::string("the engine has stopped: ") + error.what()});
  }
  live_.clear();
  const std::lock_guard lock(inbox_->mutex);
  inbox_->loop_ended = true;
  inbox_->changed.notify_all();
}

// Waits for something to do and hands it to the core. False: nothing is left, and the engine ends.
bool Engine::take_work() {
  std::deque<EngineInbox::Incoming> incoming;
  std::vector<uint64_t> cancels;
  std::function<void(EngineCore&)> between;
  bool ending = false, stopping = false;
  {
    std::unique_lock lock(inbox_->mutex);
    const auto has_work = [&] {
      return !inbox_->incoming.empty() || !inbox_->cancels.empty() || inbox_->between || inbox_->stopping ||
             !inbox_->failure.empty() || !core_.idle();
    };
    inbox_->work.wait(lock, has_work);
    if (!inbox_->failure.empty()) return false;
    incoming.swap(inbox_->incoming);
    cancels.swap(inbox_->cancels);
    ending = inbox_->ending || inbox_->aborting;
    between = inbox_->between;
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
  if (between) {
    between(core_);
    const std::lock_guard lock(inbox_->mutex);
    inbox_->between = nullptr;
    inbox_->changed.notify_all();
  }
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
    ended_.push_back(ticket);
  }
  return stream != nullptr;
}

void Engine::note_state() {
  const std::lock_guard lock(inbox_->mutex);
  core_.describe(inbox_->state);
  inbox_->in_step = true;
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
  bool goes_on = false;
  {
    const std::lock_guard lock(inbox_->mutex);
    inbox_->in_step = false;
    if (stats.steps != inbox_->stats.steps) {
      inbox_->last_progress = now;
      goes_on = std::exchange(inbox_->stalled, false);
    }
    inbox_->stats = stats;
    if (inbox_->failure.empty()) {
      inbox_->running = running;
      inbox_->unfinished -= std::ssize(ended_);
    }
    for (const uint64_t ticket : ended_) inbox_->streams.erase(ticket);
    if (!ended_.empty()) inbox_->changed.notify_all();
    ended_.clear();
  }
  if (goes_on) log_info("steps are made again");
  if (loop_options_.stats_seconds <= 0 || now - logged_at_ < loop_options_.stats_seconds) return;
  if (stats.generation_tokens != logged_.generation_tokens || stats.prompt_tokens != logged_.prompt_tokens)
    log_stats(stats, logged_, now - logged_at_);
  logged_ = stats;
  logged_at_ = now;
}

// Says once when steps do not end.
void Engine::watch() {
  const double most = loop_options_.stall_seconds, between_looks = std::min(1.0, most / 4);
  std::unique_lock lock(inbox_->mutex);
  while (!inbox_->stopping && inbox_->failure.empty()) {
    inbox_->changed.wait_for(lock, seconds_of(between_looks));
    const double silent = core_.options().clock() - inbox_->last_progress;
    if (inbox_->unfinished == 0 || silent < most) continue;
    if (!inbox_->stalled) {
      inbox_->stalled = true;
      const std::string text = fmt::format(
          "no step has ended for {:.0f} s while {} requests are unfinished, {} of them not looked at yet; the engine "
          "is "
          "{}\n{}",
          silent, inbox_->unfinished, inbox_->incoming.size(), inbox_->in_step ? "in a step" : "between steps",
          text_of(inbox_->state));
      lock.unlock();  // whoever reads the log slowly holds up nobody
      log_error("{}", text);
      lock.lock();
    } else if (loop_options_.on_stalled && silent >= most + loop_options_.stall_grace_seconds) {
      lock.unlock();
      loop_options_.on_stalled();
      return;
    }
  }
}

}  // namespace calandra
