// EncoderCache: what the vision tower made of pictures, by content, so that a picture that comes again is not encoded
// again. One thread.
#pragma once

#include <array>
#include <cstdint>
#include <list>
#include <map>
#include <memory>
#include <vector>

#include "engine/vision_runner.h"

namespace calandra {

// A picture or video, prepared for the tower.
struct EncoderInput {
  std::vector<float> patches;  // [P, values], P = grid.patches()
  PatchGrid grid;
  std::array<uint64_t, 4> content_hash = {};  // of pixels and preprocessing; a strong one
};

// Rows of it that stand at consecutive tokens of a prompt: all of a picture, or one temporal patch of a video.
struct PictureRows {
  int64_t begin = 0, count = 0;  // tokens of the prompt
  std::shared_ptr<const EncoderInput> input;
  int64_t first_row = 0;  // of the tower's result
  int64_t end() const { return begin + count; }
};

class EncoderCache {
 public:
  // Holds results of up to `bytes` that nobody uses at the moment. Both must outlive the cache.
  EncoderCache(const VisionEncoder& encoder, Backend& backend, int64_t bytes)
      : encoder_(encoder), backend_(backend), most_bytes_(bytes) {}

  bool contains(const EncoderInput& input) const { return entries_.contains(key_of(input)); }
  // Throws LoadError when the memory for encoding is not there.
  std::shared_ptr<const ImageEmbeds> encode(const EncoderInput& input);
  // Once results are given back: drops what is then too much.
  void enforce_limit() { drop_above(most_bytes_); }
  // Drops all that nobody uses at the moment.
  void clear() { drop_above(0); }
  // Rows that the tower makes of it.
  int64_t rows_of(const EncoderInput& input) const;

  int64_t bytes() const { return bytes_; }  // of all results, those in use too
  int64_t hits() const { return hits_; }
  int64_t queries() const { return queries_; }

 private:
  // Equal pixels under another grid are another picture.
  using Key = std::pair<std::array<uint64_t, 4>, std::array<int64_t, 3>>;
  struct Entry {
    std::shared_ptr<const ImageEmbeds> embeds;
    int64_t bytes;
    std::list<Key>::iterator place;
  };
  static Key key_of(const EncoderInput& input);
  void drop_above(int64_t bytes);

  const VisionEncoder& encoder_;
  Backend& backend_;
  const int64_t most_bytes_;
  std::map<Key, Entry> entries_;
  std::list<Key> order_;  // the least recently used one first
  int64_t bytes_ = 0, hits_ = 0, queries_ = 0;
};

}  // namespace calandra
