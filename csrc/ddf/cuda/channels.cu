// Where the kernels of channels.cuh serve, and how their tiles are chosen.

#include <algorithm>

#include "ddf/cuda/channels.cuh"
#include "ddf/cuda/forward.h"
#include "ddf/cuda/instances.cuh"

namespace ddf {
namespace {

constexpr int kMostRows = 8;       // of a tile: their halo is a quarter
constexpr int kMostColumns = 32;   // at k = 3: the taps of a tile are then 13 KB; else half of it
constexpr int64_t kFar = 1 << 30;  // of pixels along a side, or channels: their numbers are 32-bit

template <typename T, int kSize>
ChannelsKernel kernel_of(int64_t stride, bool add) {
  constexpr bool kAdd = has_add(kSize);
  if (stride == 1) {
    return add ? channels_kernel<T, kSize, 1, kAdd> : channels_kernel<T, kSize, 1, false>;
  }
  return add ? channels_kernel<T, kSize, 2, kAdd> : channels_kernel<T, kSize, 2, false>;
}

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
  return launch(grid, kernel_of<T, kSize>(p.stride, p.combine == Combine::add), p, plan);
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
  return by_instance(p, [&](auto element, auto size) {
    return run<decltype(element), size()>(p, gpu, stream, cluster);
  });
}

}  // namespace ddf
