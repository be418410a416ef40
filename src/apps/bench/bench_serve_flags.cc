#include <algorithm>

#include "apps/bench/bench_serve.h"
#include "apps/flag_groups.h"
#include "base/error.h"

namespace calandra::apps {

void add_bench_serve_flags(CLI::App* app, BenchServeFlags& f) {
  const std::string server = "Server", load = "Load", results = "Results";
  add_text(app, "--base-url", f.base_url, "The server (http://127.0.0.1:8000)")->type_name("URL")->group(server);
  add_choice(app, "--endpoint", f.endpoint, {"/v1/completions", "/v1/chat/completions"}, "What is asked")
      ->group(server);
  add_text(app, "--model", f.model, "Name of the model (the first of /v1/models)")->type_name("NAME")->group(server);
  add_object(app, "--extra-body", f.extra_body, "JSON object that is added to every request")->group(server);
  app->add_flag("--ignore-eos", f.ignore_eos, "Answers of the whole length, where the server knows ignore_eos")
      ->group(server);
  add_whole(app, "--timeout", f.timeout, 1, 86400, "Seconds after which a request is given up")->group(server);

  add_choice(app, "--dataset-name", f.dataset_name, {"random", "sharegpt", "prefix_repetition", "agent"},
             "random: random words; sharegpt: the first questions of a file; prefix_repetition: prompts that share "
             "beginnings; agent: conversations whose turns repeat all before them")
      ->group(load);
  add_text(app, "--dataset-path", f.dataset_path,
           "sharegpt: JSON or JSON lines of ShareGPT's form, or lines {\"prompt\", \"output_len\"}")
      ->type_name("FILE")
      ->group(load);
  add_whole(app, "--num-prompts", f.num_prompts, 1, 10'000'000, "Prompts, or conversations")->group(load);
  add_whole(app, "--input-len", f.input_len, 1, kMostTokens, "Words of a prompt, or of a turn (1024)")->group(load);
  add_whole(app, "--output-len", f.output_len, 1, kMostTokens, "Most tokens of an answer (128; sharegpt: the file's)")
      ->group(load);
  add_number(app, "--random-range-ratio", f.random_range_ratio, {0, 1}, "random: lengths differ by so much (0)")
      ->group(load);
  add_whole(app, "--prefix-len", f.prefix_len, 0, kMostTokens,
            "Words that prompts begin with alike (random 0, prefix_repetition 256, agent 512)")
      ->group(load);
  add_whole(app, "--num-prefixes", f.num_prefixes, 1, 1'000'000, "prefix_repetition: different beginnings")
      ->group(load);
  add_whole(app, "--num-turns", f.num_turns, 1, 10'000, "agent: turns of a conversation")->group(load);
  add_number(app, "--request-rate", f.request_rate, {0, 1e6, true},
             "Requests per second, at random times (all at the start)")
      ->group(load);
  add_number(app, "--burstiness", f.burstiness, {0, 1e6, true},
             "With --request-rate: shape of the gamma distribution of pauses; below 1 burstier, above 1 steadier (1: a "
             "Poisson process)")
      ->group(load);
  add_whole(app, "--max-concurrency", f.max_concurrency, 1, kMostSequences, "Requests at once; the others wait (any)")
      ->group(load);
  add_seed(app, f.seed)->group(load);

  add_text(app, "--goodput", f.goodput, "Also counts requests within these milliseconds: ttft:200,tpot:50,e2el:1000")
      ->type_name("LIMITS")
      ->group(results);
  app->add_flag("--json", f.json, "The result as one JSON line, in the names of vllm bench serve")->group(results);
  app->add_flag("--save-result", f.save_result, "Writes that JSON to a file")->group(results);
  add_text(app, "--result-dir", f.result_dir, "The file's folder, made if it is not there (the current one)")
      ->type_name("DIR")
      ->group(results);
  add_text(app, "--result-filename", f.result_filename, "Its name (bench-serve-DATE.json)")
      ->type_name("FILE")
      ->group(results);
  app->add_flag("--save-detailed", f.save_detailed, "The JSON also has the times of each request")->group(results);
}

void check_bench_serve(const BenchServeFlags& f) {
  const auto refuse = [](bool wrong, const char* message) {
    if (wrong) throw UsageError(message);
  };
  const std::string& set = f.dataset_name;
  read_goodput(f.goodput);
  refuse(f.burstiness && !f.request_rate, "--burstiness is for --request-rate");
  refuse((set == "sharegpt") == f.dataset_path.empty(), "--dataset-name sharegpt and --dataset-path go together");
  refuse(f.random_range_ratio && set != "random", "--random-range-ratio is for --dataset-name random");
  refuse((f.input_len || f.prefix_len) && set == "sharegpt", "--input-len and --prefix-len are for prompts of words");
  refuse(!f.result_filename.empty() && !f.save_result, "--result-filename needs --save-result");
  refuse(!f.result_dir.empty() && !f.save_result, "--result-dir needs --save-result");
  refuse(f.save_detailed && !f.save_result && !f.json, "--save-detailed needs --save-result or --json");
}

Goodput read_goodput(const std::string& text) {
  Goodput limits;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find(',', begin), text.size());
    const std::string part = text.substr(begin, end - begin);
    const size_t colon = part.find(':');
    const std::string name = part.substr(0, colon);
    std::optional<double>* const limit = name == "ttft"   ? &limits.ttft
                                         : name == "tpot" ? &limits.tpot
                                         : name == "e2el" ? &limits.e2el
                                                          : nullptr;
    if (limit == nullptr || colon == std::string::npos)
      throw UsageError("--goodput must be a list like ttft:200,tpot:50,e2el:1000 (milliseconds), not " + text);
    *limit = static_cast<double>(read_whole("--goodput", part.substr(colon + 1), 1, 1'000'000'000));
    begin = end + 1;
  }
  return limits;
}

}  // namespace calandra::apps
