// The one thing wanted of an EXIF block: how the camera was held.
#pragma once

#include <string_view>

namespace calandra {

// Orientation (tag 0x0112 of the first directory), 1 to 8; 1 when the block has none or is broken. `block` is a TIFF
// header with its directories, with or without the marker "Exif\0\0" in front.
int exif_orientation(std::string_view block);

}  // namespace calandra
