// Another program, run without a shell and within limits.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

namespace calandra {

struct ProcessLimits {
  double seconds = 60;  // wall time
  int64_t max_memory_bytes = int64_t{4} << 30;
  std::function<bool()> gone = {};  // asked now and then; true has the program killed
};

struct ProcessEnd {
  enum class Kind {
    kExited,    // by itself, with `status`
    kNotFound,  // no such program on PATH, or none that may be run
    kTooLong,   // killed at the time limit
    kStopped,   // killed because `on_output` or `gone` asked for it
    kFailed,    // died of a signal, or could not be started or waited for
  };
  Kind kind = Kind::kFailed;
  int status = 0;
  std::string errors;  // the first 4 KiB of its standard error
};

// Runs arguments[0], found on PATH, and hands on its standard output piece by piece; `on_output` returns false to have
// the program killed. Its standard input is empty, its environment holds PATH and LC_ALL only, it sees no other open
// file of this process, and it may write no files. Whatever happens, it is gone when this returns or throws what
// `on_output` throws. SIGCHLD must not be ignored, or its end cannot be seen.
ProcessEnd run_process(const std::vector<std::string>& arguments, const ProcessLimits& limits,
                       const std::function<bool(std::string_view)>& on_output);

}  // namespace calandra
