// A gate that a test closes: whoever comes to it waits while the file `$CALANDRA_TEST_GATE.<name>` is there.
#pragma once

#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <thread>

namespace calandra::scripted {

inline void pass_gate(const char* name) {
  static const char* const prefix = std::getenv("CALANDRA_TEST_GATE");
  if (prefix == nullptr) return;
  const std::string file = std::string(prefix) + "." + name;
  while (std::filesystem::exists(file)) std::this_thread::sleep_for(std::chrono::milliseconds(5));
}

}  // namespace calandra::scripted
