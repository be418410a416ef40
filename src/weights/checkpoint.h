// Checkpoint: the weight files of a model folder, one file or shards with an index.
#pragma once

#include <filesystem>
#include <functional>
#include <vector>

#include "weights/safetensors.h"

namespace calandra {

class Checkpoint {
 public:
  // Opens model.safetensors.index.json and its shards, or model.safetensors. Throws LoadError: a missing shard, a name that leaves
  // the folder, a tensor in two files. An index that disagrees with its shards is a warning; the files win.
  explicit Checkpoint(const std::filesystem::path& folder);

  struct Place {
    const SafetensorsFile* file;
    const SafetensorsFile::Entry* entry;
  };
  // Where a tensor is; file is null when there is none.
  Place find(std::string_view name) const;
  const std::vector<SafetensorsFile>& files() const { return files_; }
  const std::filesystem::path& folder() const { return folder_; }

 private:
  void open_shards(const std::filesystem::path& index);

  std::filesystem::path folder_;
  std::vector<SafetensorsFile> files_;
};

}  // namespace calandra
