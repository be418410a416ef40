// Models for the losslessness tests: both demo models, small ones with random weights in the shape of each family, and
// those of the oracle that have draft layers, all with their drafter; and one of the oracle that has none. On the cpu
// backend; CALANDRA_LOSSLESS_BACKEND says cuda (deterministic) or cuda_fast to have the demo models on a device.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "engine/speculative_config.h"
#include "models/registry.h"
#include "text/tokenizer.h"
#include "weights/weight_store.h"

namespace calandra::lossless {

struct Subject {
  std::string name;
  bool demo = false;      // trained, with a tokenizer; the others are small
  bool one_order = true;  // answers are the same to the bit; else they may part at near ties
  ModelConfig config;
  std::unique_ptr<Backend> backend;
  std::unique_ptr<WeightFiles> files;
  std::unique_ptr<WeightStore> store;
  std::unique_ptr<CausalLM> model;
  std::optional<Tokenizer> tokenizer;
  std::vector<int32_t> corpus;  // token ids to make prompts of

  bool on_device() const { return backend->device().kind != DeviceKind::kCpu; }
  bool has_drafter() const { return model->drafter() != nullptr; }
  // Without draft layers drafts are looked up.
  DraftMethod draft_method() const { return has_drafter() ? DraftMethod::kMtp : DraftMethod::kNgram; }
  const Tokenizer* text() const { return tokenizer ? &*tokenizer : nullptr; }
};

// Names that are always there, and of the oracle's models; a colon would separate family and case.
const std::vector<std::string>& own_subjects();
const std::vector<std::string>& oracle_subjects();
// Those of the tables of reliability.md on real layers: the small ones, the oracle's with drafts or pictures, the
// demos.
const std::vector<std::string>& table_subjects();
// A subject's name as that of a test.
std::string test_name(const ::testing::TestParamInfo<std::string>& info);

// Loaded once and kept. Null: the case is only in the shared oracle, and that is not there.
Subject* subject(const std::string& name);

}  // namespace calandra::lossless
