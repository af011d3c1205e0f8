// The tables of kernels, kernels.def and backward.def: how a row is found.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstring>
#include <limits>

#include "ddf/cuda/forward.h"

namespace ddf {

enum class Layout { nchw, channels_last, any };

// A row. Kernel sizes and strides are the kernels' own to refuse; the table names them for its
// readers.
template <typename Launch>
struct Kernel {
  const char* name;
  Layout layout;
  int64_t most_pixels, least_row_bytes;
  int least_arch;
  Launch launch;
};

inline int64_t item_bytes(DType dtype) {
  return dtype == DType::float64 ? 8 : dtype == DType::float32 ? 4 : 2;
}

// Whether the table means the kernel for the case. A forced kernel need not be meant.
template <typename Launch>
bool meant(const Kernel<Launch>& kernel, const Params& p, const Gpu& gpu) {
  const bool channels_last = p.features.stride[1] == 1 && p.out.stride[1] == 1;
  const bool layout =
      kernel.layout == Layout::any || (kernel.layout == Layout::channels_last) == channels_last;
  return layout && gpu.arch >= kernel.least_arch &&
         (kernel.most_pixels == 0 || p.height * p.width <= kernel.most_pixels) &&
         p.width * item_bytes(p.dtype) >= kernel.least_row_bytes;
}

// The newest architecture that there is code for. A later GPU compiles that when it is loaded, and
// gets none of its own instructions by it; on a CPU all are there.
constexpr int newest_arch() {
#ifdef __CUDA_ARCH_LIST__
  int newest = 0;
  for (int arch : {__CUDA_ARCH_LIST__}) newest = std::max(newest, arch / 10);
  return newest;
#else
  return std::numeric_limits<int>::max();
#endif
}

inline cudaError_t describe(int device, Gpu* gpu) {
  int major = 0, minor = 0;
  cudaError_t error = cudaSetDevice(device);  // this library's own CUDA runtime has to be told
  const auto ask = [&](int* value, cudaDeviceAttr what) {
    if (error == cudaSuccess) error = cudaDeviceGetAttribute(value, what, device);
  };
  ask(&major, cudaDevAttrComputeCapabilityMajor);
  ask(&minor, cudaDevAttrComputeCapabilityMinor);
  ask(&gpu->multiprocessors, cudaDevAttrMultiProcessorCount);
  ask(&gpu->shared, cudaDevAttrMaxSharedMemoryPerBlockOptin);
  gpu->arch = std::min(10 * major + minor, newest_arch());
  return error;
}

// Has the kernel of that name try, or with "" those that the table means, until one serves.
template <typename Launch, size_t kCount, typename Try>
int first_to_serve(const Kernel<Launch> (&kernels)[kCount], const char* name, const Params& p,
                   int device, Try attempt) {
  Gpu gpu = {};
  const cudaError_t error = describe(device, &gpu);
  if (error != cudaSuccess) return error;
  for (const Kernel<Launch>& kernel : kernels) {
    if (*name ? std::strcmp(name, kernel.name) != 0 : !meant(kernel, p, gpu)) continue;
    const int done = attempt(kernel.launch, gpu);
    if (*name || done != cudaErrorNotSupported) return done;
  }
  return *name ? cudaErrorInvalidValue : cudaErrorNotSupported;
}

}  // namespace ddf
