// Prompts with images and videos: each placeholder token becomes as many as its picture has rows in the model, and
// every token gets its rotary position (M-RoPE).
//   T tokens of the expanded prompt
//   image:  <|image_pad|>  ->  t*h*w / merge^2 of it
//   video:  <|video_pad|>  ->  per temporal patch  "<1.4 seconds>" <|vision_start|> h*w / merge^2 pads <|vision_end|>
// Source: Transformers 5.17, processing_qwen3_vl.py and get_rope_index of modeling_qwen3_5.py.
#pragma once

#include <cstdint>
#include <functional>
#include <limits>
#include <span>
#include <string_view>
#include <variant>
#include <vector>

#include "base/error.h"
#include "vision/patchify.h"

namespace calandra {

// Ids of config.json.
struct VisionTokens {
  int32_t image_pad = 0, video_pad = 0, vision_start = 0, vision_end = 0;
};

enum class TokenKind : uint8_t { kText, kImage, kVideo };

// A video as the prompt sees it.
struct VideoPlace {
  PatchGrid grid;
  std::vector<double> seconds;  // [grid.t]
};

// Rows [begin, end) of the prompt.
struct RowRange {
  int64_t begin = 0, end = 0;
  bool operator==(const RowRange&) const = default;
};

struct ExpandedPrompt {
  std::vector<int32_t> tokens;   // [T]
  std::vector<TokenKind> kinds;  // [T]
  // Where the vision tower's rows go, in its order: those of image i to image_rows[i]; those of video i, temporal patch
  // by temporal patch, to video_rows[i][t].
  std::vector<RowRange> image_rows;
  std::vector<std::vector<RowRange>> video_rows;
  std::vector<int32_t> positions;  // [3, T]: time, height, width
  int64_t position_delta = 0;      // a later token's position minus its index, on all three axes
};

struct ExpansionRule {
  VisionTokens tokens;
  int64_t merge_size = 2;  // patches per token, along each side
  // Transformers leaves the template's <|vision_start|> and <|vision_end|> around an expanded video; false removes
  // them, as older processors did.
  bool keep_outer_pair = true;
  int64_t max_tokens = std::numeric_limits<int32_t>::max();  // of the expanded prompt
};

using EncodeText = std::function<std::vector<int32_t>(std::string_view)>;

// Errors: other counts of placeholders than of images or videos (code "invalid_value"; both numbers in the message), a
// prompt longer than max_tokens (code "context_length_exceeded", before it is built). Grids must be multiples of the
// merge size.
std::variant<ExpandedPrompt, RequestError> expand_placeholders(std::span<const int32_t> tokens,
                                                               std::span<const PatchGrid> images,
                                                               std::span<const VideoPlace> videos,
                                                               const ExpansionRule& rule, const EncodeText& encode);

// The same for tokens whose placeholders are expanded already, videos temporal patch by temporal patch: finds the runs
// of pads and gives every token its position. Seconds are not looked at. Error: runs that do not fit the grids.
std::variant<ExpandedPrompt, RequestError> locate_placeholders(std::span<const int32_t> tokens,
                                                               std::span<const PatchGrid> images,
                                                               std::span<const VideoPlace> videos,
                                                               const ExpansionRule& rule);

}  // namespace calandra
