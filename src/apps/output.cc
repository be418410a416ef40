#include "apps/output.h"

#include <cerrno>
#include <cstdio>
#include <cstring>

namespace calandra::apps {

OutputError::OutputError(int reason)
    : std::runtime_error(std::string("cannot write standard output: ") + std::strerror(reason)), reason(reason) {}

void write_output(std::string_view text) {
  if (std::fwrite(text.data(), 1, text.size(), stdout) != text.size()) throw OutputError(errno);
}

void flush_output() {
  if (std::fflush(stdout) != 0) throw OutputError(errno);
}

void print_json(const json::value& value) {
  write_output(to_json(value) + "\n");
  flush_output();
}

}  // namespace calandra::apps
