// For tests: the image files of tests/images (tools/make_image_fixtures.py).
#pragma once

#include <algorithm>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "base/json.h"
#include "vision/image.h"

namespace calandra {

inline const std::filesystem::path kImageFolder = CALANDRA_SOURCE_DIR "/tests/images";

inline uint64_t fnv1a(const std::vector<uint8_t>& bytes) {
  uint64_t hash = 0xCBF29CE484222325;
  for (const uint8_t byte : bytes) hash = (hash ^ byte) * 0x100000001B3;
  return hash;
}

// Bytes of every image file, by name.
inline const std::map<std::string, std::string>& image_files() {
  static const auto* files = [] {
    auto* found = new std::map<std::string, std::string>;
    for (const auto& entry : std::filesystem::directory_iterator(kImageFolder)) {
      if (entry.path().extension() != ".json") found->emplace(entry.path().filename(), read_text_file(entry.path()));
    }
    return found;
  }();
  return *files;
}

}  // namespace calandra
