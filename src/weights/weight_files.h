// WeightFiles: the weight files of a model folder, one file or shards with an index.
#pragma once

#include <filesystem>
#include <set>
#include <string>
#include <unordered_map>
#include <vector>

#include "base/json.h"
#include "weights/safetensors.h"

namespace calandra {

class WeightFiles {
 public:
  // Opens model.safetensors, or model.safetensors.index.json and its shards (in this order, as HF does). Throws
  // LoadError: a missing shard, a shard name that leaves the folder, a tensor in two files. An index that disagrees
  // with its shards about where a tensor is, or whether there is one, is one warning; the files win.
  explicit WeightFiles(const std::filesystem::path& folder);

  struct Place {
    const SafetensorsFile* file;
    const SafetensorsFile::Entry* entry;
  };
  // Where a tensor is; file is null when there is none.
  Place find(std::string_view name) const;
  const std::vector<SafetensorsFile>& files() const { return files_; }  // by name
  const std::filesystem::path& folder() const { return folder_; }

 private:
  void open_shards(const std::filesystem::path& index, const json::object& weight_map);
  void add_places();
  void compare_with_index(const std::filesystem::path& index, const json::object& weight_map) const;

  std::filesystem::path folder_;
  std::vector<SafetensorsFile> files_;
  std::unordered_map<std::string_view, Place> places_;
};

}  // namespace calandra
