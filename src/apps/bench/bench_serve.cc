// `calandra bench serve`: a load on any server with OpenAI's API, measured at the client. Source of flags, figures and
// their definitions: vllm/benchmarks/serve.py.
#include "apps/bench/bench_serve.h"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <map>
#include <optional>

#include "apps/bench/served_user.h"
#include "apps/output.h"
#include "apps/verbs.h"
#include "base/error.h"
#include "base/log.h"
#include "base/progress.h"

namespace calandra::apps {
namespace {

constexpr size_t kShownErrors = 5;  // kinds of them

// GET of one small thing.
class OneAnswer final : public server::HttpUser {
 public:
  explicit OneAnswer(server::HttpCall call) : call_(std::move(call)) {}
  double due() const override { return 0; }
  bool next(server::HttpCall& call, double) override {
    if (asked_) return false;
    asked_ = true;
    call = call_;
    return true;
  }
  void head(int status, std::string_view) override { status_ = status; }
  void body(std::string_view part, double) override {
    if (text_.size() < size_t{1} << 20) text_ += part;
  }
  void end(std::string_view error, double) override { error_ = error; }

  json::value take(const std::string& url) const {
    if (!error_.empty()) throw LoadError(fmt::format("{}: {}", url, error_));
    if (status_ != 200) throw LoadError(fmt::format("{}: {}", url, fault_of(status_, text_)));
    return parse_json(text_, url);
  }

 private:
  const server::HttpCall call_;
  bool asked_ = false;
  int status_ = 0;
  std::string text_, error_;
};

std::string first_model(const server::HttpTarget& target, const BenchServeFlags& flags,
                        const std::vector<std::pair<std::string, std::string>>& headers) {
  OneAnswer models({.method = "GET", .path = "/v1/models", .headers = headers});
  server::HttpUser* const users[] = {&models};
  run_users(target, users, 1, static_cast<double>(flags.timeout));
  const std::string url = flags.base_url + "/v1/models";
  const json::value list = models.take(url);
  boost::system::error_code missing;
  const json::value* id = list.find_pointer("/data/0/id", missing);
  if (id == nullptr || !id->is_string()) throw LoadError(url + " names no model; give --model");
  return std::string(id->get_string());
}

struct Outcome {
  std::vector<ServedUser::Asked> asked;
  double seconds = 0;

  LoadSummary summary() const {
    LoadTimes times;
    times.seconds = seconds;
    for (const ServedUser::Asked& one : asked) times.requests.push_back(one.times);
    return LoadSummary(times);
  }
  std::map<std::string, int64_t> errors() const {
    std::map<std::string, int64_t> counts;
    for (const ServedUser::Asked& one : asked)
      if (!one.error.empty()) ++counts[one.error];
    return counts;
  }
  // Answers within the limits.
  int64_t good(const Goodput& limits) const {
    return std::count_if(asked.begin(), asked.end(), [&](const ServedUser::Asked& one) {
      const RequestTimes& t = one.times;
      const auto within = [](const std::optional<double>& limit, double seconds) {
        return !limit || 1e3 * seconds <= *limit;
      };
      const double after = t.last_token - t.first_token, tokens = static_cast<double>(t.output_tokens - 1);
      return one.error.empty() && within(limits.ttft, t.first_token - t.arrival) &&
             within(limits.tpot, tokens > 0 ? after / tokens : 0) && within(limits.e2el, t.last_token - t.arrival);
    });
  }
};

Outcome run(const server::HttpTarget& target, const BenchServeFlags& flags, ServedUser::Common common,
            std::vector<ServedConversation> conversations) {
  int64_t requests = 0, ended = 0;
  for (const ServedConversation& one : conversations) requests += std::ssize(one.turns);
  ProgressBar bar("asking", requests, "requests");
  common.ended = [&] { bar.update(++ended); };
  std::vector<std::unique_ptr<ServedUser>> users;
  std::vector<server::HttpUser*> pointers;
  for (ServedConversation& one : conversations) {
    users.push_back(std::make_unique<ServedUser>(common, std::move(one)));
    pointers.push_back(users.back().get());
  }
  Outcome outcome;
  outcome.seconds = run_users(target, pointers, flags.max_concurrency.value_or(0), static_cast<double>(flags.timeout));
  for (const auto& user : users) outcome.asked.insert(outcome.asked.end(), user->asked().begin(), user->asked().end());
  return outcome;
}

void add_details(const Outcome& outcome, json::object& line) {
  json::array inputs, outputs, first, gaps, starts, errors;
  for (const ServedUser::Asked& one : outcome.asked) {
    const RequestTimes& t = one.times;
    inputs.emplace_back(t.prompt_tokens);
    outputs.emplace_back(t.output_tokens);
    first.emplace_back(t.first_token > 0 ? t.first_token - t.arrival : 0);
    gaps.emplace_back(json::array(t.gaps.begin(), t.gaps.end()));
    starts.emplace_back(t.arrival);
    errors.emplace_back(one.error);
  }
  line["input_lens"] = std::move(inputs);
  line["output_lens"] = std::move(outputs);
  line["ttfts"] = std::move(first);
  line["itls"] = std::move(gaps);
  line["start_times"] = std::move(starts);
  line["errors"] = std::move(errors);
}

std::string date_now() {
  const std::time_t now = std::time(nullptr);
  std::tm parts{};
  gmtime_r(&now, &parts);
  char text[32];
  return {text, std::strftime(text, sizeof text, "%Y%m%d-%H%M%S", &parts)};
}

json::object result_line(const BenchServeFlags& flags, const std::string& model, const Outcome& outcome) {
  const char* const type = flags.endpoint == "/v1/completions" ? "openai" : "openai-chat";
  json::object line{{"date", date_now()},
                    {"endpoint_type", type},
                    {"backend", type},
                    {"model_id", model},
                    {"dataset_name", flags.dataset_name},
                    {"num_prompts", flags.num_prompts},
                    {"request_rate", flags.request_rate ? json::value(*flags.request_rate) : json::value("inf")},
                    {"burstiness", flags.burstiness.value_or(1)}};
  line["max_concurrency"] = flags.max_concurrency ? json::value(*flags.max_concurrency) : json::value(nullptr);
  outcome.summary().add_to(line);
  line.erase("total_reusable_tokens");  // only an engine knows
  if (!flags.goodput.empty())
    line["request_goodput"] = static_cast<double>(outcome.good(read_goodput(flags.goodput))) / outcome.seconds;
  json::object counts;
  for (const auto& [error, count] : outcome.errors()) counts[error] = count;
  line["error_counts"] = std::move(counts);
  if (flags.save_detailed) add_details(outcome, line);
  return line;
}

void print(const BenchServeFlags& flags, const std::string& model, const Outcome& outcome) {
  const LoadSummary s = outcome.summary();
  put("{} at {}{}, {} {}\n", model, flags.base_url, flags.endpoint, flags.num_prompts, flags.dataset_name);
  s.print();
  if (!flags.goodput.empty()) {
    const int64_t good = outcome.good(read_goodput(flags.goodput));
    put("  goodput   {} within {}, {:.2f} /s\n", good, flags.goodput, static_cast<double>(good) / outcome.seconds);
  }
  const std::map<std::string, int64_t> errors = outcome.errors();
  if (errors.empty()) return;
  put("  FAILED    {} requests:\n", s.failed);
  std::vector<std::pair<std::string, int64_t>> kinds(errors.begin(), errors.end());
  std::stable_sort(kinds.begin(), kinds.end(), [](const auto& a, const auto& b) { return a.second > b.second; });
  for (size_t i = 0; i < std::min(kinds.size(), kShownErrors); ++i)
    put("    {} x {}\n", kinds[i].second, kinds[i].first);
  if (kinds.size() > kShownErrors) put("    and {} other kinds\n", kinds.size() - kShownErrors);
}

// The file of --save-result, tried before the load, which may take long. What it has stays until the result is there.
class ResultFile {
 public:
  explicit ResultFile(const BenchServeFlags& flags) {
    const std::string name =
        flags.result_filename.empty() ? fmt::format("bench-serve-{}.json", date_now()) : flags.result_filename;
    path_ = std::filesystem::absolute(std::filesystem::path(flags.result_dir) / name);
    std::error_code failed;  // told by the file
    std::filesystem::create_directories(path_.parent_path(), failed);
    std::ofstream file(path_, std::ios::app);
    check(file);
  }

  void write(const json::object& line) const {
    std::ofstream file(path_);
    file << to_json(line) << '\n';
    file.close();
    check(file);
    log_info("the result is in {}", path_.string());
  }

 private:
  void check(const std::ofstream& file) const {
    if (!file) throw LoadError(fmt::format("cannot write {}: {}", path_.string(), std::strerror(errno)));
  }

  std::filesystem::path path_;
};

}  // namespace

int bench_serve(const Options& options) {
  const BenchServeFlags& flags = options.bench_serve;
  const server::HttpTarget target = server::read_target(flags.base_url);
  ServedUser::Common common{.endpoint = flags.endpoint, .headers = {}, .body = {}};
  if (const char* key = std::getenv("OPENAI_API_KEY"); key != nullptr && *key != '\0')
    common.headers.emplace_back("Authorization", fmt::format("Bearer {}", key));
  const std::string model = flags.model.empty() ? first_model(target, flags, common.headers) : flags.model;
  common.body = {{"model", model}, {"stream", true}, {"stream_options", {{"include_usage", true}}}};
  if (flags.ignore_eos) common.body["ignore_eos"] = true;
  for (const auto& [key, value] : flags.extra_body) common.body[key] = value;

  std::optional<ResultFile> file;
  if (flags.save_result) file.emplace(flags);
  std::mt19937_64 random(flags.seed ? *flags.seed : std::random_device()());
  const Outcome outcome = run(target, flags, std::move(common), served_conversations(flags, random));
  const json::object line = result_line(flags, model, outcome);
  if (flags.json)
    print_json(line);
  else
    print(flags, model, outcome);
  if (file) file->write(line);
  return outcome.errors().empty() ? 0 : 1;
}

}  // namespace calandra::apps
