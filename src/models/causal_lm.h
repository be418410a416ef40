// CausalLM: what the engine sees of a model.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "cache/cache_spec.h"
#include "models/step_cost.h"
#include "ops/batch.h"
#include "ops/cache_views.h"
#include "ops/exec_context.h"
#include "tensor/patch_grid.h"

namespace calandra {

// The caches of all layers for one forward.
struct ModelCaches {
  std::vector<LayerCache> layers;
  SlotCounts slots;
};

// The multi-token prediction layers of a model. They continue the decoder: entry e of a sequence is the
// pair (hidden row of token e - 1, token e); it stands at token index e of the pages, has the rotary position of token
// e - 1, and its result predicts token e + 1. Index 0 is never written and never seen.
class Drafter {
 public:
  virtual ~Drafter() = default;

  virtual int64_t num_layers() const = 0;
  // One spec per MTP layer; their caches follow those of the decoder layers in ModelCaches. Pages only.
  virtual std::vector<CacheSpec> cache_specs() const = 0;

  // Runs one entry per row of the batch: token_ids and images are those of tokens e, token_index is e, mtp.positions
  // those of tokens e - 1, keys are seen from mtp.first_key on. Every layer writes its entry from this pair; the result
  // is that of layer step % num_layers (vLLM: spec_step_idx).
  //   hidden [T, D]: for step 0 the model's hidden row of token e - 1, later the previous step's result
  //   returns [T, D] after the last norm, for logits(); valid until the workspace is flipped or reset
  virtual Tensor forward(ExecContext& ctx, const Batch& batch, ModelCaches& caches, const Tensor& hidden,
                         int64_t step) const = 0;

  // The output head for drafts, which may be approximate.   hidden [N, D]   returns [N, columns] f32
  virtual Tensor logits(ExecContext& ctx, const Tensor& hidden) const = 0;
  // Token id of each column of its logits, ascending; empty: the column itself.
  virtual std::span<const int32_t> token_ids() const = 0;

  virtual StepCost step_cost() const = 0;  // of one pass, the output head included
};

// A vision tower: patches to embedding rows.
class VisionEncoder {
 public:
  virtual ~VisionEncoder() = default;

  virtual int64_t patch_size() const = 0;           // pixels of a patch's side
  virtual int64_t temporal_patch_size() const = 0;  // frames of a patch
  virtual int64_t spatial_merge_size() const = 0;   // side of the square of patches that becomes one row
  // patches [P, 3 * frames * side * side] f32 on the device, in merge-block order; P = sum of the grids
  //   returns [P / merge^2, D] in the model's type
  virtual Tensor forward(ExecContext& ctx, const Tensor& patches, std::span<const PatchGrid> grids) const = 0;
};

// What of a checkpoint is loaded beside the text model.
struct ModelParts {
  bool drafter = false;
  bool vision = false;
  // Token ids of the drafter's own output head, ascending: these rows of the model's head, rounded to 8 bits. Empty:
  // the drafter uses the model's.
  std::vector<int32_t> draft_ids = {};
};

class CausalLM {
 public:
  virtual ~CausalLM() = default;

  virtual int64_t vocab_size() const = 0;  // rows of the output head
  virtual int64_t hidden_size() const = 0;
  virtual int64_t max_position_embeddings() const = 0;
  virtual DType dtype() const = 0;  // of activations and caches
  // One spec per decoder layer, in order.
  virtual std::vector<CacheSpec> cache_specs() const = 0;

  // Runs every row of the batch through all layers, writing caches and slots.
  //   returns [T, D] after the final norm, valid until the workspace is flipped or reset
  virtual Tensor forward(ExecContext& ctx, const Batch& batch, ModelCaches& caches) const = 0;
  // The output head.   hidden [N, D]   returns [N, V] f32
  virtual Tensor logits(ExecContext& ctx, const Tensor& hidden) const = 0;

  virtual StepCost step_cost() const = 0;

  // Null when the checkpoint has none or it was not asked for.
  virtual const Drafter* drafter() const { return nullptr; }
  virtual const VisionEncoder* vision() const { return nullptr; }
};

}  // namespace calandra
