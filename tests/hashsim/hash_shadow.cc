#include "tests/hashsim/hash_shadow.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>

#include "tests/hashsim/hash_layout.h"

namespace calandra::hashsim {

HashShadow::HashShadow(const HashModelConfig& config)
    : config_(config),
      Z_{0},
      keys_(config.blocks),
      X_(config.blocks, {0}),
      entries_(config.mtp_layers),
      entry_sums_(config.mtp_layers) {}

void HashShadow::append(int32_t token) {
  const auto index = static_cast<int32_t>(size());
  append(token, {index, index, index});
}

void HashShadow::append(int32_t token, const std::array<int32_t, 3>& position, uint64_t image) {
  const int64_t e = size();
  const uint64_t tau = token_hash(config_.seed, token, e, image);
  const uint64_t rho = position_hash(position[0], position[1], position[2]);
  HiddenRow row = e > 0 ? rows_.back() : HiddenRow{};

  HiddenRow entry_row = row;
  const uint64_t begin = e > 0 ? entry_begin(entry_row, tau, rho_.back()) : 0;
  for (int64_t layer = 0; layer < config_.mtp_layers; ++layer) {
    entries_[layer].push_back(e > 0 ? entry_key(begin, layer) : 0);
    entry_sums_[layer].push_back(e > 0 ? roll(entry_sums_[layer].back(), entry_word(entries_[layer].back())) : 0);
  }

  c_.push_back(convolve(row.window, tau));
  row.R = row.pick = mix(Z_.back(), c_.back());
  Z_.push_back(mix(row.R, rho));
  shift_in(row.window, tau);
  row.stream = stream_begin(tau, rho);
  for (int64_t block = 0; block < config_.blocks; ++block) {
    keys_[block].push_back(attention_key(row.stream, block));
    X_[block].push_back(roll(X_[block].back(), entry_word(keys_[block].back())));
    row.stream = stream_after(row.stream, X_[block].back(), row.R);
  }
  tokens_.push_back(token);
  positions_.push_back(position);
  tau_.push_back(tau);
  rho_.push_back(rho);
  rows_.push_back(row);
}

std::vector<float> HashShadow::logits(int64_t index) const {
  std::vector<float> out(config_.vocab_size);
  logits_of(config_, rows_[index].pick, out);
  if (tokens_[index] == config_.nan_token) std::fill(out.begin(), out.end(), std::numeric_limits<float>::quiet_NaN());
  return out;
}

int32_t HashShadow::choose_greedy(std::span<const float> logits, int64_t) {
  return static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

int32_t HashShadow::greedy(int64_t index) const { return choose_greedy(logits(index), index + 1); }

uint64_t HashShadow::entry_sum(int64_t layer, int64_t first_key, int64_t last) const {
  if (first_key > last) return 0;
  uint64_t before = entry_sums_[layer][first_key - 1];
  for (int64_t e = first_key; e <= last; ++e) before *= kRoll;
  return entry_sums_[layer][last] - before;
}

std::vector<int32_t> HashShadow::drafts(int64_t P, int64_t k, int64_t first_key, const Choose& choose) const {
  CHECK_GE(first_key, 1);
  CHECK(P >= 1 && P < size());
  std::vector<int32_t> drafts;
  std::vector<uint64_t> sums;
  for (int64_t layer = 0; layer < config_.mtp_layers; ++layer) sums.push_back(entry_sum(layer, first_key, P));
  // What the drafter knows of token P is what the target will find, but for the entries.
  HiddenRow row = rows_[P];
  std::vector<float> logits(config_.vocab_size);
  std::array<int32_t, 3> position = positions_[P];
  for (int64_t step = 0; step < k; ++step) {
    if (step > 0) {
      if (step > 1)
        for (int32_t& axis : position) ++axis;
      const int64_t e = P + step;
      const uint64_t begin = entry_begin(row, token_hash(config_.seed, drafts.back(), e, 0),
                                         position_hash(position[0], position[1], position[2]));
      for (int64_t layer = 0; layer < config_.mtp_layers; ++layer)
        if (e >= first_key) sums[layer] = roll(sums[layer], entry_word(entry_key(begin, layer)));
    }
    const int64_t layer = step % config_.mtp_layers;
    entry_result(config_, row, sums[layer], layer);
    logits_of(config_, row.pick, logits);
    drafts.push_back(choose(logits, P + step + 1));
  }
  return drafts;
}

RecurrentInput HashShadow::pending(int64_t block, int64_t index) const {
  return {c_[index], rho_[index], keys_[block][index]};
}

RecurrentState HashShadow::state(int64_t block, int64_t index) const {
  RecurrentState state{Z_[index], X_[block][index], {}};
  if (index > 0) state.window = rows_[index - 1].window;
  return state;
}

std::string slot_difference(const HashShadow& shadow, const SlotPool& slots, int32_t slot, int64_t P) {
  const int64_t N = slots.N().as<int32_t>()[slot], accepted = slots.accepted().as<int32_t>()[slot];
  const std::string name = fmt::format("slot {} (N {}, accepted {})", slot, N, accepted);
  if (accepted < 0 || accepted > slots.pending_capacity() || N < 0) return name + " has impossible counts";
  if (P >= 0 && N + accepted != P) return fmt::format("{} does not stand at {}", name, P);
  if (N + accepted > shadow.size())
    return fmt::format("{} stands behind the {} tokens of its sequence", name, shadow.size());
  for (int64_t block = 0; block < shadow.config().blocks; ++block) {
    const SlotWords words(slots.layer(recurrent_layer(block)), block);
    const RecurrentState state = words.load(slot), want = shadow.state(block, N);
    if (state.Z != want.Z || state.X != want.X) return fmt::format("{}: state of block {}", name, block);
    if (state.window != want.window) return fmt::format("{}: window of block {}", name, block);
    for (int64_t j = 0; j < accepted; ++j) {
      if (words.pending(slot, j) != shadow.pending(block, N + j))
        return fmt::format("{}: pending input {} of block {}", name, j, block);
      if (words.pending_tau(slot, j) != shadow.tau(N + j))
        return fmt::format("{}: pending window column {} of block {}", name, j, block);
    }
  }
  const Tensor hidden = slots.hidden()[slot];
  for (int64_t row = N > 0 ? 0 : 1; row <= accepted; ++row)
    if (get_hidden(hidden[row].as<float>()) != shadow.hidden(N - 1 + row))
      return fmt::format("{}: hidden row {}", name, row);
  return {};
}

namespace {

// Compares one layer's entries with key(index).
template <class Key>
std::string difference(const char* what, int64_t layer, const std::vector<Tensor>& paged,
                       std::span<const int32_t> block_table, int64_t begin, int64_t end, Key key) {
  const PageWords words(paged);
  const int64_t page_tokens = words.page_tokens();
  if (begin < end && end > page_tokens * static_cast<int64_t>(block_table.size()))
    return fmt::format("{} pages for {} tokens", block_table.size(), end);
  for (int64_t index = begin; index < end; ++index) {
    const int32_t page = block_table[index / page_tokens];
    const uint64_t want = key(index);
    if (words.key(page, index % page_tokens) != want || words.value(page, index % page_tokens) != value_of(want))
      return fmt::format("{} of layer {}, token {}, page {}", what, layer, index, page);
  }
  return {};
}

}  // namespace

std::string page_difference(const HashShadow& shadow, const PagePool& pages, std::span<const int32_t> block_table,
                            int64_t begin, int64_t end) {
  for (int64_t block = 0; block < shadow.config().blocks; ++block) {
    const std::string found = difference("key", block, pages.layer(attention_layer(block)), block_table, begin, end,
                                         [&](int64_t index) { return shadow.key(block, index); });
    if (!found.empty()) return found;
  }
  return {};
}

std::string entry_difference(const HashShadow& shadow, const PagePool& pages, std::span<const int32_t> block_table,
                             int64_t begin, int64_t end) {
  CHECK_GE(begin, 1);
  for (int64_t layer = 0; layer < shadow.config().mtp_layers; ++layer) {
    const std::string found =
        difference("MTP entry", layer, pages.layer(mtp_layer(shadow.config(), layer)), block_table, begin, end,
                   [&](int64_t index) { return shadow.entry(layer, index); });
    if (!found.empty()) return found;
  }
  return {};
}

void scribble_page(const HashModelConfig& config, const PagePool& pages, int32_t page, uint64_t seed, int64_t from) {
  const auto scribble = [&](int layer) {
    PageWords words(pages.layer(layer));
    for (int64_t slot = from; slot < words.page_tokens(); ++slot)
      words.put(page, slot, seed = mix(seed, static_cast<uint64_t>(slot)));
  };
  for (int64_t block = 0; block < config.blocks; ++block) scribble(attention_layer(block));
  for (int64_t layer = 0; layer < config.mtp_layers; ++layer) scribble(mtp_layer(config, layer));
}

void scribble_slot(const HashModelConfig& config, const SlotPool& slots, int32_t slot, uint64_t seed) {
  const auto next = [&] { return seed = mix(seed, 1); };
  const auto count = [&](int64_t most) { return static_cast<int32_t>(next() % static_cast<uint64_t>(most + 1)); };
  for (int64_t block = 0; block < config.blocks; ++block) {
    SlotWords words(slots.layer(recurrent_layer(block)), block);
    words.store(slot, {next(), next(), {next(), next(), next()}});
    for (int64_t j = 0; j < words.capacity(); ++j) words.store_pending(slot, j, next(), {next(), next(), next()});
  }
  const Tensor hidden = slots.hidden()[slot];
  for (int64_t row = 0; row < hidden.size(0); ++row)
    put_hidden(hidden[row].as<float>(), {next(), next(), next(), {next(), next(), next()}});
  slots.N().as<int32_t>()[slot] = count(1000);
  slots.accepted().as<int32_t>()[slot] = count(slots.pending_capacity());
}

}  // namespace calandra::hashsim
