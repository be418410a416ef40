// `calandra chat`: a conversation in the terminal.
#include <fmt/format.h>
#include <histedit.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <fstream>
#include <iostream>

#include "apps/conversation.h"
#include "apps/pictures.h"
#include "apps/verbs.h"
#include "base/error.h"
#include "base/log.h"

namespace calandra::apps {
namespace {

std::atomic<bool> interrupted{false};
extern "C" void on_interrupt(int) { interrupted = true; }

constexpr const char* kHelp =
    "/reset          forgets the conversation\n"
    "/system TEXT    sets the system message and forgets the conversation\n"
    "/image FILE     shows a picture with the next message\n"
    "/think on|off   asks for thinking or direct answers\n"
    "/save FILE      writes the conversation as JSON messages\n"
    "/help           this list\n"
    "/exit           ends (also Ctrl-D); Ctrl-C stops an answer\n";

// Lines with editing and history on a terminal, plain lines otherwise.
class Prompt {
 public:
  Prompt() : on_terminal_(isatty(STDIN_FILENO) != 0) {
    if (!on_terminal_) return;
    edit_ = el_init("calandra", stdin, stdout, stderr);
    history_ = history_init();
    history(history_, &event_, H_SETSIZE, 1000);
    el_set(
        edit_, EL_PROMPT, +[](EditLine*) { return const_cast<char*>("> "); });
    el_set(edit_, EL_EDITOR, "emacs");
    el_set(edit_, EL_SIGNAL, 0);
    el_set(edit_, EL_HIST, history, history_);
  }
  ~Prompt() {
    if (edit_ != nullptr) el_end(edit_);
    if (history_ != nullptr) history_end(history_);
  }
  Prompt(const Prompt&) = delete;

  // False at the end of the input.
  bool read(std::string& line) {
    if (!on_terminal_) return static_cast<bool>(std::getline(std::cin, line));
    int count = 0;
    const char* text = el_gets(edit_, &count);
    if (text == nullptr || count <= 0) {
      if (interrupted.exchange(false)) {  // Ctrl-C at the prompt: an empty line
        el_reset(edit_);
        std::puts("");
        line.clear();
        return true;
      }
      return false;
    }
    history(history_, &event_, H_ENTER, text);
    line.assign(text, count);
    while (!line.empty() && (line.back() == '\n' || line.back() == '\r')) line.pop_back();
    return true;
  }

 private:
  const bool on_terminal_;
  EditLine* edit_ = nullptr;
  History* history_ = nullptr;
  HistEvent event_{};
};

json::array fresh_conversation(const std::string& system) {
  json::array messages;
  if (!system.empty()) messages.push_back({{"role", "system"}, {"content", system}});
  return messages;
}

}  // namespace

int chat(const Options& options) {
  LoadedModel loaded = load_model(options.model, {.vision = true});
  Conversation conversation(loaded, options);
  const SamplingParams params = sampling_params(options, loaded.generation_config);
  ModelRunner runner(*loaded.model, *loaded.backend, runner_limits(options.model, *loaded.model, 1, 8192));
  Engine engine(runner, &*loaded.tokenizer, {loaded.eos_token_ids, options.model.seed});

  struct sigaction action {};
  action.sa_handler = on_interrupt;
  sigaction(SIGINT, &action, nullptr);

  Prompt prompt;
  Pictures pictures(loaded);
  Pictures::Count shown;  // pictures of earlier messages
  std::string system = options.system, line;
  json::array messages = fresh_conversation(system);
  if (isatty(STDIN_FILENO))
    fmt::print("Talking to {}. /help lists the commands, Ctrl-D ends.\n", loaded.folder.filename().string());
  while (prompt.read(line)) {
    if (line.empty()) continue;
    if (line[0] == '/') {
      const size_t space = line.find(' ');
      const std::string command = line.substr(0, space),
                        argument = space == std::string::npos ? "" : line.substr(space + 1);
      if (command == "/exit" || command == "/quit") break;
      const auto forget = [&] {
        messages = fresh_conversation(system);
        pictures.clear();
        shown = {};
      };
      if (command == "/reset") {
        forget();
      } else if (command == "/system") {
        system = argument;
        forget();
      } else if (command == "/image" && !argument.empty()) {
        try {
          pictures.add_image(argument);
        } catch (const LoadError& error) {
          log_error("{}", error.what());
        }
      } else if (command == "/think" && (argument == "on" || argument == "off")) {
        conversation.set_thinking(argument == "on");
      } else if (command == "/save" && !argument.empty()) {
        if (std::ofstream(argument) << to_json(messages) << "\n") {
          fmt::print("{} messages written to {}\n", messages.size(), argument);
        } else {
          log_error("cannot write {}", argument);
        }
      } else {
        std::fputs(kHelp, stdout);
      }
      continue;
    }

    messages.push_back({{"role", "user"}, {"content", pictures.content(line, shown)}});
    interrupted = false;
    try {
      Request request{conversation.encode(messages), params};
      pictures.place(request);
      const std::vector<std::vector<Answer>> answers = engine.run({request}, [](const TokenEvent& event) {
        std::fwrite(event.text.data(), 1, event.text.size(), stdout);
        std::fflush(stdout);
        return !interrupted.load();
      });
      const Answer& answer = answers[0][0];
      if (answer.error) throw LoadError(answer.error->message);
      std::puts(answer.finish_reason == FinishReason::kCancelled ? " [stopped]" : "");
      messages.push_back({{"role", "assistant"}, {"content", answer.text}});
      shown = pictures.count();
    } catch (const LoadError& error) {
      log_error("{}", error.what());
      messages.pop_back();
    }
    interrupted = false;
  }
  return 0;
}

}  // namespace calandra::apps
