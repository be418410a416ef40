// Device memory that can be given back to the driver while its addresses stay, so that tensors and recordings may keep
// them. Each piece takes a multiple of 2 MiB.
#pragma once

#include <cstddef>

namespace calandra::cuda {

// Zeroed. Null: there is not enough.
void* allocate_mapped(int device, size_t bytes);
// Of `data` as allocate_mapped returned it. What the device was given to do is done before memory goes.
void free_mapped(void* data);
void give_back_mapped(void* data);
// Zeroed, unless it was there. False: there is not enough, and nothing has changed.
bool take_back_mapped(void* data);

}  // namespace calandra::cuda
