#include "vision/placeholders.h"

#include <gtest/gtest.h>

#include <string>

namespace calandra {
namespace {

constexpr int32_t kImage = 100, kVideo = 101, kStart = 102, kEnd = 103;

ExpansionRule small_rule() {
  return {.tokens = {.image_pad = kImage, .video_pad = kVideo, .vision_start = kStart, .vision_end = kEnd}};
}

// Two tokens for each timestamp: 7 and the tenths of a second.
std::vector<int32_t> encode(std::string_view text) {
  return {7, static_cast<int32_t>(std::stod(std::string(text.substr(1))) * 10 + 0.5)};
}

std::vector<int32_t> axis(const ExpandedPrompt& prompt, int a) {
  const size_t length = prompt.tokens.size();
  return {prompt.positions.begin() + a * length, prompt.positions.begin() + (a + 1) * length};
}

ExpandedPrompt expanded(const std::vector<int32_t>& tokens, const std::vector<PatchGrid>& images,
                        const std::vector<VideoPlace>& videos, const ExpansionRule& rule = small_rule()) {
  return std::get<ExpandedPrompt>(expand_placeholders(tokens, images, videos, rule, encode));
}

std::string error_of(const std::vector<int32_t>& tokens, const std::vector<PatchGrid>& images,
                     const std::vector<VideoPlace>& videos, const ExpansionRule& rule = small_rule()) {
  const auto result = expand_placeholders(tokens, images, videos, rule, encode);
  const auto* error = std::get_if<RequestError>(&result);
  return error ? error->code + ": " + error->message : "";
}

TEST(Placeholders, TextAlone) {
  const ExpandedPrompt prompt = expanded({1, 2, 3}, {}, {});
  EXPECT_EQ(prompt.tokens, (std::vector<int32_t>{1, 2, 3}));
  for (int a = 0; a < 3; ++a) EXPECT_EQ(axis(prompt, a), (std::vector<int32_t>{0, 1, 2}));
  EXPECT_EQ(prompt.position_delta, 0);
  EXPECT_EQ(expanded({}, {}, {}).position_delta, 0);
}

TEST(Placeholders, Image) {
  const ExpandedPrompt prompt = expanded({1, kStart, kImage, kEnd, 2}, {{1, 4, 6}}, {});  // 2 x 3 tokens
  EXPECT_EQ(prompt.tokens, (std::vector<int32_t>{1, kStart, kImage, kImage, kImage, kImage, kImage, kImage, kEnd, 2}));
  EXPECT_EQ(prompt.image_rows, (std::vector<RowRange>{{2, 8}}));
  EXPECT_EQ(axis(prompt, 0), (std::vector<int32_t>{0, 1, 2, 2, 2, 2, 2, 2, 5, 6}));
  EXPECT_EQ(axis(prompt, 1), (std::vector<int32_t>{0, 1, 2, 2, 2, 3, 3, 3, 5, 6}));
  EXPECT_EQ(axis(prompt, 2), (std::vector<int32_t>{0, 1, 2, 3, 4, 2, 3, 4, 5, 6}));
  EXPECT_EQ(prompt.position_delta, 7 - 10);
  for (size_t i = 0; i < prompt.tokens.size(); ++i)
    EXPECT_EQ(prompt.kinds[i], prompt.tokens[i] == kImage ? TokenKind::kImage : TokenKind::kText);
}

TEST(Placeholders, ImagesSideBySideAreTwo) {
  const ExpandedPrompt prompt = expanded({kImage, kImage}, {{1, 2, 2}, {1, 2, 4}}, {});
  EXPECT_EQ(prompt.image_rows, (std::vector<RowRange>{{0, 1}, {1, 3}}));
  EXPECT_EQ(axis(prompt, 2), (std::vector<int32_t>{0, 1, 2}));
  EXPECT_EQ(prompt.position_delta, 0);
}

TEST(Placeholders, Video) {
  const std::vector<int32_t> tokens{1, kStart, kVideo, kEnd, 2};
  const std::vector<VideoPlace> videos{{{2, 2, 4}, {0.25, 1.4}}};
  const ExpandedPrompt prompt = expanded(tokens, {}, videos);
  const std::vector<int32_t> frames{7, 2,  kStart, kVideo, kVideo, kEnd,  // "0.2": half to even
                                    7, 14, kStart, kVideo, kVideo, kEnd};
  std::vector<int32_t> expected{1, kStart};
  expected.insert(expected.end(), frames.begin(), frames.end());
  expected.insert(expected.end(), {kEnd, 2});
  EXPECT_EQ(prompt.tokens, expected);
  ASSERT_EQ(prompt.video_rows.size(), 1u);
  EXPECT_EQ(prompt.video_rows[0], (std::vector<RowRange>{{5, 7}, {11, 13}}));
  EXPECT_EQ(axis(prompt, 0), (std::vector<int32_t>{0, 1, 2, 3, 4, 5, 5, 7, 8, 9, 10, 11, 11, 13, 14, 15}));
  EXPECT_EQ(axis(prompt, 1), axis(prompt, 0));
  EXPECT_EQ(axis(prompt, 2), (std::vector<int32_t>{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}));
  EXPECT_EQ(prompt.position_delta, 0);

  ExpansionRule replaced = small_rule();
  replaced.keep_outer_pair = false;
  expected = {1};
  expected.insert(expected.end(), frames.begin(), frames.end());
  expected.push_back(2);
  EXPECT_EQ(expanded(tokens, {}, videos, replaced).tokens, expected);
  // Only a whole pair goes.
  EXPECT_EQ(expanded({kVideo, kEnd}, {}, {{{1, 2, 2}, {0}}}, replaced).tokens,
            (std::vector<int32_t>{7, 0, kStart, kVideo, kEnd, kEnd}));
}

TEST(Placeholders, CountsMustAgree) {
  EXPECT_EQ(error_of({1, kImage, kImage}, {{1, 2, 2}}, {}),
            "invalid_value: the prompt has 2 image placeholders, but 1 images were given");
  EXPECT_EQ(error_of({1}, {{1, 2, 2}}, {}),
            "invalid_value: the prompt has 0 image placeholders, but 1 images were given");
  EXPECT_EQ(error_of({kVideo}, {}, {}), "invalid_value: the prompt has 1 video placeholders, but 0 videos were given");
  EXPECT_EQ(error_of({kImage}, {}, {{{1, 2, 2}, {0}}}),
            "invalid_value: the prompt has 1 image placeholders, but 0 images were given");
}

TEST(Placeholders, LengthIsCheckedBeforeItIsBuilt) {
  ExpansionRule rule = small_rule();
  rule.max_tokens = 9;
  EXPECT_EQ(error_of({1, kImage, 2}, {{1, 4, 6}}, {}, rule), "");
  EXPECT_EQ(error_of({1, 1, kImage, 2, 2}, {{1, 4, 6}}, {}, rule),
            "context_length_exceeded: the prompt has 10 tokens with its images and videos; at most 9 are accepted");
  EXPECT_EQ(error_of({kImage}, {{1 << 10, 1 << 20, 1 << 20}}, {}, rule).substr(0, 24), "context_length_exceeded:");
}

}  // namespace
}  // namespace calandra
