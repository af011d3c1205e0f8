// Where the kernels of rows.cuh serve, and how their tiles are chosen.

#include <algorithm>

#include "ddf/cuda/forward.h"
#include "ddf/cuda/instances.cuh"
#include "ddf/cuda/rows.cuh"

namespace ddf {
namespace {

constexpr int64_t kMostStrips = 64;       // threads across a tile: beyond that it has a side halo
constexpr int64_t kMostChunk = 256;       // channels whose taps are in shared memory
constexpr int64_t kMostOffset = 1 << 30;  // elements that a copy reaches from its tile's corner

// The whole bytes, at most 16, that divide every address of a row's start.
int aligned_bytes(const View& view, int64_t item, int64_t columns) {
  int64_t bits = reinterpret_cast<int64_t>(view.data) | columns * item | 16;
  for (int i = 0; i < 3; ++i) bits |= view.stride[i] * item;
  return int(bits & -bits);
}

template <typename T, int kSize>
int rows_shared(const RowsPlan& plan, int stride) {
  using Shape = RowsShape<T, kSize>;
  const int stage_rows = (plan.rows - 1) * stride + kSize;
  const int unit = plan.copy_bytes / int(sizeof(T));
  const int copies = plan.bulk ? 0 : plan.lanes * stage_rows * (plan.pitch / unit);
  return rows_front<T>(plan.chunk, Shape::kStoredTaps, copies) +
         kRowsStages * plan.lanes * stage_rows * plan.pitch * int(sizeof(T));
}

// The channels of a stage: as many as threads and memory hold, the fewest idle lanes in all turns.
template <typename T, int kSize>
int choose_lanes(const Params& p, int64_t most_shared, RowsPlan plan) {
  const int threads =
      plan.columns / RowsShape<T, kSize>::kPixels * (plan.rows / RowsShape<T, kSize>::kRows);
  const int64_t least_offset = std::max<int64_t>(1, std::abs(p.features.stride[1]));
  int64_t least = 0;
  int chosen = 1;
  for (int lanes = 1; lanes <= plan.chunk && lanes * threads <= kRowsThreads; ++lanes) {
    plan.lanes = lanes;
    if (rows_shared<T, kSize>(plan, int(p.stride)) > most_shared) break;
    if (lanes > 1 && lanes > kMostOffset / least_offset) break;
    const int64_t cost = ceil_div(plan.chunk, lanes) * round_up(lanes * threads, 32);
    if (least == 0 || cost <= least) least = cost, chosen = lanes;
  }
  return chosen;
}

template <typename T, int kSize>
RowsKernel kernel_of(int64_t stride, bool add) {
  constexpr bool kAdd = has_add(kSize);
  if (stride == 1) return add ? rows_kernel<T, kSize, 1, kAdd> : rows_kernel<T, kSize, 1, false>;
  return add ? rows_kernel<T, kSize, 2, kAdd> : rows_kernel<T, kSize, 2, false>;
}

template <typename T, int kSize>
cudaError_t run(const Params& p, const Gpu& gpu, void* stream, bool bulk) {
  using Shape = RowsShape<T, kSize>;
  RowsPlan plan;
  plan.copy_bytes = aligned_bytes(p.features, sizeof(T), p.width);
  plan.copy_bytes = plan.copy_bytes == 16               ? 16
                    : plan.copy_bytes >= rows_copy<T>() ? rows_copy<T>()
                                                        : sizeof(T);
  plan.bulk = bulk;
  if (bulk && plan.copy_bytes < 16) return cudaErrorNotSupported;
  const int whole = std::min(16, Shape::kPixels * int(sizeof(T)));
  for (const View& view : {p.spatial, p.out}) {
    if (view.stride[3] != 1 || aligned_bytes(view, sizeof(T), p.out_width) < whole) {
      return cudaErrorNotSupported;
    }
  }
  const int64_t unit = std::max(Shape::kPixels, Shape::kUnit);
  const int64_t strips = ceil_div(p.out_width, Shape::kPixels);
  const int64_t parts = ceil_div(strips, kMostStrips);
  const int64_t wide = ceil_div(ceil_div(p.out_width, parts), unit) * unit;
  plan.columns = int(parts == 1 ? strips * Shape::kPixels : wide);
  plan.across = int(ceil_div(p.out_width, plan.columns));
  plan.pitch = Shape::pitch(plan.columns, int(p.stride));

  const int at_once = rows_at_once<T, kSize>(), stride = int(p.stride);
  const int64_t most_shared = gpu.shared / at_once - 1024;  // which the GPU takes for itself
  const int64_t taps = Shape::kStoredTaps * sizeof(Accumulator<T>);
  CutLimits limits = {};
  limits.row_unit = Shape::kRows;
  limits.channel_unit = 1;
  limits.most_chunk = std::min(kMostChunk, most_shared / 4 / taps);
  limits.across = plan.across;
  limits.blocks_at_once = at_once;
  const int64_t most_groups = kRowsThreads / (plan.columns / Shape::kPixels);
  const int64_t groups = ceil_div(p.out_height, Shape::kRows);
  plan.chunk = int(std::min(p.channels, limits.most_chunk)), plan.lanes = 1;
  plan.rows = int(std::min(most_groups, groups)) * Shape::kRows;
  while (rows_shared<T, kSize>(plan, stride) > most_shared) {
    if (plan.rows == Shape::kRows) return cudaErrorNotSupported;
    plan.rows -= Shape::kRows;
  }
  limits.most_rows = plan.rows;
  const Cut chosen = cut(p, gpu, limits);
  plan.rows = chosen.rows, plan.down = chosen.down, plan.chunk = chosen.chunk;
  plan.lanes = choose_lanes<T, kSize>(p, most_shared, plan);

  Grid grid;
  grid.shared = rows_shared<T, kSize>(plan, stride);
  const int64_t blocks = p.batch * plan.across * plan.down * ceil_div(p.channels, plan.chunk);
  if (blocks > 0x7fffffff) return cudaErrorNotSupported;
  grid.blocks = dim3(unsigned(blocks));
  grid.threads = dim3(unsigned(
      round_up(plan.lanes * (plan.columns / Shape::kPixels) * (plan.rows / Shape::kRows), 32)));
  grid.stream = stream;
  return launch(grid, kernel_of<T, kSize>(p.stride, p.combine == Combine::add), p, plan);
}

}  // namespace

int launch_rows(const Params& p, const Gpu& gpu, void* stream, bool bulk) {
  const int64_t far = (kRowsThreads * 2 + kMaxKernelSize) * std::abs(p.features.stride[2]);
  if (p.stride > 2 || p.dilation != 1 || p.features.stride[3] != 1 || p.features.stride[2] < 0 ||
      far > kMostOffset || std::max(p.height, p.width) > (1 << 30)) {
    return cudaErrorNotSupported;
  }
  if (bulk && gpu.arch < 90) return cudaErrorNotSupported;
  return by_instance(p, [&](auto element, auto size) {
    return run<decltype(element), size()>(p, gpu, stream, bulk);
  });
}

}  // namespace ddf
