#include "engine/speculative_config.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <filesystem>
#include <limits>
#include <optional>
#include <utility>

#include "base/error.h"

namespace calandra {
namespace {

constexpr int64_t kAnyBatch = std::numeric_limits<int64_t>::max();

using Reason = std::pair<std::string_view, std::string_view>;

// Every key of vLLM that is not read, and why it need not or cannot be.
constexpr Reason kIgnored[] = {
    {"draft_tensor_parallel_size", "the drafter is split as the model is"},
    {"disable_padded_drafter_batch", "draft batches are never padded"},
    {"disable_log_stats", "statistics have their own flags"},
    {"disable_logprobs", "logprobs are always those of the target"},
    {"disable_mqa_scorer", "drafts are verified in one pass"},
    {"draft_sample_method", "drafts take the noise of the tokens they guess"},
    {"enforce_eager", "the drafter runs as the model does"},
    {"moe_backend", "the drafter runs as the model does"},
    {"attention_backend", "the drafter runs as the model does"},
    {"use_local_argmax_reduction", "drafts are always chosen so"},
};
constexpr Reason kRefused[] = {
    {"tensor_parallel_size", "the drafter is split as the model is: use --tensor-parallel-size"},
    {"quantization", "the drafter is read from the target's weight files, in their number format"},
    {"kv_cache_dtype", "the drafter's cache has the type of the model's"},
    {"max_model_len", "the drafter follows the model: use --max-model-len"},
    {"revision", "the drafter is part of the target's weight files"},
    {"code_revision", "the drafter is part of the target's weight files"},
    {"draft_load_config", "the drafter is part of the target's weight files"},
    {"index_share_for_mtp_iteration", "the models here have no sparse index"},
    {"disable_eagle_block_drop", "cached pages are exact with drafts, none is dropped"},
    {"use_heterogeneous_vocab", "drafter and target share one vocabulary"},
    {"parallel_drafting", "MTP layers draft one token after the other"},
    {"enable_adaptive_verification", "use \"adaptive\""},
    {"speculative_token_tree", "drafts are a chain"},
    {"synthetic_acceptance_rate", "it would change the answers: see --synthetic-acceptance of bench"},
    {"synthetic_acceptance_rates", "it would change the answers: see --synthetic-acceptance of bench"},
    {"synthetic_acceptance_length", "it would change the answers: see --synthetic-acceptance of bench"},
    {"dspark_draft_topk", "there is no DSpark drafter"},
    {"suffix_decoding_max_tree_depth", "there is no suffix decoding: use \"ngram\""},
    {"suffix_decoding_max_cached_requests", "there is no suffix decoding: use \"ngram\""},
    {"suffix_decoding_max_spec_factor", "there is no suffix decoding: use \"ngram\""},
    {"suffix_decoding_min_token_prob", "there is no suffix decoding: use \"ngram\""},
    {"posterior_threshold", "tokens are always the target's own"},
    {"posterior_alpha", "tokens are always the target's own"},
    {"acceptance_method", "tokens are always the target's own"},
};
constexpr std::string_view kRead[] = {"method",
                                      "model",
                                      "num_speculative_tokens",
                                      "adaptive",
                                      "prompt_lookup_min",
                                      "prompt_lookup_max",
                                      "disable_by_batch_size",
                                      "num_speculative_tokens_per_batch_size",
                                      "rejection_sample_method"};

[[noreturn]] void wrong(std::string_view key, std::string_view message) {
  throw UsageError(fmt::format("--speculative-config: \"{}\" {}", key, message));
}

// Null when the key is absent or its value is null.
const json::value* find(const json::object& object, std::string_view key) {
  const json::value* value = object.if_contains(key);
  return value && !value->is_null() ? value : nullptr;
}

std::optional<std::string_view> find_text(const json::object& object, std::string_view key) {
  const json::value* value = find(object, key);
  if (!value) return std::nullopt;
  if (!value->is_string()) wrong(key, "must be a string, got " + to_json(*value));
  return std::string_view(value->get_string());
}

int64_t whole(std::string_view key, const json::value& value, int64_t least, int64_t most) {
  const int64_t* number = value.if_int64();
  if (number && *number >= least && *number <= most) return *number;
  const std::string range =
      most == kAnyBatch ? fmt::format("of at least {}", least) : fmt::format("in [{}, {}]", least, most);
  wrong(key, fmt::format("must be a whole number {}, got {}", range, to_json(value)));
}

bool same_model(std::string_view a, std::string_view b) {
  const auto normal = [](std::string_view name) {
    const std::filesystem::path path = std::filesystem::path(name).lexically_normal();
    return path.has_filename() ? path : path.parent_path();
  };
  if (normal(a) == normal(b)) return true;
  std::error_code error;
  return std::filesystem::equivalent(a, b, error) && !error;
}

void check_keys(const json::object& object, SpeculativeConfig& config) {
  const auto find_reason = [](auto& reasons, std::string_view key) {
    return std::find_if(std::begin(reasons), std::end(reasons), [&](const Reason& r) { return r.first == key; });
  };
  for (const auto& [name, value] : object) {
    const std::string_view key = name;
    if (std::find(std::begin(kRead), std::end(kRead), key) != std::end(kRead)) continue;
    if (const auto* ignored = find_reason(kIgnored, key); ignored != std::end(kIgnored)) {
      if (!value.is_null()) config.notes.push_back(fmt::format("\"{}\" is ignored: {}", key, ignored->second));
    } else if (const auto* refused = find_reason(kRefused, key); refused != std::end(kRefused)) {
      if (!value.is_null()) wrong(key, fmt::format("cannot be set: {}", refused->second));
    } else {
      wrong(key, fmt::format("is not known; keys are {}", fmt::join(std::begin(kRead), std::end(kRead), ", ")));
    }
  }
}

// True when "model" names the target.
bool read_model(const json::object& object, std::string_view model, SpeculativeConfig& config) {
  const auto given = find_text(object, "model");
  if (!given || *given == "ngram" || *given == "[ngram]") return false;
  if (!same_model(*given, model))
    wrong("model", fmt::format("must be the target ({}) or absent, got {}: other draft models are not supported", model,
                               *given));
  config.notes.push_back("\"model\" is ignored: the drafter is part of the target");
  return true;
}

void read_method(const json::object& object, std::string_view model, SpeculativeConfig& config) {
  const bool is_target = read_model(object, model, config);
  const bool names_ngram = find(object, "model") && !is_target;
  const auto given = find_text(object, "method");
  if (!given && !is_target && !names_ngram) wrong("method", "is missing: \"mtp\" or \"ngram\"");
  const std::string_view method = given ? *given : is_target ? "mtp" : "ngram";
  if (method == "ngram" || method == "[ngram]" || method == "ngram_gpu") {
    config.method = DraftMethod::kNgram;
    if (method == "ngram_gpu") config.notes.push_back("\"method\": \"ngram_gpu\" is taken as \"ngram\"");
  } else if (method == "mtp" || method.ends_with("_mtp")) {
    config.method = DraftMethod::kMtp;
    if (names_ngram) wrong("model", "is \"ngram\", but \"method\" is " + std::string(method));
    if (method != "mtp")
      config.notes.push_back(fmt::format("\"method\": \"{}\" is an old name, taken as \"mtp\"", method));
  } else {
    wrong("method", fmt::format("must be \"mtp\" or \"ngram\", got \"{}\"", method));
  }
}

void read_count(const json::object& object, SpeculativeConfig& config) {
  constexpr std::string_view kCount = "num_speculative_tokens", kAdaptive = "adaptive";
  const json::value* count = find(object, kCount);
  const bool is_auto = !count || (count->is_string() && count->get_string() == "auto");
  if (count && count->is_string() && !is_auto)
    wrong(kCount, "must be a whole number or \"auto\", got " + to_json(*count));
  if (!is_auto)
    config.num_speculative_tokens = static_cast<int>(whole(kCount, *count, 0, SpeculativeConfig::kMostDrafts));
  if (const json::value* adaptive = find(object, kAdaptive)) {
    if (!adaptive->is_bool()) wrong(kAdaptive, "must be true or false, got " + to_json(*adaptive));
    config.adaptive = adaptive->get_bool();
    if (!config.adaptive && is_auto) wrong(kAdaptive, "is false: give the number of drafts in num_speculative_tokens");
  }
}

void read_lookup(const json::object& object, SpeculativeConfig& config) {
  constexpr std::string_view kMin = "prompt_lookup_min", kMax = "prompt_lookup_max";
  const json::value *least = find(object, kMin), *most = find(object, kMax);
  if (!least && !most) return;
  if (config.method != DraftMethod::kNgram) wrong(least ? kMin : kMax, "is for \"method\": \"ngram\" only");
  const auto length = [](std::string_view key, const json::value* value) {
    return static_cast<int>(whole(key, *value, 1, SpeculativeConfig::kMostLookupTokens));
  };
  config.prompt_lookup_min = least ? length(kMin, least) : length(kMax, most);
  config.prompt_lookup_max = most ? length(kMax, most) : config.prompt_lookup_min;
  if (config.prompt_lookup_min > config.prompt_lookup_max)
    wrong(kMin, fmt::format("is {}, above prompt_lookup_max = {}", config.prompt_lookup_min, config.prompt_lookup_max));
}

void read_batch_ranges(const json::object& object, SpeculativeConfig& config) {
  constexpr std::string_view kRanges = "num_speculative_tokens_per_batch_size", kDisable = "disable_by_batch_size";
  auto& ranges = config.batch_ranges;
  if (const json::value* value = find(object, kRanges)) {
    if (!value->is_array()) wrong(kRanges, "must be a list of [first, last, drafts], got " + to_json(*value));
    for (const json::value& item : value->get_array()) {
      if (!item.is_array() || item.get_array().size() != 3)
        wrong(kRanges, "must be a list of [first, last, drafts], got " + to_json(item));
      const json::array& range = item.get_array();
      const int64_t first = whole(kRanges, range[0], 1, kAnyBatch);
      ranges.push_back({first, whole(kRanges, range[1], first, kAnyBatch),
                        static_cast<int>(whole(kRanges, range[2], 0, config.num_speculative_tokens))});
    }
    std::sort(ranges.begin(), ranges.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
    for (size_t i = 1; i < ranges.size(); ++i)
      if (ranges[i].first <= ranges[i - 1].last) wrong(kRanges, fmt::format("has {} in two ranges", ranges[i].first));
  }
  if (const json::value* value = find(object, kDisable)) {
    if (!ranges.empty()) wrong(kDisable, fmt::format("cannot be combined with {}", kRanges));
    const int64_t most = whole(kDisable, *value, 0, kAnyBatch);
    if (most < kAnyBatch) ranges.push_back({most + 1, kAnyBatch, 0});
  }
}

void read_verification(const json::object& object, SpeculativeConfig& config) {
  constexpr std::string_view kKey = "rejection_sample_method";
  const auto method = find_text(object, kKey);
  if (!method) return;
  if (*method == "synthetic") wrong(kKey, "cannot be \"synthetic\": see --synthetic-acceptance of bench");
  constexpr std::array<std::string_view, 4> kLossless = {"standard", "strict", "probabilistic", "block"};
  if (std::find(kLossless.begin(), kLossless.end(), *method) == kLossless.end())
    wrong(kKey, fmt::format("must be one of {}, got \"{}\"", fmt::join(kLossless, ", "), *method));
  config.notes.push_back(fmt::format("\"{}\" is ignored: tokens are always those of no speculation", kKey));
}

}  // namespace

int SpeculativeConfig::drafts_for(int64_t running) const {
  for (const BatchRange& range : batch_ranges)
    if (running >= range.first && running <= range.last) return range.drafts;
  return num_speculative_tokens;
}

SpeculativeConfig parse_speculative_config(const json::object& object, std::string_view model) {
  SpeculativeConfig config;
  check_keys(object, config);
  read_method(object, model, config);
  read_count(object, config);
  read_lookup(object, config);
  read_batch_ranges(object, config);
  read_verification(object, config);
  return config;
}

}  // namespace calandra
