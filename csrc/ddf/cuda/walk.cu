// Where the kernels of walk.cuh serve, and how their tiles are chosen.

#include <algorithm>

#include "ddf/cuda/instances.cuh"
#include "ddf/cuda/walk.cuh"

namespace ddf {
namespace {

constexpr int64_t kMostColumns = 64;  // of a tile: beyond that the halo to the sides is 3 %
constexpr int kMostRows = 32;         // four for each warp
constexpr int64_t kFar = 1 << 30;     // pixels and channels

template <typename T, int kSize>
cudaError_t run(const Params& p, const Gpu& gpu, void* stream, int64_t* bytes) {
  using Shape = WalkShape<T, kSize>;
  constexpr int kVectorBytes = Shape::kVector * int(sizeof(T));
  for (const View& view : {p.features, p.out, p.grad_features}) {
    if (!view.data) continue;
    int64_t bits = reinterpret_cast<int64_t>(view.data) | p.channels * int64_t(sizeof(T));
    for (int i : {0, 2, 3}) bits |= view.stride[i] * int64_t(sizeof(T));
    if (view.stride[1] != 1 || bits % std::min(16, kVectorBytes) != 0 ||
        p.channels % Shape::kVector != 0) {
      return cudaErrorNotSupported;
    }
  }
  WalkPlan plan = {};
  Params padded = p;
  padded.out_height = p.height + kSize - 1;
  const int64_t width = p.width + kSize - 1, parts = ceil_div(width, kMostColumns);
  plan.columns = int(ceil_div(width, parts));
  plan.across = int(ceil_div(width, plan.columns));
  CutLimits limits = {};
  limits.row_unit = 1, limits.channel_unit = Shape::kChannels, limits.across = plan.across;
  limits.most_chunk = p.channels, limits.blocks_at_once = 1;
  limits.most_rows = int(std::min<int64_t>(kMostRows, padded.out_height));
  while (walk_shared<T, kSize>(limits.most_rows * plan.columns, kWalkWarps) > gpu.shared - 1024) {
    if (--limits.most_rows == 0) return cudaErrorNotSupported;
  }
  const Cut chosen = cut(padded, gpu, limits);
  plan.rows = chosen.rows, plan.down = chosen.down, plan.chunk = chosen.chunk;
  // As few as take their rows in so many turns.
  plan.warps = int(ceil_div(plan.rows, ceil_div(plan.rows, kWalkWarps)));
  const int64_t chunks = ceil_div(p.channels, plan.chunk), tiles = plan.across * plan.down;
  if (p.batch * tiles * chunks > 0x7fffffff) return cudaErrorNotSupported;
  plan.parts.spatial.count = chunks, plan.parts.channel.count = tiles;
  const int64_t needed = place_parts(p, &plan.parts);
  if (bytes) return *bytes = needed, cudaSuccess;
  Grid grid;
  grid.blocks = dim3(unsigned(p.batch * tiles * chunks));
  grid.threads = dim3(unsigned(32 * plan.warps));
  grid.shared = size_t(walk_shared<T, kSize>(plan.rows * plan.columns, plan.warps));
  grid.stream = stream;
  const bool add = p.combine == Combine::add;
  const auto kernel = add ? walk_kernel<T, kSize, has_add(kSize)> : walk_kernel<T, kSize, false>;
  const cudaError_t error = launch(grid, kernel, p, plan);
  return error == cudaSuccess ? cudaError_t(launch_sums(p, plan.parts, stream)) : error;
}

}  // namespace

int launch_walk(const Params& p, const Gpu& gpu, void* stream, int64_t* bytes) {
  if (p.stride != 1 || p.dilation != 1 || std::max({p.height, p.width, p.channels}) > kFar) {
    return cudaErrorNotSupported;
  }
  return by_instance(p, [&](auto element, auto size) {
    return run<decltype(element), size()>(p, gpu, stream, bytes);
  });
}

}  // namespace ddf
