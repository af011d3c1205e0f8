// The multiply-add roof: how many multiply-accumulates a core, or a GPU, can do when nothing has to
// be moved.

#pragma once

#include <cstdint>

namespace roofs {

// One thread's loop on `steps` rounds of independent chains; returns the multiply-accumulates it
// did.
struct Kernels {
  int64_t (*float32)(int64_t steps);
  int64_t (*float64)(int64_t steps);
};

}  // namespace roofs
