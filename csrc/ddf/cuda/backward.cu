// The backward pass on CUDA: which kernel serves a case, by the table backward.def, and what is
// left to do where several blocks share a sum.

#include <cuda_runtime.h>

#include "ddf/cuda/backward.h"
#include "ddf/cuda/common.cuh"
#include "ddf/cuda/table.h"

namespace ddf {
namespace {

namespace kernels {
int strips(const Params& p, const Gpu& gpu, void* stream, int64_t* bytes) {
  return launch_strips(p, gpu, stream, bytes);
}
int walk(const Params& p, const Gpu& gpu, void* stream, int64_t* bytes) {
  return launch_walk(p, gpu, stream, bytes);
}
int apart(const Params& p, const Gpu&, void* stream, int64_t* bytes) {
  return launch_apart(p, stream, bytes);
}
}  // namespace kernels

using Launch = int (*)(const Params&, const Gpu&, void* stream, int64_t* bytes);

const Kernel<Launch> kKernels[] = {
#define KERNEL(name, layout, sizes, strides, most_pixels, least_row_bytes, least_arch) \
  {#name, Layout::layout, most_pixels, least_row_bytes, least_arch, kernels::name},
#include "ddf/cuda/backward.def"
#undef KERNEL
};

int backward(const char* name, const Params& p, int device, void* stream, int64_t* bytes) {
  return first_to_serve(kKernels, name, p, device, [&](Launch launch, const Gpu& gpu) {
    return launch(p, gpu, stream, bytes);
  });
}

// A gradient whose parts are to be added up; `elements` is 0 where there is nothing to do.
struct Sum {
  const void* parts;
  int64_t count, elements;
  View to;
  int64_t sizes[3];  // of its last three dimensions
};

Sum sum_of(const Parts& parts, const View& to, int64_t a, int64_t b, int64_t c, int64_t d) {
  return {parts.data, parts.count, parts.data ? a * b * c * d : 0, to, {b, c, d}};
}

constexpr int kThreads = 256;

// Both gradients in one launch: neighbouring threads are neighbouring sums.
template <typename T>
__global__ void __launch_bounds__(kThreads) sum_parts_kernel(const Sum first, const Sum second) {
  int64_t i = global_thread();
  const bool is_first = i < first.elements;
  const Sum sum = is_first ? first : second;
  if (!is_first) i -= first.elements;
  if (i >= sum.elements) return;
  const Accumulator<T>* from = static_cast<const Accumulator<T>*>(sum.parts) + i;
  Accumulator<T> total = 0;
  for (int64_t part = 0; part < sum.count; ++part) total += from[part * sum.elements];
  const int64_t d = i % sum.sizes[2], rest = i / sum.sizes[2];
  const int64_t c = rest % sum.sizes[1], b = rest / sum.sizes[1];
  narrow(total, at<T>(sum.to, b / sum.sizes[0], b % sum.sizes[0], c, d));
}

}  // namespace

int64_t place_parts(const Params& p, BackwardParts* parts) {
  const int64_t item = p.dtype == DType::float64 ? 8 : 4, taps = p.kernel_size * p.kernel_size;
  int64_t bytes = 0;
  const auto place = [&](Parts* of, const View& gradient, int64_t elements) {
    of->data = nullptr;
    if (!gradient.data || of->count == 1) return;
    of->data = static_cast<char*>(p.work) + bytes;
    bytes += ceil_div(of->count * elements * item, 64) * 64;
  };
  place(&parts->spatial, p.grad_spatial, p.batch * taps * p.out_height * p.out_width);
  place(&parts->channel, p.grad_channel, p.batch * p.channels * taps);
  return bytes;
}

int launch_sums(const Params& p, const BackwardParts& parts, void* stream) {
  const int64_t k = p.kernel_size;
  const Sum spatial =
      sum_of(parts.spatial, p.grad_spatial, p.batch, k * k, p.out_height, p.out_width);
  const Sum channel = sum_of(parts.channel, p.grad_channel, p.batch, p.channels, k, k);
  const int64_t blocks = ceil_div(spatial.elements + channel.elements, kThreads);
  if (blocks == 0) return cudaSuccess;
  if (blocks > 0x7fffffff) return cudaErrorInvalidConfiguration;
  const Grid grid = {dim3(unsigned(blocks)), dim3(kThreads), 0, stream};
  switch (p.dtype) {
    case DType::float32:
      return launch(grid, sum_parts_kernel<float>, spatial, channel);
    case DType::float64:
      return launch(grid, sum_parts_kernel<double>, spatial, channel);
    case DType::float16:
      return launch(grid, sum_parts_kernel<__half>, spatial, channel);
    case DType::bfloat16:
      return launch(grid, sum_parts_kernel<__nv_bfloat16>, spatial, channel);
  }
  return cudaErrorInvalidValue;
}

int cuda_backward_by(const char* name, const Params& p, int device, void* stream) {
  return backward(name, p, device, stream, nullptr);
}

int64_t cuda_backward_work_bytes_by(const char* name, const Params& p, int device) {
  int64_t bytes = 0;
  return backward(name, p, device, nullptr, &bytes) == cudaSuccess ? bytes : 0;
}

int cuda_backward(const Params& p, int device, void* stream) {
  return cuda_backward_by("", p, device, stream);
}

int64_t cuda_backward_work_bytes(const Params& p, int device) {
  return cuda_backward_work_bytes_by("", p, device);
}

}  // namespace ddf
