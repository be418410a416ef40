// PrefixTree: a radix tree (edges of several tokens) over the keys of token sequences, and what those keys are.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "tensor/patch_grid.h"

namespace calandra {

// One per token; equal prefixes of keys mean equal caches. A text token's key is its id; a token of an image or video
// has the top bit set.
using TokenKey = uint64_t;

// Consecutive tokens that stand for an image, or for some rows of a video.
struct PictureKey {
  int64_t begin = 0, count = 0;               // tokens of the prompt
  std::array<uint64_t, 4> content_hash = {};  // of pixels and preprocessing; a strong one (SHA-256), made by the server
  PatchGrid grid;                             // of the whole image or video
  int64_t first_row = 0;                      // rows of the same video that earlier entries hold
};

// Keys of a prompt. The content hash, the grid and the row all take part, so equal pixels under another grid do not
// match. `pictures` ascending, within the tokens.
std::vector<TokenKey> prefix_keys(std::span<const int32_t> tokens, std::span<const PictureKey> pictures);

// Names a space: requests share checkpoints only within one. Exact, no hash: different pairs give different names.
std::string prefix_space(std::string_view cache_salt, std::string_view adapter);

// A place where a checkpoint stands or where paths part. A node without a checkpoint has at least two children, so
// nodes are fewer than twice the checkpoints (and the root).
struct PrefixNode {
  PrefixNode* parent = nullptr;
  std::vector<TokenKey> edge;                                // from the parent to here
  int64_t depth = 0;                                         // tokens from the root to here
  int64_t checkpoint = -1;                                   // id of the one that stands here
  std::map<TokenKey, std::unique_ptr<PrefixNode>> children;  // by the first key of their edges
};

class PrefixTree {
 public:
  PrefixTree() = default;
  PrefixTree(const PrefixTree&) = delete;
  PrefixTree& operator=(const PrefixTree&) = delete;
  ~PrefixTree();

  struct Walk {
    PrefixNode* node;  // the deepest one on the path
    int64_t matched;   // tokens of the path that the tree knows; beyond node->depth they lie on an edge
  };
  Walk walk(std::span<const TokenKey> keys) const;

  // The node at the end of the path, made if need be. The caller puts a checkpoint there, or calls prune.
  PrefixNode* make(std::span<const TokenKey> keys);
  // Removes the node if nothing needs it any more, and its parents likewise.
  void prune(PrefixNode* node);

  const PrefixNode& root() const { return *root_; }
  static std::vector<TokenKey> path(const PrefixNode* node);
  // Calls visit(node) for a node and all below it.
  template <class Visit>
  static void for_each_below(const PrefixNode* node, const Visit& visit) {
    std::vector<const PrefixNode*> left = {node};
    while (!left.empty()) {
      const PrefixNode* next = left.back();
      left.pop_back();
      visit(*next);
      for (const auto& [key, child] : next->children) left.push_back(child.get());
    }
  }
  // The first violation of the tree's form, or nothing.
  std::string violation() const;

 private:
  std::unique_ptr<PrefixNode> root_ = std::make_unique<PrefixNode>();
};

}  // namespace calandra
