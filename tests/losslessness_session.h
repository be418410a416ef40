// Session: requests through one engine in the worst of weathers, compared with their plain answers and with drafts seen
// before.
#pragma once

#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "tests/commit_part.h"
#include "tests/losslessness_requests.h"
#include "tests/near_tie.h"

namespace calandra::lossless {

// Everything, by hand, rather than a small part.
inline bool whole_matrix() { return testing::table_part(1).whole; }

// Deterministic draws.
class Dice {
 public:
  explicit Dice(uint64_t seed) : state_(seed) {}
  int64_t in(int64_t low, int64_t high);  // both included
  bool chance(int percent) { return in(0, 99) < percent; }

 private:
  uint64_t state_;
};

struct Drafting {
  DraftMethod method = DraftMethod::kMtp;
  int k = 0;
  bool adaptive = false;
  std::vector<SpeculativeConfig::BatchRange> ranges = {};
  std::string name() const;
};

struct Setting {
  Drafting drafting;
  bool cache = false;
  int64_t batch = 1;    // sequences at once
  int preemptions = 0;  // of every choice, at drawn steps
  uint64_t seed = 0;    // of everything that is drawn
  bool async = false;   // steps are launched ahead, if the subject's backend has a stream
  int arrivals = 60;    // percent: whether another request comes before the next step
  int leave = 0;        // percent of the requests whose client leaves at a drawn step
  // The rest is drawn, or as given.
  RunnerLimits limits = {};
  int64_t checkpoint_bytes = 0, host_checkpoint_bytes = 0, checkpoint_interval = 0;
  std::string name() const;
};
// Limits for requests of at most `longest` tokens with their answers.
void draw_limits(Setting& setting, int64_t longest);
// Ample ones, in which drafts depend on nothing but the tokens before them.
void ample_limits(Setting& setting, int64_t longest);

// Drafts by request, choice and number of known tokens. Of two runs of drafts at one place, the shorter one must be the
// beginning of the longer one.
class DraftLedger {
 public:
  // Empty, or what differs.
  std::string note(const std::string& request, int32_t choice, int64_t known, const std::vector<int32_t>& drafts);
  int64_t compared() const { return compared_; }  // places met again
  int64_t places() const { return std::ssize(drafts_); }

 private:
  std::map<std::tuple<std::string, int32_t, int64_t>, std::vector<int32_t>> drafts_;
  int64_t compared_ = 0;
};

// What happened, over many sessions.
struct Tally {
  int64_t runs = 0;  // answers compared
  int64_t differences = 0;
  int64_t tokens = 0, steps = 0, steps_ahead = 0, preemptions = 0, hits = 0, hit_tokens = 0, evictions = 0,
          restores = 0;
  int64_t left = 0;  // answers broken off because the client left
  int64_t drafted = 0, accepted = 0;
  int64_t drafts_compared = 0, draft_differences = 0, incomplete = 0;  // incomplete: without all MTP entries
  int64_t at_edges = 0;                                                // of filters, of the answers that part there
  int64_t at_jumps = 0;                                                // of them, where disturbed layers part as well
  std::vector<Parting> partings;                                       // near ties, where sums have several orders
  std::string first;                                                   // difference
  void differs(const std::string& what);
  void draft_differs(const std::string& what);
  std::string words() const;
};

class Session {
 public:
  Session(Subject& subject, Setting setting, Tally& tally, DraftLedger* ledger = nullptr);
  ~Session();

  // Runs them with drawn arrivals, one after the other with a batch of one. All at once: `together`.
  void run(const std::vector<const AskedRequest*>& requests, bool together = false);
  // About half of the checkpoints go.
  void evict_some();

  EngineCore& core() { return *core_; }
  ModelRunner& runner() { return runner_; }
  // Called before and after every step: to meddle.
  std::function<void(Session&)> before_step, after_step;
  bool evicts = false;  // checkpoints go while requests run, too
  bool strict = false;  // drafts are compared even where MTP entries are missing

 private:
  struct Running {
    const AskedRequest* asked;
    std::vector<std::string> text;
    std::vector<int64_t> noted_step;
    std::vector<int> preempted;
    int64_t finished = 0;
    int64_t leaves_at = std::numeric_limits<int64_t>::max();  // step
  };
  void submit(const AskedRequest& asked);
  bool hear(RequestId id, const TokenEvent& event);  // false: the client is gone
  void cancel_some();
  void compare(const Running& running, size_t choice, const Answer& got);
  void explain_partings();
  void note_drafts(Running& running, const TokenEvent& event);
  void preempt_some();

  Subject& subject_;
  Setting setting_;
  Tally& tally_;
  DraftLedger* ledger_;
  Dice dice_;
  double now_ = 0;
  ModelRunner runner_;
  std::unique_ptr<EngineCore> core_;
  std::map<RequestId, Running> running_;
  struct Parted {
    const AskedRequest* asked;
    size_t choice;
    Answer got;
  };
  std::vector<Parted> parted_;  // to be explained when nothing runs
  int64_t step_ = 0;
};

}  // namespace calandra::lossless
