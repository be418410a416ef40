// What the cores and the memory can do right now: the yardstick printed beside every bench figure.
#pragma once

#include <cstddef>

#include "ops/backend.h"

namespace calandra::apps {

struct MachineProbe {
  double read_bytes_per_s = 0;  // streaming read by all threads, best of the passes
  double flops_per_s = 0;       // f32 FMA (multiply and add count two) with the widest vectors, best of the passes;
                                // of a device 0: not probed
};

// `threads` pinned threads; reads `bytes` of touched memory on huge pages where granted. Takes about a second.
MachineProbe probe_machine(int threads, size_t bytes = size_t{1} << 30);
// The backend's device if it has one of its own, else the machine.
MachineProbe probe_of(Backend& backend, int threads);

}  // namespace calandra::apps
