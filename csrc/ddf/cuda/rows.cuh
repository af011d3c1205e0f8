// The forward kernel for NCHW: k = 3, 5, 7, stride 1 and 2, taps adjacent.
//
// Floor per output at k = 3, float32: 8.16 bytes (F and out once; S and C are 2 %), 18 operations.
//
// A block keeps a tile of output pixels and walks over a chunk of channels. The spatial taps of the
// tile stay in registers all the way: 4 pixels x 2 rows x 9 taps are 72 registers at k = 3, which
// leaves two blocks of 256 threads on a multiprocessor; k = 5 keeps 4 x 1 x 25, k = 7 2 x 1 x 49.
// Features come through shared memory, four stages of one channel each, copied asynchronously three
// channels ahead, so that what is in flight does not cost registers: 3 stages of 5 to 10 KB a
// block. A tile is as wide as the plane where 64 threads reach across, as then rows have no halo to
// the sides, and so high that 256 threads hold it: 8 rows of 224 columns read 10.
//
// Padding is zeros in the stages, written once: copies never touch it, so that no boundary is left
// in the loop, and a filter meets the padding as any other number.
//
// The output and S are accessed by whole vectors: widths and strides that are no multiple of 4 (2
// in float64, and at k = 7) are refused.
//
// Blocks that share a tile are neighbours in the grid, the chunk being the fastest index: they find
// its spatial filter in the L2 cache, as vertical neighbours find their halo rows.
#pragma once

#include "ddf/cuda/common.cuh"

namespace ddf {

struct RowsPlan {
  int columns, rows;  // outputs of a tile; columns are a multiple of the vector, rows of a thread's
  int across, down;   // tiles of a plane
  int chunk;          // channels of a block
  int pitch;          // elements of a row of a stage
  int copy_bytes;     // of one copy by a thread: 16, 4 (8 for float64), or 2, which is done at once
  bool bulk;          // by the copy engine instead, row by row
};

// Pixels and rows of a thread, by what its taps take of the registers.
template <typename T, int kSize>
struct RowsShape {
  static constexpr int kPixels = (kSize == 7 ? 2 : 4) / (sizeof(T) == 8 ? 2 : 1);
  static constexpr int kRows = kSize == 3 ? 2 : 1;
  static constexpr int kPad = (kSize - 1) / 2;
  static constexpr int kUnit = 16 / int(sizeof(T));       // elements of 16 bytes
  static constexpr int kLead = round_up(kPad, kPixels);   // columns loaded left of a thread's own
  static constexpr int kMargin = round_up(kLead, kUnit);  // columns of a stage left of its tile
  static constexpr int kTaps = kSize * kSize;
  static constexpr int kStoredTaps = round_up(kTaps, 4);  // of a channel in shared memory
  // Vectors that cover the columns under a thread's outputs.
  static constexpr int packs(int stride) {
    return int(ceil_div((kPixels - 1) * stride + kSize + kLead - kPad, kPixels));
  }
  static constexpr int pitch(int columns, int stride) {
    return round_up(kMargin + (columns - kPixels) * stride - kLead + packs(stride) * kPixels,
                    kUnit);
  }
};

constexpr int kRowsStages = 4;
constexpr int kRowsThreads = 256;

using RowsKernel = void (*)(const Params, const RowsPlan);

// The kernel for a stride of 1 or 2; instantiated in rows_3.cu, rows_5.cu and rows_7.cu.
template <typename T, int kSize>
RowsKernel rows_kernel_of(int64_t stride, bool add);

// Where a copy comes from and goes to, in elements from the first input pixel and the stage.
struct RowsCopy {
  int from, to;
};

// Bytes of shared memory in front of the stages: the taps of the channels, and the list of copies.
template <typename T>
__host__ __device__ inline int rows_front(int chunk, int stored_taps, int copies) {
  return round_up(
      chunk * stored_taps * int(sizeof(Accumulator<T>)) + copies * int(sizeof(RowsCopy)), 128);
}

template <typename T, int kSize, int kStride, bool kAdd>
__global__ void __launch_bounds__(kRowsThreads,
                                  kSize == 3 && (sizeof(T) < 8 || kStride == 1) ? 2 : 1)
    rows_kernel(const Params p, const RowsPlan plan) {
  using A = Accumulator<T>;
  using Shape = RowsShape<T, kSize>;
  constexpr int kPixels = Shape::kPixels, kRows = Shape::kRows, kTaps = Shape::kTaps;
  constexpr int kStoredTaps = Shape::kStoredTaps, kPad = Shape::kPad, kLead = Shape::kLead;
  constexpr int kInRows = (kRows - 1) * kStride + kSize, kPacks = Shape::packs(kStride);
  constexpr int kStages = kRowsStages;

  // The tile, and the part of its input that there is.
  const int chunks = int(ceil_div(p.channels, plan.chunk));
  const int tile = blockIdx.x / chunks, in_plane = plan.across * plan.down;
  const int64_t n = tile / in_plane, c0 = int64_t(blockIdx.x % chunks) * plan.chunk;
  const int channels = int(p.channels - c0 < plan.chunk ? p.channels - c0 : plan.chunk);
  const int y0 = tile % in_plane / plan.across * plan.rows;
  const int x0 = tile % plan.across * plan.columns;
  const int top = y0 * kStride - kPad, left = x0 * kStride - Shape::kMargin;
  const int height = int(p.height), width = int(p.width);
  const int stage_rows = (plan.rows - 1) * kStride + kSize, stage = stage_rows * plan.pitch;
  const int first_row = top < 0 ? -top : 0;
  const int last_row = height - top < stage_rows ? height - top : stage_rows;
  const int first_column = left < 0 ? -left : 0;
  const int last_column = width - left < plan.pitch ? width - left : plan.pitch;
  const T* input = at<T>(p.features, n, c0, top + first_row, left + first_column);

  const int unit = plan.copy_bytes / int(sizeof(T));
  const int copies_across = (last_column - first_column) / unit;
  const int copies = plan.bulk ? 0 : (last_row - first_row) * copies_across;
  const int most_copies = plan.bulk ? 0 : stage_rows * (plan.pitch / unit);
  A* channel = dynamic_shared<A>();
  RowsCopy* list = reinterpret_cast<RowsCopy*>(channel + plan.chunk * kStoredTaps);
  T* stages = reinterpret_cast<T*>(dynamic_shared<char>() +
                                   rows_front<T>(plan.chunk, kStoredTaps, most_copies));
  DDF_SHARED(Arrivals, arrivals, [kStages]);

  const int thread = threadIdx.x, threads = blockDim.x;
  for (int i = thread; i < kStages * stage / Shape::kUnit; i += threads) {
    store(stages + i * Shape::kUnit, Pack<T, Shape::kUnit>{});
  }
  for (int i = thread; i < copies; i += threads) {
    const int row = i / copies_across, column = i % copies_across * unit;
    list[i] = {int(row * p.features.stride[2] + column),
               (first_row + row) * plan.pitch + first_column + column};
  }
  for (int i = thread; i < channels * kTaps; i += threads) {
    const int c = i / kTaps, j = i % kTaps;
    channel[c * kStoredTaps + j] = widen(*at<T>(p.channel, n, c0 + c, j / kSize, j % kSize));
  }
  if (plan.bulk && thread == 0) {
    for (int i = 0; i < kStages; ++i) arrivals[i].init(1);
  }

  // This thread's outputs, and their spatial taps.
  const int strips = plan.columns / kPixels;
  const int row = thread / strips * kRows, column = thread % strips * kPixels;
  const int y = y0 + row, x = x0 + column;
  // Rows that are left from there on; none outside of the tile.
  const int rows_here = row < plan.rows && x < p.out_width ? int(p.out_height) - y : 0;
  const bool active = rows_here > 0;
  A spatial[kTaps][kRows][kPixels];
#pragma unroll
  for (int j = 0; j < kTaps; ++j) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      Pack<T, kPixels> taps{};
      if (r < rows_here) {
        taps = load<kPixels, Hint::read_only>(at<T>(p.spatial, n, j, y + r, x));
      }
#pragma unroll
      for (int v = 0; v < kPixels; ++v) spatial[j][r][v] = widen(taps[v]);
    }
  }

  const auto issue = [&](int c) {
    const T* from = input + c * p.features.stride[1];
    T* to = stages + c % kStages * stage;
    if (plan.bulk) {
      const int rows = last_row - first_row;
      const unsigned bytes = unsigned(last_column - first_column) * sizeof(T);
      Arrivals* landed = &arrivals[c % kStages];
      if (thread == 0) landed->arrive_expecting(rows * bytes);
      for (int r = thread; r < rows; r += threads) {
        copy_bulk(to + (first_row + r) * plan.pitch + first_column, from + r * p.features.stride[2],
                  bytes, landed);
      }
      return;
    }
    const auto by = [&](auto size) {
      for (int i = thread; i < copies; i += threads) {
        copy_elements<size()>(to + list[i].to, from + list[i].from);
      }
    };
    if (plan.copy_bytes == 16) {
      by(std::integral_constant<int, 16>());
    } else if (plan.copy_bytes >= 4) {
      by(std::integral_constant<int, sizeof(T) == 8 ? 8 : 4>());
    } else {
      by(std::integral_constant<int, int(sizeof(T))>());
    }
  };

  __syncthreads();
  const T* window = stages + row * kStride * plan.pitch + Shape::kMargin - kLead + column * kStride;
  T* out = active ? at<T>(p.out, n, c0, y, x) : nullptr;
#pragma unroll 1
  for (int c = 1 - kStages; c < channels; ++c) {
    if (c >= 0) {
      if (plan.bulk) {
        arrivals[c % kStages].wait(c / kStages % 2);
      } else {
        copies_wait<kStages - 2>();
      }
      __syncthreads();  // this channel is there for all, and all are done with the one before
    }
    if (c + kStages - 1 < channels) issue(c + kStages - 1);
    copies_commit();
    if (c < 0 || !active) continue;

    A taps[kStoredTaps];
#pragma unroll
    for (int j = 0; j < kStoredTaps; j += 4) {
      const Pack<A, 4> four = load<4>(channel + c * kStoredTaps + j);
#pragma unroll
      for (int i = 0; i < 4; ++i) taps[j + i] = four[i];
    }
    A sum[kRows][kPixels] = {};
    const T* from = window + c % kStages * stage;
#pragma unroll
    for (int in = 0; in < kInRows; ++in) {
      A features[kPacks * kPixels];
#pragma unroll
      for (int i = 0; i < kPacks; ++i) {
        const Pack<T, kPixels> pack = load<kPixels>(from + in * plan.pitch + i * kPixels);
#pragma unroll
        for (int v = 0; v < kPixels; ++v) features[i * kPixels + v] = widen(pack[v]);
      }
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const int i = in - r * kStride;
        if (i < 0 || i >= kSize) continue;
#pragma unroll
        for (int j = 0; j < kSize; ++j) {
#pragma unroll
          for (int v = 0; v < kPixels; ++v) {
            sum[r][v] += combined<kAdd>(spatial[i * kSize + j][r][v], taps[i * kSize + j]) *
                         features[kLead - kPad + v * kStride + j];
          }
        }
      }
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      if (r >= rows_here) break;
      T* to = out + c * p.out.stride[1] + r * p.out.stride[2];
      Pack<T, kPixels> pack;
#pragma unroll
      for (int v = 0; v < kPixels; ++v) narrow(sum[r][v], &pack[v]);
      store<Hint::streaming>(to, pack);
    }
  }
}

template <typename T, int kSize>
RowsKernel rows_kernel_of(int64_t stride, bool add) {
  if (stride == 1) return add ? rows_kernel<T, kSize, 1, true> : rows_kernel<T, kSize, 1, false>;
  return add ? rows_kernel<T, kSize, 2, true> : rows_kernel<T, kSize, 2, false>;
}

}  // namespace ddf
