// The forward pass on CUDA: which kernel serves a case. kernels.def is the table.

#include <cuda_runtime.h>

#include "ddf/cuda/table.h"

namespace ddf {
namespace {

namespace kernels {
int rows_bulk(const Params& p, const Gpu& gpu, void* stream) {
  return launch_rows(p, gpu, stream, true);
}
int rows(const Params& p, const Gpu& gpu, void* stream) {
  return launch_rows(p, gpu, stream, false);
}
int planes(const Params& p, const Gpu& gpu, void* stream) {
  return launch_planes(p, gpu, stream, false, false);
}
int planes_cluster(const Params& p, const Gpu& gpu, void* stream) {
  return launch_planes(p, gpu, stream, false, true);
}
int bands(const Params& p, const Gpu& gpu, void* stream) {
  return launch_planes(p, gpu, stream, true, false);
}
int channels(const Params& p, const Gpu& gpu, void* stream) {
  return launch_channels(p, gpu, stream, false);
}
int channels_cluster(const Params& p, const Gpu& gpu, void* stream) {
  return launch_channels(p, gpu, stream, true);
}
int general(const Params& p, const Gpu&, void* stream) { return launch_general(p, stream); }
}  // namespace kernels

using Launch = int (*)(const Params&, const Gpu&, void* stream);

const Kernel<Launch> kKernels[] = {
#define KERNEL(name, layout, sizes, strides, most_pixels, least_row_bytes, least_arch) \
  {#name, Layout::layout, most_pixels, least_row_bytes, least_arch, kernels::name},
#include "ddf/cuda/kernels.def"
#undef KERNEL
};

}  // namespace

int cuda_forward_by(const char* name, const Params& p, int device, void* stream) {
  return first_to_serve(kKernels, name, p, device,
                        [&](Launch launch, const Gpu& gpu) { return launch(p, gpu, stream); });
}

int cuda_forward(const Params& p, int device, void* stream) {
  return cuda_forward_by("", p, device, stream);
}

}  // namespace ddf
