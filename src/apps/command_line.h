// The command line: `calandra VERB [MODEL] [flags]`. Verbs get plain values.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "apps/bench/bench_serve_flags.h"
#include "base/json.h"
#include "engine/speculative_config.h"

namespace calandra::apps {

enum class Verb {
  kGenerate,
  kChat,
  kTokenize,
  kRender,
  kParse,
  kGrammar,
  kLogits,
  kSample,
  kEval,
  kInspect,
  kRunBatch,
  kServe,
  kBenchLatency,
  kBenchThroughput,
  kBenchAcceptance,
  kBenchOps,
  kBenchServe,
  kBenchStartup,
  kVersion
};

// Which model, on what. vLLM's names for what vLLM has.
struct ModelOptions {
  std::string model;  // empty: the demo model
  std::string backend = "auto";
  std::string dtype = "auto";
  std::string load_format = "auto";
  json::object hf_overrides;
  std::string shape;  // a release's name: its config without its files (with load_format dummy)
  std::optional<int64_t> num_hidden_layers;
  int64_t threads = 0;
  std::string isa;
  bool enforce_eager = false;
  bool deterministic = false;
  bool can_sleep = false;  // serve: memory can be given back
  std::optional<uint64_t> seed;
  std::optional<int64_t> max_model_len;
  std::optional<int64_t> max_num_seqs;
  std::optional<int64_t> max_num_batched_tokens;
  std::optional<int64_t> block_size;
  std::optional<int64_t> num_gpu_blocks_override;
  std::optional<int64_t> num_state_slots;
};

// How the engine runs it. Absent: the verb's default.
struct EngineFlags {
  std::optional<bool> prefix_caching;
  std::optional<int64_t> kv_cache_memory_bytes;
  std::optional<double> gpu_memory_utilization;  // part of the memory that the engine may take
  std::optional<int64_t> checkpoint_bytes, host_checkpoint_bytes;
  std::optional<int64_t> checkpoint_interval, checkpoints_per_prompt;
  std::string scheduling_policy = "fcfs";
  std::optional<bool> async_scheduling;            // on where a device has a stream and there are no drafts
  std::optional<json::object> speculative_config;  // as given
  std::optional<SpeculativeConfig> speculative;    // as read; nothing with 0 drafts
  std::optional<int64_t> draft_vocab;              // 0: full
};

// Fields left out keep generation_config.json's value, then vLLM's default.
struct SamplingOptions {
  std::optional<double> temperature, top_p, min_p, repetition_penalty, presence_penalty, frequency_penalty;
  std::optional<int64_t> top_k, max_tokens, min_tokens, logprobs, n;
  std::vector<std::string> stop;
  std::vector<int32_t> stop_token_ids, allowed_token_ids;
  std::vector<std::string> bad_words;
  json::object logit_bias;  // token id -> bias
  bool ignore_eos = false;
  bool include_stop_str_in_output = false;
};

// Of `bench throughput` and `bench acceptance`.
struct LoadOptions {
  std::string mix = "fixed";  // fixed, agent, poisson
  std::string dataset_path;   // text to cut prompts from; empty: random ids
  std::optional<int64_t> num_prompts;
  std::vector<int64_t> max_concurrency;  // each in turn
  std::optional<double> request_rate;    // per second
  std::optional<int64_t> num_turns, prefix_len;
  bool compare_speculation = false;
  std::vector<int64_t> fixed_drafts;         // compared as well
  std::vector<double> synthetic_acceptance;  // by position
  int64_t rounds = 4;                        // of a comparison with each set of engines
  int64_t engines = 8;                       // such sets
};

// Pictures and videos in messages (serve, run-batch).
struct MediaFlags {
  bool language_model_only = false;
  std::optional<json::object> limit_mm_per_prompt, mm_processor_kwargs;  // as given; apps/api/media.cc reads them
  std::vector<std::string> allowed_media_domains;
  std::string allowed_local_media_path;
};

// Of `serve`.
struct ServeFlags {
  std::string host = "127.0.0.1";
  int64_t port = 8000;
  std::vector<std::string> api_keys;  // also from VLLM_API_KEY
  std::string ssl_certfile, ssl_keyfile;
  std::vector<std::string> allowed_origins;        // empty: all
  std::string reasoning_parser, tool_call_parser;  // empty: by the model's template
  bool disable_access_log = false, disable_web_page = false;
  bool enable_admin_endpoints = false;
  bool trust_request_chat_template = false;
  int64_t max_waiting = 4096;
  int64_t max_body_bytes = 16 << 20;
  int64_t shutdown_timeout = 30;                                   // seconds
  std::optional<double> engine_stall_timeout, engine_stall_grace;  // seconds
  std::string otlp_traces_endpoint;
};

struct Options {
  Verb verb = Verb::kGenerate;
  ModelOptions model;
  EngineFlags engine;
  SamplingOptions sampling;
  bool json = false;
  bool jsonl = false;  // rows on standard input

  std::string prompt, prompt_file;  // generate
  std::vector<int32_t> prompt_ids;
  bool raw = false;
  std::vector<std::string> images, videos;  // generate, logits
  std::optional<double> video_fps;
  std::string system;                 // generate, chat
  std::optional<bool> thinking;       // generate, chat: --enable-thinking / --no-thinking
  json::object chat_template_kwargs;  // generate, chat

  std::string text;  // tokenize
  bool decode = false, no_special = false;

  std::string messages, template_file, tools, now;  // render
  std::string reasoning_parser, tool_call_parser;   // parse
  json::object kwargs;

  std::string input, output, taps;  // logits
  bool state = false;
  std::optional<int64_t> mtp, chunk;

  std::string logits_file;  // sample

  std::string text_file;  // eval
  std::optional<int64_t> window;

  std::string batch_input, batch_output;  // run-batch
  std::vector<std::string> served_model_names;
  std::optional<json::object> pooler_config;  // as given; apps/api/embedding_rules.cc reads it
  std::string generation_config = "auto";     // vllm: sampling defaults are vLLM's, not the model's
  bool disable_log_stats = false;

  ServeFlags serve;
  MediaFlags media;

  bool verbose = false;  // chat

  bool tensors = false;  // inspect

  int64_t input_len = 512, output_len = 32, batch_size = 1, repetitions = 3;  // bench
  bool profile = false;                                                       // bench latency
  std::string filter;
  LoadOptions load;
  BenchServeFlags bench_serve;
};

// Parses the arguments and the --config file. Nothing when help was printed. Throws UsageError; without any argument
// the message is the help.
std::optional<Options> parse_command_line(int argc, char** argv);

}  // namespace calandra::apps
