// What the kernels that compute all three gradients in one pass share.
//
// They stand at an element of the features and not of the output: over the k^2 outputs d_j that it
// enters, with the taps s_j of the spatial filter there and its channel's own taps c_j,
//
//   grad_features += combine(s_j, c_j) d_j     grad_channel[j] += (f d_j) s_j
//                                              grad_spatial[j] += (f d_j) c_j
//
// so that only the output's gradient is read with a halo. Elements of the padding take part, with
// f = 0: rows and columns are counted in the padded plane, in which tap (i, j) of output (y, x) is
// at (y + i, x + j). Each element of grad_spatial then belongs to one element of the padded plane,
// and is stored by one block.
#pragma once

#include "ddf/cuda/backward.h"
#include "ddf/cuda/common.cuh"

namespace ddf {

template <int kSize>
struct BackwardShape {
  static constexpr int kPad = (kSize - 1) / 2, kTaps = kSize * kSize;
  static constexpr int kRowTaps = kSize == 3 ? 4 : 8;  // of a row of taps in shared memory
  static constexpr int kStoredTaps = kSize * kRowTaps;
  static constexpr int kHolders = 32 / kRowTaps;  // lanes that hold a sum of sum_over_lanes
};

// A row of taps out of shared memory.
template <int kSize, typename A>
__device__ inline void load_row(const A* from, A (&row)[BackwardShape<kSize>::kRowTaps]) {
#pragma unroll
  for (int j = 0; j < BackwardShape<kSize>::kRowTaps; j += 4) {
    const Pack<A, 4> four = load<4>(from + j);
#pragma unroll
    for (int v = 0; v < 4; ++v) row[j + v] = four[v];
  }
}

// The sums over a warp of each of kValues values, a power of two: of value i in the lanes
// i * 32 / kValues and on. Each step halves the values that a lane holds, while there are several:
// 8 values take 9 shuffles, where one by one they would take 40.
template <int kValues, typename A>
__device__ inline A sum_over_lanes(A (&values)[kValues], int lane) {
  int step = 16;
#pragma unroll
  for (int half = kValues / 2; half > 0; half /= 2) {
    const bool upper = lane & step;
#pragma unroll
    for (int i = 0; i < half; ++i) {
      const A given = upper ? values[i] : values[i + half];
      values[i] = (upper ? values[i + half] : values[i]) + __shfl_xor_sync(~0u, given, step);
    }
    step /= 2;
  }
#pragma unroll
  for (int rest = 16 / kValues; rest > 0; rest /= 2) {
    values[0] += __shfl_xor_sync(~0u, values[0], rest);
  }
  return values[0];
}

// Stores a sum over the pixels of the block, or over all, of the gradient of the channel filter.
template <typename T>
__device__ inline void store_channel(const Params& p, const Parts& parts, int64_t part, int64_t n,
                                     int64_t c, int tap, Accumulator<T> sum) {
  const int k = int(p.kernel_size);
  if (parts.data) {
    static_cast<Accumulator<T>*>(
        parts.data)[((part * p.batch + n) * p.channels + c) * (k * k) + tap] = sum;
  } else if (p.grad_channel.data) {
    narrow(sum, at<T>(p.grad_channel, n, c, tap / k, tap % k));
  }
}

// Likewise over channels, of that of the spatial filter.
template <typename T>
__device__ inline void store_spatial(const Params& p, const Parts& parts, int64_t part, int64_t n,
                                     int tap, int y, int x, Accumulator<T> sum) {
  const int64_t taps = p.kernel_size * p.kernel_size;
  if (parts.data) {
    static_cast<Accumulator<T>*>(
        parts.data)[(((part * p.batch + n) * taps + tap) * p.out_height + y) * p.out_width + x] =
        sum;
  } else if (p.grad_spatial.data) {
    narrow(sum, at<T>(p.grad_spatial, n, tap, y, x));
  }
}

}  // namespace ddf
