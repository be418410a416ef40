#include "text/pattern.h"

#include <gtest/gtest.h>

#include "base/error.h"
#include "text/normalizer.h"

namespace calandra {
namespace {

std::vector<std::string> find(const Pattern& pattern, std::string_view text) {
  std::vector<TextSpan> spans;
  pattern.find_all(text, spans);
  std::vector<std::string> found;
  for (const TextSpan& span : spans) found.emplace_back(text.substr(span.begin, span.end - span.begin));
  return found;
}

using Found = std::vector<std::string>;

TEST(Pattern, ClassesFollowUnicode16) {
  const Pattern letters = Pattern::regex(R"(\p{L}+)", "test");
  EXPECT_EQ(find(letters, "a\u1c89\ua7cb \U0002ebf0x \U000105c0"),
            (Found{"a\u1c89\ua7cb", "\U0002ebf0x", "\U000105c0"}));
  EXPECT_EQ(find(Pattern::regex(R"(\p{M})", "test"), "a\u0897"), (Found{"\u0897"}));
  EXPECT_EQ(find(Pattern::regex(R"(\s+)", "test"), "a\u180e \u180e"), (Found{" "}));  // not a space since Unicode 6.3
  EXPECT_EQ(find(Pattern::regex(R"(\s+)", "test"), "a\u0085\u2028\u3000b"), (Found{"\u0085\u2028\u3000"}));
}

TEST(Pattern, CaseIsIgnoredAsUnicodeFoldsIt) {
  EXPECT_EQ(find(Pattern::regex(R"((?i:'s|'ll))", "test"), "'S'ſ'Ll's"), (Found{"'S", "'ſ", "'Ll", "'s"}));
}

TEST(Pattern, EmptyMatchesDoNotRepeat) { EXPECT_EQ(find(Pattern::regex("x*", "test"), "axxé"), (Found{"", "xx", ""})); }

TEST(Pattern, VerticalTabIsOneCharacter) { EXPECT_EQ(find(Pattern::regex(R"(\v)", "test"), "\v\n"), (Found{"\v"})); }

TEST(Pattern, WhatMeansSomethingElseInOnigurumaIsRefused) {
  for (const std::string_view expression :
       {R"(\h)",    R"(\w)",         R"(\b)",      R"(\Z)",        "^a",      "a$",    "[[:alpha:]]",
        "[a&&b]",   "[]a]",          "a{2}+",      "a{,3}",        "a{2}?",   "a**",   "(?i)a",
        "(?<n>a)",  "(?m:a)",        R"(\pL)",     R"(\p{Greek})", R"(\xff)", R"(\1)", "(?i:ß)",
        "(?i:ss)",  "(?i:affix)",    "a)",         "(a",           "[a",      R"(\)",  "",
        "(?<=a*)b", R"(\x{110000})", R"(\x{d800})"}) {
    EXPECT_THROW(Pattern::regex(expression, "file.json: key"), LoadError) << expression;
  }
  EXPECT_THROW(Pattern::regex(std::string(300, '(') + std::string(300, ')'), "test"), LoadError);
}

TEST(Pattern, EndlessBacktrackingIsAnError) {
  const Pattern pattern = Pattern::regex("(?:a+)+[bc]", "test");
  std::vector<TextSpan> spans;
  EXPECT_THROW(pattern.find_all(std::string(64, 'a'), spans), UsageError);
}

TEST(Nfc, ComposesReordersAndLeavesYoungMarks) {
  EXPECT_EQ(nfc("plain é"), "plain é");
  EXPECT_EQ(nfc("e\u0301"), "é");
  EXPECT_EQ(nfc("a\u0301\u0323x"), "ạ\u0301x");
  EXPECT_EQ(nfc("\u212b\u2126"), "ÅΩ");
  EXPECT_EQ(nfc("\u1112\u1161\u11ab"), "한");
  EXPECT_EQ(nfc("a\u0898\u0301"), "a\u0898\u0301");                // U+0898 has no combining class in Unicode 9
  EXPECT_EQ(nfc("\U00011935\U00011930"), "\U00011935\U00011930");  // a pair of Unicode 13
}

}  // namespace
}  // namespace calandra
