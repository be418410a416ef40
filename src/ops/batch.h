// Batch: one step, all sequences flattened. Views; the ModelRunner owns the memory.
//   T rows (tokens)   B sequences   S segments   N logit rows   R sampling rows   P pages in a block table row
//
// Rows of a sequence are consecutive and so are its segments. A segment is a run of rows after which the recurrences
// write their state; dense ops and attention do not see segments. Everything here is device memory except the bounds.
#pragma once

#include "tensor/tensor.h"

namespace calandra {

struct Batch {
  // per row
  Tensor token_ids;      // [T] i32
  Tensor token_index;    // [T] i32  place of the token in its sequence and in the cache, from 0
  Tensor positions;      // [3, T] i32  rotary positions (temporal, height, width); equal for text
  Tensor row_sequence;   // [T] i32  sequence of the row
  Tensor adapter_index;  // [T] i32  LoRA slot, -1 for none; absent when no row has one
  Tensor image_rows;     // [I] i32  rows whose embedding is replaced; absent without images
  Tensor image_embeds;   // [I, D]   their embeddings

  // per sequence
  Tensor query_start;  // [B + 1] i32  first row of each sequence; last entry T
  Tensor seq_len;      // [B] i32  tokens of the sequence in the cache once this step's rows are stored
  Tensor active;       // [B] i32  0: the sequence has length 0 in this step, nothing of its state or pages is written
  Tensor block_table;  // [B, P] i32  page of each 16 tokens; entries beyond the length are ignored
  Tensor draft_count;  // [B] i32  how many of the last rows are drafts (in the last segment)
  Tensor lane;         // [B] i32  place of the sequence among those that run; absent in the MTP pass

  // per segment
  Tensor segment_start;     // [S + 1] i32  first row of each segment; last entry T
  Tensor segment_sequence;  // [S] i32  sequence of the segment, ascending
  Tensor state_src;         // [S] i32  slot to read; -1: the empty state (zeros, no pending) of a sequence that begins
  Tensor state_dst;         // [S] i32  slot to write

  // outputs wanted
  Tensor logit_rows;        // [N] i32  rows whose logits are computed
  Tensor sample_logit_row;  // [R] i32  index into logit_rows for each sampled token (n first tokens share one)
  Tensor sample_choice;     // [R] i32  choice index of each sampled token

  // The MTP pass: entries [entry_begin, entry_end) are written per sequence from hidden rows.
  struct MtpPass {
    Tensor entry_begin;    // [B] i32
    Tensor entry_end;      // [B] i32
    Tensor first_key;      // [B] i32  max(1, mtp_begin)
    Tensor hidden_source;  // [T] i32  row of the hidden buffer that stands before each entry
    Tensor positions;      // [3, T] i32  rotary position of the token before each entry
  } mtp;

  // What the host did not know when it built the batch, for ops::complete_batch; absent where it knew all.
  struct Ahead {
    Tensor sampled_at;  // [T] i32  row of the sampled tokens that is the row's token; -1: token_ids has it
    Tensor counts;      // [2] i32  sequences that `lists` has; sequences of the batch that move by what they keep
    Tensor lists;       // [L] i32  an ops::VerifiedRow of each, then the ids that these name
  } ahead;

  // Upper bounds known to the host; true lengths are device data.
  int64_t max_query_len = 0;  // rows of one sequence
  int64_t max_seq_len = 0;    // tokens of one sequence in the cache
  int64_t max_drafts = 0;     // drafts of one sequence

  int64_t rows() const { return token_ids.size(0); }
  int64_t sequences() const { return seq_len.size(0); }
  int64_t segments() const { return state_src.size(0); }
};

}  // namespace calandra
