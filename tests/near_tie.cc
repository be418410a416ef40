#include "tests/near_tie.h"

#include <algorithm>
#include <cmath>
#include <random>
#include <string_view>

#include "base/noise.h"
#include "tests/model_under_test.h"

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

// Moves the numbers of each layer's result, which the next layer reads, by as many steps of bf16 as the roundings of a
// layer in two runs may: each is off by up to half a step.
class Disturbance final : public Taps {
 public:
  Disturbance(Backend& backend, uint32_t seed) : backend_(backend), dice_(seed) {}

  void tap(int layer, const char* name, const Tensor& tensor) override {
    saw_router_ |= std::string_view(name) == "router_logits";
    if (layer < 0 || *name != '\0') return;
    std::vector<uint16_t> numbers(static_cast<size_t>(tensor.numel()));
    const size_t bytes = numbers.size() * sizeof(uint16_t);
    backend_.copy_bytes(numbers.data(), tensor.data(), bytes);
    for (uint16_t& x : numbers) {
      const int magnitude = x & 0x7fff, moved = magnitude + static_cast<int>(std::lround(steps_(dice_)));
      if (moved > 0 && moved < 0x7f80) x = static_cast<uint16_t>((x & 0x8000) | moved);  // finite, of the same sign
    }
    backend_.copy_bytes(const_cast<void*>(tensor.data()), numbers.data(), bytes);
  }
  bool saw_router() const { return saw_router_; }

 private:
  Backend& backend_;
  std::mt19937 dice_;
  bool saw_router_ = false;
  std::normal_distribution<double> steps_{0, std::sqrt(2 * kRoundingsOfLayer / 12)};
};

// How far the logit of `other` comes nearer to that of `own` behind these tokens in runs that are disturbed, the first
// that reaches `enough` or else the largest. 0 without a router.
double shift_of(Subject& subject, const std::vector<int32_t>& tokens, int32_t own, int32_t other, double enough) {
  constexpr uint32_t kRuns = 16;
  const int64_t T = std::ssize(tokens);
  ModelRunner runner(*subject.model, *subject.backend,
                     {.max_num_seqs = 1, .max_num_batched_tokens = T, .max_model_len = T, .taps = true});
  const auto gap = [&](Taps* taps) {
    Sequence sequence;
    sequence.tokens = tokens;
    sequence.prompt_size = T;
    CHECK(runner.reserve(sequence, T));
    const ModelRunner::Part part{&sequence, T};
    const Tensor hidden = runner.forward({&part, 1}, taps);
    const int32_t row = static_cast<int32_t>(T) - 1;
    const testing::HostCopy logits(runner.logits(hidden, std::span(&row, 1)));
    const double difference = double{logits[own]} - double{logits[other]};
    runner.release(sequence);
    return difference;
  };
  const double plain = gap(nullptr);
  double shift = 0;
  for (uint32_t run = 0; run < kRuns && shift < enough; ++run) {
    Disturbance taps(*subject.backend, run);
    shift = std::max(shift, plain - gap(&taps));
    if (!taps.saw_router()) return 0;
  }
  return shift;
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
  // A router at a near tie makes a jump of what it reads, which that walk knows nothing of.
  if (parting.edge || parting.gap <= parting.explained || !request.positions.empty()) return parting;
  std::vector<int32_t> tokens = request.prompt_token_ids;
  tokens.insert(tokens.end(), plain.begin(), plain.begin() + static_cast<std::ptrdiff_t>(at));
  parting.disturbed = shift_of(subject, tokens, own, other, parting.gap * temperature) / temperature;
  return parting;
}

}  // namespace calandra::lossless
