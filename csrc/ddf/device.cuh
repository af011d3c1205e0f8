// What the kernels use of the GPU beyond plain C++, in forms that a CPU can stand in for.
//
// Launches, shared arrays, whole-vector loads and stores, asynchronous copies, clusters. Everything
// here has two definitions: the GPU's, and one for CUDA_ON_CPU, where a C++ compiler compiles the
// kernels after suites/core/emulation/cuda_on_cpu.h. Kernels use these, __syncthreads, __syncwarp,
// shuffles, votes and atomics, and no PTX of their own, and then run, unchanged, in both.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>

// An array in shared memory, aligned to 16 bytes: DDF_SHARED(float, tile, [8][33]); a single value
// has empty dimensions.
#ifdef CUDA_ON_CPU
#define DDF_SHARED(type, name, dimensions) \
  type(&name) dimensions = cuda_on_cpu::shared<type dimensions>(DDF_SITE)
#define DDF_SITE         \
  ([]() -> const void* { \
    static char site;    \
    return &site;        \
  }())
#else
#define DDF_SHARED(type, name, dimensions) alignas(16) alignas(type) __shared__ type name dimensions
#endif

namespace ddf {

// ------------------------------------------------------------------------------------- launches

struct Grid {
  dim3 blocks, threads;
  size_t shared = 0;  // bytes of dynamic shared memory; more than 48 KB are asked for by launch
  void* stream = nullptr;  // a cudaStream_t
  unsigned cluster = 1;    // neighbouring blocks along x that run together; more than 1: sm_90 on
};

// Returns the error of the launch itself; nothing is synchronised.
template <typename... P, typename... A>
cudaError_t launch(const Grid& grid, void (*kernel)(P...), const A&... arguments) {
  if (grid.shared > (48 << 10)) {
    const cudaError_t error =
        cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                             cudaFuncAttributeMaxDynamicSharedMemorySize, int(grid.shared));
    if (error != cudaSuccess) return error;
  }
  cudaLaunchConfig_t config = {};
  config.gridDim = grid.blocks;
  config.blockDim = grid.threads;
  config.dynamicSmemBytes = grid.shared;
  config.stream = static_cast<cudaStream_t>(grid.stream);
  cudaLaunchAttribute cluster = {};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim.x = grid.cluster;
  cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
  config.attrs = &cluster;
  config.numAttrs = grid.cluster > 1 ? 1 : 0;
  const cudaError_t error = cudaLaunchKernelEx(&config, kernel, arguments...);
  return error == cudaSuccess ? cudaGetLastError() : error;
}

// The dynamic shared memory of the block, aligned to 128 bytes.
template <typename T>
__device__ inline T* dynamic_shared() {
#ifdef CUDA_ON_CPU
  return static_cast<T*>(cuda_on_cpu::dynamic_shared());
#else
  extern __shared__ __align__(128) unsigned char ddf_dynamic_shared[];
  return reinterpret_cast<T*>(ddf_dynamic_shared);
#endif
}

// ----------------------------------------------------------------------- whole-vector memory
// access

// N neighbours in memory, moved by one instruction where they are at most 16 bytes.
template <typename T, int N>
struct alignas(sizeof(T) * N) Pack {
  T lanes[N];

  __device__ T& operator[](int i) { return lanes[i]; }
  __device__ const T& operator[](int i) const { return lanes[i]; }
};

// read_only: unchanged while the kernel runs. streaming: used once. l2: not worth a place in L1.
enum class Hint { none, read_only, streaming, l2 };

// A register type for each size of access; on the CPU such that the compiler does not split it.
template <int kBytes>
struct RawOf;
#ifdef CUDA_ON_CPU
template <int kBytes>
struct RawOf {
  using type = cuda_on_cpu::Raw<kBytes>;
};
#else
template <>
struct RawOf<1> {
  using type = unsigned char;
};
template <>
struct RawOf<2> {
  using type = unsigned short;
};
template <>
struct RawOf<4> {
  using type = unsigned;
};
template <>
struct RawOf<8> {
  using type = uint2;
};
template <>
struct RawOf<16> {
  using type = uint4;
};
#endif
template <int kBytes>
using Raw = typename RawOf<kBytes>::type;

template <Hint kHint, typename R>
__device__ inline R load_raw(const R* from) {
  switch (kHint) {
    case Hint::read_only:
      return __ldg(from);
    case Hint::streaming:
      return __ldcs(from);
    case Hint::l2:
      return __ldcg(from);
    default:
      return *from;
  }
}

template <Hint kHint, typename R>
__device__ inline void store_raw(R* to, R value) {
  switch (kHint) {
    case Hint::streaming:
      return __stcs(to, value);
    case Hint::l2:
      return __stcg(to, value);
    default:
      *to = value;
  }
}

// `from` is aligned to the pack, or to 16 bytes where the pack is longer.
template <int N, Hint kHint = Hint::none, typename T>
__device__ inline Pack<T, N> load(const T* from) {
  constexpr int kWhole = sizeof(Pack<T, N>), kPiece = kWhole < 16 ? kWhole : 16;
  Raw<kPiece> pieces[kWhole / kPiece];
#pragma unroll
  for (int i = 0; i < kWhole / kPiece; ++i) {
    pieces[i] = load_raw<kHint>(reinterpret_cast<const Raw<kPiece>*>(from) + i);
  }
  Pack<T, N> pack;
  memcpy(&pack, pieces, kWhole);
  return pack;
}

template <Hint kHint = Hint::none, typename T, int N>
__device__ inline void store(T* to, const Pack<T, N>& pack) {
  constexpr int kWhole = sizeof(pack), kPiece = kWhole < 16 ? kWhole : 16;
  Raw<kPiece> pieces[kWhole / kPiece];
  memcpy(pieces, &pack, kWhole);
#pragma unroll
  for (int i = 0; i < kWhole / kPiece; ++i) {
    store_raw<kHint>(reinterpret_cast<Raw<kPiece>*>(to) + i, pieces[i]);
  }
}

// ------------------------------------------- asynchronous copies to shared memory, by each thread
//
// copy_async issues a copy of kBytes (4, 8 or 16; both ends aligned to it), of which only the first
// `valid` are read and the rest zero. copies_commit ends a group of them; copies_wait<N> returns
// when all but the newest N groups of this thread have landed; other threads see them after a
// barrier that follows. Before sm_80 the copy is done at once.

#ifndef CUDA_ON_CPU
__device__ inline unsigned shared_address(const void* shared) {
  return static_cast<unsigned>(__cvta_generic_to_shared(shared));
}
#endif

template <int kBytes>
__device__ inline void copy_async(void* to, const void* from, int valid = kBytes) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16, "sizes of the hardware");
#ifdef CUDA_ON_CPU
  cuda_on_cpu::copy_async<kBytes>(to, from, valid);
#elif __CUDA_ARCH__ >= 800
  if constexpr (kBytes == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)),
                 "l"(from), "r"(valid)
                 : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(shared_address(to)),
                 "l"(from), "n"(kBytes), "r"(valid)
                 : "memory");
  }
#else
  using R = Raw<kBytes>;
  if (valid == kBytes) {
    *static_cast<R*>(to) = *static_cast<const R*>(from);
  } else {
    for (int i = 0; i < kBytes; ++i) {
      static_cast<char*>(to)[i] = i < valid ? static_cast<const char*>(from)[i] : char(0);
    }
  }
#endif
}

__device__ inline void copies_commit() {
#ifdef CUDA_ON_CPU
  cuda_on_cpu::copies_commit();
#elif __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

template <int kNewest>
__device__ inline void copies_wait() {
#ifdef CUDA_ON_CPU
  cuda_on_cpu::copies_wait(kNewest);
#elif __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(kNewest) : "memory");
#endif
}

// ------------------------------------------------------ bulk copies, by the copy engine of sm_90
//
// An Arrivals in shared memory completes a phase when `threads` arrivals and all expected bytes
// have come. One thread calls init, then all meet in __syncthreads; phases count 0, 1, 2, ... and
// wait(parity) returns when the phase of that parity is over. Older architectures must not get
// here: they trap.

struct Arrivals {
  uint64_t state;

  __device__ void init(unsigned threads) {
#ifdef CUDA_ON_CPU
    cuda_on_cpu::arrivals_init(&state, threads);
#elif __CUDA_ARCH__ >= 900
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(&state)),
                 "r"(threads)
                 : "memory");
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#else
    __trap();
#endif
  }

  __device__ void arrive() {
#ifdef CUDA_ON_CPU
    cuda_on_cpu::arrivals_arrive(&state, 0);
#elif __CUDA_ARCH__ >= 900
    asm volatile(
        "{ .reg .b64 s; mbarrier.arrive.shared::cta.b64 s, [%0]; }" ::"r"(shared_address(&state))
        : "memory");
#else
    __trap();
#endif
  }

  // Arrives, and has the phase wait for so many bytes of bulk copies too.
  __device__ void arrive_expecting(unsigned bytes) {
#ifdef CUDA_ON_CPU
    cuda_on_cpu::arrivals_arrive(&state, bytes);
#elif __CUDA_ARCH__ >= 900
    asm volatile("{ .reg .b64 s; mbarrier.arrive.expect_tx.shared::cta.b64 s, [%0], %1; }" ::"r"(
                     shared_address(&state)),
                 "r"(bytes)
                 : "memory");
#else
    __trap();
#endif
  }

  __device__ void wait(unsigned parity) {
#ifdef CUDA_ON_CPU
    cuda_on_cpu::arrivals_wait(&state, parity);
#elif __CUDA_ARCH__ >= 900
    asm volatile(
        "{ .reg .pred done;\n"
        "again: mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
        "@!done bra again; }" ::"r"(shared_address(&state)),
        "r"(parity)
        : "memory");
#else
    __trap();
#endif
  }
};

// Copies bytes, a multiple of 16 with both ends aligned to 16, and counts them on `arrivals`.
__device__ inline void copy_bulk(void* to, const void* from, unsigned bytes, Arrivals* arrivals) {
#ifdef CUDA_ON_CPU
  cuda_on_cpu::copy_bulk(to, from, bytes, &arrivals->state);
#elif __CUDA_ARCH__ >= 900
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(shared_address(to)),
      "l"(from), "r"(bytes), "r"(shared_address(&arrivals->state))
      : "memory");
#else
  __trap();
#endif
}

// ------------------------------------------------------------------- clusters of blocks, of sm_90
//
// The blocks of a cluster reach the shared memory of one another: in_block says where block `rank`
// has what this one has at a place. cluster_arrive and cluster_wait are the halves of a barrier of
// all their threads: what was done before the one is seen after the other. A block has begun by the
// first such barrier, and none may leave before all are done with its memory: it takes two barriers
// at least. Older architectures trap here too.

__device__ inline void cluster_arrive() {
#ifdef CUDA_ON_CPU
  cuda_on_cpu::cluster_arrive();
#elif __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
#else
  __trap();
#endif
}

__device__ inline void cluster_wait() {
#ifdef CUDA_ON_CPU
  cuda_on_cpu::cluster_wait();
#elif __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#else
  __trap();
#endif
}

template <typename T>
__device__ inline T* in_block(T* shared, unsigned rank) {
#ifdef CUDA_ON_CPU
  return cuda_on_cpu::in_block(shared, rank);
#elif __CUDA_ARCH__ >= 900
  T* there;
  asm("mapa.u64 %0, %1, %2;" : "=l"(there) : "l"(shared), "r"(rank));
  return there;
#else
  __trap();
  return nullptr;
#endif
}

}  // namespace ddf
