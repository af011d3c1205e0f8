// The forward kernel for NCHW: k = 3, 5, 7, stride 1 and 2, taps adjacent.
//
// Floor per output at k = 3, float32: 8.16 bytes (F and out once; S and C are 2 %), 18 operations.
//
// A block keeps a tile of output pixels and walks over all channels, where there are tiles enough
// to fill the GPU, so that S is read once; else over a chunk of them. The spatial taps of the
// tile stay in registers all the way: 4 pixels x 2 rows x 9 taps are 72 registers at k = 3, which
// leaves two blocks of 256 threads on a multiprocessor; k = 5 keeps 4 x 1 x 25, k = 7 2 x 1 x 49.
// Features come through shared memory, four stages of one channel each, copied asynchronously three
// channels ahead, so that what is in flight does not cost registers: 3 stages of 8 to 14 KB a
// block. A tile is as wide as the plane where 64 threads reach across, as then rows have no halo to
// the sides, and so high that 256 threads hold it: 8 rows of 224 columns read 10. Where that would
// be too few tiles, they are less high, and several groups of threads share a tile, each with
// channels of its own: 4 rows of 28 columns are 14 threads, and 16 channels are worked on at a
// time.
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
  int lanes;          // channels of a stage, worked on at a time
  int pitch;          // elements of a row of a stage
  int copy_bytes;     // of one copy by a thread: 16, 8 (4 for float32), or 2, which is done at once
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

// Bytes of a copy where 16 do not divide: what two or four elements are.
template <typename T>
constexpr int rows_copy() {
  return sizeof(T) == 4 ? 4 : 8;
}

// Blocks on a multiprocessor, by registers.
template <typename T, int kSize>
constexpr int rows_at_once() {
  return kSize == 3 && sizeof(T) < 8 ? 2 : 1;
}

constexpr int kRowsStages = 4;
constexpr int kRowsThreads = 256;

using RowsKernel = void (*)(const Params, const RowsPlan);

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
__global__ void __launch_bounds__(kRowsThreads, rows_at_once<T, kSize>())
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
  const int stage_rows = (plan.rows - 1) * kStride + kSize, plane = stage_rows * plan.pitch;
  const int stage = plan.lanes * plane;
  const int first_row = top < 0 ? -top : 0;
  const int last_row = height - top < stage_rows ? height - top : stage_rows;
  const int first_column = left < 0 ? -left : 0;
  const int last_column = width - left < plan.pitch ? width - left : plan.pitch;
  const T* input = at<T>(p.features, n, c0, top + first_row, left + first_column);

  const int unit = plan.copy_bytes / int(sizeof(T));
  const int copies_across = (last_column - first_column) / unit;
  const int copies = plan.bulk ? 0 : (last_row - first_row) * copies_across;  // of a channel
  const int most_copies = plan.bulk ? 0 : plan.lanes * stage_rows * (plan.pitch / unit);
  A* channel = dynamic_shared<A>();
  RowsCopy* list = reinterpret_cast<RowsCopy*>(channel + plan.chunk * kStoredTaps);
  T* stages = reinterpret_cast<T*>(dynamic_shared<char>() +
                                   rows_front<T>(plan.chunk, kStoredTaps, most_copies));
  DDF_SHARED(Arrivals, arrivals, [kStages]);

  const int thread = threadIdx.x, threads = blockDim.x;
  for (int i = thread; i < kStages * stage / Shape::kUnit; i += threads) {
    store(stages + i * Shape::kUnit, Pack<T, Shape::kUnit>{});
  }
  for (int i = thread; i < plan.lanes * copies; i += threads) {
    const int lane = i / copies, row = i % copies / copies_across;
    const int column = i % copies_across * unit;
    list[i] = {int(lane * p.features.stride[1] + row * p.features.stride[2] + column),
               lane * plane + (first_row + row) * plan.pitch + first_column + column};
  }
  for (int i = thread; i < channels * kTaps; i += threads) {
    const int c = i / kTaps, j = i % kTaps;
    channel[c * kStoredTaps + j] = widen(*at<T>(p.channel, n, c0 + c, j / kSize, j % kSize));
  }
  if (plan.bulk && thread == 0) {
    for (int i = 0; i < kStages; ++i) arrivals[i].init(1);
  }

  // This thread's outputs, and their spatial taps.
  const int strips = plan.columns / kPixels, row_groups = plan.rows / kRows;
  const int lane = thread / (strips * row_groups);
  const int row = thread / strips % row_groups * kRows, column = thread % strips * kPixels;
  const int y = y0 + row, x = x0 + column;
  // Rows that are left from there on; none outside of the tile.
  const int rows_here = lane < plan.lanes && x < p.out_width ? int(p.out_height) - y : 0;
  // Channels are taken in turns; this thread's part in them.
  const int turns = int(ceil_div(channels, plan.lanes));
  const int own_turns = rows_here > 0 ? int(ceil_div(channels - lane, plan.lanes)) : 0;
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

  const auto issue = [&](int turn) {
    const int c = turn * plan.lanes;
    const int lanes = channels - c < plan.lanes ? channels - c : plan.lanes;
    const T* from = input + c * p.features.stride[1];
    T* to = stages + turn % kStages * stage;
    if (plan.bulk) {
      const int rows = last_row - first_row;
      const unsigned bytes = unsigned(last_column - first_column) * sizeof(T);
      Arrivals* landed = &arrivals[turn % kStages];
      if (thread == 0) landed->arrive_expecting(lanes * rows * bytes);
      for (int i = thread; i < lanes * rows; i += threads) {
        const int l = i / rows, r = i % rows;
        copy_bulk(to + l * plane + (first_row + r) * plan.pitch + first_column,
                  from + l * p.features.stride[1] + r * p.features.stride[2], bytes, landed);
      }
      return;
    }
    const auto by = [&](auto size) {
      for (int i = thread; i < lanes * copies; i += threads) {
        copy_elements<size()>(to + list[i].to, from + list[i].from);
      }
    };
    if (plan.copy_bytes == 16) {
      by(std::integral_constant<int, 16>());
    } else if (plan.copy_bytes >= 4) {
      by(std::integral_constant<int, rows_copy<T>()>());
    } else {
      by(std::integral_constant<int, int(sizeof(T))>());
    }
  };

  __syncthreads();
  const T* window = stages + lane * plane + row * kStride * plan.pitch + Shape::kMargin - kLead +
                    column * kStride;
  channel += lane * kStoredTaps;
  T* out = own_turns > 0 ? at<T>(p.out, n, c0 + lane, y, x) : nullptr;
#pragma unroll 1
  for (int turn = 1 - kStages; turn < turns; ++turn) {
    if (turn >= 0) {
      if (plan.bulk) {
        arrivals[turn % kStages].wait(turn / kStages % 2);
      } else {
        copies_wait<kStages - 2>();
      }
      __syncthreads();  // these channels are there for all, and all are done with those before
    }
    if (turn + kStages - 1 < turns) issue(turn + kStages - 1);
    copies_commit();
    if (turn < 0 || turn >= own_turns) continue;

    const int c = turn * plan.lanes;  // from this thread's first
    A taps[kStoredTaps];
#pragma unroll
    for (int j = 0; j < kStoredTaps; j += 4) {
      const Pack<A, 4> four = load<4>(channel + c * kStoredTaps + j);
#pragma unroll
      for (int i = 0; i < 4; ++i) taps[j + i] = four[i];
    }
    A sum[kRows][kPixels] = {};
    const T* from = window + turn % kStages * stage;
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

}  // namespace ddf
