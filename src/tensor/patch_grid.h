// Patches of an image or a video along time, height and width: what image preparation and vision towers share.
#pragma once

#include <cstdint>

namespace calandra {

struct PatchGrid {
  int64_t t = 0, h = 0, w = 0;
  int64_t patches() const { return t * h * w; }
  bool operator==(const PatchGrid&) const = default;
};

}  // namespace calandra
