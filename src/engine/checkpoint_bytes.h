// The byte form of one checkpoint: saved sessions, disk, transfer. Little-endian:
//   magic "CALCKPT\n", version u32
//   model_hash [32], rank i32, ranks i32
//   P, mtp_begin, position_delta i64;  bytes of layout, slot, pages u64
//   layout        text: number formats and shapes of every tensor of slot and pages
//   keys          [P] u64
//   slot, pages   as SlotPool::copy_out and PagePool::copy_out give them, the last page up to P
//   checksum u64  of everything before it: against accidents, not against forgers
#pragma once

#include <array>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/checkpoint_store.h"
#include "engine/prefix_tree.h"

namespace calandra {

// States mean something only to the same weights on the same shard.
struct CheckpointIdentity {
  std::array<uint64_t, 4> model_hash = {};  // of config and weights, with everything that changes their values
  int32_t rank = 0, ranks = 1;
};

std::vector<std::byte> save_checkpoint(const CheckpointStore& store, const CheckpointIdentity& identity,
                                       const Checkpoint& checkpoint, std::span<const TokenKey> keys);

struct SavedCheckpoint {
  CheckpointContent content;  // points into the bytes that were read
  std::vector<TokenKey> keys;
};
// Throws LoadError, naming `source` (a file), when the bytes are not a whole checkpoint of this model and these pools.
SavedCheckpoint read_checkpoint(const CheckpointStore& store, const CheckpointIdentity& identity,
                                std::span<const std::byte> bytes, std::string_view source);

// Number formats and shapes of all that a slot and a page hold, one tensor a line.
std::string checkpoint_layout(const PagePool& pages, const SlotPool& slots);

}  // namespace calandra
