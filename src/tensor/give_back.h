// Memory that is not needed for a while goes back to the system; its addresses stay.
#pragma once

#include "tensor/tensor.h"

namespace calandra {

// Whether give_back works for memory of this device.
bool can_give_back(Device device);

// Of a tensor that is all of a Buffer. What it holds is lost: it is zeros until it is written again.
void give_back(const Tensor& memory);

}  // namespace calandra
