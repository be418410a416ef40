#include "apps/engine_setup.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>

#include "base/error.h"
#include "base/progress.h"

namespace calandra::apps {
namespace {

constexpr int64_t kMostDefaultCheckpointBytes = int64_t{4} << 30;
constexpr int64_t kMostDefaultCheckpoints = 256;  // small models need not fill those bytes
constexpr int64_t kDraftVocab = 32768;
constexpr int64_t kRingRows = 32;     // hidden rows that wait for the drafter; above the most drafts
constexpr int64_t kCutsPerStep = 16;  // checkpoints inside the prompts of one step

// Bytes of a page and of a slot.
MemoryPlan units(const LoadedModel& loaded, const RunnerLimits& limits) {
  RunnerLimits one = limits;
  one.max_num_seqs = one.num_blocks = one.num_state_slots = one.max_num_batched_tokens = 1;
  return ModelRunner::plan_memory(*loaded.model, *loaded.backend, one);
}

// The model's marks around its reasoning, when each is one token.
ThinkingTokens thinking_tokens(const LoadedModel& loaded) {
  if (!loaded.tokenizer) return {};
  const auto start = loaded.tokenizer->token_to_id("<think>"), end = loaded.tokenizer->token_to_id("</think>");
  if (!start || !end || !loaded.tokenizer->is_added(*start) || !loaded.tokenizer->is_added(*end)) return {};
  return {{*start}, {*end}};
}

bool keeps_states(const EngineFlags& flags, const EngineUse& use) {
  const bool asked = flags.checkpoint_bytes || flags.host_checkpoint_bytes || flags.checkpoint_interval ||
                     flags.checkpoints_per_prompt;
  return flags.prefix_caching.value_or(use.prefix_caching || asked);
}

EngineOptions options_of(const LoadedModel& loaded, const Options& given, const EngineUse& use) {
  const EngineFlags& flags = given.engine;
  EngineOptions options;
  options.eos_token_ids = loaded.eos_token_ids;
  options.seed = given.model.seed;
  options.thinking = thinking_tokens(loaded);
  SchedulerOptions& scheduler = options.scheduler;
  if (flags.scheduling_policy == "priority") scheduler.policy = SchedulingPolicy::kPriority;
  scheduler.checkpoint_interval = flags.checkpoint_interval.value_or(scheduler.checkpoint_interval);
  scheduler.checkpoints_per_prompt = flags.checkpoints_per_prompt.value_or(scheduler.checkpoints_per_prompt);
  if (keeps_states(flags, use)) {
    options.checkpoint_bytes =
        flags.checkpoint_bytes.value_or(std::min(memory_of(*loaded.backend) / 8, kMostDefaultCheckpointBytes));
    options.host_checkpoint_bytes = flags.host_checkpoint_bytes.value_or(0);
  }
  options.speculative = flags.speculative;
  options.async_scheduling = flags.async_scheduling.value_or(loaded.backend->stream() != nullptr);
  return options;
}

// Bytes that --gpu-memory-utilization leaves to others.
int64_t left_free(const LoadedModel& loaded, const EngineFlags& flags) {
  const double part = 1 - flags.gpu_memory_utilization.value_or(1);
  return static_cast<int64_t>(part * static_cast<double>(memory_of(*loaded.backend)));
}

// The limits of an engine for one number of sequences.
class EngineLimits {
 public:
  EngineLimits(const LoadedModel& loaded, const Options& given, const EngineUse& use, const EngineOptions& options)
      : loaded_(loaded),
        model_(given.model),
        flags_(given.engine),
        use_(use),
        drafts_(flags_.speculative ? flags_.speculative->num_speculative_tokens : 0),
        checkpoint_bytes_(options.checkpoint_bytes),
        caches_(options.checkpoint_bytes > 0 || options.host_checkpoint_bytes > 0),
        plain_(with_drafts(planned_limits(loaded, model_, use.usual, use.least))),
        units_(units(loaded, plain_)) {
    checkpoints_ = options.checkpoint_bytes / units_.slot_bytes;
    if (!flags_.checkpoint_bytes) checkpoints_ = std::min(checkpoints_, kMostDefaultCheckpoints);
    check_pages();
  }

  // As many as flags or verb ask for.
  int64_t sequences() const { return plain_.max_num_seqs; }

  RunnerLimits of(int64_t sequences) const {
    ModelOptions model = model_;
    model.max_num_seqs = sequences;
    RunnerLimits limits = with_drafts(planned_limits(loaded_, model, use_.usual, use_.least));
    if (caches_) limits.max_cuts = kCutsPerStep;
    if (!model_.num_state_slots) limits.num_state_slots = sequences + 1 + checkpoints_;  // one more while forking
    if (!model_.num_gpu_blocks_override) limits.num_blocks = pages(sequences, limits.max_model_len);
    return limits;
  }

 private:
  int64_t pages(int64_t sequences, int64_t max_model_len) const {
    if (flags_.kv_cache_memory_bytes) return given_pages();
    // Of all sequences at full length, and those that kept states may hold beside them.
    const int64_t each = pages_for(max_model_len), page_bytes = std::max<int64_t>(1, units_.page_bytes);
    const int64_t kept = std::min(checkpoints_ * each, checkpoint_bytes_ / page_bytes);
    if (use_.any_memory) return sequences * each + kept;
    // Long sequences are rare, so not more than a quarter of the memory.
    const int64_t most =
        std::min<int64_t>(memory_of(*loaded_.backend) / 4 / page_bytes, std::numeric_limits<int32_t>::max());
    return std::min(sequences * each + kept, std::max(each, most));
  }
  RunnerLimits with_drafts(RunnerLimits limits) const {
    limits.pending_capacity = drafts_;
    if (drafts_ > 0 && flags_.speculative->method == DraftMethod::kMtp) limits.hidden_ring = kRingRows;
    // Room for the drafts of all.
    if (!model_.max_num_batched_tokens)
      limits.max_num_batched_tokens = std::max(limits.max_num_batched_tokens, limits.max_num_seqs * (1 + drafts_));
    return limits;
  }
  int64_t pages_for(int64_t tokens) const { return calandra::pages_for(tokens, plain_.block_size); }
  int64_t given_pages() const {
    return std::min<int64_t>(*flags_.kv_cache_memory_bytes / std::max<int64_t>(1, units_.page_bytes),
                             std::numeric_limits<int32_t>::max());
  }
  void check_pages() const {
    const int64_t needed = use_.least.sequences * pages_for(use_.least.tokens);
    if (flags_.kv_cache_memory_bytes && given_pages() < needed)
      throw LoadError(fmt::format("--kv-cache-memory-bytes {} is too small: {} pages of {} bytes are needed",
                                  *flags_.kv_cache_memory_bytes, needed, units_.page_bytes));
  }

  const LoadedModel& loaded_;
  const ModelOptions& model_;
  const EngineFlags& flags_;
  const EngineUse& use_;
  const int64_t drafts_;
  const int64_t checkpoint_bytes_;
  const bool caches_;
  const RunnerLimits plain_;
  const MemoryPlan units_;
  int64_t checkpoints_ = 0;
};

}  // namespace

LoadedModel load_for_engine(const Options& options, bool vision, bool weights) {
  const EngineFlags& flags = options.engine;
  const bool drafts = flags.speculative && flags.speculative->method == DraftMethod::kMtp;
  const int64_t draft_vocab = drafts ? flags.draft_vocab.value_or(kDraftVocab) : 0;
  ModelOptions model = options.model;
  model.can_sleep = options.serve.enable_admin_endpoints;
  return load_model(model, {.drafter = drafts, .vision = vision}, weights, draft_vocab);
}

EngineSetup engine_setup(const LoadedModel& loaded, const Options& options, const EngineUse& use) {
  if (options.engine.speculative && options.engine.speculative->method == DraftMethod::kMtp) check_drafter(loaded);
  EngineSetup setup{{}, options_of(loaded, options, use)};
  const EngineLimits limits(loaded, options, use, setup.options);
  if (use.any_memory)
    setup.limits = limits.of(limits.sequences());
  else
    setup.limits = fitting_limits(loaded, use.least.sequences, limits.sequences(),
                                  setup.options.host_checkpoint_bytes + left_free(loaded, options.engine),
                                  [&](int64_t sequences) { return limits.of(sequences); });
  return setup;
}

}  // namespace calandra::apps
