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

constexpr int kMostRows = 8;       // of a tile: their halo is a quarter
constexpr int kMostColumns = 32;   // at k = 3: the taps of a tile are then 13 KB; else half of it
constexpr int64_t kFar = 1 << 30;  // of pixels along a side, or channels: their numbers are 32-bit

template <typename T, int kSize>
cudaError_t run(const Params& p, const Gpu& gpu, void* stream, bool cluster) {
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
  plan.columns = int(std::min<int64_t>(p.out_width, kSize == 3 ? kMostColumns : kMostColumns / 2));
  plan.across = int(ceil_div(p.out_width, plan.columns));
  CutLimits limits = {};
  limits.row_unit = 1, limits.most_rows = kMostRows, limits.across = plan.across;
  limits.channel_unit = std::max(Shape::kVector, 32 / item);
  limits.most_chunk =
      kChannelsTurns<kSize> ? p.channels : kChannelsThreads / kMostRows * Shape::kVector;
  limits.blocks_at_once = kSize == 3 ? 2 : 1;
  Cut chosen = cut(p, gpu, limits);
  plan.cluster = cluster ? cluster_blocks(p.channels, limits.channel_unit, &chosen) : 1;
  if (cluster && (plan.cluster == 1 || plan.across > 1)) return cudaErrorNotSupported;
  plan.groups = chosen.rows, plan.down = chosen.down;
  plan.chunk = chosen.chunk / Shape::kVector;
  plan.chunks = int(ceil_div(lanes, plan.chunk));
  // In so many turns that threads for all rows fit; alike, so that none is short.
  const int64_t turns = ceil_div(plan.chunk, std::max(1, kChannelsThreads / plan.groups));
  plan.lanes = int(ceil_div(plan.chunk, turns));

  Grid grid;
  const int64_t blocks = p.batch * plan.across * plan.down * plan.chunks;
  if (blocks > 0x7fffffff) return cudaErrorNotSupported;
  grid.blocks = dim3(unsigned(blocks));
  grid.threads = dim3(unsigned(round_up(plan.lanes * plan.groups, 32)));
  grid.shared = size_t(plan.groups) * Shape::steps(plan.columns, int(p.stride)) *
                Shape::kStoredTaps * sizeof(Accumulator<T>);
  grid.stream = stream;
  grid.cluster = unsigned(plan.cluster);
  if (grid.shared > size_t(gpu.shared)) return cudaErrorNotSupported;
  return launch(grid, channels_kernel_of<T, kSize>(p.stride, p.combine == Combine::add), p, plan);
}

template <typename T>
cudaError_t by_size(const Params& p, const Gpu& gpu, void* stream, bool cluster) {
  switch (p.kernel_size) {
    case 3:
      return run<T, 3>(p, gpu, stream, cluster);
    case 5:
      return run<T, 5>(p, gpu, stream, cluster);
    case 7:
      return run<T, 7>(p, gpu, stream, cluster);
    default:
      return cudaErrorNotSupported;
  }
}

}  // namespace

int launch_channels(const Params& p, const Gpu& gpu, void* stream, bool cluster) {
  if (p.stride > 2 || p.dilation != 1 || std::max({p.height, p.width, p.channels}) > kFar) {
    return cudaErrorNotSupported;
  }
  const View& s = p.spatial;
  const int64_t taps = p.kernel_size * p.kernel_size;
  const bool one_range =
      s.stride[1] == 1 && s.stride[3] == taps && s.stride[2] == p.out_width * taps;
  if (cluster && (gpu.arch < 90 || !one_range)) return cudaErrorNotSupported;
  switch (p.dtype) {
    case DType::float32:
      return by_size<float>(p, gpu, stream, cluster);
    case DType::float64:
      return by_size<double>(p, gpu, stream, cluster);
    case DType::float16:
      return by_size<__half>(p, gpu, stream, cluster);
    case DType::bfloat16:
      return by_size<__nv_bfloat16>(p, gpu, stream, cluster);
  }
  return cudaErrorInvalidValue;
}

}  // namespace ddf
