// What the plain CUDA kernels share, those with a thread for each element: how an index is taken
// apart, an element read, a block's sum taken, a kernel chosen by element type and launched.
#pragma once

#include "ddf/cuda/common.cuh"

namespace ddf {
namespace {

constexpr int kThreads =
    256;  // a multiple of the warp that fits 8 blocks of these kernels on a multiprocessor

template <typename T>
__device__ inline Accumulator<T> read(const View& view, int64_t a, int64_t b, int64_t c,
                                      int64_t d) {
  return widen(*at<T>(view, a, b, c, d));
}

// The features under tap (i, j) of an output; zero in the padding.
template <typename T>
__device__ inline Accumulator<T> read_features(const Params& p, int64_t n, int64_t c, int64_t y,
                                               int64_t x, int64_t i, int64_t j) {
  const int64_t middle = (p.kernel_size - 1) / 2;
  const int64_t from_y = y * p.stride + p.dilation * (i - middle);
  const int64_t from_x = x * p.stride + p.dilation * (j - middle);
  const bool inside = from_y >= 0 && from_y < p.height && from_x >= 0 && from_x < p.width;
  return inside ? read<T>(p.features, n, c, from_y, from_x) : Accumulator<T>(0);
}

// Takes an index apart, fastest part first.
struct Index {
  int64_t rest;

  __device__ int64_t take(int64_t size) {
    const int64_t part = rest % size;
    rest /= size;
    return part;
  }
};

// The four coordinates of one element of a tensor, neighbours in memory being neighbours in index.
struct Element {
  int64_t n, c, y, x;

  __device__ Element(int64_t i, const View& view, int64_t channels, int64_t height, int64_t width) {
    Index index{i};
    const bool channels_last = view.stride[1] == 1;
    if (channels_last) c = index.take(channels);
    x = index.take(width);
    y = index.take(height);
    if (!channels_last) c = index.take(channels);
    n = index.rest;
  }
};

// The sum of the numbers that the threads of a block have, in a tree of fixed shape; thread 0's
// result, zero for the others.
template <typename A>
__device__ inline A sum_of_block(A sum) {
  DDF_SHARED(A, sums, [kThreads]);
  sums[threadIdx.x] = sum;
  for (unsigned width = kThreads / 2; width > 0; width /= 2) {
    __syncthreads();
    if (threadIdx.x < width) sums[threadIdx.x] += sums[threadIdx.x + width];
  }
  return threadIdx.x == 0 ? sums[0] : A(0);
}

template <typename P>
cudaError_t launch_threads(void (*kernel)(const P), int64_t blocks, const P& p, void* stream) {
  if (blocks > 0x7fffffff) return cudaErrorInvalidConfiguration;
  return launch({dim3(static_cast<unsigned>(blocks)), dim3(kThreads), 0, stream}, kernel, p);
}

template <typename Pass, typename T, typename P>
cudaError_t by_combine(const P& p, void* stream) {
  return p.combine == Combine::add ? Pass::template run<T, true>(p, stream)
                                   : Pass::template run<T, false>(p, stream);
}

template <typename Pass, typename P>
cudaError_t by_dtype(const P& p, void* stream) {
  switch (p.dtype) {
    case DType::float32:
      return by_combine<Pass, float>(p, stream);
    case DType::float64:
      return by_combine<Pass, double>(p, stream);
    case DType::float16:
      return by_combine<Pass, __half>(p, stream);
    case DType::bfloat16:
      return by_combine<Pass, __nv_bfloat16>(p, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace
}  // namespace ddf
