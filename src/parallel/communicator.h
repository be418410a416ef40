// Communicator: the ranks that compute one model together. This file has the interface and the group of one rank.
#pragma once

#include "tensor/tensor.h"

namespace calandra {

class Communicator {
 public:
  virtual ~Communicator() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;
  // Sum over ranks, in place, added in the order of ranks. f32 | bf16.
  virtual void all_reduce(Tensor& x) = 0;
};

class OneRank final : public Communicator {
 public:
  int rank() const override { return 0; }
  int size() const override { return 1; }
  void all_reduce(Tensor&) override {}
};

}  // namespace calandra
