// The backward kernel for channels last: k = 3, 5, 7, stride 1, taps adjacent, all three gradients
// in one pass.
//
// Floor as for NCHW. The 32 lanes of a warp are neighbouring channels, of which each has 4 (k = 3;
// 2 at k = 5, 1 at k = 7). A warp walks along a row of the padded plane, column by column, and
// keeps in registers the taps of its channels and the sums of their gradient (36 and 36 at k = 3),
// and the k x k outputs' gradients around its place, of which each step loads a column, one step
// ahead. The spatial taps are the same for all channels: they are read from shared memory, and the
// sums of their gradient over the channels, by shuffles, are added up there. After the rows of its
// tile a warp starts again with the next 128 channels, until those of the block are done.
#pragma once

#include "ddf/cuda/backward.cuh"

namespace ddf {

struct WalkPlan {
  int columns, rows;  // of a tile, in the padded plane
  int across, down;   // tiles of it
  int chunk;          // channels of a block
  int warps;
  BackwardParts parts;
};

template <typename T, int kSize>
struct WalkShape : BackwardShape<kSize> {
  static constexpr int kVector = (kSize == 3 ? 4 : kSize == 5 ? 2 : 1) / (sizeof(T) == 8 ? 2 : 1);
  static constexpr int kChannels = 32 * kVector;  // of a warp
  // Sums of a lane for the channel filter, an odd number apart for the banks of shared memory.
  static constexpr int kSums = BackwardShape<kSize>::kTaps * kVector, kPitch = kSums | 1;
};

constexpr int kWalkWarps = 8;

template <typename T, int kSize>
__host__ __device__ constexpr int64_t walk_shared(int64_t pixels, int warps) {
  using Shape = WalkShape<T, kSize>;
  return (2 * pixels * Shape::kStoredTaps + int64_t(warps) * 32 * Shape::kPitch) *
         int64_t(sizeof(Accumulator<T>));
}

template <typename T, int kSize, bool kAdd>
__global__ void __launch_bounds__(32 * kWalkWarps, 1)
    walk_kernel(const Params p, const WalkPlan plan) {
  using A = Accumulator<T>;
  using Shape = WalkShape<T, kSize>;
  constexpr int kVector = Shape::kVector, kPad = Shape::kPad, kTaps = Shape::kTaps;
  constexpr int kRowTaps = Shape::kRowTaps, kStoredTaps = Shape::kStoredTaps;
  const int height = int(p.height), width = int(p.width);
  const int chunks = int(ceil_div(p.channels, plan.chunk)), chunk = blockIdx.x % chunks;
  const int tile = blockIdx.x / chunks % (plan.across * plan.down);
  const int64_t n = blockIdx.x / chunks / (plan.across * plan.down);
  const int x0 = tile % plan.across * plan.columns, y0 = tile / plan.across * plan.rows;
  const int64_t c0 = int64_t(chunk) * plan.chunk;
  const int channels = int(p.channels - c0 < plan.chunk ? p.channels - c0 : plan.chunk);
  const int thread = threadIdx.x, threads = blockDim.x, lane = thread % 32, warp = thread / 32;

  A* spatial = dynamic_shared<A>();  // [rows][columns][kStoredTaps]
  A* grad_spatial = spatial + plan.rows * plan.columns * kStoredTaps;
  A* warp_sums = grad_spatial + plan.rows * plan.columns * kStoredTaps;  // [warps][32][kPitch]

  // Calls body(place in shared memory, tap, y, x) for the outputs' taps that are the tile's.
  const bool taps_adjacent = p.spatial.stride[1] == 1;
  const auto each_tap = [&](auto body) {
    for (int e = thread; e < plan.rows * plan.columns * kTaps; e += threads) {
      const int tap = taps_adjacent ? e % kTaps : e / plan.columns % kTaps;
      const int column = taps_adjacent ? e / kTaps % plan.columns : e % plan.columns;
      const int row = e / (kTaps * plan.columns);
      const int y = y0 + row - tap / kSize, x = x0 + column - tap % kSize;
      if (y < 0 || y >= height || x < 0 || x >= width) continue;
      body((row * plan.columns + column) * kStoredTaps + tap / kSize * kRowTaps + tap % kSize, tap,
           y, x);
    }
  };
  each_tap([&](int place, int tap, int y, int x) {
    spatial[place] = widen(*at<T>(p.spatial, n, tap, y, x));
  });
  __syncthreads();

#pragma unroll 1
  for (int first = 0; first < channels; first += Shape::kChannels) {
    const int c = first + lane * kVector;
    const bool there = c < channels;
    A channel[kTaps][kVector], grad_channel[kTaps][kVector] = {};
#pragma unroll
    for (int t = 0; t < kTaps; ++t) {
#pragma unroll
      for (int v = 0; v < kVector; ++v) {
        channel[t][v] =
            there ? widen(*at<T>(p.channel, n, c0 + c + v, t / kSize, t % kSize)) : A(0);
      }
    }
#pragma unroll 1
    for (int row = warp; row < plan.rows; row += plan.warps) {
      const int y = y0 + row - kPad;
      bool row_inside[kSize];
#pragma unroll
      for (int i = 0; i < kSize; ++i) {
        row_inside[i] = there && y0 + row - i >= 0 && y0 + row - i < height;
      }
      const bool feature_inside = there && y >= 0 && y < height;
      A around[kSize][kSize][kVector] = {};
      Pack<T, kVector> next_d[kSize], next_feature;
      const T* next = at<T>(p.out, n, c0 + c, y0 + row, x0 - (kSize - 1));
      const T* feature = at<T>(p.features, n, c0 + c, y, x0 - (kSize - 1) - kPad);
      // The column of the outputs' gradients that step enters, and the feature where it stands.
      const auto fetch = [&](int step) {
        const int column = x0 + step, x = column - kPad;
#pragma unroll
        for (int i = 0; i < kSize; ++i) {
          next_d[i] = {};
          if (row_inside[i] && column >= 0 && column < width) {
            next_d[i] = load<kVector>(next - i * p.out.stride[2]);
          }
        }
        next_feature = {};
        if (feature_inside && x >= 0 && x < width && step >= 0) {
          next_feature = load<kVector, Hint::streaming>(feature);
        }
        next += p.out.stride[3], feature += p.features.stride[3];
        opaque(next);
      };
      fetch(1 - kSize);
#pragma unroll 1
      for (int step = 1 - kSize; step < plan.columns; ++step) {
        A value[kVector], sum[kVector] = {};
#pragma unroll
        for (int i = 0; i < kSize; ++i) {
#pragma unroll
          for (int v = 0; v < kVector; ++v) {
#pragma unroll
            for (int j = kSize - 1; j > 0; --j) around[i][j][v] = around[i][j - 1][v];
            around[i][0][v] = widen(next_d[i][v]);
          }
        }
#pragma unroll
        for (int v = 0; v < kVector; ++v) value[v] = widen(next_feature[v]);
        if (step + 1 < plan.columns) fetch(step + 1);
        if (step < 0) continue;

        const int place = (row * plan.columns + step) * kStoredTaps;
#pragma unroll
        for (int i = 0; i < kSize; ++i) {
          if (y0 + row - i < 0 || y0 + row - i >= height) continue;  // for all lanes alike
          A taps[kRowTaps], grad_taps[kRowTaps] = {};
          load_row<kSize>(spatial + place + i * kRowTaps, taps);
#pragma unroll
          for (int j = 0; j < kSize; ++j) {
            if (x0 + step - j < 0 || x0 + step - j >= width) continue;
#pragma unroll
            for (int v = 0; v < kVector; ++v) {
              const A own = channel[i * kSize + j][v], d = around[i][j][v];
              const A product = value[v] * d;
              grad_taps[j] += kAdd ? product : product * own;
              grad_channel[i * kSize + j][v] += kAdd ? product : product * taps[j];
              sum[v] += combined<kAdd>(taps[j], own) * d;
            }
          }
          const A total = sum_over_lanes(grad_taps, lane);
          const int held = lane / Shape::kHolders;
          if (lane % Shape::kHolders == 0 && held < kSize) {
            A* to = grad_spatial + place + i * kRowTaps + held;
            *to = first == 0 ? total : *to + total;
          }
        }
        const int x = x0 + step - kPad;
        if (feature_inside && x >= 0 && x < width && p.grad_features.data) {
          Pack<T, kVector> pack;
#pragma unroll
          for (int v = 0; v < kVector; ++v) narrow(sum[v], &pack[v]);
          store<Hint::streaming>(at<T>(p.grad_features, n, c0 + c, y, x), pack);
        }
      }
    }
    // The sums over the tile of all warps.
    A* own_sums = warp_sums + thread * Shape::kPitch;
#pragma unroll
    for (int t = 0; t < kTaps; ++t) {
#pragma unroll
      for (int v = 0; v < kVector; ++v) own_sums[t * kVector + v] = grad_channel[t][v];
    }
    __syncthreads();
    for (int e = thread; e < Shape::kChannels * kTaps; e += threads) {
      const int own = e / kTaps, tap = e % kTaps;
      if (first + own >= channels) break;
      A sum = 0;
      for (int w = 0; w < plan.warps; ++w) {
        sum += warp_sums[(w * 32 + own / kVector) * Shape::kPitch + tap * kVector + own % kVector];
      }
      store_channel<T>(p, plan.parts.channel, tile, n, c0 + first + own, tap, sum);
    }
    __syncthreads();
  }
  each_tap([&](int place, int tap, int y, int x) {
    store_spatial<T>(p, plan.parts.spatial, chunk, n, tap, y, x, grad_spatial[place]);
  });
}

}  // namespace ddf
