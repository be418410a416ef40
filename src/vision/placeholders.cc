#include "vision/placeholders.h"

#include <fmt/format.h>

#include <algorithm>
#include <optional>
#include <utility>

#include "base/check.h"
#include "vision/video.h"

namespace calandra {
namespace {

// Appends tokens and their positions.
class PromptBuilder {
 public:
  PromptBuilder(int64_t length, int64_t merge_size) : merge_size_(merge_size) {
    prompt_.tokens.reserve(length);
    prompt_.kinds.reserve(length);
    for (auto& axis : axes_) axis.reserve(length);
  }

  void text(int32_t token) {
    add(token, TokenKind::kText, next_, next_, next_);
    ++next_;
  }

  // A run of pads. Time goes on by one from each frame to the next; the text behind goes on after the longest side.
  RowRange pads(int32_t token, TokenKind kind, PatchGrid grid) {
    const int64_t begin = std::ssize(prompt_.tokens), height = grid.h / merge_size_, width = grid.w / merge_size_;
    for (int64_t t = 0; t < grid.t; ++t) {
      for (int64_t y = 0; y < height; ++y) {
        for (int64_t x = 0; x < width; ++x) add(token, kind, next_ + t, next_ + y, next_ + x);
      }
    }
    next_ += std::max(height, width);
    return {begin, std::ssize(prompt_.tokens)};
  }

  ExpandedPrompt& prompt() { return prompt_; }

  ExpandedPrompt finish() {
    int32_t last = -1;
    for (const auto& axis : axes_) {
      prompt_.positions.insert(prompt_.positions.end(), axis.begin(), axis.end());
      for (const int32_t position : axis) last = std::max(last, position);
    }
    prompt_.position_delta = last + 1 - std::ssize(prompt_.tokens);
    return std::move(prompt_);
  }

 private:
  void add(int32_t token, TokenKind kind, int64_t t, int64_t y, int64_t x) {
    prompt_.tokens.push_back(token);
    prompt_.kinds.push_back(kind);
    axes_[0].push_back(static_cast<int32_t>(t));
    axes_[1].push_back(static_cast<int32_t>(y));
    axes_[2].push_back(static_cast<int32_t>(x));
  }

  const int64_t merge_size_;
  int64_t next_ = 0;  // position of the next text token
  std::vector<int32_t> axes_[3];
  ExpandedPrompt prompt_;
};

std::optional<RequestError> check_count(std::span<const int32_t> tokens, int32_t pad, int64_t given,
                                        std::string_view what) {
  const int64_t places = std::count(tokens.begin(), tokens.end(), pad);
  if (places == given) return std::nullopt;
  return RequestError{
      400, "invalid_value", "messages",
      fmt::format("the prompt has {} {} placeholders, but {} {}s were given", places, what, given, what)};
}

// Whether the token is one of the pair around a video's pad that is to be removed.
bool is_outer_pair(std::span<const int32_t> tokens, size_t i, const ExpansionRule& rule) {
  if (rule.keep_outer_pair) return false;
  const VisionTokens& ids = rule.tokens;
  const auto pair_at = [&](size_t pad) {
    return pad >= 1 && pad + 1 < tokens.size() && tokens[pad] == ids.video_pad && tokens[pad - 1] == ids.vision_start &&
           tokens[pad + 1] == ids.vision_end;
  };
  return pair_at(i + 1) || (i >= 1 && pair_at(i - 1));
}

}  // namespace

std::variant<ExpandedPrompt, RequestError> expand_placeholders(std::span<const int32_t> tokens,
                                                               std::span<const PatchGrid> images,
                                                               std::span<const VideoPlace> videos,
                                                               const ExpansionRule& rule, const EncodeText& encode) {
  const VisionTokens& ids = rule.tokens;
  if (auto error = check_count(tokens, ids.image_pad, std::ssize(images), "image")) return std::move(*error);
  if (auto error = check_count(tokens, ids.video_pad, std::ssize(videos), "video")) return std::move(*error);

  const int64_t merged = rule.merge_size * rule.merge_size;
  const auto check_grid = [&](const PatchGrid& grid) {
    CHECK_EQ(grid.h % rule.merge_size, 0);
    CHECK_EQ(grid.w % rule.merge_size, 0);
  };
  int64_t length = std::ssize(tokens);
  for (const PatchGrid& grid : images) {
    check_grid(grid);
    length += grid.patches() / merged - 1;
  }
  std::vector<std::vector<std::vector<int32_t>>> stamps;  // [videos, t] token ids
  for (const VideoPlace& video : videos) {
    check_grid(video.grid);
    CHECK_EQ(std::ssize(video.seconds), video.grid.t);
    length += video.grid.patches() / merged - 1 + 2 * video.grid.t;
    std::vector<std::vector<int32_t>>& texts = stamps.emplace_back();
    for (const double seconds : video.seconds)
      length += std::ssize(texts.emplace_back(encode(timestamp_text(seconds))));
  }
  for (size_t i = 0; i < tokens.size(); ++i) length -= is_outer_pair(tokens, i, rule) ? 1 : 0;
  if (length > rule.max_tokens)
    return RequestError{400, "context_length_exceeded", "messages",
                        fmt::format("the prompt has {} tokens with its images and videos; at most {} are accepted",
                                    length, rule.max_tokens)};

  PromptBuilder out(length, rule.merge_size);
  auto image = images.begin();
  size_t video = 0;
  for (size_t i = 0; i < tokens.size(); ++i) {
    if (tokens[i] == ids.image_pad) {
      out.prompt().image_rows.push_back(out.pads(ids.image_pad, TokenKind::kImage, *image++));
    } else if (tokens[i] == ids.video_pad) {
      const PatchGrid frame{1, videos[video].grid.h, videos[video].grid.w};
      std::vector<RowRange>& rows = out.prompt().video_rows.emplace_back();
      for (const std::vector<int32_t>& stamp : stamps[video++]) {
        for (const int32_t token : stamp) out.text(token);
        out.text(ids.vision_start);
        rows.push_back(out.pads(ids.video_pad, TokenKind::kVideo, frame));
        out.text(ids.vision_end);
      }
    } else if (!is_outer_pair(tokens, i, rule)) {
      out.text(tokens[i]);
    }
  }
  ExpandedPrompt prompt = out.finish();
  CHECK_EQ(std::ssize(prompt.tokens), length);
  return prompt;
}

std::variant<ExpandedPrompt, RequestError> locate_placeholders(std::span<const int32_t> tokens,
                                                               std::span<const PatchGrid> images,
                                                               std::span<const VideoPlace> videos,
                                                               const ExpansionRule& rule) {
  struct Run {
    TokenKind kind;
    size_t picture;
    PatchGrid grid;
  };
  std::vector<Run> image_runs, video_runs;
  for (size_t i = 0; i < images.size(); ++i) image_runs.push_back({TokenKind::kImage, i, images[i]});
  for (size_t i = 0; i < videos.size(); ++i)
    for (int64_t t = 0; t < videos[i].grid.t; ++t)
      video_runs.push_back({TokenKind::kVideo, i, {1, videos[i].grid.h, videos[i].grid.w}});

  const int64_t merged = rule.merge_size * rule.merge_size;
  PromptBuilder out(std::ssize(tokens), rule.merge_size);
  out.prompt().video_rows.resize(videos.size());
  size_t image = 0, video = 0;
  for (int64_t i = 0; i < std::ssize(tokens);) {
    const int32_t token = tokens[i];
    if (token != rule.tokens.image_pad && token != rule.tokens.video_pad) {
      out.text(token);
      ++i;
      continue;
    }
    const bool is_image = token == rule.tokens.image_pad;
    size_t& next = is_image ? image : video;
    const std::vector<Run>& runs = is_image ? image_runs : video_runs;
    if (next == runs.size()) break;
    const Run& run = runs[next++];
    const int64_t pads = run.grid.patches() / merged;
    if (i + pads > std::ssize(tokens) || std::count(tokens.begin() + i, tokens.begin() + i + pads, token) != pads)
      return RequestError{400, "invalid_value", "input_ids",
                          fmt::format("the placeholders at token {} are fewer than the {} of the picture", i, pads)};
    const RowRange rows = out.pads(token, run.kind, run.grid);
    if (is_image) {
      out.prompt().image_rows.push_back(rows);
    } else {
      out.prompt().video_rows[run.picture].push_back(rows);
    }
    i += pads;
  }
  ExpandedPrompt prompt = out.finish();
  if (image != image_runs.size() || video != video_runs.size() || prompt.tokens.size() != tokens.size())
    return RequestError{
        400, "invalid_value", "input_ids",
        fmt::format("the prompt has placeholders for {} images and {} temporal patches of videos before "
                    "token {}; {} and {} were given",
                    image, video, prompt.tokens.size(), image_runs.size(), video_runs.size())};
  return prompt;
}

}  // namespace calandra
