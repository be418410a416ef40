#include "base/log.h"

#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>

#include <mutex>
#include <set>

namespace calandra {
namespace {
spdlog::level::level_enum to_spdlog(LogLevel level) {
  switch (level) {
    case LogLevel::kDebug:
      return spdlog::level::debug;
    case LogLevel::kInfo:
      return spdlog::level::info;
    case LogLevel::kWarning:
      return spdlog::level::warn;
    case LogLevel::kError:
      return spdlog::level::err;
    case LogLevel::kOff:
      return spdlog::level::off;
  }
  return spdlog::level::info;
}

spdlog::logger& logger() {
  static const std::shared_ptr<spdlog::logger> instance = [] {
    auto made = std::make_shared<spdlog::logger>("calandra", std::make_shared<spdlog::sinks::stderr_color_sink_mt>());
    made->set_pattern("calandra: %^%l%$: %v");
    return made;
  }();
  return *instance;
}
}  // namespace

void set_log_level(LogLevel level) { logger().set_level(to_spdlog(level)); }
void log_message(LogLevel level, std::string_view text) { logger().log(to_spdlog(level), text); }

void log_warning_once(const std::string& text) {
  static std::mutex mutex;
  static std::set<std::string> said;
  const std::lock_guard lock(mutex);
  if (said.insert(text).second) log_message(LogLevel::kWarning, text);
}

}  // namespace calandra
