// Where the kernels of channels.cuh serve, and how their tiles are chosen.

#include <algorithm>

#include "ddf/cuda/channels.cuh"
#include "ddf/cuda/forward.h"

namespace ddf {

#define CHANNELS_KERNELS(T)                                                          \
  extern template ChannelsKernel channels_kernel_of<T, 3>(int64_t stride, bool add); \
  extern template ChannelsKernel channels_kernel_of<T, 5>(int64_t stride, bool add); \
  extern template ChannelsKernel channels_kernel_of<T, 7>(int64_t stride, bool add);
CHANNELS_KERNELS(float)
CHANNELS_KERNELS(double)
CHANNELS_KERNELS(__half)
CHANNELS_KERNELS(__nv_bfloat16)

namespace {

constexpr int kMostLanes = 32;     // so that 256 threads hold 8 rows, whose halo is a quarter
constexpr int kMostColumns = 16;   // its side halo is then an eighth; the taps of a tile 7 KB
constexpr int64_t kFar = 1 << 30;  // pixels along a side, so that their numbers are 32-bit ones

template <typename T, int kSize>
cudaError_t run(const Params& p, void* stream) {
  using Shape = ChannelsShape<T, kSize>;
  const int item = sizeof(T), whole = std::min(16, Shape::kVector * item);
  for (const View& view : {p.features, p.out}) {
    int64_t bits = reinterpret_cast<int64_t>(view.data) | p.channels * item;
    for (int i : {0, 2, 3}) bits |= view.stride[i] * item;
    if (view.stride[1] != 1 || bits % whole != 0 || p.channels % Shape::kVector != 0) {
      return cudaErrorNotSupported;
    }
  }
  ChannelsPlan plan;
  const int64_t lanes = p.channels / Shape::kVector;
  plan.blocks = int(ceil_div(lanes, kMostLanes));
  plan.lanes = int(ceil_div(lanes, plan.blocks));
  plan.groups = int(std::min<int64_t>(std::max(1, kChannelsThreads / plan.lanes),
                                      std::min<int64_t>(8, p.out_height)));
  const int64_t parts = ceil_div(p.out_width, kMostColumns);
  plan.columns = int(ceil_div(p.out_width, parts));
  plan.across = int(ceil_div(p.out_width, plan.columns));
  plan.down = int(ceil_div(p.out_height, plan.groups));

  Grid grid;
  const int64_t blocks = p.batch * plan.across * plan.down * plan.blocks;
  if (blocks > 0x7fffffff) return cudaErrorNotSupported;
  grid.blocks = dim3(unsigned(blocks));
  grid.threads = dim3(unsigned(round_up(plan.lanes * plan.groups, 32)));
  grid.shared = size_t(plan.groups) * Shape::steps(plan.columns, int(p.stride)) *
                Shape::kStoredTaps * sizeof(Accumulator<T>);
  grid.stream = stream;
  return launch(grid, channels_kernel_of<T, kSize>(p.stride, p.combine == Combine::add), p, plan);
}

template <typename T>
cudaError_t by_size(const Params& p, void* stream) {
  switch (p.kernel_size) {
    case 3:
      return run<T, 3>(p, stream);
    case 5:
      return run<T, 5>(p, stream);
    case 7:
      return run<T, 7>(p, stream);
    default:
      return cudaErrorNotSupported;
  }
}

}  // namespace

int launch_channels(const Params& p, const Gpu&, void* stream) {
  if (p.stride > 2 || p.dilation != 1 || std::max(p.height, p.width) > kFar) {
    return cudaErrorNotSupported;
  }
  switch (p.dtype) {
    case DType::float32:
      return by_size<float>(p, stream);
    case DType::float64:
      return by_size<double>(p, stream);
    case DType::float16:
      return by_size<__half>(p, stream);
    case DType::bfloat16:
      return by_size<__nv_bfloat16>(p, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace ddf
