// Errors that are not the programmer's.
#pragma once

#include <stdexcept>
#include <string>

namespace calandra {

// Environment or input at start: a broken model file, an unsupported config, not enough memory. The message names the
// file, the tensor or key, what was expected, what was found, and what to do. Thrown before the step loop starts;
// caught once, in apps/.
class LoadError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// The command line or the arguments of a call are wrong (exit status 2 in apps/).
class UsageError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// A request's fault or fate (too long, bad parameter, cancelled): a value, never thrown; the loop goes on.
struct RequestError {
  int status = 400;     // HTTP status that the server answers with
  std::string code;     // OpenAI error code, e.g. "context_length_exceeded"
  std::string param;    // the offending field, or empty
  std::string message;  // one sentence for the user
};

}  // namespace calandra
