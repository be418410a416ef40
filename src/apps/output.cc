#include "apps/output.h"

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "text/utf8.h"

namespace calandra::apps {

OutputError::OutputError(int reason)
    : std::runtime_error(std::string("cannot write standard output: ") + std::strerror(reason)), reason(reason) {}

void write_output(std::string_view text) {
  if (std::fwrite(text.data(), 1, text.size(), stdout) != text.size()) throw OutputError(errno);
}

void flush_output() {
  if (std::fflush(stdout) != 0) throw OutputError(errno);
}

void leave(int status) {
  try {
    flush_output();
  } catch (const OutputError&) {  // nobody is left to tell
  }
  std::_Exit(status);
}

std::string ascii_json(const json::value& value) {
  const std::string text = to_json(value);
  std::string out;
  for (size_t i = 0; i < text.size();) {
    const Utf8Step step = next_utf8(text, i);
    i += step.length;
    if (step.code < 0x7f)
      out += static_cast<char>(step.code);
    else if (step.code < 0x10000)
      out += fmt::format("\\u{:04x}", static_cast<uint32_t>(step.code));
    else
      out += fmt::format("\\u{:04x}\\u{:04x}", 0xd7c0 + static_cast<uint32_t>(step.code >> 10),
                         0xdc00 + static_cast<uint32_t>(step.code & 0x3ff));
  }
  return out;
}

void print_json(const json::value& value) {
  write_output(to_json(value) + "\n");
  flush_output();
}

}  // namespace calandra::apps
