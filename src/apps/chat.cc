// `calandra chat`: a conversation in the terminal.
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <fstream>

#include "apps/conversation.h"
#include "apps/line_editor.h"
#include "apps/output.h"
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

// One conversation: what was said, and what the commands change.
class Chat {
 public:
  Chat(const LoadedModel& loaded, const Options& options, Engine& engine)
      : engine_(engine),
        params_(sampling_params(options, loaded)),
        conversation_(loaded, options),
        pictures_(loaded),
        system_(options.system) {
    forget();
  }

  // False for the command that ends. Throws LoadError for what cannot be done; the conversation goes on.
  bool take(const std::string& line) {
    if (line.empty()) return true;
    if (line[0] != '/') {
      answer(line);
      return true;
    }
    const size_t space = line.find(' ');
    const std::string command = line.substr(0, space),
                      argument = space == std::string::npos ? "" : line.substr(space + 1);
    if (command == "/exit" || command == "/quit") return false;
    if (command == "/reset") {
      forget();
    } else if (command == "/system") {
      system_ = argument;
      forget();
    } else if (command == "/image" && !argument.empty()) {
      pictures_.add_image(argument);
    } else if (command == "/think" && (argument == "on" || argument == "off")) {
      conversation_.set_thinking(argument == "on");
    } else if (command == "/save" && !argument.empty()) {
      save(argument, messages_);
    } else if (command == "/help") {
      write_output(kHelp);
    } else {
      throw LoadError("there is no command " + line + "; /help lists them");
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
    Request request{conversation_.encode(messages), params_};
    pictures_.place(request);
    interrupted = false;
    const std::vector<std::vector<Answer>> answers = engine_.run({request}, [](const TokenEvent& event) {
      write_output(event.text);
      flush_output();
      return !interrupted.load();
    });
    const Answer& answer = answers[0][0];
    if (answer.error) throw LoadError(answer.error->message);
    put("{}\n", answer.finish_reason == FinishReason::kCancelled ? " [stopped]" : "");
    messages.push_back({{"role", "assistant"}, {"content", answer.text}});
    messages_ = std::move(messages);
    shown_ = pictures_.count();
  }

  Engine& engine_;
  const SamplingParams params_;
  Conversation conversation_;
  Pictures pictures_;
  Pictures::Count shown_;  // pictures of earlier messages
  std::string system_;
  json::array messages_;
};

}  // namespace

int chat(const Options& options) {
  check_sampling_flags(options);
  LoadedModel loaded = load_model(options.model, {.vision = true});
  ModelRunner runner(*loaded.model, *loaded.backend, runner_limits(loaded, options.model, {1, 8192}, {1, 2}));
  Engine engine(runner, loaded.tokenizer ? &*loaded.tokenizer : nullptr, {loaded.eos_token_ids, options.model.seed});
  Chat chat(loaded, options, engine);

  struct sigaction action {};
  action.sa_handler = on_interrupt;
  sigaction(SIGINT, &action, nullptr);

  LineEditor editor(interrupted);
  if (editor.on_terminal())
    put("Talking to {}. /help lists the commands, Ctrl-D ends.\n", loaded.folder.filename().string());
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
