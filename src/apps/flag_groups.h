// Flags that several verbs share.
#pragma once

#include "apps/command_line.h"
#include "apps/flags.h"

namespace calandra::apps {

// Sizes above these are mistakes; below them products of sizes stay in 64 bits.
inline constexpr int64_t kMostTokens = int64_t{1} << 24;
inline constexpr int64_t kMostStepTokens = int64_t{1} << 20;
inline constexpr int64_t kMostSequences = int64_t{1} << 16;

void add_backend_flags(CLI::App* app, ModelOptions& m);  // --backend --threads --isa --enforce-eager --deterministic
void add_model_flags(CLI::App* app, ModelOptions& m);    // those, and which weights, in what type and memory
void add_engine_flags(CLI::App* app, EngineFlags& e);
void add_shape_flags(CLI::App* app, ModelOptions& m);      // --shape --num-hidden-layers
void add_filter_flags(CLI::App* app, SamplingOptions& s);  // --temperature --top-k --top-p --min-p
void add_media_flags(CLI::App* app, MediaFlags& m);
void add_pooler_flag(CLI::App* app, Options& o);
void add_serve_flags(CLI::App* app, ServeFlags& s);
void add_load_flags(CLI::App* app, Options& o);  // of bench throughput
void add_sampling_flags(CLI::App* app, SamplingOptions& s);
void add_chat_flags(CLI::App* app, Options& o);

// Positional arguments as the help shows them; command_line.cc places the words itself.
void show_model(CLI::App* app);
void show_model_and(CLI::App* app, const char* text);

}  // namespace calandra::apps
