// What up_simd.cpp, compiled once per instruction set, offers to up_cpu.cpp.
#pragma once

#include "ddf/ddf_cpu.h"
#include "ddf_up/up.h"

namespace ddf::up {

// The `Params` of these jobs are `UpParams`.
struct Kernels {
  Job (*forward)(const UpParams&);
  Job (*grad_features)(const UpParams&);
  Job (*grad_channel)(const UpParams&);
  Job (*grad_spatial)(const UpParams&);
};

extern const Kernels kernels_baseline;
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;

}  // namespace ddf::up
