// `calandra generate`: one completion, streamed to standard output.
#include <fmt/ranges.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <numeric>

#include "apps/conversation.h"
#include "apps/engine_setup.h"
#include "apps/input_text.h"
#include "apps/output.h"
#include "apps/pictures.h"
#include "apps/verbs.h"
#include "base/error.h"
#include "base/progress.h"
#include "text/utf8.h"

namespace calandra::apps {
namespace {

using Clock = std::chrono::steady_clock;

double seconds(Clock::duration d) { return std::chrono::duration<double>(d).count(); }

// The prompt's text, read before the model; empty with --prompt-ids.
std::string prompt_text(const Options& options) {
  if (!options.prompt_ids.empty()) return {};
  std::string text =
      !options.prompt.empty() ? options.prompt : read_text(options.prompt_file.empty() ? "-" : options.prompt_file);
  if (text.empty()) throw UsageError("the prompt is empty; give it as an argument, with --file or on standard input");
  return text;
}

std::vector<int32_t> prompt_ids(const Options& options, const std::string& text, const LoadedModel& loaded,
                                const Pictures& pictures) {
  if (!options.prompt_ids.empty()) {
    const int64_t V = loaded.model->vocab_size();
    for (const int32_t id : options.prompt_ids)
      if (id >= V) throw LoadError(fmt::format("--prompt-ids: {} is outside the vocabulary of {} tokens", id, V));
    return options.prompt_ids;
  }
  if (options.raw) {
    if (!loaded.tokenizer)
      throw LoadError(loaded.folder.string() + " has no tokenizer.json; give the prompt with --prompt-ids");
    return loaded.tokenizer->encode(text, {.add_special = true});
  }
  json::array messages;
  if (!options.system.empty()) messages.push_back({{"role", "system"}, {"content", options.system}});
  messages.push_back({{"role", "user"}, {"content", pictures.content(text, {})}});
  return Conversation(loaded, options).encode(messages).ids;
}

json::value logprob_number(float logprob) {
  if (logprob == -std::numeric_limits<float>::infinity()) return "-inf";
  return logprob;
}

json::array logprobs_of(const Answer& answer, const Tokenizer* tokenizer) {
  json::array out;
  const auto entry = [&](int32_t id, float logprob) {
    json::object o{{"token_id", id}, {"logprob", logprob_number(logprob)}};
    if (tokenizer == nullptr) return o;
    const std::string_view piece = tokenizer->id_to_piece(id);
    json::array bytes;
    for (const char c : piece) bytes.emplace_back(static_cast<unsigned char>(c));
    o["token"] = json::string(replace_invalid_utf8(piece));
    o["bytes"] = std::move(bytes);
    return o;
  };
  for (size_t i = 0; i < answer.logprobs.size(); ++i) {
    const ops::TokenLogprobs& l = answer.logprobs[i];
    json::object o = entry(answer.token_ids[i], l.logprob);
    o["rank"] = l.rank;
    json::array top;
    for (const ops::TokenLogprob& t : l.top) top.push_back(entry(t.id, t.logprob));
    o["top_logprobs"] = std::move(top);
    out.push_back(std::move(o));
  }
  return out;
}

int64_t sum(const std::vector<int64_t>& counts) { return std::accumulate(counts.begin(), counts.end(), int64_t{0}); }

}  // namespace

int generate(const Options& options) {
  check_sampling_flags(options);
  for (const std::vector<std::string>* files : {&options.images, &options.videos})
    for (const std::string& file : *files)
      if (!std::filesystem::exists(file)) throw LoadError("cannot read " + file + ": no such file");
  const auto is_folder = [](const std::string& path) { return std::filesystem::is_directory(path); };
  if (options.video_fps && std::none_of(options.videos.begin(), options.videos.end(), is_folder))
    throw UsageError("--video-fps is for folders of images; a video file says its own");
  const std::string text = prompt_text(options);

  const bool with_pictures = !options.images.empty() || !options.videos.empty();
  // What can be refused without the weights is, before they are read.
  LoadedModel loaded = load_for_engine(options, with_pictures, /*weights=*/false);
  const Tokenizer* tokenizer = loaded.tokenizer ? &*loaded.tokenizer : nullptr;
  Request request;
  request.params = sampling_params(options, loaded);
  if (!request.params.max_tokens && options.raw) request.params.max_tokens = 256;
  const PictureReader reader(loaded);
  Pictures pictures(reader);
  for (const std::string& file : options.images) pictures.add_image(file);
  for (const std::string& path : options.videos) pictures.add_video(path, options.video_fps);
  request.prompt_token_ids = prompt_ids(options, text, loaded, pictures);
  pictures.place(request);
  const auto prompt_size = static_cast<int64_t>(request.prompt_token_ids.size());

  const Sizes usual{request.params.n, prompt_size + request.params.max_tokens.value_or(4096)};
  EngineSetup setup = engine_setup(loaded, options, {.usual = usual, .least = {1, prompt_size + 1}});
  load_weights(loaded, options.model);
  ModelRunner runner(*loaded.model, *loaded.backend, setup.limits);
  EngineCore engine(runner, tokenizer, std::move(setup.options));

  const auto start = Clock::now();
  Clock::time_point first_token{}, last_token{};
  int64_t tokens = 0;
  std::vector<std::vector<Answer>> answers;
  const bool stream = !options.json && request.params.n == 1;
  {
    ProgressBar bar("reading the prompt", prompt_size, "tokens");
    answers = engine.run(
        {request},
        [&](const TokenEvent& event) {
          if (event.token >= 0) {
            last_token = Clock::now();
            if (tokens++ == 0) first_token = last_token;
          }
          if (stream && !event.text.empty()) {
            write_output(event.text);
            flush_output();
          }
          return true;
        },
        [&](int64_t done, int64_t) {
          if (tokens == 0 && done < prompt_size) bar.update(done);
        });
  }

  const double ttft = seconds(first_token - start), decode = seconds(last_token - first_token);
  for (const Answer& answer : answers[0]) {
    if (answer.error) throw LoadError(answer.error->message);
    if (options.json) {
      const bool several = tokens > 1 && decode > 0;
      json::object out{
          {"prompt_token_ids", json::array(request.prompt_token_ids.begin(), request.prompt_token_ids.end())},
          {"token_ids", json::array(answer.token_ids.begin(), answer.token_ids.end())},
          {"text", tokenizer != nullptr ? json::value(answer.text) : json::value(nullptr)},
          {"finish_reason", name_of(answer.finish_reason)},
          {"logprobs", request.params.logprobs ? json::value(logprobs_of(answer, tokenizer)) : json::value(nullptr)},
          {"timings",
           {{"load_s", loaded.load_seconds.all()},
            {"ttft_s", ttft},
            {"prefill_tok_s", static_cast<double>(prompt_size) / ttft},
            {"decode_tok_s", several ? json::value(static_cast<double>(tokens - 1) / decode) : json::value(nullptr)}}},
          {"speculation", {{"drafted", sum(answer.drafted)}, {"accepted", sum(answer.accepted)}}}};
      if (!answer.stop_reason.empty()) out["stop_reason"] = answer.stop_reason;
      print_json(out);
    } else if (!stream) {
      put("{}\n---\n", tokenizer != nullptr ? answer.text : fmt::format("{}", fmt::join(answer.token_ids, ",")));
    } else if (tokenizer == nullptr) {
      put("{}\n", fmt::join(answer.token_ids, ","));
    } else {
      put("\n");
    }
  }
  return 0;
}

}  // namespace calandra::apps
