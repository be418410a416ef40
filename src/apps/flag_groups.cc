#include "apps/flag_groups.h"

namespace calandra::apps {
namespace {

constexpr int64_t kMostBytes = int64_t{1} << 50;
constexpr const char* kSamplingGroup = "Sampling (default: generation_config.json, then vLLM's)";
constexpr int64_t kMostInt32 = std::numeric_limits<int32_t>::max();
constexpr const char* kModelHelp =
    "Model folder, a Hugging Face name in the local cache, demo:qwen3_5 (the default) or demo:bailing: small models "
    "that come with calandra";

}  // namespace

void add_backend_flags(CLI::App* app, ModelOptions& m) {
  const std::string group = "Model";
  add_choice(app, "--backend", m.backend, {"auto", "cpu", "cuda", "reference"},
             "auto: cuda where its plug-in and a GPU are, else cpu; reference is slow and defines what is correct "
             "(environment: CALANDRA_BACKEND)")
      ->group(group);
  add_whole(app, "--threads", m.threads, 0, 1024,
            "Threads; 0: one per core this process may use (environment: CALANDRA_THREADS)")
      ->group(group);
  add_choice(app, "--isa", m.isa, {"avx2", "avx512"},
             "Instruction set of the cpu backend; default: the best of this machine")
      ->group(group);
  app->add_flag("--enforce-eager", m.enforce_eager, "cuda backend: start every kernel of every step, without graphs")
      ->group(group);
  app->add_flag(
         "--deterministic", m.deterministic,
         "cuda backend: an answer has the same bits whatever runs beside it and however its prompt is cut; prompts "
         "and large batches are slower. On the CPU this is always so")
      ->group(group);
}

void add_model_flags(CLI::App* app, ModelOptions& m) {
  const std::string group = "Model";
  add_backend_flags(app, m);
  add_choice(app, "--dtype", m.dtype, {"auto", "float32", "float", "bfloat16"},
             "Type of activations and caches; auto: as the model's config says")
      ->group(group);
  add_seed(app, m.seed)->group(group);
  add_object(app, "--hf-overrides", m.hf_overrides, "JSON object merged into config.json, as vLLM does")->group(group);
  add_choice(app, "--load-format", m.load_format, {"auto", "safetensors", "dummy"},
             "dummy: random weights; else safetensors")
      ->group(group);
  add_size(app, "--max-model-len", m.max_model_len, 1, kMostTokens,
           "Longest sequence, prompt and answer, in tokens (what the work needs; chat 8192, inspect 4096, run-batch "
           "at most 32768)")
      ->group(group);
  add_whole(app, "--max-num-seqs", m.max_num_seqs, 1, kMostSequences,
            "Sequences of one step (as many as there are; run-batch at most 32, inspect 8)")
      ->group(group);
  add_size(app, "--max-num-batched-tokens", m.max_num_batched_tokens, 1, kMostStepTokens,
           "Tokens of one step; longer prompts are cut into chunks (512)")
      ->group(group);
  add_whole(app, "--block-size", m.block_size, 1, 4096, "Tokens of a page of keys and values (16)")->group(group);
  add_whole(app, "--num-gpu-blocks-override", m.num_gpu_blocks_override, 1, kMostInt32,
            "Pages of keys and values, on any backend")
      ->group(group);
  add_whole(app, "--num-state-slots", m.num_state_slots, 1, kMostSequences, "Slots of recurrent state")->group(group);
}

void add_engine_flags(CLI::App* app, EngineFlags& e) {
  const std::string group = "Engine";
  app->add_flag_function(
         "--enable-prefix-caching,!--no-enable-prefix-caching", [&e](int64_t count) { e.prefix_caching = count > 0; },
         "Keeps states of prompts and answers, so that what continues them starts there")
      ->group(group);
  add_size(app, "--kv-cache-memory-bytes", e.kv_cache_memory_bytes, 1, kMostBytes, "Memory of the pages")->group(group);
  add_number(app, "--gpu-memory-utilization", e.gpu_memory_utilization, {0, 1, true},
             "Most of the memory, of the device or of the machine, that the model and its caches may take (1)")
      ->group(group);
  add_size(app, "--checkpoint-bytes", e.checkpoint_bytes, 0, kMostBytes,
           "Most that kept states may take on the device (an eighth of the memory, at most 4 GiB)")
      ->group(group);
  add_size(app, "--host-checkpoint-bytes", e.host_checkpoint_bytes, 0, kMostBytes,
           "Most that kept states which left the device may take in host memory (0)")
      ->group(group);
  add_whole(app, "--checkpoint-interval", e.checkpoint_interval, 0, kMostTokens,
            "Keeps a state every so many tokens (4096); 0: not")
      ->group(group);
  add_whole(app, "--checkpoints-per-prompt", e.checkpoints_per_prompt, 0, kMostTokens,
            "States kept of one prompt at most (8)")
      ->group(group);
  add_choice(app, "--scheduling-policy", e.scheduling_policy, {"fcfs", "priority"}, "Who runs first")->group(group);
  app->add_flag_function(
         "--async-scheduling,!--no-async-scheduling", [&e](int64_t count) { e.async_scheduling = count > 0; },
         "cuda backend: the device goes on with tokens and drafts before the host has read them; no token "
         "changes (on)")
      ->group(group);
  add_object(app, "--speculative-config", e.speculative_config,
             R"(vLLM's JSON object: {"method": "mtp" or "ngram", "num_speculative_tokens": 3}; no token changes)")
      ->group(group);
  add_whole_or(app, "--draft-vocab", "full", e.draft_vocab, 1, kMostInt32,
               "Ids below this and special tokens can be drafted (32768); full: all, with the exact head")
      ->group(group);
}

void add_shape_flags(CLI::App* app, ModelOptions& m) {
  add_text(app, "--shape", m.shape,
           "Random weights in the shape of a release: qwen3_5-0.8b … -397b-a17b, ling-2.6-flash, ring-2.5-1t, …")
      ->type_name("NAME")
      ->group("Model");
  add_whole(app, "--num-hidden-layers", m.num_hidden_layers, 1, 10'000,
            "Cuts the model to this many layers (with random weights)")
      ->group("Model");
}

void add_filter_flags(CLI::App* app, SamplingOptions& s) {
  add_number(app, "--temperature", s.temperature, {0, 1e6}, "0: greedy")->group(kSamplingGroup);
  add_whole(app, "--top-k", s.top_k, -1, kMostInt32, "Only so many likeliest tokens; 0 or -1: all")
      ->group(kSamplingGroup);
  add_number(app, "--top-p", s.top_p, {0, 1, true}, "Only the likeliest tokens that have this probability together")
      ->group(kSamplingGroup);
  add_number(app, "--min-p", s.min_p, {0, 1}, "Only tokens with this part of the likeliest one's probability")
      ->group(kSamplingGroup);
}

void add_media_flags(CLI::App* app, MediaFlags& m) {
  const std::string group = "Pictures and videos in messages";
  app->add_flag("--language-model-only", m.language_model_only, "Takes text only; the vision tower is not loaded")
      ->group(group);
  add_object(app, "--limit-mm-per-prompt", m.limit_mm_per_prompt,
             R"(Most of each in one prompt: {"image": 4, "video": 0} (64 images, 8 videos))")
      ->group(group);
  add_object(app, "--mm-processor-kwargs", m.mm_processor_kwargs,
             R"(How they are prepared, over the model's files: {"max_pixels": 1048576}; also a field of requests)")
      ->group(group);
  add_repeatable(app, "--allowed-media-domains", m.allowed_media_domains,
                 "Host whose http and https URLs are fetched (repeatable, or a list a.com,b.com); without one, only "
                 "data: URLs are taken")
      ->type_name("HOST")
      ->group(group);
  add_text(app, "--allowed-local-media-path", m.allowed_local_media_path, "Folder that file: URLs may name files of")
      ->type_name("DIR")
      ->group(group);
}

void add_pooler_flag(CLI::App* app, Options& o) {
  add_object(
      app, "--pooler-config,--override-pooler-config", o.pooler_config,
      R"(How embeddings are made: {"pooling_type": "MEAN", "normalize": false, "dimensions": 256} (LAST, true, all))");
}

void add_serve_flags(CLI::App* app, ServeFlags& s) {
  const std::string group = "Server";
  add_text(app, "--host", s.host, "Address to listen on; 0.0.0.0: all (127.0.0.1)")->group(group);
  add_whole(app, "--port", s.port, 0, 65535, "Port; 0: a free one, which the log names")->group(group);
  add_repeatable(app, "--api-key", s.api_keys,
                 "Key that requests must send (repeatable; environment: VLLM_API_KEY); without one, none is asked for")
      ->group(group);
  add_text(app, "--ssl-certfile", s.ssl_certfile, "Certificate chain, PEM: serves https")
      ->type_name("FILE")
      ->group(group);
  add_text(app, "--ssl-keyfile", s.ssl_keyfile, "Its private key, PEM")->type_name("FILE")->group(group);
  add_repeatable(app, "--allowed-origins", s.allowed_origins, "Origin whose pages may ask (repeatable; all)")
      ->group(group);
  add_choice(app, "--reasoning-parser", s.reasoning_parser, {"qwen3", "deepseek_r1", "none"},
             "How reasoning is told from the answer (by the chat template)")
      ->group(group);
  add_choice(app, "--tool-call-parser", s.tool_call_parser, {"qwen3_coder", "qwen3_xml", "hermes", "none"},
             "How tool calls are written (by the chat template)")
      ->group(group);
  app->add_flag("--trust-request-chat-template", s.trust_request_chat_template,
                "A request's own chat_template is taken: its text may hold any special token")
      ->group(group);
  app->add_flag("--disable-uvicorn-access-log", s.disable_access_log, "No line per request")->group(group);
  app->add_flag("--disable-web-page", s.disable_web_page, "No chat page at /")->group(group);
  app->add_flag("--enable-admin-endpoints", s.enable_admin_endpoints,
                "Also vLLM's endpoints for those who run it: /sleep, /wake_up, /is_sleeping, /reset_prefix_cache, "
                "/reset_mm_cache (environment: VLLM_SERVER_DEV_MODE)")
      ->group(group);
  add_whole(app, "--max-waiting-requests", s.max_waiting, 1, 1'000'000, "More are refused with 429")->group(group);
  add_whole(app, "--max-body-bytes", s.max_body_bytes, 1024, int64_t{1} << 30, "Longest body of a request")
      ->group(group);
  add_text(app, "--otlp-traces-endpoint", s.otlp_traces_endpoint,
           "Collector that gets a span per request, as OTLP in JSON: http://localhost:4318/v1/traces")
      ->type_name("URL")
      ->group(group);
  add_whole(app, "--shutdown-timeout", s.shutdown_timeout, 0, 86400,
            "Seconds that running requests may take when the server is told to end")
      ->group(group);
  add_number(app, "--engine-stall-timeout", s.engine_stall_timeout, {0, 1e9},
             "Seconds without a finished step, while there is work, until the engine counts as standing still: /health "
             "says 503, the log what stands where (30; on slow CPUs what their largest step may take); 0: never")
      ->group(group);
  add_number(app, "--engine-stall-grace", s.engine_stall_grace, {0, 1e9},
             "Seconds behind those until the server ends with status 70 (10)")
      ->group(group);
}

void add_load_flags(CLI::App* app, Options& o) {
  LoadOptions& l = o.load;
  add_choice(
      app, "--mix", l.mix, {"fixed", "agent", "poisson"},
      "fixed: so many at once; agent: conversations whose turns repeat all before them; poisson: at random times");
  add_text(app, "--dataset-path", l.dataset_path, "Text file to cut prompts from (random ids)")->type_name("FILE");
  add_whole(app, "--num-prompts", l.num_prompts, 1, 1'000'000, "Prompts, or conversations (32; agent 4)");
  add_whole(app, "--input-len", o.input_len, 1, kMostTokens, "Tokens of each prompt, or of each turn");
  add_whole(app, "--output-len", o.output_len, 2, kMostTokens, "Tokens of each answer");
  add_wholes(app, "--max-concurrency", l.max_concurrency, 1, kMostSequences,
             "Requests at once, each number in turn (8; poisson 32; compared 1,2,4,8,16)");
  add_number(app, "--request-rate", l.request_rate, {0, 1e6, true}, "poisson: requests per second");
  add_whole(app, "--num-turns", l.num_turns, 1, 10'000, "agent: turns of a conversation (8)");
  add_whole(app, "--prefix-len", l.prefix_len, 0, kMostTokens, "agent: tokens that all conversations begin with (512)");
  app->add_flag("--compare-speculation", l.compare_speculation,
                "The fixed mix without drafts (twice) and with --speculative-config, in turns; tokens must be equal");
  add_wholes(app, "--fixed-drafts", l.fixed_drafts, 1, SpeculativeConfig::kMostDrafts,
             "Also compares always so many drafts");
  add_whole(app, "--rounds", l.rounds, 1, 100'000, "Rounds of a comparison with each set of engines");
  add_whole(app, "--engines", l.engines, 2, 10'000,
            "Sets of engines of a comparison, made one after the other: where memory lies counts, too");
  add_numbers(app, "--synthetic-acceptance", l.synthetic_acceptance, {0, 1},
              "Random weights: how often the first draft, the first two … are accepted, 0.8,0.6,0.4");
  app->add_flag("--json", o.json, "One JSON line for each concurrency");
}

void add_sampling_flags(CLI::App* app, SamplingOptions& s) {
  const std::string group = kSamplingGroup;
  constexpr double kMost = 1e6;
  add_filter_flags(app, s);
  add_number(app, "--repetition-penalty", s.repetition_penalty, {0, kMost, true},
             "Above 1: tokens of prompt and answer become less likely")
      ->group(group);
  add_number(app, "--presence-penalty", s.presence_penalty, {-2, 2}, "Taken from logits of tokens of the answer")
      ->group(group);
  add_number(app, "--frequency-penalty", s.frequency_penalty, {-2, 2}, "The same, for each time that they occur")
      ->group(group);
  add_object(app, "--logit-bias", s.logit_bias, "JSON object: token id to bias, {\"198\": -100}")->group(group);
  add_ids(app, "--allowed-token-ids", s.allowed_token_ids, "Only these ids, 1,2,3")->group(group);
  add_repeatable(app, "--bad-words", s.bad_words, "Text that must not be produced (repeatable)")->group(group);
  add_repeatable(app, "--stop", s.stop, "Text that ends the answer (repeatable)")->group(group);
  add_ids(app, "--stop-token-ids", s.stop_token_ids, "Ids that end the answer, 1,2,3")->group(group);
  app->add_flag("--include-stop-str-in-output", s.include_stop_str_in_output, "Keeps the text that ended the answer")
      ->group(group);
  add_whole(app, "--max-tokens", s.max_tokens, 1, kMostInt32,
            "Longest answer, in tokens (as far as 4096 tokens and the model reach; with --raw 256)")
      ->group(group);
  add_whole(app, "--min-tokens", s.min_tokens, 0, kMostInt32, "No end before so many tokens")->group(group);
  app->add_flag("--ignore-eos", s.ignore_eos, "Goes on after the end-of-text token")->group(group);
}

void add_chat_flags(CLI::App* app, Options& o) {
  add_text(app, "--system", o.system, "System message");
  // CLI11 would set an optional<bool> that is not given.
  app->add_flag_function(
      "--enable-thinking,!--no-thinking", [&o](int64_t count) { o.thinking = count > 0; },
      "Asks the chat template for a thinking or a direct answer; default: the template's");
  add_object(app, "--chat-template-kwargs", o.chat_template_kwargs, "JSON object given to the chat template");
}

void show_model(CLI::App* app) {
  app->add_option(
         "MODEL", [](const CLI::results_t&) { return true; }, kModelHelp)
      ->type_name("");
}

void show_model_and(CLI::App* app, const char* text) {
  show_model(app);
  app->add_option(
         text, [](const CLI::results_t&) { return true; },
         "One word is the text, two are model and text; without one, standard input is read")
      ->type_name("");
}

}  // namespace calandra::apps
