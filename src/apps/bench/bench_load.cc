#include "apps/bench/bench_load.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <deque>
#include <numeric>
#include <thread>

#include "apps/output.h"
#include "base/philox.h"

namespace calandra::apps {
namespace {

double percentile(const std::vector<double>& sorted, double part) {
  const double place = part * static_cast<double>(sorted.size() - 1);
  const auto below = static_cast<size_t>(place);
  const size_t above = std::min(below + 1, sorted.size() - 1);
  return sorted[below] + (sorted[above] - sorted[below]) * (place - static_cast<double>(below));
}

class LoadRun {
 public:
  LoadRun(EngineCore& core, std::span<const BenchConversation> conversations, int64_t concurrency,
          const Request& request, const std::function<void(Request&)>& change)
      : core_(core), request_(request), change_(change), concurrency_(concurrency) {
    size_t first = 0;
    for (const BenchConversation& conversation : conversations) {
      open_.push_back({&conversation, conversation.prefix, {}, 0, first, conversation.arrival});
      first += conversation.turns.size();
    }
    times_.requests.resize(first);
  }

  LoadTimes run() {
    while (next_ < open_.size() || running_ > 0) {
      while (next_ < open_.size() && running_ < concurrency_ && open_[next_].due <= now()) {
        ++running_;
        // Who could not start before now did not arrive before now, unless it came at a time of its own.
        if (open_[next_].due == 0) open_[next_].due = now();
        submit(open_[next_++]);
      }
      answered_.clear();
      if (running_ == 0) {
        wait_until(open_[next_].due);
      } else {
        core_.step();
        ++step_;
      }
      for (Open* open : answered_) {
        if (open->turn < open->conversation->turns.size()) {
          open->due = now();
          submit(*open);
        } else {
          --running_;
        }
      }
    }
    times_.seconds = now();
    return std::move(times_);
  }

 private:
  struct Open {
    const BenchConversation* conversation;
    std::vector<int32_t> tokens;  // so far
    std::vector<int64_t> ends;    // of its messages
    size_t turn;                  // the next one
    size_t first;                 // place of its first turn's times
    double due;
    int64_t last_step = -1;  // in which it got tokens
  };

  double now() const { return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count(); }
  void wait_until(double due) {
    const double from = now();
    if (due > from) std::this_thread::sleep_for(std::chrono::duration<double>(due - from));
    times_.idle_seconds += now() - from;
  }

  void submit(Open& open) {
    RequestTimes& times = times_.requests[open.first + open.turn];
    const std::vector<int32_t>& turn = open.conversation->turns[open.turn];
    times.reusable_tokens = open.turn > 0 || prefix_seen_ ? std::ssize(open.tokens) : 0;
    if (open.turn == 0 && !open.tokens.empty()) {
      open.ends.push_back(std::ssize(open.tokens));
      prefix_seen_ = true;
    }
    open.tokens.insert(open.tokens.end(), turn.begin(), turn.end());
    times.arrival = open.due;
    times.prompt_tokens = std::ssize(open.tokens);
    Request request = request_;
    request.prompt_token_ids = open.tokens;
    request.checkpoint_hints = open.ends;
    if (change_) change_(request);
    open.ends.push_back(std::ssize(open.tokens));
    ++open.turn;
    const auto added = core_.add(std::move(request), [this, &open, &times](const TokenEvent& event) {
      hear(open, times, event);
      return true;
    });
    if (const auto* error = std::get_if<RequestError>(&added)) throw LoadError(error->message);
  }

  void hear(Open& open, RequestTimes& times, const TokenEvent& event) {
    if (event.token >= 0) {
      const double at = now();
      if (times.output_tokens++ == 0)
        times.first_token = at;
      else if (open.last_step != step_)
        times.gaps.push_back(at - times.last_token);
      if (open.last_step != step_) times.last_token = at;
      open.last_step = step_;
      times.answer.push_back(event.token);
    }
    if (!event.finished) return;
    times.failed = event.answer.error.has_value();
    times.cached_tokens = event.answer.cached_tokens;
    open.tokens.insert(open.tokens.end(), times.answer.begin(), times.answer.end());
    open.ends.push_back(std::ssize(open.tokens));
    answered_.push_back(&open);
  }

  EngineCore& core_;
  const Request& request_;
  const std::function<void(Request&)>& change_;
  const int64_t concurrency_;
  const std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
  std::deque<Open> open_;
  size_t next_ = 0;
  int64_t running_ = 0, step_ = 0;
  bool prefix_seen_ = false;
  std::vector<Open*> answered_;  // in this step
  LoadTimes times_;
};

}  // namespace

PromptSource::PromptSource(std::vector<int32_t> text, int64_t vocab_size, uint64_t seed)
    : text_(std::move(text)), vocab_size_(vocab_size), seed_(seed) {}

uint64_t PromptSource::word() {
  const uint64_t draw = drawn_++;
  const auto words = philox4x32({static_cast<uint32_t>(draw), static_cast<uint32_t>(draw >> 32), 0, 0}, seed_);
  return words[0] | uint64_t{words[1]} << 32;
}

double PromptSource::uniform() { return (static_cast<double>(word() >> 11) + 0.5) * 0x1p-53; }

double PromptSource::exponential() { return -std::log(uniform()); }

std::vector<int32_t> PromptSource::take(int64_t count) {
  std::vector<int32_t> ids;
  if (text_.empty()) {
    for (int64_t i = 0; i < count; ++i)
      ids.push_back(static_cast<int32_t>(word() % static_cast<uint64_t>(vocab_size_)));
    return ids;
  }
  size_t at = word() % text_.size();  // a short text is repeated
  for (int64_t i = 0; i < count; ++i, at = (at + 1) % text_.size()) ids.push_back(text_[at]);
  return ids;
}

LoadTimes run_load(EngineCore& core, std::span<const BenchConversation> conversations, int64_t concurrency,
                   const Request& request, const std::function<void(Request&)>& change) {
  return LoadRun(core, conversations, concurrency, request, change).run();
}

TimeSummary summary_of(std::vector<double> values) {
  if (values.empty()) return {};
  std::sort(values.begin(), values.end());
  const double sum = std::accumulate(values.begin(), values.end(), 0.0);
  const auto count = static_cast<double>(values.size());
  const double mean = sum / count;
  double squares = 0;
  for (const double value : values) squares += (value - mean) * (value - mean);
  return {mean, percentile(values, 0.5), percentile(values, 0.99), std::sqrt(squares / count)};
}

LoadSummary::LoadSummary(const LoadTimes& times) : duration(times.seconds) {
  std::vector<double> first, per_token, gaps, whole;
  for (const RequestTimes& request : times.requests) {
    if (request.failed || request.output_tokens == 0) {
      ++failed;
      continue;
    }
    ++completed;
    input_tokens += request.prompt_tokens;
    output_tokens += request.output_tokens;
    cached_tokens += request.cached_tokens;
    reusable_tokens += request.reusable_tokens;
    first.push_back(request.first_token - request.arrival);
    whole.push_back(request.last_token - request.arrival);
    if (request.output_tokens > 1)
      per_token.push_back((request.last_token - request.first_token) / static_cast<double>(request.output_tokens - 1));
    gaps.insert(gaps.end(), request.gaps.begin(), request.gaps.end());
  }
  ttft = summary_of(std::move(first));
  tpot = summary_of(std::move(per_token));
  itl = summary_of(std::move(gaps));
  e2el = summary_of(std::move(whole));
}

void LoadSummary::add_to(json::object& line) const {
  line["completed"] = completed;
  line["failed"] = failed;
  line["duration"] = duration;
  line["total_input_tokens"] = input_tokens;
  line["total_output_tokens"] = output_tokens;
  line["total_cached_tokens"] = cached_tokens;
  line["total_reusable_tokens"] = reusable_tokens;
  line["request_throughput"] = static_cast<double>(completed) / duration;
  line["output_throughput"] = static_cast<double>(output_tokens) / duration;
  line["total_token_throughput"] = static_cast<double>(input_tokens + output_tokens) / duration;
  const std::pair<const char*, const TimeSummary*> times[] = {
      {"ttft", &ttft}, {"tpot", &tpot}, {"itl", &itl}, {"e2el", &e2el}};
  for (const auto& [name, summary] : times) {
    line["mean_" + std::string(name) + "_ms"] = 1e3 * summary->mean;
    line["median_" + std::string(name) + "_ms"] = 1e3 * summary->median;
    line["std_" + std::string(name) + "_ms"] = 1e3 * summary->deviation;
    line["p99_" + std::string(name) + "_ms"] = 1e3 * summary->p99;
  }
}

void LoadSummary::print() const {
  const auto ms = [](const char* name, const TimeSummary& t) {
    put("  {:<9} mean {:.2f}  median {:.2f}  p99 {:.2f} ms\n", name, 1e3 * t.mean, 1e3 * t.median, 1e3 * t.p99);
  };
  const auto percent = [](int64_t part, int64_t all) {
    return 100 * static_cast<double>(part) / static_cast<double>(all);
  };
  put("  requests  {} in {:.2f} s  {:.2f} /s\n", completed, duration, static_cast<double>(completed) / duration);
  put("  tokens    input {}  output {}  output {:.1f} tok/s  total {:.1f} tok/s\n", input_tokens, output_tokens,
      static_cast<double>(output_tokens) / duration, static_cast<double>(input_tokens + output_tokens) / duration);
  ms("TTFT", ttft);
  ms("TPOT", tpot);
  ms("ITL", itl);
  ms("E2EL", e2el);
  if (cached_tokens == 0) return;
  put("  cached    {:.1f} % of {} prompt tokens", percent(cached_tokens, input_tokens), input_tokens);
  if (reusable_tokens > 0)
    put(", {:.1f} % of the {} that came before", percent(cached_tokens, reusable_tokens), reusable_tokens);
  put("\n");
}

}  // namespace calandra::apps
