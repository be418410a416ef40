// The vision tower against the oracle, tap by tap, and what must not change its results.
#include "models/qwen3_5/vision_tower.h"

#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <functional>
#include <map>

#include "backends/cpu/cpu_backend.h"
#include "base/json.h"
#include "weights/weight_store.h"

namespace calandra::qwen3_5 {
namespace {

namespace fs = std::filesystem;

// Everything that is tapped, as f32, in rows; `order` has the names as they were computed.
class Recorder final : public Taps {
 public:
  void tap(int, const char* name, const Tensor& x) override {
    if (!taps.contains(name)) order.push_back(name);
    std::vector<float>& out = taps[name];
    for (int64_t r = 0; r < x.size(0); ++r)
      for (int64_t i = 0; i < x.size(1); ++i) {
        const int64_t at = r * x.stride(0) + i;
        out.push_back(x.dtype() == DType::kBF16 ? static_cast<float>(x.as<bf16>()[at]) : x.as<float>()[at]);
      }
  }
  std::map<std::string, std::vector<float>> taps;
  std::vector<std::string> order;
};

struct Pictures {
  std::vector<PatchGrid> grids;
  std::vector<float> patches;  // [P, values]
};

class TowerUnderTest {
 public:
  TowerUnderTest(const fs::path& folder, std::unique_ptr<Backend> backend, DType dtype)
      : TowerUnderTest(*parse_config(read_json_file(folder / "config.json").as_object(), folder.string()).vision,
                       std::move(backend), dtype, std::make_unique<WeightFiles>(folder)) {}
  // Random weights without a checkpoint.
  TowerUnderTest(const VisionConfig& config, std::unique_ptr<Backend> backend, DType dtype,
                 std::unique_ptr<WeightFiles> checkpoint = nullptr)
      : config_(config),
        backend_(std::move(backend)),
        checkpoint_(std::move(checkpoint)),
        store_(*backend_, checkpoint_.get()) {
    const WeightReader reader = store_.reader().child("model.visual");
    tower_ = std::make_unique<VisionTower>(config_, reader, *backend_, dtype);
    reader.tensor(pos_embed_, "pos_embed.weight",
                  {{"rows", config_.num_position_embeddings}, {"columns", config_.hidden_size}},
                  {config_.num_position_embeddings, config_.hidden_size});
    const UnusedTensors unused[] = {{"model.language_model.*", "not in this test"}, {"lm_head.*", "not in this test"}};
    store_.load(unused, 1);
  }

  // In a workspace that is exactly as large as the dry run said.   returns bytes of the rows
  std::vector<std::byte> run(const Pictures& pictures, Taps* taps = nullptr) {
    int64_t P = 0;
    for (const PatchGrid& grid : pictures.grids) P += grid.patches();
    const Shape shape{P, static_cast<int64_t>(pictures.patches.size()) / P};
    OneRank rank;
    Workspace measured;
    ExecContext dry{.backend = *backend_, .workspace = measured, .communicator = rank, .taps = taps, .dry_run = true};
    tower_->forward(dry, Tensor(nullptr, DType::kF32, shape), pictures.grids);
    Workspace workspace(measured, backend_->allocate(measured.bytes()));
    ExecContext ctx{.backend = *backend_, .workspace = workspace, .communicator = rank, .taps = taps};
    std::vector<float> input = pictures.patches;
    const Tensor rows = tower_->forward(ctx, Tensor(input.data(), DType::kF32, shape), pictures.grids);
    EXPECT_EQ(rows.shape(),
              (Shape{P / (config_.spatial_merge_size * config_.spatial_merge_size), config_.out_hidden_size}));
    const auto* data = static_cast<const std::byte*>(rows.data());
    return {data, data + rows.bytes()};
  }

  const VisionConfig& config() const { return config_; }
  const Tensor& pos_embed() const { return pos_embed_; }  // [side^2, Dv]

 private:
  const VisionConfig config_;
  std::unique_ptr<Backend> backend_;
  std::unique_ptr<WeightFiles> checkpoint_;
  WeightStore store_;
  Tensor pos_embed_;
  std::unique_ptr<VisionTower> tower_;
};

std::vector<float> floats(const SafetensorsFile& file, const std::string& name) {
  const auto* entry = file.find(name);
  CHECK_MSG(entry != nullptr && entry->dtype == "F32", name);
  std::vector<float> values(static_cast<size_t>(entry->bytes) / sizeof(float));
  file.read(*entry, 0, entry->bytes, values.data());
  return values;
}

Pictures pictures_of(const SafetensorsFile& expected, const std::string& prompt) {
  const bool video = prompt == "video";
  const auto* entry = expected.find(prompt + (video ? "/video_grid_thw" : "/image_grid_thw"));
  CHECK_MSG(entry != nullptr && entry->dtype == "I64", prompt);
  std::vector<int64_t> thw(static_cast<size_t>(entry->bytes) / sizeof(int64_t));
  expected.read(*entry, 0, entry->bytes, thw.data());
  Pictures pictures;
  for (size_t i = 0; i < thw.size(); i += 3) pictures.grids.push_back({thw[i], thw[i + 1], thw[i + 2]});
  pictures.patches = floats(expected, prompt + (video ? "/pixel_values_videos" : "/pixel_values"));
  return pictures;
}

double largest(const std::vector<float>& x) {
  double max = 0;
  for (const float value : x) max = std::max(max, std::fabs(double{value}));
  return max;
}

struct Setting {
  std::string name;
  std::function<std::unique_ptr<Backend>()> backend;
};
std::vector<Setting> settings() {
  std::vector<Setting> all = {{"reference", [] { return make_reference_backend(); }}};
  for (const Isa isa : machine_isas())
    for (const int threads : {1, 3})
      all.push_back({"cpu_" + std::string(name_of(isa)) + "_" + std::to_string(threads),
                     [=] { return make_cpu_backend({.threads = threads, .isa = isa}); }});
  return all;
}

VisionConfig small_config() {
  VisionConfig c;
  c.depth = 2;
  c.hidden_size = 40;
  c.intermediate_size = 52;
  c.num_heads = 2;
  c.in_channels = 3;
  c.patch_size = 2;
  c.temporal_patch_size = 2;
  c.spatial_merge_size = 2;
  c.num_position_embeddings = 49;
  c.out_hidden_size = 24;
  return c;
}

// Numbers in [-1, 1) for patches of small_config.
Pictures random_pictures(std::vector<PatchGrid> grids) {
  Pictures pictures{std::move(grids), {}};
  int64_t P = 0;
  for (const PatchGrid& grid : pictures.grids) P += grid.patches();
  uint64_t state = 1;
  for (int64_t i = 0; i < P * 24; ++i) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    pictures.patches.push_back(static_cast<float>(state >> 40) * 0x1p-23f - 1);
  }
  return pictures;
}

class VisionTowerTest : public testing::TestWithParam<Setting> {};

// The table seen through hats: entry (r, c) weighs max(0, 1 - |y - r|) max(0, 1 - |x - c|) at the point (y, x). Grids
// smaller and larger than the table, and of one merge block.
TEST_P(VisionTowerTest, PositionsInterpolateTheTable) {
  TowerUnderTest tested(small_config(), GetParam().backend(), DType::kF32);
  const Pictures pictures = random_pictures({{1, 26, 14}, {2, 4, 6}, {1, 2, 2}});
  Recorder recorder;
  tested.run(pictures, &recorder);
  const std::vector<float>& got = recorder.taps["vision.pos_embed"];
  const int64_t D = 40, side = 7;
  const float* table = tested.pos_embed().as<float>();
  int64_t p = 0;
  for (const PatchGrid& grid : pictures.grids)
    for (int64_t i = 0; i < grid.patches(); ++i, ++p) {
      const int64_t in_frame = i % (grid.h * grid.w), block = in_frame / 4;
      const int64_t row = block / (grid.w / 2) * 2 + in_frame % 4 / 2, column = block % (grid.w / 2) * 2 + in_frame % 2;
      const double y = static_cast<double>(row) * 6 / static_cast<double>(grid.h - 1),
                   x = static_cast<double>(column) * 6 / static_cast<double>(grid.w - 1);
      for (int64_t d = 0; d < D; ++d) {
        double want = 0;
        for (int64_t r = 0; r < side; ++r)
          for (int64_t c = 0; c < side; ++c)
            want += std::max(0.0, 1 - std::fabs(y - static_cast<double>(r))) *
                    std::max(0.0, 1 - std::fabs(x - static_cast<double>(c))) * table[(r * side + c) * D + d];
        ASSERT_NEAR(got[p * D + d], want, 1e-6) << "patch " << p << " at " << row << " " << column;
      }
    }
}

// Exact bits: pictures together or one by one, with taps or without, frames of a video as pictures.
TEST_P(VisionTowerTest, APictureDoesNotDependOnTheOthers) {
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    TowerUnderTest tested(small_config(), GetParam().backend(), dtype);
    const Pictures together = random_pictures({{1, 4, 6}, {3, 14, 10}, {1, 2, 2}});
    Recorder recorder;
    const std::vector<std::byte> whole = tested.run(together);
    EXPECT_EQ(tested.run(together, &recorder), whole);
    std::vector<std::byte> joined;
    auto from = together.patches.begin();
    for (const PatchGrid& grid : together.grids)
      for (int64_t frame = 0; frame < grid.t; ++frame) {
        const auto to = from + grid.h * grid.w * 24;
        const auto rows = tested.run({{{1, grid.h, grid.w}}, {from, to}});
        joined.insert(joined.end(), rows.begin(), rows.end());
        from = to;
      }
    EXPECT_EQ(joined, whole);
  }
}

INSTANTIATE_TEST_SUITE_P(All, VisionTowerTest, testing::ValuesIn(settings()),
                         [](const testing::TestParamInfo<Setting>& info) { return info.param.name; });

constexpr const char* kPrompts[] = {"two_images", "video"};

class VisionTowerOracle : public testing::TestWithParam<std::tuple<const char*, Setting>> {
 protected:
  void SetUp() override {
    if (!fs::exists(folder_ / "config.json"))
      GTEST_SKIP() << "skipped: " << std::get<0>(GetParam()) << " is only in the shared oracle";
  }
  std::unique_ptr<TowerUnderTest> tower(DType dtype) const {
    return std::make_unique<TowerUnderTest>(folder_, std::get<1>(GetParam()).backend(), dtype);
  }
  SafetensorsFile expected() const { return SafetensorsFile(folder_ / "expected.safetensors"); }
  // The oracle's "<prompt>/vision/block_0" is our "vision.block_0".
  template <class F>
  void for_each_tap(const std::string& prompt, const F& fn) const {
    const SafetensorsFile file = expected();
    for (const auto& entry : file.entries())
      if (const std::string prefix = prompt + "/vision/"; entry.name.starts_with(prefix))
        fn("vision." + entry.name.substr(prefix.size()), floats(file, entry.name));
  }

  const fs::path folder_ = fs::path(CALANDRA_SOURCE_DIR) / "../shared/oracle/qwen3_5" / std::get<0>(GetParam());
};

TEST_P(VisionTowerOracle, Float32Taps) {
  const auto tested = tower(DType::kF32);
  int compared = 0;
  for (const std::string prompt : kPrompts) {
    Recorder recorder;
    tested->run(pictures_of(expected(), prompt), &recorder);
    std::map<std::string, std::vector<float>> recorded;
    for_each_tap(prompt, [&](const std::string& name, const std::vector<float>& want) { recorded[name] = want; });
    const int taps = static_cast<int>(recorded.size());
    EXPECT_EQ(recorder.order.size(), recorded.size()) << prompt;
    for (const std::string& name : recorder.order) {  // stops at the first that differs
      const std::vector<float>&got = recorder.taps[name], &want = recorded[name];
      ASSERT_EQ(got.size(), want.size()) << name;
      const double bound = 1e-4 * largest(want);
      for (size_t i = 0; i < want.size(); ++i)
        ASSERT_NEAR(got[i], want[i], bound) << prompt << " " << name << " at " << i << " of " << want.size();
    }
    EXPECT_EQ(taps, tested->config().depth + 5) << prompt;
    compared += taps;
  }
  RecordProperty("taps", compared);
}

// bf16: every rounding moves a row by a random part of it, 2^-9 / sqrt(3) in root mean square; those on the way add up
// in squares: 3 for the patches with their positions, 9 for each block (two norms, qkv, rotation, attention, two
// products, gelu, fc1, two sums less what one of them shares), 4 for the merger. Norms and products keep their relative
// size on the whole; twice that is allowed.
TEST_P(VisionTowerOracle, BFloat16IsCloseToFloat32) {
  const auto tested = tower(DType::kBF16);
  for (const std::string prompt : kPrompts) {
    Recorder recorder;
    tested->run(pictures_of(expected(), prompt), &recorder);
    for_each_tap(prompt, [&](const std::string& name, const std::vector<float>& want) {
      const std::vector<float>& got = recorder.taps[name];
      ASSERT_EQ(got.size(), want.size()) << name;
      double off = 0, size = 0;
      for (size_t i = 0; i < want.size(); ++i) {
        off += (double{got[i]} - want[i]) * (double{got[i]} - want[i]);
        size += double{want[i]} * want[i];
      }
      double roundings = 3;
      if (name.starts_with("vision.block_")) roundings += 9.0 * (std::stoi(name.substr(13)) + 1);
      if (name == "vision.merger") roundings += 9.0 * static_cast<double>(tested->config().depth) + 4;
      // the rotary table is f32
      const double bound =
          name.starts_with("vision.rotary") ? 1e-6 : 2 * std::sqrt(roundings) * 0x1p-9 / std::sqrt(3.0);
      EXPECT_LE(std::sqrt(off / size), bound) << prompt << " " << name;
    });
  }
}

INSTANTIATE_TEST_SUITE_P(All, VisionTowerOracle,
                         testing::Combine(testing::Values("vision_dense", "vision_moe"), testing::ValuesIn(settings())),
                         [](const testing::TestParamInfo<VisionTowerOracle::ParamType>& info) {
                           return std::string(std::get<0>(info.param)) + "_" + std::get<1>(info.param).name;
                         });

}  // namespace
}  // namespace calandra::qwen3_5
