#include "tests/near_tie.h"

#include <algorithm>
#include <cmath>

#include "base/noise.h"

namespace calandra::lossless {
namespace {

// Of each layer, one behind the other: both norms, projections, mixer, gate, activation, both sums.
constexpr double kRoundingsOfLayer = 10;

double noise_of(const Request& request, int64_t token, int32_t id) {
  if (request.params.temperature < ops::kGreedyBelow) return 0;
  const NoiseKey key{request.params.seed.value(), static_cast<uint32_t>(std::ssize(request.prompt_token_ids) + token),
                     static_cast<uint32_t>(request.first_choice)};
  return gumbel(noise_words(key, static_cast<uint32_t>(id) / 4)[static_cast<size_t>(id) % 4]);
}

}  // namespace

Parting parting_of(Subject& subject, const AskedRequest& asked, size_t choice, const Answer& got) {
  const std::vector<int32_t>& plain = asked.plain[choice].token_ids;
  const auto both = std::min(got.token_ids.size(), plain.size());
  const auto at = static_cast<size_t>(
      std::mismatch(plain.begin(), plain.begin() + static_cast<std::ptrdiff_t>(both), got.token_ids.begin()).first -
      plain.begin());
  Parting parting{asked.name, static_cast<int64_t>(at), INFINITY, 0};
  if (at == both) return parting;  // one answer is the other's beginning: no token is to blame
  const int32_t own = plain[at], other = got.token_ids[at];

  Request request = copy_of(asked.request);
  request.first_choice += static_cast<int32_t>(choice);
  request.params.n = 1;
  request.params.prompt_logprobs.reset();
  request.params.logprobs = 1;
  request.params.logprob_token_ids = {own, other};
  const auto logits = [&](ops::LogprobsMode mode) {
    request.params.logprobs_mode = mode;
    return ask(subject, asked.name, request).plain[0].logprobs.at(at);
  };
  const ops::TokenLogprobs processed = logits(ops::LogprobsMode::kProcessedLogits),
                           raw = logits(ops::LogprobsMode::kRawLogits);
  const double z_own = processed.listed.at(0).logprob, z_other = processed.listed.at(1).logprob;
  parting.edge = std::isinf(z_other);
  parting.gap = z_own + noise_of(request, parting.token, own) - (z_other + noise_of(request, parting.token, other));
  // Roundings to bf16 are off by 2^-9 / sqrt(3) in the root mean square. Independent ones add up as a random walk, and
  // the gap has two logits of two runs.
  const double layers = static_cast<double>(subject.model->cache_specs().size()),
               temperature = request.params.temperature < ops::kGreedyBelow ? 1 : request.params.temperature;
  parting.explained =
      std::sqrt(4 * kRoundingsOfLayer * layers / 3) * 0x1p-9 * std::abs(raw.top.at(0).logprob) / temperature;
  return parting;
}

}  // namespace calandra::lossless
