// The forward kernel for small planes in NCHW: k = 3, 5, 7, any stride, taps adjacent.
//
// Batch 32, C 256, k 3, float32: the floor is 3.56 MB at 7 x 7 and 13.4 MB at 14 x 14, or 0.8 and
// 3.1 us at 4.3 TB/s, so that latency counts: one launch, one trip to memory. Rows of 28 or 56
// bytes misalign 16-byte accesses, but four planes together always align: a block copies the planes
// of its channels as one flat range into shared memory, all at once, and stores its outputs as one
// flat range. A thread is a pixel and keeps its spatial taps; 256 threads hold several planes'
// pixels, which take turns over the channels. The padding is a place that is not read.
#pragma once

#include "ddf/cuda/common.cuh"

namespace ddf {

struct PlanesPlan {
  int chunk;  // channels of a block
  int lanes;  // planes that the threads of a block hold at a time
  int copy_bytes,
      out_bytes;  // of an access to the flat ranges: 16, 4 (8 for float64), or an element
};

constexpr int kPlanesThreads = 256;

using PlanesKernel = void (*)(const Params, const PlanesPlan);

// Bytes of the parts of shared memory: features, outputs, and the taps of the channels in between.
template <typename T>
struct PlanesShared {
  int features, taps, out;

  __host__ __device__ PlanesShared(const PlanesPlan& plan, int64_t pixels, int64_t out_pixels,
                                   int tap_count)
      : features(round_up(int(plan.chunk * pixels * int64_t(sizeof(T))), 16)),
        taps(round_up(plan.chunk * tap_count * int(sizeof(Accumulator<T>)), 16)),
        out(round_up(int(plan.chunk * out_pixels * int64_t(sizeof(T))), 16)) {}

  __host__ __device__ int all() const { return features + taps + out; }
};

template <typename T, int kSize, bool kAdd>
__global__ void __launch_bounds__(kPlanesThreads, kSize == 3 ? 4 : 1)
    planes_kernel(const Params p, const PlanesPlan plan) {
  using A = Accumulator<T>;
  constexpr int kTaps = kSize * kSize, kPad = (kSize - 1) / 2;
  const int height = int(p.height), width = int(p.width), stride = int(p.stride);
  const int pixels = height * width, out_width = int(p.out_width);
  const int out_pixels = int(p.out_height) * out_width;
  const int chunks = int(ceil_div(p.channels, plan.chunk));
  const int64_t n = blockIdx.x / chunks, c0 = int64_t(blockIdx.x % chunks) * plan.chunk;
  const int channels = int(p.channels - c0 < plan.chunk ? p.channels - c0 : plan.chunk);
  const PlanesShared<T> parts(plan, pixels, out_pixels, kTaps);
  char* shared = dynamic_shared<char>();
  T* features = reinterpret_cast<T*>(shared);
  A* channel = reinterpret_cast<A*>(shared + parts.features);
  T* out = reinterpret_cast<T*>(shared + parts.features + parts.taps);

  const int thread = threadIdx.x, threads = blockDim.x;
  const T* input = at<T>(p.features, n, c0, 0, 0);
  const auto copy = [&](auto bytes) {
    constexpr int kUnit = bytes() / int(sizeof(T));
    for (int i = thread; i < channels * pixels / kUnit; i += threads) {
      copy_elements<bytes()>(features + i * kUnit, input + i * kUnit);
    }
  };
  if (plan.copy_bytes == 16) {
    copy(std::integral_constant<int, 16>());
  } else if (plan.copy_bytes >= 4) {
    copy(std::integral_constant<int, sizeof(T) == 8 ? 8 : 4>());
  } else {
    copy(std::integral_constant<int, int(sizeof(T))>());
  }
  copies_commit();

  for (int i = thread; i < channels * kTaps; i += threads) {
    channel[i] = widen(*at<T>(p.channel, n, c0 + i / kTaps, i % kTaps / kSize, i % kSize));
  }
  const int pixel = thread % out_pixels, lane = thread / out_pixels;
  const int y = pixel / out_width, x = pixel % out_width;
  const int first = (y * stride - kPad) * width + x * stride - kPad;  // under the first tap
  A spatial[kTaps];
  bool row_inside[kSize], column_inside[kSize];
#pragma unroll
  for (int i = 0; i < kSize; ++i) {
    const int from_y = y * stride + i - kPad, from_x = x * stride + i - kPad;
    row_inside[i] = from_y >= 0 && from_y < height;
    column_inside[i] = from_x >= 0 && from_x < width;
  }
#pragma unroll
  for (int j = 0; j < kTaps; ++j) spatial[j] = widen(*at<T>(p.spatial, n, j, y, x));

  copies_wait<0>();
  __syncthreads();
  for (int c = lane < plan.lanes ? lane : channels; c < channels; c += plan.lanes) {
    const T* plane = features + c * pixels + first;
    A sum = 0;
#pragma unroll
    for (int j = 0; j < kTaps; ++j) {
      const bool inside = row_inside[j / kSize] && column_inside[j % kSize];
      const A value = inside ? widen(plane[j / kSize * width + j % kSize]) : A(0);
      sum += combined<kAdd>(spatial[j], channel[c * kTaps + j]) * value;
    }
    narrow(sum, out + c * out_pixels + pixel);
  }
  __syncthreads();

  T* output = at<T>(p.out, n, c0, 0, 0);
  if (plan.out_bytes == 16) {
    constexpr int kUnit = 16 / int(sizeof(T));
    for (int i = thread; i < channels * out_pixels / kUnit; i += threads) {
      store<Hint::streaming>(output + i * kUnit, load<kUnit>(out + i * kUnit));
    }
  } else {
    for (int i = thread; i < channels * out_pixels; i += threads) output[i] = out[i];
  }
}

}  // namespace ddf
