// ModelRunner: memory that is given back while nobody needs it.
#include "engine/model_runner.h"

namespace calandra {

template <class F>
void ModelRunner::for_each_memory(const F& visit) const {
  for (const LayerCache& layer : caches_.layers) {
    for (const Tensor& tensor : layer.paged) visit(tensor);
    for (const Tensor& tensor : layer.slotted) visit(tensor);
  }
  visit(slots_->N());
  visit(slots_->accepted());
  visit(slots_->hidden());
  visit(workspace_memory_);
  for (const Buffer* buffer : {&image_embeds_, &hidden_, &kept_rows_})
    visit(buffer->tensor(DType::kU8, {static_cast<int64_t>(buffer->bytes())}));
}

void ModelRunner::give_back_memory() {
  CHECK_EQ(pages_->free_pages(), pages_->pages());
  CHECK_EQ(slots_->free_slots(), slots_->slots());
  CHECK_EQ(std::ssize(free_lanes_), limits_.max_num_seqs);
  for_each_memory([&](const Tensor& memory) { backend_.give_back(memory); });
}

void ModelRunner::take_back_memory() {
  for_each_memory([&](const Tensor& memory) { backend_.take_back(memory); });
}

}  // namespace calandra
