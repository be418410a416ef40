#include "apps/line_editor.h"

#include <histedit.h>
#include <langinfo.h>
#include <termios.h>
#include <unistd.h>

#include <clocale>
#include <csignal>
#include <cstring>

#include "apps/input_text.h"
#include "apps/output.h"

namespace calandra::apps {
namespace {

// libedit leaves the terminal raw when a signal ends the program.
termios terminal_at_start;
extern "C" void on_end(int signal) {
  tcsetattr(STDIN_FILENO, TCSANOW, &terminal_at_start);
  std::signal(signal, SIG_DFL);
  std::raise(signal);
}

char* prompt(EditLine*) {
  static char text[] = "> ";
  return text;
}

}  // namespace

LineEditor::LineEditor(std::atomic<bool>& interrupted) : interrupted_(interrupted) {
  if (isatty(STDIN_FILENO) == 0 || tcgetattr(STDIN_FILENO, &terminal_at_start) != 0) return;
  for (const int signal : {SIGTERM, SIGHUP}) std::signal(signal, on_end);
  // libedit reads characters of the locale and drops bytes that are none.
  std::setlocale(LC_CTYPE, "");
  if (std::strcmp(nl_langinfo(CODESET), "UTF-8") != 0) std::setlocale(LC_CTYPE, "C.UTF-8");
  editor_ = el_init("calandra", stdin, stdout, stderr);
  history_ = history_init();
  HistEvent event;
  history(history_, &event, H_SETSIZE, 1000);
  el_set(editor_, EL_PROMPT, prompt);
  el_set(editor_, EL_EDITOR, "emacs");
  el_set(editor_, EL_SIGNAL, 0);
  el_set(editor_, EL_HIST, history, history_);
}

LineEditor::~LineEditor() {
  if (editor_ == nullptr) return;
  el_end(editor_);
  history_end(history_);
}

bool LineEditor::read(std::string& line) {
  if (!on_terminal()) return read_line(line);
  int count = 0;
  const char* text = el_gets(editor_, &count);
  line.clear();
  if (text == nullptr || count <= 0) {
    put("\n");
    if (!interrupted_.exchange(false)) return false;
    el_reset(editor_);  // Ctrl-C at the prompt: an empty line
    return true;
  }
  HistEvent event;
  history(history_, &event, H_ENTER, text);
  line = text;  // `count` counts characters
  while (!line.empty() && (line.back() == '\n' || line.back() == '\r')) line.pop_back();
  return true;
}

}  // namespace calandra::apps
