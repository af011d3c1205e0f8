// The operator on CUDA: correct for every shape and stride, and plain; what the kernels in cuda/ do
// not serve.
//
// Floors, batch 32, C 256, k 3, float32: 209 MB at 56 x 56 and 3346 MB at 224 x 224 (F, S, C read
// and the output written once), which is 0.05 and 0.78 ms at the 4.3 TB/s that an H200 copies; 18
// floating-point operations an output, a third of that time. So the forward kernel is bound by
// memory, and what counts is that neighbouring threads touch neighbouring addresses, and that a
// filter loaded once serves several outputs.
//
//   forward        A thread keeps the filter of its place in registers and walks along the other
//   filter's axis: in NCHW it
//                  is a pixel, keeps S, and walks over 8 channels; in channels last it is a
//                  channel, keeps C, and walks over 8 pixels. Its neighbours in the warp are its
//                  neighbours in memory. 8 outputs make the kept filter an eighth of a load each,
//                  and still leave 8 million threads at 56 x 56.
//   grad_features  A thread is an input element and gathers from the outputs that read it: no
//   atomics. grad_spatial   A thread is an element of S and sums over channels. grad_channel   A
//   block is an element of C and sums over pixels, in a tree of fixed shape.
//
// No sum depends on which block runs first, so results are the same in every run. Offsets are
// 64-bit throughout.

#include "ddf/cuda/backward.h"
#include "ddf/cuda/common.cuh"
#include "ddf/elements.cuh"

namespace ddf {
namespace {

constexpr int kWalk = 8;  // outputs of one thread of the forward kernel

template <typename T, bool kAdd, bool kChannelsLast,
          int kSize>  // kSize 0: any kernel size, nothing kept
__global__ void __launch_bounds__(kThreads) forward_kernel(const Params p) {
  using A = Accumulator<T>;
  const int64_t k = kSize ? kSize : p.kernel_size;
  Index index{global_thread()};
  int64_t c, y, x;
  if (kChannelsLast) {
    c = index.take(p.channels);
    x = index.take((p.out_width + kWalk - 1) / kWalk) * kWalk;
    y = index.take(p.out_height);
  } else {
    x = index.take(p.out_width);
    y = index.take(p.out_height);
    c = index.take((p.channels + kWalk - 1) / kWalk) * kWalk;
  }
  const int64_t n = index.rest;
  if (n >= p.batch) return;

  const auto keep = [&](int64_t i, int64_t j) {
    return kChannelsLast ? read<T>(p.channel, n, c, i, j) : read<T>(p.spatial, n, i * k + j, y, x);
  };
  A kept[kSize ? kSize * kSize : 1];
  if constexpr (kSize > 0) {
#pragma unroll
    for (int j = 0; j < kSize * kSize; ++j) kept[j] = keep(j / kSize, j % kSize);
  }
  for (int step = 0; step < kWalk && c < p.channels && x < p.out_width; ++step) {
    A sum = 0;
#pragma unroll
    for (int64_t i = 0; i < k; ++i) {
#pragma unroll
      for (int64_t j = 0; j < k; ++j) {
        const A mine = kSize ? kept[i * k + j] : keep(i, j);
        const A other =
            kChannelsLast ? read<T>(p.spatial, n, i * k + j, y, x) : read<T>(p.channel, n, c, i, j);
        sum += combined<kAdd>(mine, other) * read_features<T>(p, n, c, y, x, i, j);
      }
    }
    narrow(sum, at<T>(p.out, n, c, y, x));
    kChannelsLast ? ++x : ++c;
  }
}

template <typename T, bool kAdd>
__global__ void __launch_bounds__(kThreads) grad_features_kernel(const Params p) {
  using A = Accumulator<T>;
  const Element e(global_thread(), p.grad_features, p.channels, p.height, p.width);
  if (e.n >= p.batch) return;
  const int64_t k = p.kernel_size, pad = p.dilation * (k - 1) / 2;
  A sum = 0;
  for (int64_t i = 0; i < k; ++i) {
    const int64_t y = e.y + pad - p.dilation * i;
    if (y < 0 || y % p.stride != 0 || y / p.stride >= p.out_height) continue;
    for (int64_t j = 0; j < k; ++j) {
      const int64_t x = e.x + pad - p.dilation * j;
      if (x < 0 || x % p.stride != 0 || x / p.stride >= p.out_width) continue;
      const A spatial = read<T>(p.spatial, e.n, i * k + j, y / p.stride, x / p.stride);
      const A channel = read<T>(p.channel, e.n, e.c, i, j);
      sum +=
          combined<kAdd>(spatial, channel) * read<T>(p.out, e.n, e.c, y / p.stride, x / p.stride);
    }
  }
  narrow(sum, at<T>(p.grad_features, e.n, e.c, e.y, e.x));
}

template <typename T, bool kAdd>
__global__ void __launch_bounds__(kThreads) grad_spatial_kernel(const Params p) {
  using A = Accumulator<T>;
  const int64_t k = p.kernel_size;
  const Element e(global_thread(), p.grad_spatial, k * k, p.out_height, p.out_width);
  if (e.n >= p.batch) return;
  const int64_t i = e.c / k, j = e.c % k;
  A sum = 0;
  for (int64_t c = 0; c < p.channels; ++c) {
    const A product =
        read<T>(p.out, e.n, c, e.y, e.x) * read_features<T>(p, e.n, c, e.y, e.x, i, j);
    sum += kAdd ? product : product * read<T>(p.channel, e.n, c, i, j);
  }
  narrow(sum, at<T>(p.grad_spatial, e.n, e.c, e.y, e.x));
}

template <typename T, bool kAdd>
__global__ void __launch_bounds__(kThreads) grad_channel_kernel(const Params p) {
  using A = Accumulator<T>;
  const int64_t k = p.kernel_size;
  Index index{blockIdx.x};
  const int64_t tap = index.take(k * k), c = index.take(p.channels), n = index.rest;
  A sum = 0;
  for (int64_t pixel = threadIdx.x; pixel < p.out_height * p.out_width; pixel += kThreads) {
    const int64_t y = pixel / p.out_width, x = pixel % p.out_width;
    const A product =
        read<T>(p.out, n, c, y, x) * read_features<T>(p, n, c, y, x, tap / k, tap % k);
    sum += kAdd ? product : product * read<T>(p.spatial, n, tap, y, x);
  }
  sum = sum_of_block(sum);
  if (threadIdx.x == 0) narrow(sum, at<T>(p.grad_channel, n, c, tap / k, tap % k));
}

using Kernel = void (*)(const Params);

// Launchers by element type and combination: each knows its kernel and how many blocks there are.

struct Forward {
  template <typename T, bool kAdd>
  static cudaError_t run(const Params& p, void* stream) {
    const bool channels_last = p.features.stride[1] == 1 && p.out.stride[1] == 1;
    const int64_t places = channels_last
                               ? p.batch * p.out_height * ceil_div(p.out_width, kWalk) * p.channels
                               : p.batch * ceil_div(p.channels, kWalk) * p.out_height * p.out_width;
    const Kernel kernel = channels_last ? choose<T, kAdd, true>(p) : choose<T, kAdd, false>(p);
    return launch_threads(kernel, ceil_div(places, kThreads), p, stream);
  }

 private:
  template <typename T, bool kAdd, bool kChannelsLast>
  static Kernel choose(const Params& p) {
    return p.kernel_size == 3 ? forward_kernel<T, kAdd, kChannelsLast, 3>
                              : forward_kernel<T, kAdd, kChannelsLast, 0>;
  }
};

struct Backward {
  template <typename T, bool kAdd>
  static cudaError_t run(const Params& p, void* stream) {
    const int64_t taps = p.kernel_size * p.kernel_size;
    cudaError_t error = cudaSuccess;
    if (p.grad_features.data) {
      const int64_t elements = p.batch * p.channels * p.height * p.width;
      error =
          launch_threads(grad_features_kernel<T, kAdd>, ceil_div(elements, kThreads), p, stream);
    }
    if (error == cudaSuccess && p.grad_spatial.data) {
      const int64_t elements = p.batch * taps * p.out_height * p.out_width;
      error = launch_threads(grad_spatial_kernel<T, kAdd>, ceil_div(elements, kThreads), p, stream);
    }
    if (error == cudaSuccess && p.grad_channel.data) {
      error = launch_threads(grad_channel_kernel<T, kAdd>, p.batch * p.channels * taps, p, stream);
    }
    return error;
  }
};

}  // namespace

int launch_general(const Params& params, void* stream) { return by_dtype<Forward>(params, stream); }

int launch_apart(const Params& params, void* stream, int64_t* bytes) {
  if (bytes) return *bytes = 0, cudaSuccess;
  return by_dtype<Backward>(params, stream);
}

const char* cuda_error_string(int error) {
  return cudaGetErrorString(static_cast<cudaError_t>(error));
}

}  // namespace ddf
