// The forward pass on CUDA: which kernel serves a case. kernels.def is the table.

#include <cuda_runtime.h>

#include <cstring>

#include "ddf/cuda/forward.h"

namespace ddf {
namespace {

enum class Layout { nchw, channels_last, any };

struct Kernel {
  const char* name;
  Layout layout;
  int64_t most_pixels, least_row_bytes;
  int least_arch;
  int (*launch)(const Params&, const Gpu&, void* stream);
};

namespace kernels {
int rows_bulk(const Params& p, const Gpu& gpu, void* stream) {
  return launch_rows(p, gpu, stream, true);
}
int rows(const Params& p, const Gpu& gpu, void* stream) {
  return launch_rows(p, gpu, stream, false);
}
int planes(const Params& p, const Gpu& gpu, void* stream) {
  return launch_planes(p, gpu, stream, false);
}
int bands(const Params& p, const Gpu& gpu, void* stream) {
  return launch_planes(p, gpu, stream, true);
}
int channels(const Params& p, const Gpu& gpu, void* stream) {
  return launch_channels(p, gpu, stream);
}
int general(const Params& p, const Gpu&, void* stream) { return launch_general(p, stream); }
}  // namespace kernels

// Kernel sizes and strides are the kernels' own to refuse; the table names them for its readers.
const Kernel kKernels[] = {
#define KERNEL(name, layout, sizes, strides, most_pixels, least_row_bytes, least_arch) \
  {#name, Layout::layout, most_pixels, least_row_bytes, least_arch, kernels::name},
#include "ddf/cuda/kernels.def"
#undef KERNEL
};

int64_t item_bytes(DType dtype) {
  return dtype == DType::float64 ? 8 : dtype == DType::float32 ? 4 : 2;
}

// Whether the table means the kernel for the case. A forced kernel need not be meant.
bool meant(const Kernel& kernel, const Params& p, const Gpu& gpu) {
  const bool channels_last = p.features.stride[1] == 1 && p.out.stride[1] == 1;
  const bool layout =
      kernel.layout == Layout::any || (kernel.layout == Layout::channels_last) == channels_last;
  return layout && gpu.arch >= kernel.least_arch &&
         (kernel.most_pixels == 0 || p.height * p.width <= kernel.most_pixels) &&
         p.width * item_bytes(p.dtype) >= kernel.least_row_bytes;
}

cudaError_t describe(int device, Gpu* gpu) {
  int major = 0, minor = 0;
  cudaError_t error = cudaSetDevice(device);  // this library's own CUDA runtime has to be told
  const auto ask = [&](int* value, cudaDeviceAttr what) {
    if (error == cudaSuccess) error = cudaDeviceGetAttribute(value, what, device);
  };
  ask(&major, cudaDevAttrComputeCapabilityMajor);
  ask(&minor, cudaDevAttrComputeCapabilityMinor);
  ask(&gpu->multiprocessors, cudaDevAttrMultiProcessorCount);
  ask(&gpu->shared, cudaDevAttrMaxSharedMemoryPerBlockOptin);
  gpu->arch = 10 * major + minor;
  return error;
}

}  // namespace

int cuda_forward_by(const char* name, const Params& p, int device, void* stream) {
  Gpu gpu = {};
  const cudaError_t error = describe(device, &gpu);
  if (error != cudaSuccess) return error;
  for (const Kernel& kernel : kKernels) {
    if (*name ? std::strcmp(name, kernel.name) != 0 : !meant(kernel, p, gpu)) continue;
    const int launched = kernel.launch(p, gpu, stream);
    if (*name || launched != cudaErrorNotSupported) return launched;
  }
  return *name ? cudaErrorInvalidValue : cudaErrorNotSupported;
}

int cuda_forward(const Params& p, int device, void* stream) {
  return cuda_forward_by("", p, device, stream);
}

}  // namespace ddf
