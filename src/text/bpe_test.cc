#include "text/bpe.h"

#include <gtest/gtest.h>

#include <map>
#include <random>

namespace calandra {
namespace {

TEST(ByteSpelling, RoundTrips) {
  std::string bytes;
  for (int byte = 0; byte < 256; ++byte) bytes += static_cast<char>(byte);
  EXPECT_EQ(from_byte_spelling(to_byte_spelling(bytes)), bytes);
  EXPECT_EQ(to_byte_spelling(" \n"), "ĠĊ");
  EXPECT_EQ(from_byte_spelling("Ġ中"), "Ġ中");  // outside the alphabet: itself
}

// The definition: join the leftmost pair of lowest rank, again and again.
std::vector<int32_t> slow_encode(const std::string& word, const std::vector<BpeMerge>& merges) {
  std::vector<int32_t> ids(word.begin(), word.end());
  while (true) {
    size_t best = merges.size(), at = 0;
    for (size_t i = 0; i + 1 < ids.size(); ++i) {
      for (size_t rank = 0; rank < best; ++rank) {
        if (merges[rank].left == ids[i] && merges[rank].right == ids[i + 1]) {
          best = rank;
          at = i;
        }
      }
    }
    if (best == merges.size()) return ids;
    ids[at] = merges[best].joined;
    ids.erase(ids.begin() + static_cast<std::ptrdiff_t>(at) + 1);
  }
}

TEST(Bpe, EqualsTheDefinition) {
  std::mt19937 random(5);
  std::array<int32_t, 256> byte_ids;
  for (int byte = 0; byte < 256; ++byte) byte_ids[byte] = byte;
  for (int round = 0; round < 200; ++round) {
    // Tokens over three letters; each merge makes one from two that exist, which several may do: ab|c and a|bc.
    std::vector<BpeMerge> merges;
    std::vector<int32_t> tokens = {'a', 'b', 'c'};
    std::map<int32_t, std::string> text_of = {{'a', "a"}, {'b', "b"}, {'c', "c"}};
    std::map<std::string, int32_t> made;
    for (int32_t next = 256; next < 290; ++next) {
      const int32_t left = tokens[random() % tokens.size()], right = tokens[random() % tokens.size()];
      const bool known = std::any_of(merges.begin(), merges.end(),
                                     [&](const BpeMerge& m) { return m.left == left && m.right == right; });
      if (known) continue;
      const auto [at, is_new] = made.try_emplace(text_of[left] + text_of[right], next);
      merges.push_back({left, right, at->second});
      if (!is_new) continue;
      text_of[next] = at->first;
      tokens.push_back(next);
    }
    const Bpe bpe(byte_ids, merges, {});
    Bpe::Scratch scratch;
    for (int word = 0; word < 40; ++word) {
      std::string text;
      for (size_t i = random() % 60; i > 0; --i) text += static_cast<char>('a' + random() % 3);
      std::vector<int32_t> ids;
      bpe.encode(text, scratch, ids);
      EXPECT_EQ(ids, slow_encode(text, merges)) << text;
    }
  }
}

TEST(Bpe, WholeWordsComeFirst) {
  std::array<int32_t, 256> byte_ids;
  for (int byte = 0; byte < 256; ++byte) byte_ids[byte] = byte;
  TokenIds words;
  words.emplace("abc", 300);
  const Bpe bpe(byte_ids, {{'a', 'b', 256}}, words);
  Bpe::Scratch scratch;
  std::vector<int32_t> ids;
  bpe.encode("abc", scratch, ids);
  bpe.encode("abca", scratch, ids);
  EXPECT_EQ(ids, (std::vector<int32_t>{300, 256, 'c', 'a'}));
}

}  // namespace
}  // namespace calandra
