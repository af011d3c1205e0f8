// The kernels of planes.cuh, and where they serve.

#include <algorithm>

#include "ddf/cuda/forward.h"
#include "ddf/cuda/instances.cuh"
#include "ddf/cuda/planes.cuh"

namespace ddf {
namespace {

constexpr int64_t kMostChunk = 256;  // channels whose taps are in shared memory

// Of shared memory, where a cluster puts the spatial filter together.
template <typename T>
int64_t exchange_bytes(const Params& p, bool cluster) {
  const int64_t taps = p.kernel_size * p.kernel_size;
  return cluster ? taps * p.out_height * p.out_width * int64_t(sizeof(T)) : 0;
}

// The rows of a band, the channels of a block and of a stage, and the threads that share them.
template <typename T, int kSize>
bool choose(const Params& p, const Gpu& gpu, bool bands, bool cluster, PlanesPlan* plan,
            int* threads) {
  using Shape = PlanesShape<T, kSize>;
  const int64_t planes_apart = p.features.stride[1] * int64_t(sizeof(T));
  const auto band_bytes = [&](int64_t rows) {
    return std::min((rows - 1) * p.stride + kSize, p.height) * p.width * int64_t(sizeof(T));
  };
  *threads = planes_threads(kSize);
  CutLimits limits = {};
  limits.row_unit = limits.channel_unit = limits.across = limits.blocks_at_once = 1;
  limits.most_chunk = std::min<int64_t>(kMostChunk, gpu.shared / 4 / Shape::kChannelBytes);
  limits.most_rows = int(std::min<int64_t>(*threads / p.out_width, p.out_height));
  if (!bands && limits.most_rows < p.out_height) return false;
  if (!bands) limits.row_unit = int(p.out_height);
  Cut chosen = cut(p, gpu, limits);
  const auto blocks = [&] { return p.batch * chosen.down * ceil_div(p.channels, chosen.chunk); };
  if (kSize == 3 && *threads / 2 >= p.out_width * limits.row_unit &&
      blocks() > gpu.multiprocessors) {
    // More than one wave: two blocks at once, of which one copies while the other works.
    *threads /= 2, limits.blocks_at_once = 2;
    limits.most_rows = int(std::min<int64_t>(*threads / p.out_width, p.out_height));
    chosen = cut(p, gpu, limits);
  }
  plan->cluster = cluster ? cluster_blocks(p.channels, limits.channel_unit, &chosen) : 1;
  if (cluster && plan->cluster == 1) return false;
  const bool whole = chosen.down == 1 && p.features.stride[1] == p.height * p.width;
  if (band_bytes(chosen.rows) > gpu.shared) return false;
  const int64_t taps = round_up(chosen.chunk * Shape::kChannelBytes, 16);
  const int64_t place = whole ? planes_apart : round_up(int(band_bytes(chosen.rows)), 16) + 16;
  const int64_t room =
      gpu.shared / limits.blocks_at_once - 1024 - taps - exchange_bytes<T>(p, cluster);
  plan->rows = chosen.rows, plan->down = chosen.down, plan->chunk = chosen.chunk;
  plan->pitch = whole ? 0 : int(place);
  plan->lanes = int(*threads / (plan->rows * p.out_width));
  plan->stages = plan->chunk * place + 32 <= room ? 1 : 2;
  if (plan->stages == 1) {
    plan->held = plan->chunk;
  } else {
    plan->held = int(std::min<int64_t>((room / 2 - 32) / place, plan->chunk));
    if (plan->held > plan->lanes) plan->held -= plan->held % plan->lanes;
  }
  if (plan->held < 1) return false;
  plan->lanes = std::min(plan->lanes, plan->held);
  plan->stage = round_up(int(plan->held * place), 16) + 16;
  return true;
}

template <typename T, int kSize>
cudaError_t run(const Params& p, const Gpu& gpu, void* stream, bool bands, bool cluster) {
  PlanesPlan plan = {};
  int threads = 0;
  if (!choose<T, kSize>(p, gpu, bands, cluster, &plan, &threads)) return cudaErrorNotSupported;
  Grid grid;
  const int64_t blocks = p.batch * plan.down * ceil_div(p.channels, plan.chunk);
  if (blocks > 0x7fffffff) return cudaErrorNotSupported;
  grid.blocks = dim3(unsigned(blocks));
  grid.threads = dim3(unsigned(round_up(int(plan.lanes * plan.rows * p.out_width), 32)));
  grid.shared = size_t(round_up(plan.chunk * PlanesShape<T, kSize>::kChannelBytes, 16) +
                       plan.stages * plan.stage + exchange_bytes<T>(p, cluster));
  grid.stream = stream;
  grid.cluster = unsigned(plan.cluster);
  const bool add = p.combine == Combine::add;
  const auto kernel =
      add ? planes_kernel<T, kSize, has_add(kSize)> : planes_kernel<T, kSize, false>;
  return launch(grid, kernel, p, plan);
}

}  // namespace

int launch_planes(const Params& p, const Gpu& gpu, void* stream, bool bands, bool cluster) {
  const View& f = p.features;
  const bool flat = f.stride[3] == 1 && f.stride[2] == p.width && f.stride[1] >= 0 &&
                    reinterpret_cast<uintptr_t>(f.data) % 16 == 0;
  const int64_t most = planes_threads(int(p.kernel_size));  // pixels of a block
  if (p.dilation != 1 || !flat || f.stride[0] < 0 || p.width > (1 << 20) || p.height > (1 << 20) ||
      (bands ? p.out_width > most : p.out_height * p.out_width > most)) {
    return cudaErrorNotSupported;
  }
  const View& s = p.spatial;
  const bool one_range =
      s.stride[3] == 1 && s.stride[2] == p.out_width && s.stride[1] == p.out_height * p.out_width;
  if (cluster && (gpu.arch < 90 || !one_range)) return cudaErrorNotSupported;
  return by_instance(p, [&](auto element, auto size) {
    return run<decltype(element), size()>(p, gpu, stream, bands, cluster);
  });
}

}  // namespace ddf
