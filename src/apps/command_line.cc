#include "apps/command_line.h"

#include <fmt/ranges.h>
#include <unistd.h>

#include <filesystem>
#include <span>

#include "apps/arguments.h"
#include "apps/bench/bench_serve.h"
#include "apps/flag_groups.h"
#include "apps/model_folder.h"
#include "apps/output.h"
#include "base/error.h"
#include "base/log.h"
#include "models/registry.h"

namespace calandra::apps {
namespace {

constexpr const char* kTapsHelp =
    "Glob of intermediate tensors to write: embedding, layers.L, layers.L.<name>, final_norm, vision.<name>, "
    "mtp.<name>";

// The verbs of the program, with all their flags.
class VerbList {
 public:
  VerbList(CLI::App& app, Options& o) : app_(app), o_(o) {
    add_generate();
    add_chat();
    add_tokenize();
    add_render();
    add_parse();
    add_grammar();
    add_logits();
    add_sample();
    add_eval();
    add_inspect();
    add_run_batch();
    add_serve();
    add_bench();
    add_verb(&app_, "version", "Version and build", Verb::kVersion, "  calandra version");
  }

 private:
  CLI::App* add_verb(CLI::App* parent, const char* name, const char* help, Verb v, const char* examples) {
    CLI::App* sub = parent->add_subcommand(name, help);
    sub->callback([&o = o_, v] { o.verb = v; });
    // read_arguments reads it.
    sub->add_option(
           "--config", [](const CLI::results_t&) { return true; }, "YAML file of flags, `flag-name: value`")
        ->type_name("FILE");
    sub->footer(std::string("Examples:\n") + examples);
    return sub;
  }

  void add_generate() {
    CLI::App* verb =
        add_verb(&app_, "generate", "One completion, streamed", Verb::kGenerate,
                 "  calandra generate 'What does \"ancient\" mean?'\n"
                 "  calandra generate demo:qwen3_5 --raw 'Once upon a time' --temperature 0 --max-tokens 50\n"
                 "  calandra generate ./Qwen3.5-0.8B --file prompt.txt --json\n"
                 "  calandra generate --image photo.jpg 'What is in this picture?'\n"
                 "  echo 'What is 2 + 3?' | calandra generate --seed 7");
    show_model_and(verb, "PROMPT");
    add_text(verb, "--file", o_.prompt_file, "Reads the prompt from a file; - for standard input")->type_name("FILE");
    add_ids(verb, "--prompt-ids", o_.prompt_ids, "Prompt as token ids: 1,2,3 (no template, no tokenizer needed)");
    verb->add_flag("--raw", o_.raw, "The prompt as it is, without the chat template");
    add_repeatable(verb, "--image", o_.images, "Image file: JPEG, PNG, WebP or GIF (repeatable)")->type_name("FILE");
    add_repeatable(verb, "--video", o_.videos, "Video file (needs ffmpeg), or a folder of images (repeatable)")
        ->type_name("PATH");
    add_number(verb, "--video-fps", o_.video_fps, {0, 1e6, true}, "Frames per second of a folder of images (24)");
    add_whole(verb, "--logprobs", o_.sampling.logprobs, -1, std::numeric_limits<int32_t>::max(),
              "Logprobs of each token and of this many likeliest, -1: of all (with --json)");
    add_whole(verb, "--n", o_.sampling.n, 1, 1024, "Answers to one prompt");
    verb->add_flag("--json", o_.json, "One JSON line per answer");
    add_chat_flags(verb, o_);
    add_sampling_flags(verb, o_.sampling);
    add_model_flags(verb, o_.model);
    add_engine_flags(verb, o_.engine);
  }

  void add_chat() {
    CLI::App* verb = add_verb(&app_, "chat", "A conversation in the terminal", Verb::kChat,
                              "  calandra chat\n  calandra chat ./Qwen3.5-4B --system 'Answer briefly.'\n"
                              "Inside: /help lists the commands; Ctrl-C stops an answer, Ctrl-D ends.");
    show_model(verb);
    verb->add_flag("--verbose", o_.verbose, "Tokens, cached tokens and speed after each answer");
    add_chat_flags(verb, o_);
    add_sampling_flags(verb, o_.sampling);
    add_model_flags(verb, o_.model);
    add_engine_flags(verb, o_.engine);
  }

  void add_tokenize() {
    CLI::App* verb = add_verb(&app_, "tokenize", "Text to token ids, and back", Verb::kTokenize,
                              "  calandra tokenize 'Hello there'\n  calandra tokenize --decode '12,400,7'\n"
                              "  calandra tokenize ./Qwen3.5-0.8B --jsonl < rows.jsonl");
    show_model_and(verb, "TEXT");
    verb->add_flag("--decode", o_.decode, "TEXT is ids: 1,2,3");
    verb->add_flag("--no-special", o_.no_special,
                   "Special tokens in the text are ordinary text; with --decode they are left out");
    verb->add_flag("--json", o_.json, "JSON line {\"ids\", \"pieces\"}, with --decode {\"text\"}");
    verb->add_flag("--jsonl", o_.jsonl, "Rows on standard input, a result line for each");
  }

  void add_render() {
    CLI::App* verb =
        add_verb(&app_, "render", "The prompt text that the chat template gives", Verb::kRender,
                 "  calandra render --messages chat.json\n"
                 "  calandra render --template t.jinja --messages chat.json --kwargs '{\"enable_thinking\": true}'");
    show_model(verb);
    add_text(verb, "--messages", o_.messages, "JSON file: a list of messages; - for standard input")->type_name("FILE");
    add_text(verb, "--template", o_.template_file, "Jinja file instead of the model's template")->type_name("FILE");
    add_text(verb, "--tools", o_.tools, "JSON file: a list of tools; - for standard input")->type_name("FILE");
    add_object(verb, "--kwargs", o_.kwargs, "JSON object of template variables");
    add_text(verb, "--now", o_.now, "Clock of the template, 'YYYY-MM-DD HH:MM:SS'")->type_name("TIME");
    verb->add_flag("--jsonl", o_.jsonl, "Rows on standard input, a result line for each");
  }

  void add_parse() {
    CLI::App* verb =
        add_verb(&app_, "parse", "Recorded text of models to reasoning, content and tool calls", Verb::kParse,
                 "  calandra parse --reasoning-parser qwen3 --tool-call-parser qwen3_coder --jsonl < rows.jsonl");
    add_text(verb, "--reasoning-parser", o_.reasoning_parser, "qwen3 or deepseek_r1; default: all is content");
    add_text(verb, "--tool-call-parser", o_.tool_call_parser, "qwen3_coder or hermes; default: calls are content");
    verb->add_flag("--jsonl", o_.jsonl, "Rows on standard input, a result line for each")->required();
  }

  void add_grammar() {
    CLI::App* verb = add_verb(&app_, "grammar", "Which texts a schema, expression or grammar takes", Verb::kGrammar,
                              "  calandra grammar --jsonl < rows.jsonl");
    verb->add_flag("--jsonl", o_.jsonl, "Rows on standard input, a result line for each")->required();
  }

  void add_logits() {
    CLI::App* verb = add_verb(
        &app_, "logits", "Teacher-forced forward, for research and tests", Verb::kLogits,
        "  calandra logits ./model --input in.safetensors --output out.safetensors --dtype float32\n"
        "  calandra logits ./model --input in.safetensors --output out.safetensors --taps 'layers.3.*' --state");
    show_model(verb);
    add_text(verb, "--input", o_.input,
             "safetensors file: input_ids [T], next_token, pixel_values, image_grid_thw, and the same of videos")
        ->type_name("FILE")
        ->required();
    add_text(verb, "--output", o_.output, "safetensors file to write")->type_name("FILE")->required();
    add_text(verb, "--taps", o_.taps, kTapsHelp)->type_name("GLOB");
    verb->add_flag("--state", o_.state, "Writes the recurrent state and the convolution window of every linear layer");
    add_whole(verb, "--chunk", o_.chunk, 1, kMostStepTokens, "Cuts the prefill into chunks of this many tokens");
    add_whole(verb, "--mtp", o_.mtp, 1, 64, "Writes mtp_logits.1 and this many chained drafts of the MTP layers");
    add_repeatable(verb, "--image", o_.images,
                   "Image files, in the order of the placeholders in input_ids (repeatable)")
        ->type_name("FILE");
    add_model_flags(verb, o_.model);
  }

  void add_sample() {
    CLI::App* verb = add_verb(
        &app_, "sample", "The sampler on given logits", Verb::kSample,
        "  calandra sample --jsonl < distributions.jsonl\n  calandra sample --jsonl --logits logits.json < rows.jsonl");
    verb->add_flag("--jsonl", o_.jsonl, "Rows on standard input, a result line for each")->required();
    add_text(verb, "--logits", o_.logits_file, "JSON file of named logit vectors")->type_name("FILE");
    add_backend_flags(verb, o_.model);
  }

  void add_eval() {
    CLI::App* verb = add_verb(
        &app_, "eval", "Perplexity of a text", Verb::kEval,
        "  calandra eval --text book.txt\n  calandra eval ./Qwen3.5-0.8B --text book.txt --window 4096 --json");
    show_model(verb);
    add_text(verb, "--text", o_.text_file, "Text file, UTF-8; - for standard input")->type_name("FILE")->required();
    add_whole(verb, "--window", o_.window, 2, kMostTokens,
              "Tokens of a window; each starts from empty state (1024, or the longest sequence)");
    verb->add_flag("--json", o_.json, "One JSON line");
    add_model_flags(verb, o_.model);
  }

  void add_inspect() {
    CLI::App* verb = add_verb(&app_, "inspect", "Architecture, sizes and memory plan of a model", Verb::kInspect,
                              "  calandra inspect\n  calandra inspect ./Qwen3.5-4B --max-num-seqs 16 --tensors\n"
                              "  calandra inspect --shape qwen3_5-27b --max-model-len 32768");
    show_model(verb);
    verb->add_flag("--tensors", o_.tensors, "Lists every tensor of the files");
    verb->add_flag("--json", o_.json, "One JSON line");
    add_shape_flags(verb, o_.model);
    add_model_flags(verb, o_.model);
    add_engine_flags(verb, o_.engine);
  }

  void add_run_batch() {
    CLI::App* verb =
        add_verb(&app_, "run-batch", "A file of requests in OpenAI's batch format, all at once", Verb::kRunBatch,
                 "  calandra run-batch -i requests.jsonl -o answers.jsonl\n"
                 "  calandra run-batch demo:bailing -i - -o - < requests.jsonl\n"
                 "  calandra run-batch -i in.jsonl -o out.jsonl --speculative-config '{\"method\": \"mtp\"}'");
    show_model(verb);
    add_text(verb, "-i,--input-file", o_.batch_input, "Requests, one JSON object per line; - for standard input")
        ->type_name("FILE")
        ->required();
    add_text(verb, "-o,--output-file", o_.batch_output,
             "Answers, one line per request in their order; - for standard output")
        ->type_name("FILE")
        ->required();
    add_repeatable(verb, "--served-model-name", o_.served_model_names,
                   "Names that a body's `model` may have; answers carry the first (repeatable; default: MODEL)")
        ->type_name("NAME");
    add_pooler_flag(verb, o_);
    verb->add_flag("--disable-log-stats", o_.disable_log_stats, "No line of statistics every 10 seconds");
    add_media_flags(verb, o_.media);
    add_model_flags(verb, o_.model);
    add_engine_flags(verb, o_.engine);
  }

  void add_serve() {
    CLI::App* verb = add_verb(&app_, "serve", "The OpenAI-compatible HTTP server", Verb::kServe,
                              "  calandra serve\n  calandra serve ./Qwen3.5-4B --host 0.0.0.0 --api-key KEY\n"
                              "  calandra serve --speculative-config '{\"method\": \"mtp\"}'");
    show_model(verb);
    add_repeatable(verb, "--served-model-name", o_.served_model_names,
                   "Names that a body's `model` may have; answers carry the first (repeatable; default: MODEL)")
        ->type_name("NAME");
    add_pooler_flag(verb, o_);
    verb->add_flag("--disable-log-stats", o_.disable_log_stats, "No line of statistics every 10 seconds");
    verb->add_flag("--json", o_.json, "One JSON line per request on standard output");
    add_choice(verb, "--generation-config", o_.generation_config, {"auto", "vllm"},
               "Where requests' sampling defaults come from; auto: the model's generation_config.json");
    add_object(verb, "--default-chat-template-kwargs", o_.chat_template_kwargs,
               R"(Variables of the chat template, under those of requests: {"enable_thinking": false})");
    add_serve_flags(verb, o_.serve);
    add_media_flags(verb, o_.media);
    add_model_flags(verb, o_.model);
    add_engine_flags(verb, o_.engine);
  }

  void add_bench() {
    CLI::App* bench = app_.add_subcommand("bench", "Measured against what the machine can do");
    bench->require_subcommand(1);
    bench->footer(
        "Examples:\n"
        "  calandra bench latency --shape qwen3_5-0.8b --load-format dummy\n"
        "  calandra bench throughput --max-concurrency 1,4,16 --dataset-path book.txt\n"
        "  calandra bench serve --base-url http://other:8000 --num-prompts 200 --request-rate 4\n"
        "  calandra bench VERB --help");
    CLI::App* latency = add_verb(bench, "latency", "Prefill and decode speed of one batch", Verb::kBenchLatency,
                                 "  calandra bench latency --shape qwen3_5-0.8b --load-format dummy --threads 2\n"
                                 "  calandra bench latency ./Qwen3.5-4B --input-len 2048 --output-len 64");
    show_model(latency);
    add_whole(latency, "--input-len", o_.input_len, 1, kMostTokens, "Tokens of each prompt");
    add_whole(latency, "--output-len", o_.output_len, 2, kMostTokens, "Tokens of each answer");
    add_whole(latency, "--batch-size", o_.batch_size, 1, kMostSequences, "Sequences");
    add_whole(latency, "--repetitions", o_.repetitions, 1, 1'000'000,
              "Runs that count, behind one that does not; the median is reported");
    latency->add_flag("--profile", o_.profile,
                      "On a device: also the time of each kernel, of the prompts and of one more step");
    latency->add_flag("--json", o_.json, "One JSON line");
    add_shape_flags(latency, o_.model);
    add_model_flags(latency, o_.model);

    CLI::App* throughput =
        add_verb(bench, "throughput", "Many requests through the engine", Verb::kBenchThroughput,
                 "  calandra bench throughput --max-concurrency 1,4,16 --dataset-path book.txt\n"
                 "  calandra bench throughput --mix agent --num-turns 20\n"
                 "  calandra bench throughput --compare-speculation --speculative-config '{\"method\": \"mtp\"}'");
    show_model(throughput);
    add_load_flags(throughput, o_);
    add_filter_flags(throughput, o_.sampling);
    add_shape_flags(throughput, o_.model);
    add_model_flags(throughput, o_.model);
    add_engine_flags(throughput, o_.engine);

    CLI::App* acceptance =
        add_verb(bench, "acceptance", "How often drafts of the MTP layers are accepted", Verb::kBenchAcceptance,
                 "  calandra bench acceptance --dataset-path book.txt --temperature 0.8");
    show_model(acceptance);
    add_text(acceptance, "--dataset-path", o_.load.dataset_path, "Text file to cut prompts from")
        ->type_name("FILE")
        ->required();
    add_whole(acceptance, "--num-prompts", o_.load.num_prompts, 1, 1'000'000, "Prompts (32)");
    add_whole(acceptance, "--input-len", o_.input_len, 1, kMostTokens, "Tokens of each prompt");
    add_whole(acceptance, "--output-len", o_.output_len, 2, kMostTokens, "Tokens of each answer");
    acceptance->add_flag("--json", o_.json, "One JSON line");
    add_filter_flags(acceptance, o_.sampling);
    add_model_flags(acceptance, o_.model);
    add_engine_flags(acceptance, o_.engine);

    CLI::App* startup =
        add_verb(bench, "startup", "From the start of the process to the first token, by phases", Verb::kBenchStartup,
                 "  calandra bench startup ./Qwen3.5-4B\n"
                 "  calandra bench startup ./Qwen3.5-4B --backend cuda --json");
    show_model(startup);
    add_whole(startup, "--input-len", o_.input_len, 1, kMostTokens, "Tokens of the first prompt");
    startup->add_flag("--json", o_.json, "One JSON line");
    add_shape_flags(startup, o_.model);
    add_model_flags(startup, o_.model);
    add_engine_flags(startup, o_.engine);

    CLI::App* ops =
        add_verb(bench, "ops", "Each op in a release's shape, percent of the machine's roofline", Verb::kBenchOps,
                 "  calandra bench ops\n  calandra bench ops --shape ling-2.6-flash --filter linear");
    add_text(ops, "--shape", o_.model.shape, "The release, as in `bench latency` (qwen3_5-0.8b)")->type_name("NAME");
    add_text(ops, "--filter", o_.filter, "Only ops whose name contains this");
    add_whole(ops, "--repetitions", o_.repetitions, 1, 1'000'000, "Runs; the best is reported");
    ops->add_flag("--json", o_.json, "One JSON line per op");
    add_backend_flags(ops, o_.model);

    CLI::App* serve =
        add_verb(bench, "serve", "A load on a running server, of any kind with OpenAI's API", Verb::kBenchServe,
                 "  calandra bench serve --num-prompts 200 --request-rate 4 --goodput ttft:500,tpot:50\n"
                 "  calandra bench serve --base-url http://other:8000 --endpoint /v1/chat/completions "
                 "--max-concurrency 16\n"
                 "  calandra bench serve --dataset-name sharegpt --dataset-path sharegpt.json --json");
    add_bench_serve_flags(serve, o_.bench_serve);
  }

  CLI::App& app_;
  Options& o_;
};

// CLI11 writes "--no-thinking{false}" for a flag that switches off.
class HelpFormat : public CLI::Formatter {
 public:
  std::string make_option_name(const CLI::Option* option, bool positional) const override {
    std::string name = CLI::Formatter::make_option_name(option, positional);
    constexpr std::string_view kOff = "{false}";
    if (const size_t at = name.find(kOff); at != std::string::npos) name.erase(at, kOff.size());
    return name;
  }
};

bool text_comes_elsewhere(const Options& o) { return o.jsonl || !o.prompt_file.empty() || !o.prompt_ids.empty(); }

// Which of the words are MODEL and text.
void place_words(std::vector<std::string> words, const std::string& config_model, Options& o) {
  const bool has_text = o.verb == Verb::kGenerate || o.verb == Verb::kTokenize;
  const bool has_model = o.verb != Verb::kSample && o.verb != Verb::kParse && o.verb != Verb::kGrammar &&
                         o.verb != Verb::kVersion && o.verb != Verb::kBenchOps && o.verb != Verb::kBenchServe;
  for (const std::string& word : words)
    if (word.empty()) throw UsageError("a word of the command line is empty ('')");
  const size_t most = (has_model ? 1 : 0) + (has_text && !text_comes_elsewhere(o) ? 1 : 0);
  if (words.size() > most) {
    const auto extra = std::span(words).subspan(most);
    if (has_text && words.size() == 2) throw UsageError("the text is given twice: " + words.back());
    throw UsageError(fmt::format(
        "{} too many: {}{}", extra.size() == 1 ? "there is one word" : fmt::format("there are {} words", extra.size()),
        fmt::join(extra, " "), has_text ? "; a text of several words stands in quotes" : ""));
  }
  std::string text;
  // A single word that is a model, when standard input can hold the text, is no text.
  if (has_text && !words.empty() && !text_comes_elsewhere(o) &&
      !(words.size() == 1 && isatty(STDIN_FILENO) == 0 && names_model(words[0]))) {
    text = std::move(words.back());
    words.pop_back();
  }
  o.model.model = words.empty() ? config_model : words[0];
  (o.verb == Verb::kTokenize ? o.text : o.prompt) = std::move(text);
}

// Flags that do nothing together with others are mistakes.
void check_combinations(const Options& o) {
  const auto refuse = [](bool wrong, const char* message) {
    if (wrong) throw UsageError(message);
  };
  refuse(!o.prompt_file.empty() && !o.prompt_ids.empty(), "the prompt is given twice: --file and --prompt-ids");
  refuse(o.verb == Verb::kGenerate && o.sampling.logprobs && !o.json, "--logprobs needs --json, which shows them");
  refuse(o.video_fps && o.videos.empty(), "--video-fps needs --video");
  const bool chat_flags = !o.system.empty() || o.thinking || !o.chat_template_kwargs.empty();
  refuse(chat_flags && (o.raw || !o.prompt_ids.empty()),
         "--system, --enable-thinking, --no-thinking and --chat-template-kwargs are for the chat template, which --raw "
         "and --prompt-ids leave out");
  refuse(o.raw && !o.prompt_ids.empty(), "--prompt-ids are raw already; leave out --raw");
  refuse(o.json && o.jsonl, "--jsonl prints JSON lines already; leave out --json");
  refuse(o.verb == Verb::kTokenize && o.jsonl && (o.decode || o.no_special),
         "with --jsonl the rows say what to do; leave out --decode and --no-special");
  if (o.verb == Verb::kRender) {
    refuse(!o.jsonl && o.messages.empty(), "render needs --messages FILE or --jsonl");
    refuse(o.jsonl && (!o.messages.empty() || !o.tools.empty() || !o.kwargs.empty()),
           "with --jsonl the rows hold messages, tools and kwargs; leave out --messages, --tools and --kwargs");
    refuse(!o.template_file.empty() && !o.model.model.empty(), "give MODEL or --template, not both");
    refuse((o.messages == "-") + (o.tools == "-") + (o.template_file == "-") > 1,
           "only one of --messages, --tools and --template can be standard input");
  }
  refuse(o.chunk && o.model.max_num_batched_tokens,
         "give --chunk or --max-num-batched-tokens, which mean the same here");
  if (o.model.max_num_seqs && o.model.max_num_batched_tokens)
    refuse(*o.model.max_num_batched_tokens < *o.model.max_num_seqs,
           "--max-num-batched-tokens must be at least --max-num-seqs: a step has a token of each sequence");
  refuse(o.model.num_gpu_blocks_override && o.engine.kv_cache_memory_bytes,
         "give --num-gpu-blocks-override or --kv-cache-memory-bytes, which mean the same");
  refuse(o.serve.ssl_certfile.empty() != o.serve.ssl_keyfile.empty(), "--ssl-certfile and --ssl-keyfile go together");
  const EngineFlags& e = o.engine;
  refuse(e.prefix_caching == false &&
             (e.checkpoint_bytes || e.host_checkpoint_bytes || e.checkpoint_interval || e.checkpoints_per_prompt),
         "--no-enable-prefix-caching keeps no states; leave out --checkpoint-bytes, --host-checkpoint-bytes, "
         "--checkpoint-interval and --checkpoints-per-prompt");
  refuse(e.draft_vocab && !(e.speculative && e.speculative->method == DraftMethod::kMtp),
         "--draft-vocab is for the drafts of --speculative-config with the method mtp");
  std::error_code ignored;  // of files that do not exist
  refuse(o.verb == Verb::kLogits && (o.input == o.output || std::filesystem::equivalent(o.input, o.output, ignored)),
         "--input and --output are the same file");
  refuse(!o.model.isa.empty() && o.model.backend == "reference", "--isa is for the cpu backend");
  const bool random = o.model.load_format == "dummy" || o.verb == Verb::kInspect;
  refuse(o.verb != Verb::kBenchOps && !o.model.shape.empty() && !o.model.model.empty(),
         "give MODEL or --shape, not both");
  if (!o.model.shape.empty()) config_of_shape(o.model.shape);  // throws for a name that does not exist
  refuse((o.verb == Verb::kBenchLatency || o.verb == Verb::kBenchThroughput) && !o.model.shape.empty() && !random,
         "--shape has no weight files: add --load-format dummy");
  refuse(o.model.num_hidden_layers && !random, "--num-hidden-layers is for random weights: add --load-format dummy");
}

void check_load(const Options& o) {
  const LoadOptions& l = o.load;
  const auto refuse = [](bool wrong, const char* message) {
    if (wrong) throw UsageError(message);
  };
  refuse((l.mix == "poisson") != l.request_rate.has_value(), "--mix poisson and --request-rate go together");
  refuse((l.num_turns || l.prefix_len) && l.mix != "agent", "--num-turns and --prefix-len are for --mix agent");
  refuse(l.compare_speculation && l.mix != "fixed", "--compare-speculation compares the fixed mix");
  refuse(l.compare_speculation && !o.engine.speculative, "--compare-speculation needs --speculative-config");
  refuse(l.compare_speculation && l.num_prompts,
         "--compare-speculation runs --rounds of --max-concurrency prompts; leave out --num-prompts");
  refuse(!l.fixed_drafts.empty() && !l.compare_speculation, "--fixed-drafts is for --compare-speculation");
  const std::vector<double>& rates = l.synthetic_acceptance;
  refuse(!rates.empty() && !(o.engine.speculative && o.engine.speculative->method == DraftMethod::kMtp),
         "--synthetic-acceptance needs --speculative-config with the method mtp");
  refuse(!rates.empty() && o.model.load_format != "dummy", "--synthetic-acceptance is for --load-format dummy");
  refuse(!std::is_sorted(rates.rbegin(), rates.rend()),
         "--synthetic-acceptance must not grow: each number is for a draft and all before it");
  refuse(!rates.empty() && !l.dataset_path.empty(),
         "--synthetic-acceptance writes answers that no text leads to; leave out --dataset-path");
}

void read_speculative_config(Options& o) {
  if (!o.engine.speculative_config) return;
  SpeculativeConfig config = parse_speculative_config(*o.engine.speculative_config, o.model.model);
  for (const std::string& note : config.notes) log_warning("--speculative-config: {}", note);
  if (config.num_speculative_tokens > 0) o.engine.speculative = std::move(config);
}

}  // namespace

std::optional<Options> parse_command_line(int argc, char** argv) {
  Options o;
  CLI::App app("calandra: exact inference for hybrid linear-attention language models");
  app.name("calandra");
  app.require_subcommand(1);
  app.formatter(std::make_shared<HelpFormat>());  // the verbs take it over
  app.footer("Try: calandra generate 'What does \"ancient\" mean?'\n     calandra chat\n     calandra VERB --help");
  const VerbList verbs(app, o);

  if (argc < 2) throw UsageError("a verb is missing\n\n" + app.help());
  Arguments arguments = read_arguments(app, {argv + 1, argv + argc});
  try {
    std::reverse(arguments.flags.begin(), arguments.flags.end());  // CLI11 takes them from the back
    app.parse(std::move(arguments.flags));
    place_words(std::move(arguments.words), arguments.config_model, o);
    read_speculative_config(o);
  } catch (const CLI::CallForHelp&) {
    write_output(app.help());
    return std::nullopt;
  } catch (const UsageError& error) {  // begins with the flag's name
    const std::string message = error.what();
    for (const auto& [flag, source] : arguments.sources)
      if (message.starts_with(flag + " ") || message.starts_with(flag + ":")) throw UsageError(source + ": " + message);
    throw;
  } catch (const CLI::ParseError& error) {
    throw UsageError(std::string(error.what()) + "; see calandra " + arguments.verb + " --help");
  }
  check_combinations(o);
  if (o.verb == Verb::kBenchThroughput) check_load(o);
  if (o.verb == Verb::kBenchServe) check_bench_serve(o.bench_serve);
  return o;
}

}  // namespace calandra::apps
