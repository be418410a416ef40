// Engine: an EngineCore on a thread of its own. Any thread may submit, cancel and ask for statistics; the tokens of a
// request come through its Stream. Several threads ask the clock of its options.
//
//   Engine engine(runner, &tokenizer, {});
//   auto submitted = engine.submit({.prompt_token_ids = ids, .params = params});
//   if (auto* stream = std::get_if<std::shared_ptr<Stream>>(&submitted))
//     while (auto event = (*stream)->next()) std::cout << event->text;
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <variant>
#include <vector>

#include "engine/engine_core.h"

namespace calandra {

struct EngineInbox;

// The events of one request, in order; for one reader. May outlive the engine. A stream that is destroyed before its
// end cancels its request.
class Stream {
 public:
  struct Event {
    int32_t choice = 0;
    int32_t token = -1;  // -1: the choice ended without one
    std::string text;    // what may be shown now; may be empty
    std::optional<ops::TokenLogprobs> logprobs;
    std::optional<Answer> answer;  // the whole one, with the last event of its choice
  };

  Stream(std::shared_ptr<EngineInbox> inbox, uint64_t ticket, std::vector<int32_t> choices,
         std::function<void()> on_event);
  ~Stream();
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;

  // Waits. Nothing when all choices have ended and were read.
  std::optional<Event> next();
  // Nothing also when `seconds` are over: see ended().
  std::optional<Event> next_for(double seconds);
  bool ended() const;
  // Ends the request within a step; what was computed until then still comes.
  void cancel();

 private:
  friend class Engine;
  void push(Event event);
  std::optional<Event> pop();

  const std::shared_ptr<EngineInbox> inbox_;
  const uint64_t ticket_;
  const std::function<void()> on_event_;
  mutable std::mutex mutex_;
  std::condition_variable arrived_;
  std::deque<Event> events_;
  std::vector<int32_t> open_;  // choices whose last event was not pushed
};

struct EngineLoopOptions {
  int64_t max_waiting = 0;    // requests of which no choice runs, else they are refused with 429; 0: no bound
  double stats_seconds = 10;  // between lines in the log while tokens come; 0: none
  // Without a finished step while there is work: not healthy, and the log says what stands where; 0: never.
  double stall_seconds = 120;
  double stall_grace_seconds = 10;        // behind those,
  std::function<void()> on_stalled = {};  // called once, by a thread that is not the loop's
};

class Engine {
 public:
  // As EngineCore. `runner` and `tokenizer` must outlive the engine, and nobody else use the runner meanwhile.
  Engine(ModelRunner& runner, const Tokenizer* tokenizer, EngineOptions options, EngineLoopOptions loop = {});
  ~Engine();  // ends what runs

  // `on_event` is called by the engine's thread behind each event, for readers that do not wait; it must not block.
  std::variant<std::shared_ptr<Stream>, RequestError> submit(Request request, std::function<void()> on_event = {});
  // Refuses further requests, waits for those that run, and ends the rest after `seconds`. True: all came to their end
  // by themselves.
  bool drain(double seconds);
  // Refuses further requests, and those that run end with the step that runs. Does not wait.
  void end();
  // The same, and waits at most so long for the loop to end. False: its step takes longer, or will never end.
  bool stop(double seconds);
  // Ends all streams with the error, whatever the loop does: for one that stands still. Nothing more is taken.
  void give_up(const RequestError& error);
  // Refuses further requests with `refusal` until resume(), ends those that run if `abort`, and returns when none is
  // left. False: the engine has ended.
  bool pause(const RequestError& refusal, bool abort);
  void resume();
  // Runs `work` on the loop's thread, between two steps, and returns behind it. False: the engine has ended.
  bool between_steps(std::function<void(EngineCore&)> work);
  // As of the last step.
  EngineStats stats() const;
  // Steps are made, or there is nothing to do.
  bool healthy() const;

 private:
  struct Live {
    RequestId id;
    std::weak_ptr<Stream> stream;
    int64_t open;  // choices
  };
  void loop();
  bool take_work();
  bool deliver(uint64_t ticket, const TokenEvent& event);
  void note_state();
  void report_progress();
  void watch();

  const EngineLoopOptions loop_options_;
  EngineCore core_;
  const std::shared_ptr<EngineInbox> inbox_;

  // Of the loop's thread.
  std::map<uint64_t, Live> live_;  // by ticket
  std::vector<uint64_t> ended_;    // in this step
  EngineStats logged_;
  double logged_at_ = 0;

  std::thread loop_, watchdog_;
};

}  // namespace calandra
