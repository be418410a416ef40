// The `calandra` program: picks the verb, turns errors into messages and exit statuses (0 fine, 1 the work failed, 2
// usage).
#include <cstdio>
#include <exception>

#include "apps/command_line.h"
#include "apps/verbs.h"
#include "base/error.h"
#include "base/log.h"

namespace calandra::apps {
namespace {

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
    case Verb::kLogits:
      return logits(options);
    case Verb::kSample:
      return sample(options);
    case Verb::kEval:
      return eval(options);
    case Verb::kInspect:
      return inspect(options);
    case Verb::kBenchLatency:
      return bench_latency(options);
    case Verb::kBenchOps:
      return bench_ops(options);
    case Verb::kVersion:
      std::puts("calandra " CALANDRA_VERSION);
      return 0;
  }
  return 2;
}

}  // namespace
}  // namespace calandra::apps

int main(int argc, char** argv) {
  using namespace calandra;
  int status = 0;
  const auto options = apps::parse_command_line(argc, argv, status);
  if (!options) return status;
  try {
    return apps::run(*options);
  } catch (const UsageError& error) {
    log_error("{}", error.what());
    return 2;
  } catch (const std::exception& error) {
    log_error("{}", error.what());
    return 1;
  }
}
