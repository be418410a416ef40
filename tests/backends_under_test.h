// The backends that op tests compare with the reference: the reference itself, the cpu backend for every instruction
// set of the machine with one thread and with three, and the cuda backend, fast and deterministic, where its plug-in
// and a device are. There the tensors of tests stand in host memory that the device reaches; weights and the caches of
// whole models are its own.
#pragma once

#include <functional>
#include <memory>
#include <ostream>
#include <string>
#include <vector>

#include "ops/backend.h"

namespace calandra {

struct BackendUnderTest {
  std::string name;  // "reference", "cpu_avx2_3"
  std::function<std::unique_ptr<Backend>()> make;
  bool one_order = true;  // a row has the same bits alone, in any batch, and in any chunk
};
inline std::ostream& operator<<(std::ostream& out, const BackendUnderTest& backend) { return out << backend.name; }

std::vector<BackendUnderTest> backends_under_test();

}  // namespace calandra
