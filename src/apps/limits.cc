#include "apps/limits.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <limits>

#include "base/error.h"
#include "base/log.h"
#include "base/progress.h"

namespace calandra::apps {
namespace {

std::string bytes(int64_t n) { return format_bytes(static_cast<double>(n)); }

constexpr const char* kAdvice =
    "lower --max-num-seqs, --max-model-len, --max-num-batched-tokens, --num-gpu-blocks-override or --num-state-slots";

// The flag that lowers the largest part of a plan.
const char* advice_for(const MemoryPlan& plan) {
  const int64_t pages = plan.pages * plan.page_bytes, slots = plan.slots * plan.slot_bytes;
  const int64_t rest = plan.total() - pages - slots;
  if (pages >= std::max(slots, rest)) return "lower --max-model-len or --num-gpu-blocks-override";
  if (slots >= rest) return "lower --checkpoint-bytes or --num-state-slots";
  return "lower --max-num-batched-tokens";
}

void check_fit(const ModelOptions& options, const RunnerLimits& limits, const Sizes& least) {
  const auto check = [](const char* flag, int64_t given, int64_t needed, const char* what) {
    if (given < needed) throw LoadError(fmt::format("{} {} is too small: {} {} are needed", flag, given, needed, what));
  };
  if (options.max_model_len) check("--max-model-len", limits.max_model_len, least.tokens, "tokens");
  if (limits.max_model_len < least.tokens)
    throw LoadError(fmt::format("{} tokens are more than the model's max_position_embeddings {}", least.tokens,
                                limits.max_model_len));
  if (options.max_num_batched_tokens)
    check("--max-num-batched-tokens", *options.max_num_batched_tokens, least.sequences, "tokens");
  check("--max-num-seqs", limits.max_num_seqs, least.sequences, "sequences");
  const int64_t pages_each = (least.tokens + limits.block_size - 1) / limits.block_size;
  if (options.num_gpu_blocks_override)
    check("--num-gpu-blocks-override", limits.num_blocks, least.sequences * pages_each, "pages");
  if (options.num_state_slots) check("--num-state-slots", limits.num_state_slots, least.sequences, "slots");
  const int64_t pages = limits.max_num_seqs * ((limits.max_model_len + limits.block_size - 1) / limits.block_size);
  if (std::max(pages, limits.num_blocks) > std::numeric_limits<int32_t>::max())
    throw LoadError(fmt::format("{} sequences of {} tokens are {} pages, more than can be counted; {}",
                                limits.max_num_seqs, limits.max_model_len, pages, kAdvice));
}

}  // namespace

int64_t memory_of(const Backend& backend) {
  const auto device = static_cast<int64_t>(backend.memory_bytes());
  return device > 0 ? device : sysconf(_SC_PHYS_PAGES) * sysconf(_SC_PAGESIZE);
}

RunnerLimits planned_limits(const LoadedModel& loaded, const ModelOptions& options, const Sizes& usual,
                            const Sizes& least) {
  RunnerLimits limits;
  // A step has a token of each sequence, so few tokens make few sequences.
  const int64_t sequences =
      std::max(least.sequences, std::min(usual.sequences, options.max_num_batched_tokens.value_or(usual.sequences)));
  limits.max_num_seqs = options.max_num_seqs.value_or(sequences);
  limits.max_model_len =
      options.max_model_len.value_or(std::min(usual.tokens, loaded.model->max_position_embeddings()));
  const int64_t tokens = options.max_num_batched_tokens.value_or(std::max<int64_t>(512, limits.max_num_seqs));
  limits.max_num_batched_tokens = std::min(tokens, limits.max_model_len * limits.max_num_seqs);
#ifdef CALANDRA_HOSTILE
  limits.block_size = options.block_size.value_or(1);
#else
  limits.block_size = options.block_size.value_or(16);
#endif
  limits.num_blocks = options.num_gpu_blocks_override.value_or(0);
  limits.num_state_slots = options.num_state_slots.value_or(0);
  check_fit(options, limits, least);
  return limits;
}

RunnerLimits fitting_limits(const LoadedModel& loaded, int64_t least, int64_t most, int64_t more,
                            const std::function<RunnerLimits(int64_t)>& limits_for) {
  const int64_t weights = loaded.store->summary().packed_bytes;
  const int64_t room = memory_of(*loaded.backend) - weights - more;
  const auto plan_for = [&](int64_t sequences) {
    return ModelRunner::plan_memory(*loaded.model, *loaded.backend, limits_for(sequences));
  };
  if (plan_for(most).total() <= room) return limits_for(most);
  const MemoryPlan smallest = plan_for(least);
  if (smallest.total() > room)
    throw LoadError(fmt::format(
        "{} of memory are needed beside the weights ({} for {} pages, {} for {} slots, {} of workspace) for {}, the "
        "{} has {} left: {} are missing; {}",
        bytes(smallest.total()), bytes(smallest.pages * smallest.page_bytes), smallest.pages,
        bytes(smallest.slots * smallest.slot_bytes), smallest.slots, bytes(smallest.workspace_bytes),
        least == 1 ? "one sequence" : fmt::format("{} sequences", least),
        loaded.backend->memory_bytes() > 0 ? "device" : "machine", bytes(std::max<int64_t>(0, room)),
        bytes(smallest.total() - room), advice_for(smallest)));
  int64_t fits = least, too_many = most;
  while (too_many - fits > 1) {
    const int64_t middle = fits + (too_many - fits) / 2;
    (plan_for(middle).total() <= room ? fits : too_many) = middle;
  }
  log_warning("{} sequences at once do not fit into memory; {} will run (--max-num-seqs, --max-model-len)", most, fits);
  return limits_for(fits);
}

RunnerLimits runner_limits(const LoadedModel& loaded, const ModelOptions& options, const Sizes& usual,
                           const Sizes& least) {
  const int64_t most = planned_limits(loaded, options, usual, least).max_num_seqs;
  return fitting_limits(loaded, least.sequences, most, 0, [&](int64_t sequences) {
    ModelOptions fewer = options;
    fewer.max_num_seqs = sequences;
    return planned_limits(loaded, fewer, usual, least);
  });
}

}  // namespace calandra::apps
