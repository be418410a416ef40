// The file of `calandra logits --input`.
#pragma once

#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "tensor/patch_grid.h"
#include "weights/safetensors.h"

namespace calandra::apps {

class LogitsInput {
 public:
  // Throws LoadError when a tensor is none of the inputs.
  explicit LogitsInput(const std::string& path);

  bool has(const char* name) const { return file_.find(name) != nullptr; }
  // All throw LoadError for wrong types, shapes and ids.
  std::vector<int32_t> ids(int64_t vocab_size) const;
  std::optional<int32_t> next_token(int64_t vocab_size) const;
  // Calls add(patches, grid) for every picture: pixel_values [P, values] f32 and a grid [n, 3].
  using AddPicture = std::function<void(std::span<const float> patches, const PatchGrid& grid)>;
  void pictures(const char* pixels, const char* grids, const AddPicture& add) const;

 private:
  const SafetensorsFile::Entry& find(const char* name) const;
  std::vector<int64_t> integers(const char* name, size_t rank) const;
  int32_t checked(const char* name, int64_t id, int64_t vocab_size) const;

  std::string path_;
  SafetensorsFile file_;
};

}  // namespace calandra::apps
