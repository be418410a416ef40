// Lines of a person: with editing and history on a terminal, as they come otherwise.
#pragma once

#include <atomic>
#include <string>

struct editline;
struct history;

namespace calandra::apps {

class LineEditor {
 public:
  // `interrupted` is set by the caller's handler of Ctrl-C, which at the prompt gives an empty line.
  explicit LineEditor(std::atomic<bool>& interrupted);
  ~LineEditor();
  LineEditor(const LineEditor&) = delete;
  LineEditor& operator=(const LineEditor&) = delete;

  bool on_terminal() const { return editor_ != nullptr; }
  // False at the end of the input. Throws LoadError when it cannot be read.
  bool read(std::string& line);

 private:
  std::atomic<bool>& interrupted_;
  struct editline* editor_ = nullptr;  // null without a terminal
  struct history* history_ = nullptr;
};

}  // namespace calandra::apps
