// One function per verb. Each returns the exit status; LoadError and UsageError pass through to main.
#pragma once

#include <functional>

#include "apps/command_line.h"

namespace calandra::apps {

struct LoadedModel;

int generate(const Options& options);
int chat(const Options& options);
int tokenize(const Options& options);
int render(const Options& options);
int logits(const Options& options);
int parse(const Options& options);
int grammar(const Options& options);
int sample(const Options& options);
int eval(const Options& options);
int inspect(const Options& options);
int run_batch(const Options& options);
int serve(const Options& options);
using LoadModel = std::function<LoadedModel()>;
int serve(const Options& options, const LoadModel& load);  // of a model that may be another than the flags say
int bench_latency(const Options& options);
int bench_throughput(const Options& options);
int bench_acceptance(const Options& options);
int bench_ops(const Options& options);
int bench_serve(const Options& options);
int bench_startup(const Options& options);

}  // namespace calandra::apps
