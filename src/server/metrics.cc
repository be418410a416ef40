#include "server/metrics.h"

#include <fmt/format.h>

namespace calandra::server {
namespace {

std::string escaped(std::string_view text) {
  std::string out;
  for (const char c : text) {
    if (c == '\\' || c == '"') out += '\\';
    out += c == '\n' ? ' ' : c;
  }
  return out;
}

class Writer {
 public:
  explicit Writer(std::string_view model) : labels_(fmt::format("model_name=\"{}\",engine=\"0\"", escaped(model))) {}

  void gauge(const char* name, double value, const char* help) {
    head(name, "gauge", help);
    sample(name, "", value);
  }
  void counter(const char* name, int64_t value, const char* help) {
    head(name, "counter", help);
    sample(name, "", static_cast<double>(value));
  }
  void head(const char* name, const char* type, const char* help) {
    text_ += fmt::format("# HELP {} {}\n# TYPE {} {}\n", name, help, name, type);
  }
  void sample(std::string_view name, std::string_view more, double value) {
    text_ += fmt::format("{}{{{}{}}} {}\n", name, labels_, more, value);
  }
  void histogram(const char* name, const Histogram& h, const char* help) {
    head(name, "histogram", help);
    int64_t sum = 0;
    const std::string bucket = std::string(name) + "_bucket";
    for (size_t i = 0; i < h.counts().size(); ++i) {
      sum += h.counts()[i];
      const std::string bound = i < h.bounds().size() ? fmt::format("{}", h.bounds()[i]) : "+Inf";
      sample(bucket, fmt::format(",le=\"{}\"", bound), static_cast<double>(sum));
    }
    sample(std::string(name) + "_sum", "", h.sum());
    sample(std::string(name) + "_count", "", static_cast<double>(h.count()));
  }
  std::string take() { return std::move(text_); }

 private:
  const std::string labels_;
  std::string text_;
};

void write_drafts(Writer& w, const EngineStats& s) {
  w.counter("vllm:spec_decode_num_drafts_total", s.drafts, "Runs of drafts.");
  w.counter("vllm:spec_decode_num_draft_tokens_total", s.draft_tokens, "Drafted tokens.");
  w.counter("vllm:spec_decode_num_accepted_tokens_total", s.accepted_tokens, "Accepted drafts.");
  constexpr const char* kPerPosition = "vllm:spec_decode_num_accepted_tokens_per_pos_total";
  w.head(kPerPosition, "counter", "Accepted drafts by position.");
  for (size_t j = 0; j < s.accepted_per_position.size(); ++j)
    if (s.drafted_per_position[j] > 0)
      w.sample(kPerPosition, fmt::format(",position=\"{}\"", j), static_cast<double>(s.accepted_per_position[j]));
  // Not each run of drafts reaches each position, so the rate of acceptance there needs this too.
  constexpr const char* kDrafted = "calandra:spec_decode_num_draft_tokens_per_pos_total";
  w.head(kDrafted, "counter", "Drafted tokens by position.");
  for (size_t j = 0; j < s.drafted_per_position.size(); ++j)
    if (s.drafted_per_position[j] > 0)
      w.sample(kDrafted, fmt::format(",position=\"{}\"", j), static_cast<double>(s.drafted_per_position[j]));
}

void write_times(Writer& w, const EngineTimes& t) {
  w.histogram("vllm:time_to_first_token_seconds", t.time_to_first_token, "From arrival to the first token.");
  w.histogram("vllm:inter_token_latency_seconds", t.inter_token_latency, "Between the tokens of a choice.");
  w.histogram("vllm:request_time_per_output_token_seconds", t.time_per_output_token, "Mean of a choice.");
  w.histogram("vllm:e2e_request_latency_seconds", t.e2e_request_latency, "From arrival to the last token.");
  w.histogram("vllm:request_queue_time_seconds", t.request_queue_time, "From arrival to the first step.");
  w.histogram("vllm:request_prefill_time_seconds", t.request_prefill_time, "From there to the first token.");
  w.histogram("vllm:request_decode_time_seconds", t.request_decode_time, "From there to the last token.");
  w.histogram("vllm:request_inference_time_seconds", t.request_inference_time, "From the first step to the end.");
  w.histogram("vllm:request_prompt_tokens", t.request_prompt_tokens, "Prompt tokens of a request.");
  w.histogram("vllm:request_generation_tokens", t.request_generation_tokens, "Generated tokens of a choice.");
  w.histogram("vllm:iteration_tokens_total", t.iteration_tokens, "Tokens of a step.");
}

}  // namespace

std::string prometheus_text(const EngineStats& s, std::string_view model_name, int64_t http_requests) {
  Writer w(model_name);
  w.gauge("vllm:num_requests_running", static_cast<double>(s.requests_running), "Choices that run.");
  w.gauge("vllm:num_requests_waiting", static_cast<double>(s.requests_waiting), "Choices that wait.");
  w.gauge("vllm:kv_cache_usage_perc",
          s.pages > 0 ? static_cast<double>(s.pages_used) / static_cast<double>(s.pages) : 0,
          "Part of the pages in use, 1: all.");
  constexpr const char* kCache = "vllm:cache_config_info";
  w.head(kCache, "gauge", "What the caches are; always 1.");
  w.sample(kCache, fmt::format(",num_gpu_blocks=\"{}\"", s.pages), 1);
  w.counter("vllm:prompt_tokens_total", s.prompt_tokens, "Prompt tokens, cached ones included.");
  w.counter("vllm:generation_tokens_total", s.generation_tokens, "Generated tokens.");
  w.counter("vllm:num_preemptions_total", s.preemptions, "Choices sent back to the queue.");
  w.counter("vllm:prefix_cache_queries_total", s.prefix.query_tokens, "Prompt tokens that were looked up.");
  w.counter("vllm:prefix_cache_hits_total", s.prefix.hit_tokens, "Prompt tokens that were found.");
  w.counter("vllm:mm_cache_queries_total", s.encoder_queries, "Pictures that were looked up.");
  w.counter("vllm:mm_cache_hits_total", s.encoder_hits, "Pictures that were found.");
  constexpr const char* kSuccess = "vllm:request_success_total";
  w.head(kSuccess, "counter", "Choices that ended.");
  const std::pair<const char*, int64_t> ends[] = {{"stop", s.finished_stop},
                                                  {"length", s.finished_length},
                                                  {"abort", s.finished_abort},
                                                  {"error", s.finished_error}};
  for (const auto& [reason, count] : ends)
    w.sample(kSuccess, fmt::format(",finished_reason=\"{}\"", reason), static_cast<double>(count));
  write_drafts(w, s);
  write_times(w, s.times);
  w.counter("calandra:steps_total", s.steps, "Steps of the engine.");
  w.gauge("calandra:pages", static_cast<double>(s.pages), "Pages of the cache.");
  w.gauge("calandra:pages_used", static_cast<double>(s.pages_used), "Of them in use; those of checkpoints are not.");
  w.gauge("calandra:slots", static_cast<double>(s.slots), "Slots for recurrent states.");
  w.gauge("calandra:slots_used", static_cast<double>(s.slots_used), "Of them in use, also by checkpoints.");
  w.gauge("calandra:checkpoints", static_cast<double>(s.checkpoints), "Kept states.");
  w.gauge("calandra:checkpoint_bytes", static_cast<double>(s.checkpoint_bytes), "Their memory on the device.");
  w.counter("calandra:http_requests_total", http_requests, "Requests for the API.");
  return w.take();
}

}  // namespace calandra::server
