#include "structured/grammar_compiler.h"

#include <fmt/format.h>
#include <sys/resource.h>
#include <xgrammar/compiler.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <condition_variable>
#include <future>
#include <list>
#include <mutex>
#include <thread>

#include "base/log.h"
#include "structured/matched_grammar.h"
#include "structured/schema_spelling.h"
#include "structured/tool_form.h"
#include "structured/xgrammar/pattern_check.h"
#include "text/tokenizer.h"

namespace calandra {
namespace {

constexpr int64_t kBytesOfEntry = 4096;  // of what is kept of a form beside its text and its automaton
constexpr int kNiceness = 10;            // of the threads that compile

const char* text_of(WorkBudget::Bound bound) {
  switch (bound) {
    case WorkBudget::Bound::kTime:
      return "compiling it takes too long";
    case WorkBudget::Bound::kBytes:
      return "compiling it takes too much memory";
    case WorkBudget::Bound::kAllocations:
      return "compiling it takes too many steps";
    case WorkBudget::Bound::kStop:
      break;
  }
  return "compiling it was stopped";
}

// What xgrammar warns about while it compiles: parts of a form that it would ignore. One grammar is compiled by one
// thread.
thread_local std::vector<std::string>* warnings = nullptr;

struct Refused {
  std::string why;
  std::string tool = {};  // whose schema it is; empty: that is not known, or the form is not of tools
};
// Say nothing of the form:
struct NoMemory {};  // of the machine
struct Stopped {};   // by GrammarCompiler::stop

void check_patterns(const json::value& schema) {
  for (const std::string& pattern : patterns_of(schema))
    if (const std::string why = fault_of_json_string_pattern(pattern); !why.empty())
      throw std::invalid_argument(fmt::format("the pattern {}: {}", to_json(json::string(pattern)), why));
}

// xgrammar's messages without the places in its own source and in what it makes of an expression, and without what it
// would do if it were asked to go on.
std::string in_plain_words(std::string text, OutputForm::Kind kind) {
  const auto cut_to = [&](std::string_view begin, std::string_view end) {
    const size_t at = text.starts_with(begin) ? text.find(end) : std::string::npos;
    if (at != std::string::npos) text.erase(0, at + end.size());
  };
  cut_to("Check failed: ", " is false: ");
  cut_to("Invalid structural tag error: ", ": ");
  if (kind == OutputForm::Kind::kRegex) cut_to("EBNF parser error at line ", ": ");
  constexpr std::pair<std::string_view, std::string_view> kWords[] = {{"Regex parsing warning", "Regex parsing error"},
                                                                      {" It is ignored.", ""},
                                                                      {" and is ignored", ""},
                                                                      {"; ignoring multipleOf", ""}};
  for (const auto& [from, to] : kWords)
    if (const size_t at = text.find(from); at != std::string::npos) text.replace(at, from.size(), to);
  return text;
}

RequestError refusal(const OutputForm& form, const Refused& refused) {
  return {400, "invalid_request_error", form.field,
          refused.tool.empty() ? fmt::format("the output form cannot be used: {}", refused.why)
                               : refusal_of_calls(refused.tool, refused.why)};
}

RequestError come_again(const OutputForm& form, const char* why) {
  return {503, "service_unavailable", form.field, fmt::format("{}; try again later", why)};
}

}  // namespace

class GrammarCompiler::Worker {
 public:
  Worker(const std::vector<std::string>& vocabulary, const std::vector<int32_t>& eos_token_ids, Limits limits)
      : limits_(limits),
        compiler_(xgrammar::TokenizerInfo(vocabulary, xgrammar::VocabType::RAW, std::nullopt, eos_token_ids),
                  /*max_threads=*/1, /*cache_enabled=*/false),
        threads_{std::thread([this] { run(Lane::kNew); }), std::thread([this] { run(Lane::kHard); })} {}

  ~Worker() {
    stop();
    for (std::thread& thread : threads_) thread.join();
  }

  void stop() {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
    for (auto& lane : waiting_)
      for (const std::shared_ptr<Entry>& entry : std::exchange(lane, {})) entry->promise.set_value(Stopped());
    work_.notify_all();
  }

  Compiled compile(const OutputForm& form, std::vector<int32_t> thinking_end) {
    if (const std::string why = refusal_of(form); !why.empty()) return {nullptr, refusal(form, {why})};
    const std::shared_ptr<Entry> entry = submit(form);
    if (entry->result.wait_for(limits_.patience) != std::future_status::ready) {
      leave(*entry);
      return {nullptr, come_again(form, "other output forms are being compiled")};
    }
    const Result& compiled = entry->result.get();
    if (const auto* refused = std::get_if<Refused>(&compiled)) return {nullptr, refusal(form, *refused)};
    if (std::holds_alternative<Stopped>(compiled)) return {nullptr, refusal(form, {text_of(WorkBudget::Bound::kStop)})};
    if (std::holds_alternative<NoMemory>(compiled)) return {nullptr, come_again(form, "memory is short")};
    return {std::make_shared<MatchedGrammar>(std::get<xgrammar::CompiledGrammar>(compiled), std::move(thinking_end),
                                             limits_.mask_allocations),
            {}};
  }

  Stats stats() const {
    const std::lock_guard lock(mutex_);
    return stats_;
  }

 private:
  enum class Lane { kNew, kHard };
  using Result = std::variant<Refused, NoMemory, Stopped, xgrammar::CompiledGrammar>;
  struct Entry {
    explicit Entry(OutputForm form) : form(std::move(form)) {}
    OutputForm form;
    std::promise<Result> promise = {};
    std::shared_future<Result> result = promise.get_future().share();
    int64_t bytes = -1;  // not compiled yet
    int waiting = 0;     // who waits for it, or has
  };

  using Entries = std::list<std::shared_ptr<Entry>>;

  static bool same(const OutputForm& a, const OutputForm& b) {
    return a.kind == b.kind && a.strict == b.strict && a.compact == b.compact && a.text == b.text;
  }

  std::shared_ptr<Entry> submit(const OutputForm& form) {
    const std::lock_guard lock(mutex_);
    for (auto entry = entries_.begin(); entry != entries_.end(); ++entry) {
      if (!same((*entry)->form, form)) continue;
      entries_.splice(entries_.begin(), entries_, entry);
      ++stats_.found;
      ++entries_.front()->waiting;
      return entries_.front();
    }
    auto entry = std::make_shared<Entry>(form);
    if (stopping_) {
      entry->promise.set_value(Stopped());
      return entry;
    }
    ++entry->waiting;
    Entries kept{entry}, begun{entry};  // from here on nothing is allocated: an entry is in both lists or in none
    entries_.splice(entries_.begin(), kept);
    waiting(Lane::kNew).splice(waiting(Lane::kNew).end(), begun);
    work_.notify_all();
    return entry;
  }

  // What nobody waits for any more is not begun.
  void leave(Entry& entry) {
    const std::lock_guard lock(mutex_);
    if (--entry.waiting > 0) return;
    const auto is_it = [&](const std::shared_ptr<Entry>& one) { return one.get() == &entry; };
    if (std::erase_if(waiting_[0], is_it) + std::erase_if(waiting_[1], is_it) > 0) std::erase_if(entries_, is_it);
  }

  Entries& waiting(Lane lane) { return waiting_[static_cast<int>(lane)]; }

  void run(Lane lane) {
    setpriority(PRIO_PROCESS, 0, kNiceness);  // on Linux: of this thread
    std::unique_lock lock(mutex_);
    while (true) {
      work_.wait(lock, [&] { return stopping_ || !waiting(lane).empty(); });
      if (stopping_) return;
      Entries taken;
      taken.splice(taken.begin(), waiting(lane), waiting(lane).begin());
      const std::shared_ptr<Entry> entry = taken.front();
      lock.unlock();
      std::optional<Result> result;
      try {
        result = compile_now(entry->form, lane);
      } catch (const std::bad_alloc&) {
        result = NoMemory();
      }
      lock.lock();
      if (!result && stopping_) result = Stopped();
      if (!result && entry->waiting == 0) {
        entries_.remove(entry);
        continue;
      }
      if (!result) {
        ++stats_.hard;
        waiting(Lane::kHard).splice(waiting(Lane::kHard).end(), taken);
        work_.notify_all();
        continue;
      }
      if (std::holds_alternative<NoMemory>(*result)) {
        entries_.remove(entry);
        entry->promise.set_value(NoMemory());
        continue;
      }
      ++stats_.compiled;
      const auto* compiled = std::get_if<xgrammar::CompiledGrammar>(&*result);
      entry->bytes = kBytesOfEntry + static_cast<int64_t>(entry->form.text.size()) +
                     (compiled != nullptr ? static_cast<int64_t>(compiled->MemorySizeBytes()) : 0);
      stats_.bytes += entry->bytes;
      entry->promise.set_value(std::move(*result));
      forget();
    }
  }

  // Drops grammars that were not asked for lately, until the rest fits; choices that follow one keep it.
  void forget() {
    for (auto entry = entries_.end(); stats_.bytes > limits_.cache_bytes && entry != entries_.begin();) {
      --entry;
      if ((*entry)->bytes < 0) continue;
      stats_.bytes -= (*entry)->bytes;
      entry = entries_.erase(entry);
    }
  }

  // Nothing: it belongs to the hard ones. Throws bad_alloc.
  std::optional<Result> compile_now(const OutputForm& form, Lane lane) {
    WorkBudget::Limits limits = limits_.work;
    const WorkBudget::Limits& fewer = limits_.short_work;
    if (lane == Lane::kNew)
      limits = {std::min(limits.time, fewer.time), std::min(limits.bytes, fewer.bytes),
                std::min(limits.allocations, fewer.allocations)};
    std::vector<std::string> ignored;
    std::optional<Result> result;
    std::string refused;
    warnings = &ignored;
    WorkBudget budget(limits, stopping_);
    try {
      xgrammar::CompiledGrammar compiled = compile_form(form);
      const int64_t before = budget.allocations();
      if (!begins(compiled)) refused = "no text has it";
      if (budget.allocations() - before > limits_.mask_allocations)
        refused = "finding its first token takes too many steps, as of repeats that may be read in many ways";
      result = std::move(compiled);
    } catch (const std::bad_alloc&) {  // the budget's too
      result = NoMemory();
    } catch (const std::exception& error) {
      budget.end();
      warnings = nullptr;
      refused = in_plain_words(error.what(), form.kind);
    }
    warnings = nullptr;
    if (const std::optional<WorkBudget::Bound> over = budget.end()) {
      if (over == WorkBudget::Bound::kStop) return Stopped();
      if (lane == Lane::kNew && may_go_on(*over)) return std::nullopt;
      return Refused{text_of(*over)};
    }
    drop_harmless(ignored);
    if (refused.empty() && !ignored.empty()) refused = in_plain_words(std::move(ignored.front()), form.kind);
    if (!refused.empty()) result = Refused{std::move(refused), tool_at_fault(form, limits)};
    return result;
  }

  // The first tool whose tag alone is refused too, within the same limits; empty: none.
  std::string tool_at_fault(const OutputForm& form, const WorkBudget::Limits& limits) const {
    if (form.tools.size() < 2) return form.tools.empty() ? "" : form.tools[0];
    size_t i = 0;
    std::vector<std::string> ignored;
    warnings = &ignored;
    WorkBudget budget(limits, stopping_);
    try {
      const json::array tags = tags_of_tools(form);
      while (i < tags.size() && is_taken(tags[i])) {
        drop_harmless(ignored);
        if (!ignored.empty()) break;
        ++i;
      }
    } catch (const std::bad_alloc&) {  // the budget's too
      i = form.tools.size();
    } catch (const std::exception&) {
      // tool i is refused
    }
    warnings = nullptr;
    return budget.end() || i == form.tools.size() ? "" : form.tools[i];
  }

  // Whether a tag of a structural tag becomes a grammar; what is passed over is told as a warning.
  static bool is_taken(const json::value& tag) {
    visit_schemas_of_tag(tag, check_patterns);
    const json::value alone = {{"type", "structural_tag"}, {"format", tag}};
    return std::holds_alternative<xgrammar::Grammar>(xgrammar::Grammar::FromStructuralTag(to_json(alone)));
  }

  // Branches of oneOf that it cannot tell apart become those of anyOf, as everywhere; what matches two is rare.
  static void drop_harmless(std::vector<std::string>& ignored) {
    std::erase_if(ignored, [](const std::string& warning) { return warning.starts_with("oneOf "); });
  }

  // Whether what is over is only the work of short ones.
  bool may_go_on(WorkBudget::Bound over) const {
    const WorkBudget::Limits &fewer = limits_.short_work, &all = limits_.work;
    switch (over) {
      case WorkBudget::Bound::kTime:
        return fewer.time < all.time;
      case WorkBudget::Bound::kBytes:
        return fewer.bytes < all.bytes;
      case WorkBudget::Bound::kAllocations:
        return fewer.allocations < all.allocations;
      case WorkBudget::Bound::kStop:
        return false;
    }
    return false;
  }

  // False for rules that only name each other.
  static bool begins(const xgrammar::CompiledGrammar& compiled) {
    std::vector<uint32_t> words(xgrammar::GetBitmaskSize(compiled.GetTokenizerInfo().GetVocabSize()));
    int64_t shape = std::ssize(words);
    DLTensor tensor{words.data(), {kDLCPU, 0}, 1, xgrammar::GetBitmaskDLType(), &shape, nullptr, 0};
    xgrammar::GrammarMatcher(compiled).FillNextTokenBitmask(&tensor);
    return std::any_of(words.begin(), words.end(), [](uint32_t word) { return word != 0; });
  }

  xgrammar::CompiledGrammar compile_form(const OutputForm& form) {
    const auto schema = [&](const std::string& text) {
      const std::optional<int> most_blanks = form.compact ? std::nullopt : std::optional(kMostBlanks);
      return compiler_.CompileJSONSchema(text, /*any_whitespace=*/!form.compact, std::nullopt, std::nullopt,
                                         form.strict, most_blanks);
    };
    if (form.kind == OutputForm::Kind::kJsonSchema) check_patterns(parse_json(form.text, "the schema"));
    if (form.kind == OutputForm::Kind::kStructuralTag) {
      const json::value tag = parse_json(form.text, "the structural tag");
      visit_schemas_of_tag(tag, check_patterns);
    }
    switch (form.kind) {
      case OutputForm::Kind::kJsonObject:
        return schema(R"({"type": "object"})");
      case OutputForm::Kind::kJsonSchema:
        return schema(form.text);
      case OutputForm::Kind::kRegex:
        return compiler_.CompileRegex(form.text);
      case OutputForm::Kind::kEbnf:
        return compiler_.CompileGrammar(form.text);
      case OutputForm::Kind::kStructuralTag:
        return compiler_.CompileStructuralTag(form.text);
    }
    throw std::invalid_argument("unknown form");
  }

  const Limits limits_;
  xgrammar::GrammarCompiler compiler_;  // of both threads: without its cache it keeps nothing
  std::atomic<bool> stopping_ = false;
  mutable std::mutex mutex_;
  std::condition_variable work_;
  Entries entries_;                 // lately asked for first
  std::array<Entries, 2> waiting_;  // by lane
  Stats stats_;
  std::array<std::thread, 2> threads_;
};

GrammarCompiler::GrammarCompiler(const std::vector<std::string>& vocabulary, const std::vector<int32_t>& eos_token_ids,
                                 Limits limits)
    : worker_(std::make_unique<Worker>(vocabulary, eos_token_ids, limits)) {}

GrammarCompiler::GrammarCompiler(const std::vector<std::string>& vocabulary, const std::vector<int32_t>& eos_token_ids)
    : GrammarCompiler(vocabulary, eos_token_ids, Limits()) {}

GrammarCompiler::~GrammarCompiler() = default;

GrammarCompiler::Compiled GrammarCompiler::compile(const OutputForm& form, std::vector<int32_t> thinking_end) {
  return worker_->compile(form, std::move(thinking_end));
}

void GrammarCompiler::stop() { worker_->stop(); }

GrammarCompiler::Stats GrammarCompiler::stats() const { return worker_->stats(); }

std::vector<std::string> grammar_vocabulary(const Tokenizer& tokenizer) {
  std::vector<std::string> vocabulary(tokenizer.size());
  for (int32_t id = 0; id < tokenizer.size(); ++id)
    if (!tokenizer.is_special(id)) vocabulary[id] = tokenizer.id_to_piece(id);
  return vocabulary;
}

}  // namespace calandra

// What xgrammar's own sources call to report.
namespace xgrammar {

void LogFatalImpl(const std::string&, int, const std::string& message) { throw std::runtime_error(message); }

void LogMessageImpl(const std::string&, int, int, const std::string& message) {
  if (calandra::warnings != nullptr)
    calandra::warnings->push_back(message);
  else
    calandra::log_debug("xgrammar: {}", message);
}

}  // namespace xgrammar
