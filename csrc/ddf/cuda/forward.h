// What the dispatch of the CUDA forward pass asks of each family of kernels. No torch in here.
#pragma once

#include "ddf/ddf.h"

namespace ddf {

// Of the GPU.
struct Gpu {
  int arch;  // compute capability, 90 for 9.0
  int multiprocessors;
};

// Each returns a cudaError_t, cudaErrorNotSupported where the kernel cannot serve; nothing has
// happened then.
int launch_rows(const Params& params, const Gpu& gpu, void* stream, bool bulk);
int launch_planes(const Params& params, const Gpu& gpu, void* stream);
int launch_channels(const Params& params, const Gpu& gpu, void* stream);
int launch_general(const Params& params, void* stream);

}  // namespace ddf
