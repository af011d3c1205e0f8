// The way back through the fused module, after the operator's own: the normalisation of both
// filters, the channel branch, the 1x1 convolution and the mean.
//
// Floor: the features read and their gradient read and written, 12 bytes an element in float32,
// and 18 multiply-adds: 9 for the gradient of the convolution's weight and 9 for that of the
// features. The other kernels touch filters alone, 1/28 of the features at 256 channels.
//
//   spread_spatial, spread_channel   from the gradient of a filter to that of the raw one
//   hidden                           on to the hidden units
//   parameters                       a thread is an element of the channel branch's parameters, and
//                                    sums over samples; or the gradient of a mean
//   features                         as predict: a warp has a tile of pixels and every eighth
//                                    channel, and keeps the gradients of the raw spatial filter
//   weights                          adds up what blocks found for the convolution's parameters
#pragma once

#include "ddf/cuda/module.cuh"

namespace ddf {

template <typename T>
__global__ void __launch_bounds__(kModuleThreads)
    spread_spatial_kernel(const ModuleParams p, const ModuleWork work) {
  using A = Accumulator<T>;
  const int64_t pixels = p.out_height * p.out_width, index = global_thread();
  if (index >= p.batch * p.head * pixels) return;
  const int taps = int(p.kernel_size * p.kernel_size);
  const int64_t first = index / pixels * taps * pixels + index % pixels;
  A* raw = static_cast<A*>(work.spatial) + first;
  const T* slope = static_cast<const T*>(p.grad_spatial.data) + first;
  A mean = 0, squares = 0, grad_mean = 0, product = 0;
  for (int j = 0; j < taps; ++j) mean += raw[j * pixels];
  mean /= A(taps);
  for (int j = 0; j < taps; ++j) {
    const A deviation = raw[j * pixels] - mean, g = widen(slope[j * pixels]) * A(p.spatial_scale);
    squares += deviation * deviation;
    grad_mean += g;
    product += g * deviation;
  }
  grad_mean /= A(taps);
  const Spread<A> spread(squares, taps);
  for (int j = 0; j < taps; ++j) {
    const A deviation = raw[j * pixels] - mean, g = widen(slope[j * pixels]) * A(p.spatial_scale);
    raw[j * pixels] = spread.factor * (g - grad_mean) - spread.slope * product * deviation;
  }
}

// A warp is the filter of a channel; a lane has taps lane and lane + 32.
template <typename T>
__global__ void __launch_bounds__(kModuleThreads)
    spread_channel_kernel(const ModuleParams p, const ModuleWork work) {
  using A = Accumulator<T>;
  const int64_t filter = global_thread() / 32;
  if (filter >= p.batch * p.channels) return;
  const int lane = threadIdx.x % 32, taps = int(p.kernel_size * p.kernel_size);
  A* raw = static_cast<A*>(work.channel) + filter * taps;
  A* by_std = static_cast<A*>(work.by_std) + filter * taps;
  const T* slope = static_cast<const T*>(p.grad_channel.data) + filter * taps;
  A deviation[2] = {}, own[2] = {}, g[2] = {};
  for (int i = 0; i < 2; ++i) {
    const int j = lane + 32 * i;
    if (j >= taps) continue;
    deviation[i] = raw[j];
    own[i] = widen(slope[j]);
    g[i] =
        own[i] * widen(*at<T>(p.parameters.channel_std, filter % p.channels * taps + j, 0, 0, 0));
  }
  const A mean = warp_sum(deviation[0] + deviation[1]) / A(taps);
  for (int i = 0; i < 2; ++i) deviation[i] = lane + 32 * i < taps ? deviation[i] - mean : A(0);
  const Spread<A> spread(warp_sum(deviation[0] * deviation[0] + deviation[1] * deviation[1]), taps);
  const A grad_mean = warp_sum(g[0] + g[1]) / A(taps);
  const A product = warp_sum(g[0] * deviation[0] + g[1] * deviation[1]);
  for (int i = 0; i < 2; ++i) {
    const int j = lane + 32 * i;
    if (j >= taps) continue;
    by_std[j] = own[i] * deviation[i] * spread.factor;
    raw[j] = spread.factor * (g[i] - grad_mean) - spread.slope * product * deviation[i];
  }
}

// A block is 32 hidden units of a sample, a warp every eighth row of excite's weight.
template <typename T>
__global__ void __launch_bounds__(kModuleThreads)
    hidden_kernel(const ModuleParams p, const ModuleWork work) {
  using A = Accumulator<T>;
  const int64_t across = ceil_div(p.hidden, 32), n = blockIdx.x / across;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t unit = blockIdx.x % across * 32 + lane;
  const int64_t rows = p.channels * p.kernel_size * p.kernel_size;
  DDF_SHARED(A, sums, [kModuleWarps][32]);
  A sum = 0;
  for (int64_t row = warp; row < rows && unit < p.hidden; row += kModuleWarps) {
    sum += static_cast<const A*>(work.channel)[n * rows + row] *
           widen(*at<T>(p.parameters.excite_weight, row, unit, 0, 0));
  }
  sums[warp][lane] = sum;
  __syncthreads();
  if (warp > 0 || unit >= p.hidden) return;
  A total = 0;
  for (int w = 0; w < kModuleWarps; ++w) total += sums[w][lane];
  const bool passes = static_cast<const A*>(work.hidden)[n * p.hidden + unit] > 0;
  static_cast<A*>(work.grad_hidden)[n * p.hidden + unit] = passes ? total : A(0);
}

// The elements: of excite's weight with its bias and channel_std in two further columns; of
// squeeze's weight with its bias; of the means.
template <typename T>
__global__ void __launch_bounds__(kModuleThreads)
    parameters_kernel(const ModuleParams p, const ModuleWork work) {
  using A = Accumulator<T>;
  const int64_t rows = p.channels * p.kernel_size * p.kernel_size, columns = p.hidden + 2;
  const A* grad_hidden = static_cast<const A*>(work.grad_hidden);
  const ModuleParameters& to = p.grad_parameters;
  int64_t index = global_thread();
  A sum = 0;
  if (index < rows * columns) {
    if (!to.excite_weight.data) return;
    const int64_t row = index / columns, column = index % columns;
    const A* grad = static_cast<const A*>(column > p.hidden ? work.by_std : work.channel) + row;
    const A* hidden = static_cast<const A*>(work.hidden) + column;
    for (int64_t n = 0; n < p.batch; ++n) {
      sum += grad[n * rows] * (column < p.hidden ? hidden[n * p.hidden] : A(1));
    }
    narrow(sum, column < p.hidden    ? at<T>(to.excite_weight, row, column, 0, 0)
                : column == p.hidden ? at<T>(to.excite_bias, row, 0, 0, 0)
                                     : at<T>(to.channel_std, row, 0, 0, 0));
    return;
  }
  index -= rows * columns;
  if (index < p.hidden * (p.channels + 1)) {
    if (!to.squeeze_weight.data) return;
    const int64_t unit = index / (p.channels + 1), c = index % (p.channels + 1);
    const A* means = static_cast<const A*>(work.means) + c;
    for (int64_t n = 0; n < p.batch; ++n) {
      sum += grad_hidden[n * p.hidden + unit] * (c < p.channels ? means[n * p.channels] : A(1));
    }
    narrow(sum, c < p.channels ? at<T>(to.squeeze_weight, unit, c, 0, 0)
                               : at<T>(to.squeeze_bias, unit, 0, 0, 0));
    return;
  }
  index -= p.hidden * (p.channels + 1);
  if (index >= p.batch * p.channels) return;
  const int64_t n = index / p.channels, c = index % p.channels;
  for (int64_t i = 0; i < p.hidden; ++i) {
    sum += grad_hidden[n * p.hidden + i] * widen(*at<T>(p.parameters.squeeze_weight, i, c, 0, 0));
  }
  static_cast<A*>(work.grad_mean)[index] = sum / A(p.height * p.width);
}

// As load_channels.
template <typename T, int kChannels>
__device__ inline void store_channels(T* to, int64_t step, int64_t count, bool adjacent,
                                      const Pack<T, kChannels>& pack) {
  if (adjacent && count >= kChannels) return store(to, pack);
#pragma unroll
  for (int i = 0; i < kChannels; ++i) {
    if (i < count) to[i * step] = pack[i];
  }
}

// A block takes every `parts`-th tile of a sample. Sums for the convolution's weight go to the
// block's own place in memory after each tile, always by the same lane.
template <typename T, int kSize>
__global__ void __launch_bounds__(kModuleThreads, 1)
    features_kernel(const ModuleParams p, const ModuleWork work, const int64_t tiles,
                    const int64_t parts) {
  using A = Accumulator<T>;
  using Shape = PredictShape<T, kSize>;
  using Rows = BackwardShape<kSize>;
  constexpr int kTaps = Shape::kTaps, kPixels = Shape::kPixels;
  constexpr int kChannels = Shape::kChannels;
  const int64_t part = blockIdx.x % parts, n = blockIdx.x / parts;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t out_pixels = p.out_height * p.out_width;
  const bool by_weight = p.grad_parameters.spatial_weight.data != nullptr;
  const bool by_features = p.grad_features.data != nullptr;
  const bool adjacent = channels_adjacent<T>(p.features);
  const bool grad_adjacent = channels_adjacent<T>(p.grad_features);

#pragma unroll 1
  for (int64_t item = 0; item < p.head * ceil_div(tiles - part, parts); ++item) {
    const int64_t head = item % p.head, turn = item / p.head, tile = part + turn * parts;
    A* weight_sums = static_cast<A*>(work.weight_parts) +
                     (int64_t(blockIdx.x) * p.head + head) * (p.channels + 1) * kTaps;
    const A* filters = static_cast<const A*>(work.spatial);
    filters += (n * p.head + head) * kTaps * out_pixels;
    int64_t offset[kPixels], grad_offset[kPixels];
    bool inside[kPixels];
    A grad[kTaps][kPixels];
#pragma unroll
    for (int r = 0; r < kPixels; ++r) {
      const int64_t pixel = tile * Shape::kTile + r * 32 + lane;
      const int64_t y = pixel / p.width, x = pixel % p.width;
      inside[r] = pixel < p.height * p.width;
      offset[r] = y * p.features.stride[2] + x * p.features.stride[3];
      grad_offset[r] = y * p.grad_features.stride[2] + x * p.grad_features.stride[3];
      const bool has_output = inside[r] && y % p.stride == 0 && x % p.stride == 0;
      const A* from = filters + y / p.stride * p.out_width + x / p.stride;
#pragma unroll
      for (int j = 0; j < kTaps; ++j) grad[j][r] = has_output ? from[j * out_pixels] : A(0);
    }
#pragma unroll 1
    for (int64_t c = warp * kChannels; c <= p.channels; c += kModuleWarps * kChannels) {
      const T* from = at<T>(p.features, n, c, 0, 0);
      T* to = at<T>(p.grad_features, n, c, 0, 0);
      Pack<T, kChannels> feature[kPixels], grad_feature[kPixels];
#pragma unroll
      for (int r = 0; r < kPixels; ++r) {
        const int64_t count = inside[r] ? p.channels - c : 0;
        feature[r] = load_channels<kChannels>(from + offset[r], p.features.stride[1],
                                              by_weight ? count : 0, adjacent);
        grad_feature[r] = load_channels<kChannels>(to + grad_offset[r], p.grad_features.stride[1],
                                                   by_features ? count : 0, grad_adjacent);
      }
#pragma unroll
      for (int v = 0; v < kChannels; ++v) {
        const bool bias = c + v == p.channels;
        if (by_weight && c + v <= p.channels) {
#pragma unroll
          for (int i = 0; i < kSize; ++i) {
            A sums[Rows::kRowTaps] = {};
#pragma unroll
            for (int j = 0; j < kSize; ++j) {
#pragma unroll
              for (int r = 0; r < kPixels; ++r) {
                const A value = bias ? A(inside[r]) : A(widen(feature[r][v]));
                sums[j] += grad[i * kSize + j][r] * value;
              }
            }
            const A total = sum_over_lanes(sums, lane);
            const int held = lane / Rows::kHolders;
            if (lane % Rows::kHolders == 0 && held < kSize) {
              A* place = weight_sums + (c + v) * kTaps + i * kSize + held;
              *place = turn == 0 ? total : *place + total;
            }
          }
        }
        if (!by_features || c + v >= p.channels) continue;
        const A mean =
            head == 0 ? static_cast<const A*>(work.grad_mean)[n * p.channels + c + v] : A(0);
        A sum[kPixels];
#pragma unroll
        for (int r = 0; r < kPixels; ++r) sum[r] = widen(grad_feature[r][v]) + mean;
#pragma unroll
        for (int j = 0; j < kTaps; ++j) {
          const A weight =
              widen(*at<T>(p.parameters.spatial_weight, head * kTaps + j, c + v, 0, 0));
#pragma unroll
          for (int r = 0; r < kPixels; ++r) sum[r] += weight * grad[j][r];
        }
#pragma unroll
        for (int r = 0; r < kPixels; ++r) narrow(sum[r], &grad_feature[r][v]);
      }
      if (!by_features) continue;
#pragma unroll
      for (int r = 0; r < kPixels; ++r) {
        store_channels(to + grad_offset[r], p.grad_features.stride[1],
                       inside[r] ? p.channels - c : 0, grad_adjacent, grad_feature[r]);
      }
    }
  }
}

// A thread is an element of the convolution's weight, or of its bias.
template <typename T>
__global__ void __launch_bounds__(kModuleThreads)
    weights_kernel(const ModuleParams p, const ModuleWork work, const int64_t blocks) {
  using A = Accumulator<T>;
  const int64_t taps = p.kernel_size * p.kernel_size, columns = p.channels + 1;
  const int64_t index = global_thread(), elements = p.head * taps * columns;
  if (index >= elements) return;
  const A* parts = static_cast<const A*>(work.weight_parts) + index;
  A sum = 0;
  for (int64_t block = 0; block < blocks; ++block) sum += parts[block * elements];
  const int64_t c = index / taps % columns, row = index / taps / columns * taps + index % taps;
  narrow(sum, c < p.channels ? at<T>(p.grad_parameters.spatial_weight, row, c, 0, 0)
                             : at<T>(p.grad_parameters.spatial_bias, row, 0, 0, 0));
}

}  // namespace ddf
