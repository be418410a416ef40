// The `calandra` program: picks the verb, turns errors into messages and exit statuses (0 fine, 1 the work failed, 2
// usage).
#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <new>

#include "apps/output.h"
#include "apps/verbs.h"
#include "backends/cpu/isa.h"
#include "base/error.h"
#include "base/log.h"

namespace calandra::apps {
namespace {

int version() {
  std::string sets;
  for (const Isa isa : machine_isas()) sets += fmt::format("{}{}", sets.empty() ? "" : ", ", name_of(isa));
  put("calandra {}\nbuilt with {}\ninstruction sets of this machine: {}\n", CALANDRA_VERSION, CALANDRA_BUILD,
      sets.empty() ? "none that calandra has kernels for" : sets);
  return 0;
}

int run(const Options& options) {
  switch (options.verb) {
    case Verb::kGenerate:
      return generate(options);
    case Verb::kChat:
      return chat(options);
    case Verb::kTokenize:
      return tokenize(options);
    case Verb::kRender:
      return render(options);
    case Verb::kParse:
      return parse(options);
    case Verb::kGrammar:
      return grammar(options);
    case Verb::kLogits:
      return logits(options);
    case Verb::kSample:
      return sample(options);
    case Verb::kEval:
      return eval(options);
    case Verb::kInspect:
      return inspect(options);
    case Verb::kRunBatch:
      return run_batch(options);
    case Verb::kServe:
      return serve(options);
    case Verb::kBenchLatency:
      return bench_latency(options);
    case Verb::kBenchThroughput:
      return bench_throughput(options);
    case Verb::kBenchAcceptance:
      return bench_acceptance(options);
    case Verb::kBenchOps:
      return bench_ops(options);
    case Verb::kBenchServe:
      return bench_serve(options);
    case Verb::kBenchStartup:
      return bench_startup(options);
    case Verb::kVersion:
      return version();
  }
  return 2;
}

// Descriptors 0 to 2 that the caller closed would be given to the first files opened. Here they cannot be read or
// written, so that missing input and lost results stay errors.
void fill_standard_descriptors() {
  for (const int fd : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO})
    if (fcntl(fd, F_GETFD) < 0 && errno == EBADF) [[maybe_unused]]
      const int opened = open("/dev/null", fd == STDOUT_FILENO ? O_RDONLY : O_WRONLY);
}

// A parent may have left it ignored; then nobody could see how ffmpeg ended.
void watch_children() { std::signal(SIGCHLD, SIG_DFL); }

int status_of(int argc, char** argv) {
  try {
    const auto options = parse_command_line(argc, argv);
    const int status = options ? run(*options) : 0;
    flush_output();
    return status;
  } catch (const OutputError& error) {
    if (error.reason != EPIPE) log_error("{}", error.what());  // a reader that has seen enough is no news
    return 1;
  } catch (const UsageError& error) {
    log_error("{}", error.what());
    return 2;
  } catch (const std::bad_alloc&) {
    log_error("there is not enough memory");
    return 1;
  } catch (const std::exception& error) {
    log_error("{}", error.what());
    return 1;
  }
}

}  // namespace
}  // namespace calandra::apps

int main(int argc, char** argv) {
  calandra::apps::fill_standard_descriptors();
  calandra::apps::watch_children();
  return calandra::apps::status_of(argc, argv);
}
