// What the CUDA kernels share: element types, combination, alignment of views.
#pragma once

#include <cstdint>
#include <type_traits>

#include "ddf/ddf.h"
#include "ddf/device.cuh"

namespace ddf {

template <typename T>
struct AccumulatorOf {
  using type = float;
};
template <>
struct AccumulatorOf<double> {
  using type = double;
};
template <typename T>
using Accumulator = typename AccumulatorOf<T>::type;

__device__ inline float widen(float value) { return value; }
__device__ inline double widen(double value) { return value; }
__device__ inline float widen(__half value) { return __half2float(value); }
__device__ inline float widen(__nv_bfloat16 value) { return __bfloat162float(value); }

__device__ inline void narrow(float value, float* to) { *to = value; }
__device__ inline void narrow(double value, double* to) { *to = value; }
__device__ inline void narrow(float value, __half* to) { *to = __float2half_rn(value); }
__device__ inline void narrow(float value, __nv_bfloat16* to) { *to = __float2bfloat16_rn(value); }

template <bool kAdd, typename A>
__device__ inline A combined(A spatial, A channel) {
  return kAdd ? spatial + channel : spatial * channel;
}

template <typename T>
__host__ __device__ inline T* at(const View& view, int64_t a, int64_t b, int64_t c, int64_t d) {
  return static_cast<T*>(view.data) + a * view.stride[0] + b * view.stride[1] + c * view.stride[2] +
         d * view.stride[3];
}

__host__ __device__ constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
__host__ __device__ constexpr int round_up(int a, int b) { return (a + b - 1) / b * b; }

__device__ inline int64_t global_thread() {
  return static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
}

// Keeps the compiler from computing a pointer, or what follows from a number, before it is needed.
template <typename T>
__device__ inline void opaque(T*& pointer) {
#ifndef CUDA_ON_CPU
  asm volatile("" : "+l"(pointer));
#endif
}
__device__ inline void opaque(unsigned& number) {
#ifndef CUDA_ON_CPU
  asm volatile("" : "+r"(number));
#endif
}

// Elements between a place in memory and the 16-byte piece that it is in.
template <typename T>
__device__ inline int off_piece(const T* place) {
  return int(reinterpret_cast<uintptr_t>(place) % 16 / sizeof(T));
}

// Of `count` elements that follow one another in memory from `first`, those that number
// `sharer` of `sharers` reads: whole sectors, so that no two of them read the same.
struct Share {
  int begin, end;
};
template <typename T>
__device__ inline Share share_of(const T* first, int count, int sharer, int sharers) {
  constexpr int kSector = 32 / int(sizeof(T));
  const int off = int(reinterpret_cast<uintptr_t>(first) % 32 / sizeof(T));
  const int each = int(ceil_div(ceil_div(off + count, kSector), sharers)) * kSector;
  const int begin = sharer * each - off, end = begin + each;
  return {begin > 0 ? begin : 0, end < count ? end : count};
}

// At the same place in the shared memory of each of the cluster's blocks.
template <typename T>
__device__ inline void store_in_all(T* place, T value, int blocks) {
#pragma unroll 1
  for (int block = 0; block < blocks; ++block) *in_block(place, unsigned(block)) = value;
}

// Asynchronous where the hardware has such copies.
template <int kBytes, typename T>
__device__ inline void copy_elements(T* to, const T* from) {
  if constexpr (kBytes >= 4) {
    copy_async<kBytes>(to, from);
  } else {
    *to = *from;
  }
}

}  // namespace ddf
