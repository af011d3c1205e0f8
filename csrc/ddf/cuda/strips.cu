// Where the kernels of strips.cuh serve, and how their tiles are chosen.

#include <algorithm>

#include "ddf/cuda/instances.cuh"
#include "ddf/cuda/strips.cuh"

namespace ddf {
namespace {

constexpr int64_t kMostChunk = 256;  // channels whose taps are in shared memory

// The threads of a team, the channels of a stage, and the places of their bands; false where
// shared memory cannot hold one.
template <typename T, int kSize>
bool choose_lanes(const Params& p, int64_t most_shared, StripsPlan* plan) {
  using Shape = StripsShape<T, kSize>;
  const auto band = [&](int64_t rows) {
    return round_up(int(std::min(rows, p.height) * p.width * int64_t(sizeof(T))), 16) + 16;
  };
  plan->team = round_up(plan->columns * (plan->rows / Shape::kRows), 32);
  plan->features_place = band(plan->rows + kSize - 1);
  plan->lane_bytes = plan->features_place + band(plan->rows);
  const int64_t room = most_shared - strips_front<T, kSize>(plan->chunk, Shape::kThreads);
  const int64_t most = std::min<int64_t>(
      {Shape::kThreads / plan->team, plan->chunk, room / kStripsStages / plan->lane_bytes});
  if (most < 1) return false;
  plan->lanes = int(ceil_div(plan->chunk, ceil_div(plan->chunk, most)));
  return true;
}

// Of the stages, and at the end of what teams leave one another.
template <typename T, int kSize>
int64_t strips_shared(const StripsPlan& plan) {
  using Shape = StripsShape<T, kSize>;
  const int64_t sums = Shape::kTaps * Shape::kRows * plan.team * int64_t(sizeof(Accumulator<T>));
  return strips_front<T, kSize>(plan.chunk, plan.lanes * plan.team) +
         std::max<int64_t>(kStripsStages * plan.lanes * plan.lane_bytes, plan.lanes > 1 ? sums : 0);
}

template <typename T, int kSize>
bool choose(const Params& p, const Gpu& gpu, StripsPlan* plan) {
  using Shape = StripsShape<T, kSize>;
  const int64_t most_shared = gpu.shared - 1024;  // which the GPU takes for itself
  plan->columns = int(p.width) + kSize - 1;
  Params padded = p;
  padded.out_height = p.height + kSize - 1;
  CutLimits limits = {};
  limits.row_unit = Shape::kRows, limits.channel_unit = 1;
  limits.most_chunk = std::min<int64_t>(
      kMostChunk, most_shared / 4 / (Shape::kStoredTaps * int(sizeof(Accumulator<T>))));
  limits.across = limits.blocks_at_once = 1;
  limits.most_rows = int(std::min<int64_t>(Shape::kThreads / plan->columns,
                                           ceil_div(padded.out_height, Shape::kRows))) *
                     Shape::kRows;
  for (; limits.most_rows > 0; limits.most_rows -= Shape::kRows) {
    const Cut chosen = cut(padded, gpu, limits);
    plan->rows = chosen.rows, plan->down = chosen.down, plan->chunk = chosen.chunk;
    if (choose_lanes<T, kSize>(p, most_shared, plan) &&
        strips_shared<T, kSize>(*plan) <= most_shared) {
      return true;
    }
  }
  return false;
}

template <typename T, int kSize>
cudaError_t run(const Params& p, const Gpu& gpu, void* stream, int64_t* bytes) {
  StripsPlan plan = {};
  if (!choose<T, kSize>(p, gpu, &plan)) return cudaErrorNotSupported;
  const int64_t chunks = ceil_div(p.channels, plan.chunk), blocks = p.batch * plan.down * chunks;
  if (blocks > 0x7fffffff) return cudaErrorNotSupported;
  plan.parts.spatial.count = chunks, plan.parts.channel.count = plan.down;
  const int64_t needed = place_parts(p, &plan.parts);
  if (bytes) return *bytes = needed, cudaSuccess;
  Grid grid;
  grid.blocks = dim3(unsigned(blocks));
  grid.threads = dim3(unsigned(plan.lanes * plan.team));
  grid.shared = size_t(strips_shared<T, kSize>(plan));
  grid.stream = stream;
  const bool add = p.combine == Combine::add;
  const auto kernel =
      add ? strips_kernel<T, kSize, has_add(kSize)> : strips_kernel<T, kSize, false>;
  const cudaError_t error = launch(grid, kernel, p, plan);
  return error == cudaSuccess ? cudaError_t(launch_sums(p, plan.parts, stream)) : error;
}

}  // namespace

int launch_strips(const Params& p, const Gpu& gpu, void* stream, int64_t* bytes) {
  const auto flat = [&](const View& view) {
    return view.stride[3] == 1 && view.stride[2] == p.width && view.stride[1] >= 0 &&
           view.stride[0] >= 0 && reinterpret_cast<uintptr_t>(view.data) % 16 == 0;
  };
  if (p.stride != 1 || p.dilation != 1 || !flat(p.features) || !flat(p.out) ||
      p.width > StripsShape<float, 3>::kThreads || p.height > (1 << 20)) {
    return cudaErrorNotSupported;
  }
  return by_instance(p, [&](auto element, auto size) {
    return run<decltype(element), size()>(p, gpu, stream, bytes);
  });
}

}  // namespace ddf
