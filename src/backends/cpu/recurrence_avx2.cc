#include "backends/cpu/recurrence_kernels.inl"

namespace calandra {

const RecurrenceKernels& recurrence_kernels_avx2() { return kRecurrenceKernels; }

}  // namespace calandra
