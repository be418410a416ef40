#include "base/check.h"

#include <cstdio>
#include <cstdlib>

namespace calandra {
namespace {
thread_local Scope* innermost = nullptr;
}

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
  std::fprintf(stderr, "calandra: check failed at %s:%d: %.*s", file, line, static_cast<int>(condition.size()),
               condition.data());
  if (!detail.empty()) std::fprintf(stderr, " (%.*s)", static_cast<int>(detail.size()), detail.data());
  if (!trail.empty()) std::fprintf(stderr, "\n  in %s", trail.c_str());
  std::fprintf(stderr, "\n");
  std::abort();
}

}  // namespace calandra
