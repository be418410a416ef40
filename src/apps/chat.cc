// `calandra chat`: a conversation in the terminal.
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstring>
#include <fstream>
#include <numeric>
#include <optional>
#include <utility>

#include "apps/conversation.h"
#include "apps/engine_setup.h"
#include "apps/line_editor.h"
#include "apps/output.h"
#include "apps/pictures.h"
#include "apps/verbs.h"
#include "base/error.h"
#include "base/log.h"
#include "base/progress.h"
#include "text/parsers/answer_parser.h"

namespace calandra::apps {
namespace {

std::atomic<bool> interrupted{false};
extern "C" void on_interrupt(int) { interrupted = true; }

constexpr const char* kHelp =
    "/reset          forgets the conversation\n"
    "/system TEXT    sets the system message and forgets the conversation; without TEXT there is none\n"
    "/image FILE     shows a picture with the next message\n"
    "/think on|off   asks for thinking or direct answers\n"
    "/save FILE      writes the conversation as JSON messages\n"
    "/help           this list\n"
    "/exit           ends (also /quit and Ctrl-D); Ctrl-C stops an answer\n";

void save(const std::string& name, const json::array& messages) {
  std::ofstream file(name);
  file << to_json(messages) << "\n";
  file.close();
  if (!file) throw LoadError("cannot write " + name + ": " + std::strerror(errno));
  put("{} messages written to {}\n", messages.size(), name);
}

int64_t sum(const std::vector<int64_t>& counts) { return std::accumulate(counts.begin(), counts.end(), int64_t{0}); }

// One conversation: what was said, and what the commands change.
class Chat {
 public:
  Chat(const LoadedModel& loaded, const Options& options, Conversation conversation, SamplingParams params,
       EngineCore& engine)
      : engine_(engine),
        params_(std::move(params)),
        conversation_(std::move(conversation)),
        reasoning_(reasoning_format_of_template(loaded.tokenizer->chat_template())),
        reader_(loaded),
        pictures_(reader_),
        system_(options.system),
        verbose_(options.verbose) {
    forget();
  }

  // False for the command that ends. Throws LoadError for what cannot be done; the conversation goes on.
  bool take(const std::string& line) {
    if (line.empty()) return true;
    if (line[0] != '/') {
      answer(line);
      return true;
    }
    const size_t space = std::min(line.find(' '), line.size());
    const std::string command = line.substr(0, space);
    const std::string argument = line.substr(std::min(line.find_first_not_of(' ', space), line.size()));
    const auto use = [&](bool right, const char* form) {
      if (!right) throw LoadError(fmt::format("{} is used as {}", command, form));
    };
    if (command == "/exit" || command == "/quit") {
      use(argument.empty(), "/exit or /quit, without more");
      return false;
    }
    if (command == "/reset") {
      use(argument.empty(), "/reset, without more");
      forget();
    } else if (command == "/system") {
      system_ = argument;
      forget();
    } else if (command == "/image") {
      use(!argument.empty(), "/image FILE");
      pictures_.add_image(argument);
    } else if (command == "/think") {
      use(argument == "on" || argument == "off", "/think on or /think off");
      conversation_.set_thinking(argument == "on");
    } else if (command == "/save") {
      use(!argument.empty(), "/save FILE");
      save(argument, messages_);
    } else if (command == "/help") {
      use(argument.empty(), "/help, without more");
      write_output(kHelp);
    } else {
      throw LoadError("there is no command " + command + "; /help lists them");
    }
    return true;
  }

 private:
  void forget() {
    messages_.clear();
    if (!system_.empty()) messages_.push_back({{"role", "system"}, {"content", system_}});
    pictures_.clear();
    shown_ = {};
  }

  void answer(const std::string& text) {
    json::array messages = messages_;
    messages.push_back({{"role", "user"}, {"content", pictures_.content(text, shown_)}});
    EncodedChat chat = conversation_.encode(messages);
    Request request{
        .prompt_token_ids = std::move(chat.ids), .params = params_, .checkpoint_hints = std::move(chat.message_ends)};
    pictures_.place(request);
    const Answer answer = run(std::move(request), chat.in_reasoning);
    if (answer.error) throw LoadError(answer.error->message);
    if (answer.token_ids.empty()) return;  // stopped before its first word: as if it had not been asked
    messages.push_back(message_of(answer.text, chat.in_reasoning));
    messages_ = std::move(messages);
    shown_ = pictures_.count();
  }

  // The answer as a message of the API.
  json::object message_of(const std::string& text, bool in_reasoning) const {
    AnswerParser parser({.reasoning = reasoning_, .thinking = in_reasoning});
    ParsedAnswer parsed;
    parsed.add(parser.add(text));
    parsed.add(parser.finish());
    json::object message{{"role", "assistant"}, {"content", parsed.content}};
    if (!parsed.reasoning.empty()) message["reasoning_content"] = parsed.reasoning;
    return message;
  }

  // Streams the answer. Ctrl-C ends it, also while the prompt is read.
  Answer run(Request request, bool in_reasoning) {
    using Clock = std::chrono::steady_clock;
    interrupted = false;
    Answer answer;
    bool ended = false;
    const auto start = Clock::now();
    Clock::time_point first{};
    // Where the template opened the thoughts, the model only closes them.
    std::string_view opening = in_reasoning ? "<think>\n" : "";
    const int64_t prompt = std::ssize(request.prompt_token_ids), rows_before = engine_.stats().prompt_rows;
    std::optional<ProgressBar> bar(std::in_place, "reading the prompt", prompt, "tokens");
    auto added = engine_.add(std::move(request), [&](const TokenEvent& event) {
      if (bar) {
        bar.reset();  // clears its line
        first = Clock::now();
      }
      if (!event.text.empty()) write_output(std::exchange(opening, {}));
      write_output(event.text);
      flush_output();
      ended = event.finished;
      if (ended) answer = std::move(event.answer);
      return true;
    });
    if (auto* error = std::get_if<RequestError>(&added)) {
      answer.error = std::move(*error);
      return answer;
    }
    while (!ended) {
      if (interrupted) engine_.cancel(std::get<RequestId>(added));
      const bool ran = engine_.step();
      CHECK_MSG(ran || ended, "the request waits, and nothing can run");
      if (bar) bar->update(engine_.stats().prompt_rows - rows_before);
    }
    if (answer.error) return answer;
    put("{}\n", answer.finish_reason == FinishReason::kCancelled ? " [stopped]" : "");
    if (verbose_) {
      flush_output();
      const auto seconds = [](Clock::duration d) { return std::chrono::duration<double>(d).count(); };
      std::string line = fmt::format("prompt {} tokens ({} cached) in {:.2f} s, answer {} tokens in {:.2f} s", prompt,
                                     answer.cached_tokens, seconds(first - start), answer.token_ids.size(),
                                     seconds(Clock::now() - first));
      if (!answer.drafted.empty())
        line += fmt::format(", {} of {} drafts accepted", sum(answer.accepted), sum(answer.drafted));
      log_info("{}", line);
    }
    return answer;
  }

  EngineCore& engine_;
  const SamplingParams params_;
  Conversation conversation_;
  const ReasoningFormat reasoning_;
  const PictureReader reader_;
  Pictures pictures_;
  Pictures::Count shown_;  // pictures of earlier messages
  std::string system_;
  json::array messages_;
  const bool verbose_;
};

}  // namespace

int chat(const Options& options) {
  check_sampling_flags(options);
  // What can be refused without the weights is, before they are read.
  LoadedModel loaded = load_for_engine(options, /*vision=*/true, /*weights=*/false);
  SamplingParams params = sampling_params(options, loaded);
  Conversation conversation(loaded, options);
  EngineSetup setup = engine_setup(loaded, options, {.usual = {1, 8192}, .least = {1, 2}, .prefix_caching = true});
  load_weights(loaded, options.model);
  ModelRunner runner(*loaded.model, *loaded.backend, setup.limits);
  EngineCore engine(runner, loaded.tokenizer ? &*loaded.tokenizer : nullptr, std::move(setup.options));
  Chat chat(loaded, options, std::move(conversation), std::move(params), engine);

  struct sigaction action {};
  action.sa_handler = on_interrupt;
  sigaction(SIGINT, &action, nullptr);

  LineEditor editor(interrupted);
  if (editor.on_terminal())
    put("Talking to {}. /help lists the commands, Ctrl-D ends.\n",
        options.model.model.empty() ? loaded.folder.filename().string() : options.model.model);
  bool failed = false;
  std::string line;
  for (bool more = true; more;) {
    flush_output();
    if (!editor.read(line)) break;
    try {
      more = chat.take(line);
    } catch (const LoadError& error) {
      log_error("{}", error.what());
      failed = true;
    }
  }
  return failed && !editor.on_terminal() ? 1 : 0;
}

}  // namespace calandra::apps
