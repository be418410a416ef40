#include "apps/command_line.h"

#include <CLI/CLI.hpp>

#include <unistd.h>

namespace calandra::apps {
namespace {

constexpr const char* kModelHelp =
    "Model folder, a Hugging Face name in the local cache, or demo:qwen3_5 (the default: a small model that comes with "
    "calandra)";

void add_model_flags(CLI::App* app, ModelOptions& m) {
  const std::string group = "Model";
  app->add_option("--backend", m.backend, "reference (slow, defines correct) or cpu")
      ->check(CLI::IsMember({"auto", "cpu", "reference"}))
      ->envname("CALANDRA_BACKEND")
      ->capture_default_str()
      ->group(group);
  app->add_option("--dtype", m.dtype, "Type of activations and caches; auto: as the model's config says")
      ->check(CLI::IsMember({"auto", "float32", "float", "bfloat16"}))
      ->capture_default_str()
      ->group(group);
  app->add_option("--threads", m.threads, "Threads; 0: one per core this process may use")
      ->check(CLI::Range(0, 1024))
      ->envname("CALANDRA_THREADS")
      ->capture_default_str()
      ->group(group);
  app->add_option("--isa", m.isa, "Instruction set of the cpu backend; default: the best of this machine")
      ->check(CLI::IsMember({"avx2", "avx512"}))
      ->group(group);
  app->add_option("--seed", m.seed, "Seed for requests that give none")->group(group);
  app->add_option("--hf-overrides", m.hf_overrides, "JSON object merged into config.json, as vLLM does")->group(group);
  app->add_option("--load-format", m.load_format, "auto (safetensors) or dummy (random weights)")
      ->check(CLI::IsMember({"auto", "safetensors", "dummy"}))
      ->capture_default_str()
      ->group(group);
  app->add_option("--max-model-len", m.max_model_len, "Longest sequence, prompt and answer, in tokens")
      ->check(CLI::PositiveNumber)
      ->group(group);
  app->add_option("--max-num-seqs", m.max_num_seqs, "Sequences of one step")->check(CLI::PositiveNumber)->group(group);
  app->add_option("--max-num-batched-tokens", m.max_num_batched_tokens,
                  "Tokens of one step; longer prompts are cut into chunks")
      ->check(CLI::PositiveNumber)
      ->group(group);
  app->add_option("--block-size", m.block_size, "Tokens of a page of keys and values (16)")
      ->check(CLI::Range(1, 4096))
      ->group(group);
  app->add_option("--num-gpu-blocks-override", m.num_gpu_blocks_override, "Pages of keys and values, on any backend")
      ->check(CLI::PositiveNumber)
      ->group(group);
  app->add_option("--num-state-slots", m.num_state_slots, "Slots of recurrent state")
      ->check(CLI::PositiveNumber)
      ->group(group);
}

void add_shape_flags(CLI::App* app, ModelOptions& m) {
  app->add_option("--shape", m.shape,
                  "Random weights in the shape of a release: qwen3_5-0.8b … -397b-a17b, ling-2.6-flash, ring-2.5-1t, …")
      ->group("Model");
  app->add_option("--num-hidden-layers", m.num_hidden_layers, "Cuts the model to this many layers (with dummy weights)")
      ->check(CLI::PositiveNumber)
      ->group("Model");
}

void add_sampling_flags(CLI::App* app, SamplingOptions& s) {
  const std::string group = "Sampling (default: generation_config.json, then vLLM's)";
  app->add_option("--temperature", s.temperature, "0: greedy")->group(group);
  app->add_option("--top-k", s.top_k, "0 or -1: off")->group(group);
  app->add_option("--top-p", s.top_p)->group(group);
  app->add_option("--min-p", s.min_p)->group(group);
  app->add_option("--repetition-penalty", s.repetition_penalty)->group(group);
  app->add_option("--presence-penalty", s.presence_penalty)->group(group);
  app->add_option("--frequency-penalty", s.frequency_penalty)->group(group);
  app->add_option("--logit-bias", s.logit_bias, "JSON object: token id to bias, {\"198\": -100}")->group(group);
  app->add_option("--allowed-token-ids", s.allowed_token_ids, "Only these ids, 1,2,3")->delimiter(',')->group(group);
  app->add_option("--bad-words", s.bad_words, "Text that must not be produced (repeatable)")->group(group);
  app->add_option("--stop", s.stop, "Text that ends the answer (repeatable)")->group(group);
  app->add_option("--stop-token-ids", s.stop_token_ids, "Ids that end the answer, 1,2,3")->delimiter(',')->group(group);
  app->add_flag("--include-stop-str-in-output", s.include_stop_str_in_output)->group(group);
  app->add_option("--max-tokens", s.max_tokens, "Longest answer, in tokens")->group(group);
  app->add_option("--min-tokens", s.min_tokens)->group(group);
  app->add_flag("--ignore-eos", s.ignore_eos, "Goes on after the end-of-text token")->group(group);
}

void add_chat_flags(CLI::App* app, Options& o) {
  app->add_option("--system", o.system, "System message");
  app->add_flag("--enable-thinking,!--no-thinking", o.thinking,
                "Asks the chat template for a thinking or a direct answer");
  app->add_option("--chat-template-kwargs", o.chat_template_kwargs, "JSON object given to the chat template");
}

void positional_model(CLI::App* app, ModelOptions& m) { app->add_option("MODEL", m.model, kModelHelp); }

}  // namespace

std::optional<Options> parse_command_line(int argc, char** argv, int& status) {
  Options o;
  CLI::App app("calandra: exact inference for hybrid linear-attention language models");
  app.name("calandra");
  app.require_subcommand(1);
  app.footer("Try: calandra generate 'What does \"ancient\" mean?'\n     calandra chat\n     calandra VERB --help");
  std::vector<std::string> words;  // [MODEL] and text of generate and tokenize

  const auto verb = [&](CLI::App* parent, const char* name, const char* help, Verb v, const char* examples) {
    CLI::App* sub = parent->add_subcommand(name, help);
    sub->callback([&o, v] { o.verb = v; });
    sub->set_config("--config", "", "File of flags, TOML or INI");
    sub->footer(std::string("Examples:\n") + examples);
    return sub;
  };

  CLI::App* generate =
      verb(&app, "generate", "One completion, streamed", Verb::kGenerate,
           "  calandra generate 'What does \"ancient\" mean?'\n"
           "  calandra generate demo:qwen3_5 --raw 'Once upon a time' --temperature 0 --max-tokens 50\n"
           "  calandra generate ./Qwen3.5-0.8B --file prompt.txt --json\n"
           "  calandra generate --image photo.jpg 'What is in this picture?'\n"
           "  echo 'What is 2 + 3?' | calandra generate --seed 7");
  generate->add_option("words", words, "[MODEL] [PROMPT]: one word is the prompt; without one, standard input is read")
      ->expected(0, 2);
  generate->add_option("--file", o.prompt_file, "Reads the prompt from a file");
  generate->add_option("--prompt-ids", o.prompt_ids, "Prompt as token ids: 1,2,3 (no template, no tokenizer needed)");
  generate->add_flag("--raw", o.raw, "The prompt as it is, without the chat template");
  // One value each: the prompt may follow.
  generate->add_option("--image", o.images, "Image file: JPEG, PNG, WebP or GIF (repeatable)")
      ->allow_extra_args(false)
      ->check(CLI::ExistingFile);
  generate->add_option("--video", o.videos, "Video file (needs ffmpeg), or a folder of numbered images (repeatable)")
      ->allow_extra_args(false)
      ->check(CLI::ExistingPath);
  generate->add_option("--video-fps", o.video_fps, "Frames per second of a folder of images")
      ->check(CLI::PositiveNumber);
  generate->add_option("--logprobs", o.sampling.logprobs,
                       "Logprobs of each token and of this many likeliest (with --json)");
  generate->add_option("--n", o.sampling.n, "Answers to one prompt")->check(CLI::Range(1, 1024));
  generate->add_flag("--json", o.json, "One JSON line per answer");
  add_chat_flags(generate, o);
  add_sampling_flags(generate, o.sampling);
  add_model_flags(generate, o.model);

  CLI::App* chat = verb(&app, "chat", "A conversation in the terminal", Verb::kChat,
                        "  calandra chat\n  calandra chat ./Qwen3.5-4B --system 'Answer briefly.'\n"
                        "Inside: /help lists the commands; Ctrl-C stops an answer, Ctrl-D ends.");
  positional_model(chat, o.model);
  add_chat_flags(chat, o);
  add_sampling_flags(chat, o.sampling);
  add_model_flags(chat, o.model);

  CLI::App* tokenize = verb(&app, "tokenize", "Text to token ids, and back", Verb::kTokenize,
                            "  calandra tokenize 'Hello there'\n  calandra tokenize --decode '12,400,7'\n"
                            "  calandra tokenize ./Qwen3.5-0.8B --jsonl < rows.jsonl");
  tokenize->add_option("words", words, "[MODEL] [TEXT]: one word is the text; without one, standard input is read")
      ->expected(0, 2);
  tokenize->add_flag("--decode", o.decode, "TEXT is ids: 1,2,3");
  tokenize->add_flag("--no-special", o.no_special, "Special tokens in the text are ordinary text");
  tokenize->add_flag("--json", o.json, "JSON line {\"ids\", \"pieces\"}");
  tokenize->add_flag("--jsonl", o.jsonl, "Rows on standard input, a result line for each");

  CLI::App* render =
      verb(&app, "render", "The prompt text that the chat template gives", Verb::kRender,
           "  calandra render --messages chat.json\n"
           "  calandra render --template t.jinja --messages chat.json --kwargs '{\"enable_thinking\": true}'");
  positional_model(render, o.model);
  render->add_option("--messages", o.messages, "JSON file: a list of messages; - for standard input");
  render->add_option("--template", o.template_file, "Jinja file instead of the model's template");
  render->add_option("--tools", o.tools, "JSON file: a list of tools");
  render->add_option("--kwargs", o.kwargs, "JSON object of template variables");
  render->add_option("--now", o.now, "Clock of the template, 'YYYY-MM-DD HH:MM:SS'");
  render->add_flag("--jsonl", o.jsonl, "Rows on standard input, a result line for each");

  CLI::App* logits =
      verb(&app, "logits", "Teacher-forced forward, for research and tests", Verb::kLogits,
           "  calandra logits ./model --input in.safetensors --output out.safetensors --dtype float32\n"
           "  calandra logits ./model --input in.safetensors --output out.safetensors --taps 'layers.3.*' --state");
  positional_model(logits, o.model);
  logits
      ->add_option("--input", o.input,
                   "safetensors file: input_ids [T], next_token, pixel_values, image_grid_thw, and the same of videos")
      ->required();
  logits->add_option("--output", o.output, "safetensors file to write")->required();
  logits->add_option("--taps", o.taps,
                     "Glob of intermediate tensors to write: embedding, layers.L, layers.L.<name>, final_norm");
  logits->add_flag("--state", o.state, "Writes the recurrent state and the convolution window of every linear layer");
  logits->add_option("--chunk", o.chunk, "Cuts the prefill into chunks of this many tokens")
      ->check(CLI::PositiveNumber);
  logits->add_option("--mtp", o.mtp, "Writes mtp_logits.1 and this many chained drafts of the MTP layers")
      ->check(CLI::Range(1, 64));
  logits->add_option("--image", o.images, "Image files, in the order of the placeholders in input_ids (repeatable)")
      ->allow_extra_args(false)
      ->check(CLI::ExistingFile);
  add_model_flags(logits, o.model);

  CLI::App* sample = verb(
      &app, "sample", "The sampler on given logits", Verb::kSample,
      "  calandra sample --jsonl < distributions.jsonl\n  calandra sample --jsonl --logits logits.json < rows.jsonl");
  sample->add_flag("--jsonl", o.jsonl, "Rows on standard input, a result line for each")->required();
  sample->add_option("--logits", o.logits_file, "JSON file of named logit vectors");

  CLI::App* eval =
      verb(&app, "eval", "Perplexity of a text", Verb::kEval,
           "  calandra eval --text book.txt\n  calandra eval ./Qwen3.5-0.8B --text book.txt --window 4096 --json");
  positional_model(eval, o.model);
  eval->add_option("--text", o.text_file, "Text file, UTF-8")->required();
  eval->add_option("--window", o.window, "Tokens of a window; each starts from empty state")
      ->check(CLI::Range(2, 1 << 24))
      ->capture_default_str();
  eval->add_flag("--json", o.json, "One JSON line");
  add_model_flags(eval, o.model);

  CLI::App* inspect = verb(&app, "inspect", "Architecture, sizes and memory plan of a model", Verb::kInspect,
                           "  calandra inspect\n  calandra inspect ./Qwen3.5-4B --max-num-seqs 16 --tensors\n"
                           "  calandra inspect --shape qwen3_5-27b --max-model-len 32768");
  positional_model(inspect, o.model);
  inspect->add_flag("--tensors", o.tensors, "Lists every tensor");
  inspect->add_flag("--json", o.json, "One JSON line");
  add_shape_flags(inspect, o.model);
  add_model_flags(inspect, o.model);

  CLI::App* bench = app.add_subcommand("bench", "Measured against what the machine can do");
  bench->require_subcommand(1);
  CLI::App* latency = verb(bench, "latency", "Prefill and decode speed of one batch", Verb::kBenchLatency,
                           "  calandra bench latency --shape qwen3_5-0.8b --load-format dummy --threads 2\n"
                           "  calandra bench latency ./Qwen3.5-4B --input-len 2048 --output-len 64");
  positional_model(latency, o.model);
  latency->add_option("--input-len", o.input_len, "Tokens of each prompt")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  latency->add_option("--output-len", o.output_len, "Tokens of each answer")
      ->check(CLI::Range(2, 1 << 20))
      ->capture_default_str();
  latency->add_option("--batch-size", o.batch_size, "Sequences")->check(CLI::PositiveNumber)->capture_default_str();
  latency->add_option("--repetitions", o.repetitions, "Runs; the median is reported")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  latency->add_flag("--json", o.json, "One JSON line");
  add_shape_flags(latency, o.model);
  add_model_flags(latency, o.model);
  CLI::App* ops = verb(bench, "ops", "Each op in a release's shape, percent of the machine's roofline", Verb::kBenchOps,
                       "  calandra bench ops\n  calandra bench ops --shape qwen3_5-4b --filter linear");
  ops->add_option("--filter", o.filter, "Only ops whose name contains this");
  ops->add_option("--repetitions", o.repetitions, "Runs; the best is reported")->check(CLI::PositiveNumber);
  ops->add_flag("--json", o.json, "One JSON line per op");
  add_shape_flags(ops, o.model);
  add_model_flags(ops, o.model);

  verb(&app, "version", "Version and build", Verb::kVersion, "  calandra version");

  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    const bool help = error.get_exit_code() == 0;
    status = help ? 0 : 2;
    app.exit(error, std::cout, std::cerr);
    return std::nullopt;
  }

  // "[MODEL] [PROMPT]": a single word is the prompt.
  if (words.size() == 2) o.model.model = words[0];
  std::string& text = o.verb == Verb::kTokenize ? o.text : o.prompt;
  if (!words.empty()) text = words.back();
  // With rows, a file or ids, a single word can only be the model.
  const bool text_comes_elsewhere = o.jsonl || !o.prompt_file.empty() || !o.prompt_ids.empty();
  if (words.size() == 1 && text_comes_elsewhere) {
    o.model.model = words[0];
    text.clear();
  }
  if (words.size() == 2 && text_comes_elsewhere) {
    std::cerr << "calandra: the prompt is given twice\n";
    status = 2;
    return std::nullopt;
  }
  return o;
}

}  // namespace calandra::apps
