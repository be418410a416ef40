// An EngineCore on the hash model, under a clock of the test's own, that keeps the answers of its requests.
#pragma once

#include <gtest/gtest.h>

#include <map>
#include <memory>
#include <vector>

#include "backends/reference/reference.h"
#include "engine/engine_core.h"
#include "tests/hashsim/hash_model.h"

namespace calandra::hashsim {

inline HashModelConfig model_config() {
  HashModelConfig config;
  config.vision = true;
  config.step_cost.weight_bytes = config.draft_cost.weight_bytes = 1e6;
  return config;
}

class EngineCoreTest : public ::testing::Test {
 protected:
  EngineCore& start(RunnerLimits limits, EngineOptions options) {
    core_.reset();
    runner_ = std::make_unique<ModelRunner>(model_, backend_, limits);
    options.seed = 1;
    if (!options.clock) options.clock = [this] { return now_; };
    core_ = std::make_unique<EngineCore>(*runner_, nullptr, options);
    first_step_.clear();
    return *core_;
  }
  static RunnerLimits limits() {
    return {
        .max_num_seqs = 8, .max_num_batched_tokens = 64, .max_model_len = 512, .num_state_slots = 64, .max_cuts = 8};
  }
  static EngineOptions with_cache() {
    EngineOptions options;
    options.checkpoint_bytes = 1 << 24;
    return options;
  }
  static std::vector<int32_t> tokens(int64_t count, int32_t seed) {
    std::vector<int32_t> ids;
    for (int64_t i = 0; i < count; ++i) ids.push_back(static_cast<int32_t>((seed * 31 + i * 7 + i * i * seed) % 64));
    return ids;
  }
  static Request request(std::vector<int32_t> prompt, int32_t max_tokens) {
    Request request;
    request.prompt_token_ids = std::move(prompt);
    request.params.max_tokens = max_tokens;
    request.params.temperature = 0;
    return request;
  }
  // Queues a request whose answer is kept, with the step it ended in.
  RequestId add(Request request) {
    auto added = core_->add(std::move(request), [this](const TokenEvent& event) {
      if (event.token >= 0 && !first_step_.contains(event.request)) first_step_[event.request] = core_->stats().steps;
      if (event.finished) answers_[event.request].push_back(event.answer);
      return true;
    });
    if (const auto* error = std::get_if<RequestError>(&added)) ADD_FAILURE() << error->message;
    return std::get<RequestId>(added);
  }
  void run() {
    while (core_->step()) now_ += 0.01;
    EXPECT_TRUE(core_->idle());
  }
  // A picture of so many rows that is all of one value; equal ones are the same picture.
  std::shared_ptr<EncoderInput> picture(float pixel, int64_t rows) const {
    const VisionEncoder& encoder = *model_.vision();
    auto input = std::make_shared<EncoderInput>();
    input->grid = {1, encoder.spatial_merge_size(), encoder.spatial_merge_size() * rows};
    const int64_t values = 3 * encoder.temporal_patch_size() * encoder.patch_size() * encoder.patch_size();
    input->patches.assign(static_cast<size_t>(input->grid.patches() * values), pixel);
    input->content_hash = {static_cast<uint64_t>(pixel * 8)};
    return input;
  }
  // Everything that requests and checkpoints held was given back.
  void expect_idle() {
    if (core_->cache() != nullptr) core_->cache()->clear();
    EXPECT_TRUE(core_->idle());
    EXPECT_EQ(runner_->pages().free_pages(), runner_->pages().pages());
    EXPECT_EQ(runner_->slots().free_slots(), runner_->slots().slots());
  }
  const Answer& answer(RequestId id) { return answers_.at(id).at(0); }

  HashModel model_{model_config()};
  ReferenceBackend backend_;
  double now_ = 1;
  std::unique_ptr<ModelRunner> runner_;
  std::unique_ptr<EngineCore> core_;
  std::map<RequestId, std::vector<Answer>> answers_;
  std::map<RequestId, int64_t> first_step_;
};

}  // namespace calandra::hashsim
