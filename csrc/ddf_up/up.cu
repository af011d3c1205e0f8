// The upsampling operator on CUDA: correct for every shape and stride, and plain.
//
// Floors, batch 32, C 256, k 3, s 2, float32, at 56 x 56: 1048 MB, of them 822 the output, 206 F
// and 14 S; 72 floating-point operations a pixel of F, as many an output as the operator of ddf/
// has. So memory binds, and most of it is the output: neighbouring threads write neighbouring
// addresses, each row of a pixel's outputs by one thread, at s = 2 as one pair.
//
//   forward        A thread is a pixel of a channel; it reads the taps of F once for all branches
//                  (k = 3), and walks over 4 channels (NCHW) or pixels (channels last), so that
//                  what it read of the other filter is in the first-level cache for the next.
//   grad_features  A thread is an element of F and gathers from the outputs of all branches that
//                  read it: no atomics.
//   grad_spatial   A thread is an element of S and sums over channels.
//   grad_channel   A block is an element of C and sums over pixels, in a tree of fixed shape.
//
// No sum depends on which block runs first, so results are the same in every run. Offsets are
// 64-bit throughout.

#include "ddf/elements.cuh"
#include "ddf_up/up.h"

namespace ddf {
namespace {

constexpr int kWalk = 4;  // channels or pixels of one thread of the forward kernel

// kSize 0: any kernel size, nothing kept. `pairs`: rows of outputs are stored two and two.
template <typename T, bool kAdd, bool kChannelsLast, int kSize>
__global__ void __launch_bounds__(kThreads) up_forward_kernel(const UpParams p, const bool pairs) {
  using A = Accumulator<T>;
  const int64_t k = kSize ? kSize : p.kernel_size, taps = k * k;
  Index index{global_thread()};
  int64_t c, y, x;
  if (kChannelsLast) {
    c = index.take(p.channels);
    x = index.take((p.width + kWalk - 1) / kWalk) * kWalk;
    y = index.take(p.height);
  } else {
    x = index.take(p.width);
    y = index.take(p.height);
    c = index.take((p.channels + kWalk - 1) / kWalk) * kWalk;
  }
  const int64_t n = index.rest;
  if (n >= p.batch) return;

  for (int step = 0; step < kWalk && c < p.channels && x < p.width; ++step) {
    A kept[kSize ? kSize * kSize : 1];
    if constexpr (kSize > 0) {
#pragma unroll
      for (int t = 0; t < kSize * kSize; ++t) {
        kept[t] = read_features<T>(p, n, c, y, x, t / kSize, t % kSize);
      }
    }
    for (int64_t i = 0; i < p.scale; ++i) {
      Pack<T, 2> pair;
      for (int64_t j = 0; j < p.scale; ++j) {
        const int64_t b = i * p.scale + j;
        A sum = 0;
#pragma unroll
        for (int64_t t = 0; t < taps; ++t) {
          const A f = kSize ? kept[t] : read_features<T>(p, n, c, y, x, t / k, t % k);
          const A spatial = read<T>(p.spatial, n, b * taps + t, y, x);
          const A channel = read<T>(p.channel, n, b * p.channels + c, t / k, t % k);
          sum += combined<kAdd>(spatial, channel) * f;
        }
        if (pairs) {
          narrow(sum, &pair[j % 2]);
          if (j % 2) store(at<T>(p.out, n, c, y * p.scale + i, x * p.scale + j - 1), pair);
        } else {
          narrow(sum, at<T>(p.out, n, c, y * p.scale + i, x * p.scale + j));
        }
      }
    }
    kChannelsLast ? ++x : ++c;
  }
}

template <typename T, bool kAdd>
__global__ void __launch_bounds__(kThreads) up_grad_features_kernel(const UpParams p) {
  using A = Accumulator<T>;
  const Element e(global_thread(), p.grad_features, p.channels, p.height, p.width);
  if (e.n >= p.batch) return;
  const int64_t k = p.kernel_size, pad = p.dilation * (k - 1) / 2, s = p.scale;
  A sum = 0;
  for (int64_t b = 0; b < s * s; ++b) {
    for (int64_t i = 0; i < k; ++i) {
      const int64_t y = e.y + pad - p.dilation * i;
      if (y < 0 || y >= p.height) continue;
      for (int64_t j = 0; j < k; ++j) {
        const int64_t x = e.x + pad - p.dilation * j;
        if (x < 0 || x >= p.width) continue;
        const A spatial = read<T>(p.spatial, e.n, b * k * k + i * k + j, y, x);
        const A channel = read<T>(p.channel, e.n, b * p.channels + e.c, i, j);
        sum += combined<kAdd>(spatial, channel) *
               read<T>(p.out, e.n, e.c, y * s + b / s, x * s + b % s);
      }
    }
  }
  narrow(sum, at<T>(p.grad_features, e.n, e.c, e.y, e.x));
}

template <typename T, bool kAdd>
__global__ void __launch_bounds__(kThreads) up_grad_spatial_kernel(const UpParams p) {
  using A = Accumulator<T>;
  const int64_t k = p.kernel_size, s = p.scale;
  const Element e(global_thread(), p.grad_spatial, s * s * k * k, p.height, p.width);
  if (e.n >= p.batch) return;
  const int64_t b = e.c / (k * k), i = e.c % (k * k) / k, j = e.c % k;
  A sum = 0;
  for (int64_t c = 0; c < p.channels; ++c) {
    const A product = read<T>(p.out, e.n, c, e.y * s + b / s, e.x * s + b % s) *
                      read_features<T>(p, e.n, c, e.y, e.x, i, j);
    sum += kAdd ? product : product * read<T>(p.channel, e.n, b * p.channels + c, i, j);
  }
  narrow(sum, at<T>(p.grad_spatial, e.n, e.c, e.y, e.x));
}

template <typename T, bool kAdd>
__global__ void __launch_bounds__(kThreads) up_grad_channel_kernel(const UpParams p) {
  using A = Accumulator<T>;
  const int64_t k = p.kernel_size, s = p.scale;
  Index index{blockIdx.x};
  const int64_t tap = index.take(k * k), c = index.take(p.channels), b = index.take(s * s);
  const int64_t n = index.rest;
  A sum = 0;
  for (int64_t pixel = threadIdx.x; pixel < p.height * p.width; pixel += kThreads) {
    const int64_t y = pixel / p.width, x = pixel % p.width;
    const A product = read<T>(p.out, n, c, y * s + b / s, x * s + b % s) *
                      read_features<T>(p, n, c, y, x, tap / k, tap % k);
    sum += kAdd ? product : product * read<T>(p.spatial, n, b * k * k + tap, y, x);
  }
  sum = sum_of_block(sum);
  if (threadIdx.x == 0) narrow(sum, at<T>(p.grad_channel, n, b * p.channels + c, tap / k, tap % k));
}

// Whether two neighbours in a row of outputs can be stored as one.
template <typename T>
bool in_pairs(const UpParams& p) {
  bool even = p.scale % 2 == 0 && p.out.stride[3] == 1 &&
              reinterpret_cast<uintptr_t>(p.out.data) % (2 * sizeof(T)) == 0;
  for (int i = 0; i < 3; ++i) even = even && p.out.stride[i] % 2 == 0;
  return even;
}

struct Forward {
  template <typename T, bool kAdd>
  static cudaError_t run(const UpParams& p, void* stream) {
    const bool channels_last = p.features.stride[1] == 1 && p.out.stride[1] == 1;
    const int64_t threads = channels_last
                                ? p.batch * p.height * ceil_div(p.width, kWalk) * p.channels
                                : p.batch * ceil_div(p.channels, kWalk) * p.height * p.width;
    const int64_t blocks = ceil_div(threads, kThreads);
    if (blocks > 0x7fffffff) return cudaErrorInvalidConfiguration;
    const auto kernel = channels_last ? choose<T, kAdd, true>(p) : choose<T, kAdd, false>(p);
    return launch({dim3(static_cast<unsigned>(blocks)), dim3(kThreads), 0, stream}, kernel, p,
                  in_pairs<T>(p));
  }

 private:
  template <typename T, bool kAdd, bool kChannelsLast>
  static auto choose(const UpParams& p) {
    return p.kernel_size == 3 ? up_forward_kernel<T, kAdd, kChannelsLast, 3>
                              : up_forward_kernel<T, kAdd, kChannelsLast, 0>;
  }
};

struct Backward {
  template <typename T, bool kAdd>
  static cudaError_t run(const UpParams& p, void* stream) {
    const int64_t filters = p.scale * p.scale * p.kernel_size * p.kernel_size;
    const int64_t pixels = p.batch * p.height * p.width;
    cudaError_t error = cudaSuccess;
    if (p.grad_features.data) {
      error = launch_threads(up_grad_features_kernel<T, kAdd>,
                             ceil_div(pixels * p.channels, kThreads), p, stream);
    }
    if (error == cudaSuccess && p.grad_spatial.data) {
      error = launch_threads(up_grad_spatial_kernel<T, kAdd>, ceil_div(pixels * filters, kThreads),
                             p, stream);
    }
    if (error == cudaSuccess && p.grad_channel.data) {
      error = launch_threads(up_grad_channel_kernel<T, kAdd>, p.batch * p.channels * filters, p,
                             stream);
    }
    return error;
  }
};

template <typename Pass>
cudaError_t on(const UpParams& params, int device, void* stream) {
  // This library's own CUDA runtime has to be told the device.
  const cudaError_t error = cudaSetDevice(device);
  return error == cudaSuccess ? by_dtype<Pass>(params, stream) : error;
}

}  // namespace

int cuda_up_forward(const UpParams& params, int device, void* stream) {
  return on<Forward>(params, device, stream);
}

int cuda_up_backward(const UpParams& params, int device, void* stream) {
  return on<Backward>(params, device, stream);
}

const char* cuda_error_string(int error) {
  return cudaGetErrorString(static_cast<cudaError_t>(error));
}

}  // namespace ddf
