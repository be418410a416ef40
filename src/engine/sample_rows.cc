#include "engine/sample_rows.h"

#include <cmath>
#include <limits>
#include <optional>

#include "base/check.h"
#include "engine/sampling_row.h"

namespace calandra {
namespace {

[[noreturn]] void wrong(std::string_view key, std::string_view expected) {
  throw UsageError("sample row: \"" + std::string(key) + "\" must be " + std::string(expected));
}

std::vector<float> logits_of(const json::object& row, const json::object& named) {
  const json::value* value = row.if_contains("logits");
  if (value != nullptr && value->is_string()) {
    value = named.if_contains(value->get_string());
    if (value == nullptr)
      throw UsageError("sample row: the logits file has no logits " + calandra::to_json(row.at("logits")));
  }
  if (value == nullptr || !value->is_array() || value->get_array().empty())
    wrong("logits", "an array of numbers and \"-inf\", or a name");
  std::vector<float> logits;
  for (const json::value& l : value->get_array()) {
    if (l.is_number())
      logits.push_back(static_cast<float>(l.to_number<double>()));
    else if (l.is_string() && l.get_string() == "-inf")
      logits.push_back(-std::numeric_limits<float>::infinity());
    else
      wrong("logits", "an array of numbers and \"-inf\", or a name");
  }
  return logits;
}

std::optional<int32_t> integer_of(const json::object& row, std::string_view key, int64_t below) {
  const json::value* value = row.if_contains(key);
  if (value == nullptr) return std::nullopt;
  if (!value->is_int64() || value->get_int64() < 0 || value->get_int64() >= below)
    wrong(key, "an integer in [0, " + std::to_string(below) + ")");
  return static_cast<int32_t>(value->get_int64());
}

// Ids below V; absent: none.
std::vector<int32_t> ids_of(const json::object& row, std::string_view key, int64_t V) {
  const json::value* value = row.if_contains(key);
  if (value == nullptr) return {};
  if (!value->is_array()) wrong(key, "an array of ids");
  std::vector<int32_t> ids;
  for (const json::value& id : value->get_array()) {
    if (!id.is_int64() || id.get_int64() < 0 || id.get_int64() >= V)
      wrong(key, "an array of ids below the number of logits");
    ids.push_back(static_cast<int32_t>(id.get_int64()));
  }
  return ids;
}

SamplingParams params_of(const json::object& row, int64_t V) {
  const json::value* value = row.if_contains("params");
  if (value == nullptr) return {};
  if (!value->is_object()) wrong("params", "an object");
  const auto read = read_sampling_params(value->get_object(), {}, /*others=*/false);
  if (const auto* error = std::get_if<RequestError>(&read)) throw UsageError("sample row: params: " + error->message);
  const SamplingParams& params = std::get<SamplingParams>(read);
  if (const auto error = params.check(V)) throw UsageError("sample row: params: " + error->message);
  return params;
}

json::value number(double value) {
  if (value == -std::numeric_limits<double>::infinity()) return "-inf";
  return value;
}

json::object to_json(const ops::TokenLogprobs& logprobs) {
  json::array top;
  for (const ops::TokenLogprob& t : logprobs.top) top.push_back(json::array{t.id, number(t.logprob)});
  return {{"logprob", number(logprobs.logprob)}, {"rank", logprobs.rank}, {"top", std::move(top)}};
}

}  // namespace

json::object sample_row(ExecContext& ctx, const json::object& row, const json::object& named_logits) {
  constexpr int64_t kAny = int64_t{1} << 31;
  std::vector<float> logits = logits_of(row, named_logits);
  const auto V = static_cast<int64_t>(logits.size());
  Sequence sequence;
  sequence.params = params_of(row, V);
  sequence.tokens = ids_of(row, "prompt_ids", V);
  sequence.prompt_size = sequence.size();
  for (const int32_t id : ids_of(row, "output_ids", V)) sequence.tokens.push_back(id);
  sequence.seed = sequence.params.seed.value_or(0);
  sequence.choice = integer_of(row, "choice", kAny).value_or(0);
  const auto position = integer_of(row, "position", kAny);
  const auto sampled_id = integer_of(row, "sampled_id", V);

  ops::SamplingBatch batch;
  CHECK(add_sampling_row(batch, sequence, /*drafts=*/{}, /*logit_row=*/0, /*context=*/{}));
  ops::SamplingRow& raw = batch.rows[0];
  raw.token_index = position.value_or(0);
  if (row.contains("grammar_allowed_ids")) {
    raw.grammar = 0;
    batch.grammar.assign((V + 31) / 32, 0);
    for (const int32_t id : ids_of(row, "grammar_allowed_ids", V)) batch.grammar[id / 32] |= uint32_t{1} << (id % 32);
  }
  raw.distribution = true;
  raw.num_logprobs = integer_of(row, "num_logprobs", kAny).value_or(0);
  raw.scored_id = sampled_id.value_or(-1);
  raw.logprobs_mode = ops::LogprobsMode::kRawLogprobs;
  ops::SamplingRow processed = raw;
  processed.distribution = false;
  processed.logprobs_mode = ops::LogprobsMode::kProcessedLogprobs;
  batch.rows.push_back(processed);

  ops::SamplingResult result;
  ops::sample(ctx, Tensor(logits.data(), DType::kF32, {1, V}), batch, result);
  const ops::SampledRow& sampled = result.rows[0];
  if (sampled.status == ops::RowStatus::kAllMasked) throw UsageError("sample row: no token is left");
  if (sampled.status == ops::RowStatus::kNotFinite) throw UsageError("sample row: a logit is not finite");

  json::object out{
      {"distribution",
       json::object{{"ids", json::array(sampled.distribution_ids.begin(), sampled.distribution_ids.end())},
                    {"probs", json::array(sampled.distribution_probs.begin(), sampled.distribution_probs.end())}}},
      {"greedy_id", sampled.greedy_id}};
  const bool has_token = sequence.params.seed && position;
  if (sampled_id || has_token) {
    out["raw_logprobs"] = to_json(sampled.logprobs);
    out["processed_logprobs"] = to_json(result.rows[1].logprobs);
  }
  if (has_token) out["token"] = sampled.token;
  return out;
}

}  // namespace calandra
