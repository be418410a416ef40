#include "engine/prefix_tree.h"

#include <algorithm>
#include <utility>

#include "base/check.h"

namespace calandra {
namespace {

constexpr TokenKey kPictureBit = uint64_t{1} << 63;

// The finaliser of splitmix64 (Steele, Lea, Flood, OOPSLA 2014).
uint64_t mix(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

// The row goes in first: two pictures whose keys happen to be equal at one row differ at the next.
TokenKey picture_key(const PictureKey& picture, int64_t row) {
  uint64_t key = 0;
  const auto add = [&](uint64_t word) { key = mix(key + 0x9e3779b97f4a7c15u + word); };
  add(static_cast<uint64_t>(row));
  for (const uint64_t word : picture.content_hash) add(word);
  for (const int64_t size : {picture.grid.t, picture.grid.h, picture.grid.w}) add(static_cast<uint64_t>(size));
  return key | kPictureBit;
}

int64_t common_prefix(std::span<const TokenKey> a, std::span<const TokenKey> b) {
  const size_t size = std::min(a.size(), b.size());
  return std::mismatch(a.begin(), a.begin() + size, b.begin()).first - a.begin();
}

}  // namespace

std::vector<TokenKey> prefix_keys(std::span<const int32_t> tokens, std::span<const PictureKey> pictures) {
  std::vector<TokenKey> keys;
  keys.reserve(tokens.size());
  for (const int32_t token : tokens) keys.push_back(static_cast<uint32_t>(token));
  int64_t end = 0;
  for (const PictureKey& picture : pictures) {
    CHECK_LE(end, picture.begin);
    CHECK_LE(0, picture.count);
    CHECK_LE(picture.count, std::ssize(tokens) - picture.begin);
    end = picture.begin + picture.count;
    for (int64_t i = 0; i < picture.count; ++i) keys[picture.begin + i] = picture_key(picture, picture.first_row + i);
  }
  return keys;
}

std::string prefix_space(std::string_view cache_salt, std::string_view adapter) {
  return std::to_string(adapter.size()) + ":" + std::string(adapter) + std::string(cache_salt);
}

// Without recursion: a conversation's nodes can form a long chain.
PrefixTree::~PrefixTree() {
  std::vector<std::unique_ptr<PrefixNode>> left;
  left.push_back(std::move(root_));
  while (!left.empty()) {
    const std::unique_ptr<PrefixNode> node = std::move(left.back());
    left.pop_back();
    for (auto& [key, child] : node->children) left.push_back(std::move(child));
  }
}

PrefixTree::Walk PrefixTree::walk(std::span<const TokenKey> keys) const {
  PrefixNode* node = root_.get();
  while (node->depth < std::ssize(keys)) {
    const auto child = node->children.find(keys[node->depth]);
    if (child == node->children.end()) break;
    const int64_t common = common_prefix(child->second->edge, keys.subspan(node->depth));
    if (common < std::ssize(child->second->edge)) return {node, node->depth + common};
    node = child->second.get();
  }
  return {node, node->depth};
}

PrefixNode* PrefixTree::make(std::span<const TokenKey> keys) {
  const auto [node, matched] = walk(keys);
  PrefixNode* at = node;
  if (matched > node->depth) {  // the path ends on an edge, or leaves it: a new node divides it
    std::unique_ptr<PrefixNode>& place = node->children.at(keys[node->depth]);
    const auto cut = place->edge.begin() + (matched - node->depth);
    auto middle = std::make_unique<PrefixNode>();
    middle->parent = node;
    middle->depth = matched;
    middle->edge.assign(place->edge.begin(), cut);
    place->edge = std::vector<TokenKey>(cut, place->edge.end());
    place->parent = middle.get();
    const TokenKey next = place->edge.front();
    middle->children.emplace(next, std::move(place));
    at = middle.get();
    place = std::move(middle);
  }
  if (matched == std::ssize(keys)) return at;
  auto leaf = std::make_unique<PrefixNode>();
  leaf->parent = at;
  leaf->depth = std::ssize(keys);
  leaf->edge.assign(keys.begin() + matched, keys.end());
  return at->children.emplace(keys[matched], std::move(leaf)).first->second.get();
}

void PrefixTree::prune(PrefixNode* node) {
  while (node != root_.get() && node->checkpoint < 0 && node->children.size() < 2) {
    PrefixNode* parent = node->parent;
    const auto place = parent->children.find(node->edge.front());
    if (node->children.empty()) {
      parent->children.erase(place);
      node = parent;
      continue;
    }
    // One way through: the child takes over the edge.
    std::unique_ptr<PrefixNode> child = std::move(node->children.begin()->second);
    child->parent = parent;
    child->edge.insert(child->edge.begin(), node->edge.begin(), node->edge.end());
    place->second = std::move(child);
    return;
  }
}

std::vector<TokenKey> PrefixTree::path(const PrefixNode* node) {
  std::vector<TokenKey> keys(static_cast<size_t>(node->depth));
  for (; node->parent != nullptr; node = node->parent)
    std::copy(node->edge.begin(), node->edge.end(), keys.begin() + node->parent->depth);
  return keys;
}

std::string PrefixTree::violation() const {
  std::string found;
  for_each_below(root_.get(), [&](const PrefixNode& node) {
    const std::string name = "node at depth " + std::to_string(node.depth);
    for (const auto& [key, child] : node.children) {
      if (child->parent != &node || child->edge.empty() || child->edge.front() != key)
        found = name + " and its child do not fit";
      else if (child->depth != node.depth + std::ssize(child->edge))
        found = name + ": the child's depth is not the edge's end";
      else if (child->checkpoint < 0 && child->children.size() < 2)
        found = name + " has a child that nothing needs";
    }
  });
  return found;
}

}  // namespace calandra
