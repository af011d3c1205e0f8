// The fused module, DDFPack: the kernels that predict both filters and normalise them.
//
// Floor: the features once, 4 bytes an element in float32; k^2 multiply-adds an element for the
// spatial filter and an addition for the mean. With the operator after them, which reads them
// again, features are read twice and the output written once, in three launches.
//
//   predict   A block is a tile of pixels, a warp every eighth group of four channels (two at
//             k = 5, 7). A thread keeps the sums of all taps of 4 pixels (k = 3; 2 at k = 5, 1 at
//             k = 7), so that a weight, the same for all lanes, serves 4 multiply-adds. The
//             channels are also added up over the tile, for the mean. At the end the warps' sums
//             are added in shared memory and each pixel's filter is normalised where it is whole.
//   excite    A block is a chunk of a sample's channels. It adds up the tiles' sums, squeezes them
//             by itself, which is less than waiting for another block, and a warp then excites and
//             normalises the filter of a channel.
//
// Each sum is taken in one order, so that the same bits come out in every run.
#pragma once

#include "ddf/cuda/backward.cuh"

namespace ddf {

constexpr int kModuleThreads = 256, kModuleWarps = kModuleThreads / 32;

// Pixels of a thread, by what their sums take of the registers.
template <typename T, int kSize>
struct PredictShape {
  static constexpr int kTaps = kSize * kSize;
  static constexpr int kWhole = kSize == 3 ? 4 : kSize == 5 ? 2 : 1;
  static constexpr int kPixels = sizeof(T) == 8 && kWhole > 1 ? kWhole / 2 : kWhole;
  static constexpr int kTile = 32 * kPixels;
  // That a warp takes at a time; fewer where all their taps are long to compile.
  static constexpr int kChannels = kSize == 3 ? 4 : 2;
  static constexpr int kShared = kModuleWarps * kTaps * kTile * int(sizeof(Accumulator<T>));
};

// Room for what kernels leave one another, of element type Accumulator<T>.
struct ModuleWork {
  void* pooled;  // sums of the features over a tile: (batch, tiles, channels)
  // On the way back.
  void *means, *hidden;           // (batch, channels), (batch, hidden)
  void *spatial, *channel;        // the raw filters, then their gradients, shaped as the filters
  void* by_std;                   // a sample's gradient of channel_std: (batch, channels*k^2)
  void *grad_hidden, *grad_mean;  // (batch, hidden), before the relu; (batch, channels), of a pixel
  void* weight_parts;             // (parts, head, channels + 1, k^2), the bias in the last channel
};

// How an item of a filter comes out of the spread over its taps: 1 / (spread + 1e-10), by the
// unbiased spread; and what the spread adds to the gradient of a deviation. `squares` is the sum
// of the squared deviations.
template <typename A>
struct Spread {
  A factor, slope;

  __device__ Spread(A squares, int taps) {
    constexpr A kTiny = sizeof(A) == 4 ? A(1.17549435e-38) : A(2.2250738585072014e-308);
    const A variance = squares / A(taps - 1);
    const A spread = std::sqrt(variance < kTiny ? kTiny : variance);
    factor = 1 / (spread + A(1e-10));
    slope = variance < kTiny ? A(0) : factor * factor / (spread * A(taps - 1));
  }
};

// Whether four neighbouring channels of a pixel are one vector in memory.
template <typename T>
__device__ inline bool channels_adjacent(const View& view) {
  int64_t bits = reinterpret_cast<int64_t>(view.data);
  for (int i : {0, 2, 3}) bits |= view.stride[i] * int64_t(sizeof(T));
  return view.stride[1] == 1 && bits % (sizeof(T) < 4 ? 8 : 16) == 0;
}

// Channels of a pixel, `step` apart, of which there are `count`; zero beyond.
template <int kChannels, typename T>
__device__ inline Pack<T, kChannels> load_channels(const T* from, int64_t step, int64_t count,
                                                   bool adjacent) {
  if (adjacent && count >= kChannels) return load<kChannels>(from);
  Pack<T, kChannels> pack = {};
#pragma unroll
  for (int i = 0; i < kChannels; ++i) {
    if (i < count) pack[i] = from[i * step];
  }
  return pack;
}

// In all lanes.
template <typename A>
__device__ inline A warp_sum(A value) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(~0u, value, step);
  return value;
}

template <typename T, int kSize>
__global__ void __launch_bounds__(kModuleThreads)
    predict_kernel(const ModuleParams p, const ModuleWork work, const int64_t tiles) {
  using A = Accumulator<T>;
  using Shape = PredictShape<T, kSize>;
  constexpr int kTaps = Shape::kTaps, kPixels = Shape::kPixels;
  constexpr int kChannels = Shape::kChannels;
  const int64_t tile = blockIdx.x % tiles, n = blockIdx.x / tiles;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const ModuleParameters& weights = p.parameters;
  A* pooled = static_cast<A*>(work.pooled) + (n * tiles + tile) * p.channels;
  A* warp_sums = dynamic_shared<A>();  // [warps][kTaps][kTile]
  const bool adjacent = channels_adjacent<T>(p.features);

  int64_t offset[kPixels];
  bool inside[kPixels];
#pragma unroll
  for (int r = 0; r < kPixels; ++r) {
    const int64_t pixel = tile * Shape::kTile + r * 32 + lane;
    inside[r] = pixel < p.height * p.width;
    offset[r] = pixel / p.width * p.features.stride[2] + pixel % p.width * p.features.stride[3];
  }
#pragma unroll 1
  for (int64_t head = 0; head < p.head; ++head) {
    A sum[kTaps][kPixels] = {};
#pragma unroll 1
    for (int64_t c = warp * kChannels; c < p.channels; c += kModuleWarps * kChannels) {
      A features[kChannels][kPixels], of_tile[kChannels] = {};
      const T* from = at<T>(p.features, n, c, 0, 0);
#pragma unroll
      for (int r = 0; r < kPixels; ++r) {
        const Pack<T, kChannels> pack = load_channels<kChannels>(
            from + offset[r], p.features.stride[1], inside[r] ? p.channels - c : 0, adjacent);
#pragma unroll
        for (int i = 0; i < kChannels; ++i) features[i][r] = widen(pack[i]);
      }
#pragma unroll
      for (int i = 0; i < kChannels; ++i) {
        if (c + i >= p.channels) break;
#pragma unroll
        for (int j = 0; j < kTaps; ++j) {
          const A weight = widen(*at<T>(weights.spatial_weight, head * kTaps + j, c + i, 0, 0));
#pragma unroll
          for (int r = 0; r < kPixels; ++r) sum[j][r] += weight * features[i][r];
        }
#pragma unroll
        for (int r = 0; r < kPixels; ++r) of_tile[i] += features[i][r];
      }
      if (head > 0) continue;
      const A total = sum_over_lanes(of_tile, lane);
      const int held = lane / (32 / kChannels);
      if (lane % (32 / kChannels) == 0 && c + held < p.channels) pooled[c + held] = total;
    }
#pragma unroll
    for (int j = 0; j < kTaps; ++j) {
#pragma unroll
      for (int r = 0; r < kPixels; ++r) {
        warp_sums[((warp * kTaps + j) * kPixels + r) * 32 + lane] = sum[j][r];
      }
    }
    __syncthreads();
    // A warp for each 32 pixels of the tile.
    const int64_t pixel = tile * Shape::kTile + threadIdx.x;
    const int64_t y = pixel / p.width, x = pixel % p.width;
    if (warp < kPixels && pixel < p.height * p.width && y % p.stride == 0 && x % p.stride == 0) {
      A raw[kTaps], all = 0, squares = 0;
#pragma unroll
      for (int j = 0; j < kTaps; ++j) {
        raw[j] = widen(*at<T>(weights.spatial_bias, head * kTaps + j, 0, 0, 0));
        for (int w = 0; w < kModuleWarps; ++w) {
          raw[j] += warp_sums[(w * kTaps + j) * Shape::kTile + threadIdx.x];
        }
        all += raw[j];
      }
      const A mean = all / A(kTaps);
#pragma unroll
      for (int j = 0; j < kTaps; ++j) squares += (raw[j] - mean) * (raw[j] - mean);
      const Spread<A> spread(squares, kTaps);
      const int64_t out_pixel = y / p.stride * p.out_width + x / p.stride;
#pragma unroll
      for (int j = 0; j < kTaps; ++j) {
        const int64_t place =
            ((n * p.head + head) * kTaps + j) * p.out_height * p.out_width + out_pixel;
        if (p.backward) static_cast<A*>(work.spatial)[place] = raw[j];
        narrow((raw[j] - mean) * spread.factor * A(p.spatial_scale),
               static_cast<T*>(p.spatial.data) + place);
      }
    }
    __syncthreads();
  }
}

template <typename T>
__global__ void __launch_bounds__(kModuleThreads)
    excite_kernel(const ModuleParams p, const ModuleWork work, const int64_t tiles,
                  const int64_t chunk) {
  using A = Accumulator<T>;
  const int64_t chunks = ceil_div(p.channels, chunk);
  const int64_t n = blockIdx.x / chunks, first = blockIdx.x % chunks * chunk;
  const int64_t last = first + chunk < p.channels ? first + chunk : p.channels;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int k = int(p.kernel_size), taps = k * k;
  const ModuleParameters& weights = p.parameters;
  const A* pooled = static_cast<const A*>(work.pooled) + n * tiles * p.channels;
  A* means = dynamic_shared<A>();
  A* hidden = means + p.channels;
  const bool keeps = p.backward && first == 0;

  for (int64_t c = threadIdx.x; c < p.channels; c += kModuleThreads) {
    A sum = 0;
    for (int64_t tile = 0; tile < tiles; ++tile) sum += pooled[tile * p.channels + c];
    means[c] = sum / A(p.height * p.width);
    if (keeps) static_cast<A*>(work.means)[n * p.channels + c] = means[c];
  }
  __syncthreads();
  for (int64_t i = warp; i < p.hidden; i += kModuleWarps) {
    A sum = 0;
    for (int64_t c = lane; c < p.channels; c += 32) {
      sum += widen(*at<T>(weights.squeeze_weight, i, c, 0, 0)) * means[c];
    }
    sum = warp_sum(sum) + widen(*at<T>(weights.squeeze_bias, i, 0, 0, 0));
    sum = sum < 0 ? A(0) : sum;  // nan stays
    if (lane > 0) continue;
    hidden[i] = sum;
    if (keeps) static_cast<A*>(work.hidden)[n * p.hidden + i] = sum;
  }
  __syncthreads();
  for (int64_t c = first + warp; c < last; c += kModuleWarps) {
    A raw[2] = {};  // of taps lane and lane + 32
    for (int j = 0; j < taps; ++j) {
      A sum = 0;
      for (int64_t i = lane; i < p.hidden; i += 32) {
        sum += widen(*at<T>(weights.excite_weight, c * taps + j, i, 0, 0)) * hidden[i];
      }
      sum = warp_sum(sum) + widen(*at<T>(weights.excite_bias, c * taps + j, 0, 0, 0));
      if (lane == j % 32) (j < 32 ? raw[0] : raw[1]) = sum;
    }
    const A mean = warp_sum(raw[0] + raw[1]) / A(taps);
    A squares = 0;
    for (int i = 0; i < 2; ++i) {
      if (lane + 32 * i < taps) squares += (raw[i] - mean) * (raw[i] - mean);
    }
    const Spread<A> spread(warp_sum(squares), taps);
    for (int i = 0; i < 2; ++i) {
      const int j = lane + 32 * i;
      if (j >= taps) continue;
      const int64_t place = (n * p.channels + c) * taps + j;
      if (p.backward) static_cast<A*>(work.channel)[place] = raw[i];
      const A scale = widen(*at<T>(weights.channel_std, c * taps + j, 0, 0, 0));
      narrow((raw[i] - mean) * spread.factor * scale, static_cast<T*>(p.channel.data) + place);
    }
  }
}

}  // namespace ddf
