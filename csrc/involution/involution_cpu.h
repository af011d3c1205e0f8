// What involution_simd.cpp, compiled once per instruction set, offers to involution_cpu.cpp.
#pragma once

#include "ddf/ddf_cpu.h"
#include "involution/involution.h"

namespace ddf::involution {

// The `Params` of the job are `InvolutionParams`.
struct Kernels {
  Job (*filters)(const InvolutionParams&);
};

extern const Kernels kernels_baseline;
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;

}  // namespace ddf::involution
