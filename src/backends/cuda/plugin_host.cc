// What base/check.cc and base/log.cc are in the program: scopes, failed checks and messages, handed to the program.
#include "backends/cuda/plugin_host.h"

#include <cstdlib>

#include "base/check.h"
#include "base/log.h"

namespace calandra {
namespace {

CudaHost program{};
thread_local Scope* innermost = nullptr;

}  // namespace

namespace cuda {

void set_host(const CudaHost& host) { program = host; }

void load_error(const char* message) {
  program.load_error(message);
  std::abort();  // it throws
}

}  // namespace cuda

Scope::Scope(const char* name, int index) : name_(name), index_(index), outer_(innermost) { innermost = this; }
Scope::~Scope() { innermost = outer_; }

std::string Scope::trail() {
  std::string trail;
  for (const Scope* s = innermost; s != nullptr; s = s->outer_) {
    std::string step = s->name_;
    if (s->index_ >= 0) step += " " + std::to_string(s->index_);
    trail = trail.empty() ? step : step + " / " + trail;
  }
  return trail;
}

void check_failed(const char* file, int line, std::string_view condition, std::string_view detail) {
  const std::string trail = Scope::trail();
  program.check_failed(file, line, condition, detail, trail);
  std::abort();
}

void log_message(LogLevel level, std::string_view text) { program.log(level, text); }

}  // namespace calandra
