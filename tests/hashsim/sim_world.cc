#include "tests/hashsim/sim_world.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "base/philox.h"
#include "tests/hashsim/toy_rules.h"

namespace calandra::hashsim {
namespace {

// Bytes of a checkpoint of the drawn sizes, roughly.
int64_t page_bytes(const HashModelConfig& model, int64_t block_size) {
  return (model.blocks + model.mtp_layers) * 16 * block_size;
}
int64_t slot_bytes(const HashModelConfig& model, int64_t pending) {
  return model.blocks * 8 * (5 + 4 * pending) + 4 * kHiddenSize * (1 + pending);
}

std::vector<int32_t> draw_ids(Draw& draw, int64_t vocab_size, int64_t count) {
  std::vector<int32_t> ids;
  for (int64_t i = 0; i < count; ++i) ids.push_back(static_cast<int32_t>(draw.in(0, vocab_size - 1)));
  return ids;
}

HashModelConfig draw_model(Draw& draw) {
  HashModelConfig model;
  model.blocks = draw.in(1, 2);
  model.mtp_layers = draw.in(0, 3);
  model.vision = draw.chance(25);
  model.vocab_size = draw.chance(20) ? 3 : 64;
  model.agreement = 0.25 * static_cast<double>(draw.in(0, 4));
  if (draw.chance(15)) model.nan_token = static_cast<int32_t>(draw.in(0, model.vocab_size - 1));
  model.seed = draw.word();
  model.step_cost = {.weight_bytes = 1e6, .state_bytes = 1e4, .kv_bytes_per_key = 100, .flops_per_row = 1e6};
  model.draft_cost = {.weight_bytes = draw.chance(50) ? 1e4 : 1e6, .kv_bytes_per_key = 10, .flops_per_row = 1e4};
  return model;
}

}  // namespace

const SimPictures::Picture& SimPictures::get(int32_t content, int32_t height, int32_t width) {
  const auto [place, is_new] = pictures_.try_emplace({content, height, width});
  if (is_new) {
    EncoderInput input;
    const auto merge = static_cast<int32_t>(model_.vision()->spatial_merge_size());
    input.grid = {1, height * merge, width * merge};
    input.content_hash[2] = static_cast<uint64_t>(content);
    for (int64_t patch = 0; patch < input.grid.patches(); ++patch)
      input.patches.push_back(static_cast<float>(content) + static_cast<float>(patch) / 64);
    place->second.embeds = encode_patches(*model_.vision(), backend_, input.patches, {&input.grid, 1});
    place->second.input = std::make_shared<EncoderInput>(std::move(input));
  }
  return place->second;
}

void set_prompt(SimRequest& to, const std::vector<SimToken>& tokens, bool encoded, SimPictures& pictures) {
  Request& r = to.request;
  to.tokens = tokens;
  int32_t position = 0;
  for (size_t i = 0; i < tokens.size(); ++i) {
    const SimToken& t = tokens[i];
    r.prompt_token_ids.push_back(t.id);
    if (t.content < 0) {
      to.images.push_back(0);
      r.positions.push_back({position, position, position});
      ++position;
      continue;
    }
    const SimPictures::Picture& picture = pictures.get(t.content, t.height, t.width);
    const auto goes_on = [&](size_t next, int64_t row) {
      return next < tokens.size() && tokens[next].content == t.content && tokens[next].row == row;
    };
    if (t.row == 0) {
      int64_t count = 1;
      while (goes_on(i + static_cast<size_t>(count), count)) ++count;
      const auto begin = static_cast<int64_t>(i);
      if (encoded)
        r.images.push_back({begin, picture.embeds.rows.slice(0, 0, count)});
      else
        r.pictures.push_back({begin, count, picture.input, 0});
    }
    to.images.push_back(image_hash(picture.embeds.rows[t.row].as<float>(), kHiddenSize));
    r.positions.push_back({position, position + t.row / t.width, position + t.row % t.width});
    if (!goes_on(i + 1, t.row + 1)) position += std::max(t.height, t.width);
  }
  r.position_delta = position - static_cast<int32_t>(tokens.size());
  if (std::count(to.images.begin(), to.images.end(), 0) == std::ssize(to.images)) r.positions.clear();
}

SimWorld::SimWorld(uint64_t seed, const std::function<void(SimWorld&)>& change) {
  Draw draw(seed);
  rules.model = draw_model(draw);
  pictures = std::make_unique<SimPictures>(rules.model);
  draw_limits(draw);
  draw_options(draw);
  clear_requests(draw);
  const int64_t count = draw.in(1, 8);
  int64_t step = 0;
  for (int64_t i = 0; i < count; ++i) {
    if (draw.chance(60)) step += draw.in(0, 12);
    add_request(draw).arrival = step;
  }
  fault_steps = draw.chance(70) ? step + draw.in(0, 60) : 0;
  if (change) change(*this);
}

std::string SimWorld::words() const {
  const auto& s = options.speculative;
  return fmt::format(
      "{} pages of {} tokens, {} slots, {} sequences, {} rows, {} cuts, {} tokens at most; {} blocks, {} MTP layers, "
      "ring {}, {} drafts{}{}; checkpoints of {} + {} bytes, every {}; {} requests",
      limits.num_blocks, limits.block_size, limits.num_state_slots, limits.max_num_seqs, limits.max_num_batched_tokens,
      limits.max_cuts, limits.max_model_len, rules.model.blocks, rules.model.mtp_layers, limits.hidden_ring,
      s ? s->num_speculative_tokens : 0, s && s->adaptive ? " adaptive" : "",
      s && s->method == DraftMethod::kNgram ? " by n-grams" : "", options.checkpoint_bytes,
      options.host_checkpoint_bytes, options.scheduler.checkpoint_interval, requests.size());
}

void SimWorld::draw_limits(Draw& draw) {
  limits.max_num_seqs = draw.in(1, draw.chance(50) ? 3 : 8);
  limits.block_size = draw.of<int64_t>({1, 4, 4, 16, 16});
  limits.max_model_len = draw.of<int64_t>({24, 48, 64, 100});
  const int64_t whole = (limits.max_model_len + limits.block_size - 1) / limits.block_size;
  // One sequence's worth or a little more; or many.
  limits.num_blocks = draw.chance(40) ? whole + draw.in(0, whole / 2) : draw.in(2, 10) * whole;
  if (draw.chance(5)) limits.num_blocks = std::max<int64_t>(1, whole / 2);
  limits.num_blocks = std::max(limits.num_blocks, 8 / limits.block_size);
  limits.num_state_slots = draw.chance(40) ? draw.in(1, 3) : limits.max_num_seqs + draw.in(0, 40);
  limits.max_num_batched_tokens = draw.of<int64_t>({1, 3, 8, 17, 32, 64, 128});
  limits.max_cuts = draw.of<int64_t>({0, 1, 2, 8});
}

void SimWorld::draw_options(Draw& draw) {
  const HashModelConfig& model = rules.model;
  const int kind = static_cast<int>(draw.in(0, 4));  // 0: no speculation; 1: n-grams; else MTP
  if (kind == 1 || (kind > 1 && model.mtp_layers > 0)) {
    SpeculativeConfig& s = options.speculative.emplace();
    s.method = kind == 1 ? DraftMethod::kNgram : DraftMethod::kMtp;
    s.num_speculative_tokens = static_cast<int>(draw.in(1, 4));
    s.adaptive = draw.chance(30);
    s.prompt_lookup_min = static_cast<int>(draw.in(1, 2));
    s.prompt_lookup_max = s.prompt_lookup_min + static_cast<int>(draw.in(0, 2));
    if (draw.chance(20)) s.batch_ranges = {{2, 2, static_cast<int>(draw.in(0, 1))}, {4, 100, 0}};
    limits.pending_capacity = s.num_speculative_tokens + draw.in(0, 1);
  } else {
    limits.pending_capacity = draw.in(0, 2);
  }
  if (model.mtp_layers > 0 && (kind > 1 || draw.chance(20))) {
    long_ring = draw.chance(60);
    limits.hidden_ring = limits.pending_capacity + (long_ring ? limits.max_model_len + 1 : draw.in(1, 6));
  }

  const int64_t page = page_bytes(model, limits.block_size), slot = slot_bytes(model, limits.pending_capacity);
  const int64_t few = draw.in(1, 3) * slot + draw.in(1, 12) * page, many = int64_t{1} << 30;
  const int cache = static_cast<int>(draw.in(0, 9));  // 0, 1: none; 2 ... 4: little
  if (cache > 1) options.checkpoint_bytes = cache < 5 ? few : many;
  if (cache > 1 && draw.chance(40)) options.host_checkpoint_bytes = draw.chance(50) ? few : many;
  if (cache > 1 && draw.chance(5)) options.checkpoint_bytes = 0;  // on the host alone
  options.scheduler.policy = draw.chance(30) ? SchedulingPolicy::kPriority : SchedulingPolicy::kFcfs;
  options.scheduler.checkpoint_interval = draw.of<int64_t>({0, 1, 5, 16, 16, 40});
  options.scheduler.checkpoints_per_prompt = draw.of<int64_t>({0, 1, 3, 8});
  options.encoder_budget = draw.of<int64_t>({1, 4, 100});
  options.encoder_cache_bytes = draw.chance(50) ? 0 : 1 << 20;
  options.seed = draw.word();
  options.eos_token_ids = draw.chance(70) ? draw_ids(draw, model.vocab_size, draw.in(1, 2)) : std::vector<int32_t>{};
  if (draw.chance(30)) options.thinking = {draw_ids(draw, model.vocab_size, 1), draw_ids(draw, model.vocab_size, 2)};
  if (options.thinking.end_contains_start()) options.thinking = {};  // an engine refuses it
  rules.eos_token_ids = options.eos_token_ids;
  rules.thinking = options.thinking;
}

std::vector<SimToken> SimWorld::draw_text(Draw& draw, int64_t count) {
  std::vector<SimToken> tokens;
  for (const int32_t id : draw_ids(draw, rules.model.vocab_size, count)) tokens.push_back({id});
  return tokens;
}

// Equal contents come in several shapes.
void SimWorld::draw_image(Draw& draw, std::vector<SimToken>& tokens) {
  const auto content = static_cast<int32_t>(draw.in(1, 3)), id = static_cast<int32_t>(rules.model.vocab_size - 1);
  const auto height = static_cast<int32_t>(draw.in(1, 3)), width = static_cast<int32_t>(draw.in(1, 3));
  for (int32_t row = 0; row < height * width; ++row) tokens.push_back({id, content, row, height, width});
}

void SimWorld::see() {
  rules.model.vision = true;
  pictures = std::make_unique<SimPictures>(rules.model);
}

void SimWorld::clear_requests(Draw& draw) {
  requests.clear();
  seeds_drawn_ = 0;
  roots_.clear();
  draw_roots(draw);
  rules.longest = std::min(limits.max_model_len, limits.num_blocks * limits.block_size);
}

void SimWorld::draw_roots(Draw& draw) {
  for (int64_t i = draw.in(1, 3); i > 0; --i) {
    std::vector<SimToken>& root = roots_.emplace_back();
    while (std::ssize(root) < limits.max_model_len) {
      if (rules.model.vision && draw.chance(40)) draw_image(draw, root);
      const std::vector<SimToken> text = draw_text(draw, draw.in(1, 20));
      root.insert(root.end(), text.begin(), text.end());
    }
  }
}

// A beginning of a root, an earlier conversation, or nothing; then new text.
std::vector<SimToken> SimWorld::draw_prompt(Draw& draw) {
  std::vector<SimToken> tokens;
  const int kind = static_cast<int>(draw.in(0, 9));
  if (kind < 6) {
    const std::vector<SimToken>& root = draw.of(roots_);
    int64_t length = draw.in(1, std::min<int64_t>(std::ssize(root), 60));
    if (draw.chance(40)) length = length / limits.block_size * limits.block_size;
    tokens.assign(root.begin(), root.begin() + length);
  } else if (kind < 9 && !requests.empty()) {
    const SimRequest& before = requests[static_cast<size_t>(draw.in(0, std::ssize(requests) - 1))];
    tokens = before.tokens;
    if (!before.solo.empty())
      for (const int32_t id : draw.of(before.solo)->answer.token_ids) tokens.push_back({id});
    if (draw.chance(30)) tokens.resize(static_cast<size_t>(draw.in(0, std::ssize(tokens))));
  }
  if (tokens.empty() || draw.chance(70)) {
    const std::vector<SimToken> tail = draw_text(draw, draw.in(1, 10));
    tokens.insert(tokens.end(), tail.begin(), tail.end());
  }
  return tokens;
}

void SimWorld::draw_params(Draw& draw, Request& request) {
  const int64_t V = rules.model.vocab_size;
  SamplingParams& p = request.params;
  const auto rare = [&] { return draw.chance(15); };
  p.n = draw.chance(25) ? static_cast<int32_t>(draw.in(2, 4)) : 1;
  p.temperature = draw.chance(35) ? 0 : draw.real(0.5f, 1.5f);
  if (rare()) p.top_k = static_cast<int32_t>(draw.in(-1, 5));
  if (rare()) p.top_p = draw.real(0.3f, 1);
  if (rare()) p.min_p = draw.real(0, 0.2f);
  if (draw.chance(75)) p.seed = draw.word();
  if (rare()) p.repetition_penalty = draw.real(0.7f, 1.6f);
  if (rare()) p.frequency_penalty = draw.real(-1, 1);
  if (rare()) p.presence_penalty = draw.real(-1, 1);
  if (rare())
    for (int32_t id = 0; id < V; id += static_cast<int32_t>(draw.in(1, V)))
      p.logit_bias.push_back({id, draw.real(-3, 3)});
  if (rare()) p.allowed_token_ids = draw_ids(draw, V, draw.in(2, 30));
  if (rare()) p.bad_words_token_ids = {draw_ids(draw, V, 1), draw_ids(draw, V, draw.in(2, 3))};
  if (draw.chance(90)) p.max_tokens = static_cast<int32_t>(draw.in(1, draw.chance(30) ? 3 : 24));
  if (rare()) p.min_tokens = static_cast<int32_t>(draw.in(1, p.max_tokens.value_or(8)));
  if (rare()) p.stop_token_ids = draw_ids(draw, V, draw.in(1, 3));
  p.ignore_eos = draw.chance(30);
  if (rare()) p.logprobs = static_cast<int32_t>(draw.in(-1, 3));
  if (rare()) p.prompt_logprobs = static_cast<int32_t>(draw.in(-1, 3));
  if (rare()) p.logprob_token_ids = draw_ids(draw, V, 2);
  if (rare()) p.prompt_logprob_token_ids = draw_ids(draw, V, 2);
  p.logprobs_mode = static_cast<ops::LogprobsMode>(draw.in(0, 3));
  if (rare()) p.repetition_detection = {static_cast<int32_t>(draw.in(1, 3)), 0, static_cast<int32_t>(draw.in(2, 3))};
  if (rare() && !options.thinking.empty()) p.thinking_token_budget = static_cast<int32_t>(draw.in(0, 6));
  if (rare()) request.grammar = std::make_shared<ToyGrammar>(draw.word(), draw.in(2, 20), options.eos_token_ids, V);
  if (rare()) request.processors.push_back(std::make_shared<ToyProcessor>(draw.word(), V));
}

SimRequest& SimWorld::add_request(Draw& draw) {
  std::vector<SimToken> tokens = draw_prompt(draw);
  const int64_t most = std::max<int64_t>(1, rules.longest - (draw.chance(20) ? 1 : draw.in(1, 10)));
  if (!draw.chance(2) && std::ssize(tokens) > most) tokens.resize(static_cast<size_t>(most));
  return add_request(draw, tokens);
}

SimRequest& SimWorld::add_request(Draw& draw, const std::vector<SimToken>& tokens,
                                  const std::function<void(Request&)>& change) {
  SimRequest& to = requests.emplace_back();
  Request& r = to.request;
  set_prompt(to, tokens, draw.chance(15), *pictures);
  draw_params(draw, r);
  if (draw.chance(6)) {
    r.pooling = draw.chance(50) ? Pooling::kLast : Pooling::kMean;
    r.params.n = 1;
    r.params.prompt_logprobs.reset();
  }
  for (int64_t i = 0; i < std::ssize(tokens); ++i)
    if (draw.chance(5)) r.checkpoint_hints.push_back(i);
  if (draw.chance(30)) r.cache_salt = draw.chance(50) ? "a" : "b";
  if (draw.chance(20)) r.first_choice = static_cast<int32_t>(draw.in(1, 100));
  r.priority = static_cast<int32_t>(draw.in(-1, 1));
  if (draw.chance(5)) r.deadline = draw.real(0.0001f, 0.05f);
  if (change) change(r);
  to.refused = std::ssize(tokens) > rules.longest - (r.pooling == Pooling::kNone);
  if (to.refused) return to;
  uint64_t seed = 0;
  if (r.params.seed) {
    seed = *r.params.seed;
  } else {
    const auto words = philox4x32({static_cast<uint32_t>(seeds_drawn_++), 0, 0, 1}, *options.seed);
    seed = words[0] | uint64_t{words[1]} << 32;
  }
  to.told.resize(static_cast<size_t>(r.params.n));
  for (int32_t i = 0; i < r.params.n; ++i)
    to.solo.push_back(std::make_unique<SoloAnswer>(rules, sampler, r, to.images, seed, i));
  return to;
}

}  // namespace calandra::hashsim
