// ModelRunner: memory that is given back while nobody needs it.
#include "engine/model_runner.h"
#include "tensor/give_back.h"

namespace calandra {

void ModelRunner::give_back_memory() {
  CHECK_EQ(pages_->free_pages(), pages_->pages());
  CHECK_EQ(slots_->free_slots(), slots_->slots());
  CHECK_EQ(std::ssize(free_lanes_), limits_.max_num_seqs);
  for (const LayerCache& layer : caches_.layers) {
    for (const Tensor& tensor : layer.paged) give_back(tensor);
    for (const Tensor& tensor : layer.slotted) give_back(tensor);
  }
  give_back(slots_->N());
  give_back(slots_->accepted());
  give_back(slots_->hidden());
  give_back(workspace_memory_);
  for (const Buffer* buffer : {&image_embeds_, &hidden_, &kept_rows_})
    if (buffer->bytes() > 0) give_back(buffer->tensor(DType::kU8, {static_cast<int64_t>(buffer->bytes())}));
}

}  // namespace calandra
