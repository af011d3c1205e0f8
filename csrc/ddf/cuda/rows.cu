// Where the kernels of rows.cuh serve, and how their tiles are chosen.

#include <algorithm>

#include "ddf/cuda/forward.h"
#include "ddf/cuda/rows.cuh"

namespace ddf {

#define ROWS_KERNELS(T)                                                      \
  extern template RowsKernel rows_kernel_of<T, 3>(int64_t stride, bool add); \
  extern template RowsKernel rows_kernel_of<T, 5>(int64_t stride, bool add); \
  extern template RowsKernel rows_kernel_of<T, 7>(int64_t stride, bool add);
ROWS_KERNELS(float)
ROWS_KERNELS(double)
ROWS_KERNELS(__half)
ROWS_KERNELS(__nv_bfloat16)

namespace {

constexpr int64_t kMostStrips = 64;       // threads across a tile: beyond that it has a side halo
constexpr size_t kMostShared = 96 << 10;  // bytes of a block; 64 KB on sm_75
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
  const int copies = plan.bulk ? 0 : stage_rows * (plan.pitch / unit);
  return rows_front<T>(plan.chunk, Shape::kStoredTaps, copies) +
         kRowsStages * stage_rows * plan.pitch * int(sizeof(T));
}

// The rows of a tile: few idle lanes and few halo rows, by instructions and bytes an output.
template <typename T, int kSize>
void choose_rows(const Params& p, size_t most_shared, RowsPlan* plan) {
  using Shape = RowsShape<T, kSize>;
  const int64_t strips = plan->columns / Shape::kPixels, stride = p.stride;
  double best = 0;
  int chosen = Shape::kRows;
  for (int groups = 1; groups * strips <= kRowsThreads; ++groups) {
    plan->rows = groups * Shape::kRows;
    if (size_t(rows_shared<T, kSize>(*plan, int(stride))) > most_shared) break;
    const int64_t down = ceil_div(p.out_height, plan->rows);
    const int64_t lanes = down * round_up(int(groups * strips), 32);
    const int64_t read = down * ((plan->rows - 1) * stride + kSize);
    const double cost =
        double(lanes * Shape::kPixels * Shape::kRows) / double(p.out_height * plan->columns) +
        double(read) / double(p.out_height * stride);
    if (best == 0 || cost < best) best = cost, chosen = plan->rows;
    if (plan->rows >= p.out_height) break;
  }
  plan->rows = chosen;
  plan->down = int(ceil_div(p.out_height, chosen));
}

// Channels of a block: by the time of the whole grid, in channels of a block. A wave of blocks
// takes its chunk, the taps (9 planes read, where a channel moves 2), and the filling of the
// stages.
int choose_chunk(const Params& p, int64_t tiles, int64_t slots) {
  int chosen = 8;
  int64_t best = 0;
  for (int chunk = 8; chunk <= 256; chunk *= 2) {
    const int64_t waves = ceil_div(tiles * ceil_div(p.channels, chunk), slots);
    const int64_t cost = waves * (chunk + p.kernel_size * p.kernel_size / 2 + kRowsStages);
    if (best == 0 || cost < best) best = cost, chosen = chunk;
    if (chunk >= p.channels) break;
  }
  return chosen;
}

template <typename T, int kSize>
cudaError_t run(const Params& p, const Gpu& gpu, void* stream, bool bulk) {
  using Shape = RowsShape<T, kSize>;
  RowsPlan plan;
  plan.copy_bytes = aligned_bytes(p.features, sizeof(T), p.width);
  plan.copy_bytes =
      plan.copy_bytes == 16 ? 16 : std::min(plan.copy_bytes, std::max(4, int(sizeof(T))));
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
  const size_t most_shared = gpu.arch >= 80 ? kMostShared : size_t(64 << 10);
  plan.chunk = 32;
  choose_rows<T, kSize>(p, most_shared, &plan);
  const int64_t tiles = p.batch * plan.across * plan.down;
  plan.chunk = choose_chunk(p, tiles, int64_t(gpu.multiprocessors) * (kSize == 3 ? 2 : 1));

  Grid grid;
  grid.shared = rows_shared<T, kSize>(plan, int(p.stride));
  const int64_t blocks = tiles * ceil_div(p.channels, plan.chunk);
  if (blocks > 0x7fffffff || grid.shared > most_shared) return cudaErrorNotSupported;
  grid.blocks = dim3(unsigned(blocks));
  grid.threads =
      dim3(unsigned(round_up(plan.columns / Shape::kPixels * plan.rows / Shape::kRows, 32)));
  grid.stream = stream;
  return launch(grid, rows_kernel_of<T, kSize>(p.stride, p.combine == Combine::add), p, plan);
}

template <typename T>
cudaError_t by_size(const Params& p, const Gpu& gpu, void* stream, bool bulk) {
  switch (p.kernel_size) {
    case 3:
      return run<T, 3>(p, gpu, stream, bulk);
    case 5:
      return run<T, 5>(p, gpu, stream, bulk);
    case 7:
      return run<T, 7>(p, gpu, stream, bulk);
    default:
      return cudaErrorNotSupported;
  }
}

}  // namespace

int launch_rows(const Params& p, const Gpu& gpu, void* stream, bool bulk) {
  const int64_t far = (kRowsThreads * 2 + kMaxKernelSize) * std::abs(p.features.stride[2]);
  if (p.stride > 2 || p.dilation != 1 || p.features.stride[3] != 1 || p.features.stride[2] < 0 ||
      far > kMostOffset || std::max(p.height, p.width) > (1 << 30)) {
    return cudaErrorNotSupported;
  }
  if (bulk && gpu.arch < 90) return cudaErrorNotSupported;
  switch (p.dtype) {
    case DType::float32:
      return by_size<float>(p, gpu, stream, bulk);
    case DType::float64:
      return by_size<double>(p, gpu, stream, bulk);
    case DType::float16:
      return by_size<__half>(p, gpu, stream, bulk);
    case DType::bfloat16:
      return by_size<__nv_bfloat16>(p, gpu, stream, bulk);
  }
  return cudaErrorInvalidValue;
}

}  // namespace ddf
