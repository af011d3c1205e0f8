// Small kernels, each right or with one fault, that the emulation must let pass or catch: `run`
// names the kernel and says which. One block of 64 threads unless it says otherwise; `in` and `out`
// have 4096 floats.

#include "ddf/device.cuh"

namespace {

using ddf::Arrivals;
using ddf::launch;

constexpr int kThreads = 64;

struct Arrays {
  const float* in;
  float* out;
};

template <bool kRight>
__global__ void block_barrier(Arrays a) {
  DDF_SHARED(float, tile, [kThreads]);
  tile[threadIdx.x] = a.in[threadIdx.x];
  if (kRight) __syncthreads();
  a.out[threadIdx.x] = tile[kThreads - 1 - threadIdx.x];
}

// The buffer is filled again before all have read it.
template <bool kRight>
__global__ void second_barrier(Arrays a) {
  DDF_SHARED(float, tile, [kThreads]);
  float sum = 0;
  for (int round = 0; round < 3; ++round) {
    tile[threadIdx.x] = a.in[round * kThreads + threadIdx.x];
    __syncthreads();
    sum += tile[kThreads - 1 - threadIdx.x];
    if (kRight) __syncthreads();
  }
  a.out[threadIdx.x] = sum;
}

template <bool kRight>
__global__ void warp_barrier(Arrays a) {
  DDF_SHARED(float, tile, [kThreads]);
  tile[threadIdx.x] = a.in[threadIdx.x];
  if (kRight) __syncwarp();
  a.out[threadIdx.x] = tile[threadIdx.x ^ 1];
}

// A warp's barrier does not order two warps.
template <bool kRight>
__global__ void barrier_of_the_warp_alone(Arrays a) {
  DDF_SHARED(float, tile, [kThreads]);
  tile[threadIdx.x] = a.in[threadIdx.x];
  if (kRight) {
    __syncthreads();
  } else {
    __syncwarp();
  }
  a.out[threadIdx.x] = tile[threadIdx.x ^ 32];
}

// A shuffle orders no memory.
template <bool kRight>
__global__ void shuffle_for_a_barrier(Arrays a) {
  DDF_SHARED(float, tile, [kThreads]);
  tile[threadIdx.x] = a.in[threadIdx.x];
  const float other = __shfl_xor_sync(~0u, a.in[threadIdx.x], 2);
  if (kRight) __syncwarp();
  a.out[threadIdx.x] = tile[threadIdx.x ^ 1] + other;
}

// 4 blocks; each writes its own part, or one element of the next.
template <bool kRight>
__global__ void blocks_apart(Arrays a) {
  const int i = blockIdx.x * kThreads + threadIdx.x;
  a.out[kRight ? i : i + (threadIdx.x == kThreads - 1)] = a.in[i];
}

// 4 blocks that count together.
template <bool kRight>
__global__ void atomic_sum(Arrays a) {
  const int i = blockIdx.x * kThreads + threadIdx.x;
  if (kRight) {
    atomicAdd(a.out, a.in[i]);
  } else {
    a.out[0] += a.in[i];
  }
}

// 4 blocks, of which the last adds up what the others left.
template <bool kRight>
__global__ void last_block(Arrays a) {
  const int i = blockIdx.x * kThreads + threadIdx.x;
  a.out[i] = a.in[i];
  if (kRight) __threadfence();
  __syncthreads();
  DDF_SHARED(bool, last, );
  int* const count = reinterpret_cast<int*>(a.out + 4095);
  if (threadIdx.x == 0) last = atomicAdd(count, 1) == int(gridDim.x) - 1;
  __syncthreads();
  if (!last || threadIdx.x) return;
  __threadfence();
  float sum = 0;
  for (unsigned j = 0; j < gridDim.x * kThreads; ++j) sum += a.out[j];
  a.out[1024] = sum;
}

template <bool kRight>
__global__ void shared_bounds(Arrays a) {
  DDF_SHARED(float, tile, [kThreads]);
  tile[threadIdx.x] = a.in[threadIdx.x];
  __syncthreads();
  const float* const from = tile;
  a.out[threadIdx.x] = from[threadIdx.x + (kRight ? 0 : 1)];
}

template <bool kRight>
__global__ void dynamic_bounds(Arrays a) {
  float* const tile = ddf::dynamic_shared<float>();
  tile[threadIdx.x + (kRight ? 0 : 1)] = a.in[threadIdx.x];
  __syncthreads();
  a.out[threadIdx.x] = tile[threadIdx.x];
}

template <bool kRight>
__global__ void global_bounds(Arrays a) {
  a.out[threadIdx.x] = a.in[kRight ? threadIdx.x : 4096 + threadIdx.x];
}

template <bool kRight>
__global__ void whole_output(Arrays a) {
  if (kRight || threadIdx.x < kThreads - 1) a.out[threadIdx.x] = a.in[threadIdx.x];
}

template <bool kRight>
__global__ void unset_tile(Arrays a) {
  DDF_SHARED(float, tile, [kThreads]);
  if (kRight || threadIdx.x < kThreads - 1) tile[threadIdx.x] = a.in[threadIdx.x];
  __syncthreads();
  a.out[threadIdx.x] = tile[threadIdx.x];
}

template <bool kRight>
__global__ void coalesced(Arrays a) {
  a.out[threadIdx.x] = a.in[kRight ? threadIdx.x : threadIdx.x * 8];
}

template <bool kRight>
__global__ void banks(Arrays a) {
  DDF_SHARED(float, tile, [32][kRight ? 33 : 32]);
  const int x = threadIdx.x % 32;
  for (int y = threadIdx.x / 32; y < 32; y += 2) tile[y][x] = a.in[y * 32 + x];
  __syncthreads();
  for (int y = threadIdx.x / 32; y < 32; y += 2) a.out[y * 32 + x] = tile[x][y];
}

// 4 blocks; each reads its own part, or all.
template <bool kRight>
__global__ void traffic(Arrays a) {
  float sum = 0;
  for (int i = threadIdx.x; i < 1024; i += kThreads) {
    if (!kRight || i / 256 == int(blockIdx.x)) sum += a.in[i];
  }
  a.out[blockIdx.x * kThreads + threadIdx.x] = sum;
}

template <bool kRight>
__global__ void aligned(Arrays a) {
  ddf::store(a.out + threadIdx.x * 4, ddf::load<4>(a.in + threadIdx.x * 4 + (kRight ? 0 : 1)));
}

template <bool kRight>
__global__ void same_barrier_for_all(Arrays a) {
  if (kRight || threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
  a.out[threadIdx.x] = a.in[threadIdx.x];
}

template <bool kRight>
__global__ void whole_mask(Arrays a) {
  float sum = a.in[threadIdx.x];
  if (kRight || threadIdx.x % 32 < 16) sum += __shfl_xor_sync(~0u, sum, 1);
  __syncthreads();
  a.out[threadIdx.x] = sum;
}

template <bool kRight>
__global__ void awaited_copy(Arrays a) {
  DDF_SHARED(float, tile, [kThreads]);
  ddf::copy_async<4>(tile + threadIdx.x, a.in + threadIdx.x);
  ddf::copies_commit();
  ddf::copies_wait<kRight ? 0 : 1>();
  a.out[threadIdx.x] = tile[threadIdx.x];
}

// Others still read what the next copy lands in.
template <bool kRight>
__global__ void copy_after_all_have_read(Arrays a) {
  DDF_SHARED(float, tile, [kThreads]);
  float sum = 0;
  for (int round = 0; round < 3; ++round) {
    ddf::copy_async<4>(tile + threadIdx.x, a.in + round * kThreads + threadIdx.x);
    ddf::copies_commit();
    ddf::copies_wait<0>();
    __syncthreads();
    sum += tile[kThreads - 1 - threadIdx.x];
    if (kRight) __syncthreads();
  }
  a.out[threadIdx.x] = sum;
}

template <bool kRight>
__global__ void awaited_bulk_copy(Arrays a) {
  DDF_SHARED(float, tile, [2][kThreads]);
  DDF_SHARED(Arrivals, full, [2]);
  if (threadIdx.x < 2) full[threadIdx.x].init(1);
  __syncthreads();
  float sum = 0;
  for (int round = 0; round < 6; ++round) {
    const int stage = round % 2;
    if (threadIdx.x == 0) {
      full[stage].arrive_expecting(sizeof(tile[0]));
      ddf::copy_bulk(tile[stage], a.in + round * kThreads, sizeof(tile[0]), &full[stage]);
    }
    if (kRight || threadIdx.x == 0) full[stage].wait(round / 2 % 2);
    sum += tile[stage][kThreads - 1 - threadIdx.x];
    __syncthreads();
  }
  a.out[threadIdx.x] = sum;
}

// An arrival that nobody makes.
template <bool kRight>
__global__ void arrivals_of_all(Arrays a) {
  DDF_SHARED(Arrivals, done, );
  if (threadIdx.x == 0) done.init(kThreads);
  __syncthreads();
  if (kRight || threadIdx.x) done.arrive();
  done.wait(0);
  a.out[threadIdx.x] = a.in[threadIdx.x];
}

// Clusters of 2 of 4 blocks, each of which leaves what it has read in the other one's memory.
template <bool kRight>
__global__ void cluster_barrier(Arrays a) {
  DDF_SHARED(float, tile, [kThreads]);
  ddf::cluster_arrive();
  const int i = blockIdx.x * kThreads + threadIdx.x;
  const float value = a.in[i];
  ddf::cluster_wait();
  ddf::in_block(tile, 1 - blockIdx.x % 2)[threadIdx.x] = value;
  __syncthreads();
  if (kRight) ddf::cluster_arrive();
  if (kRight) ddf::cluster_wait();
  a.out[i] = tile[kThreads - 1 - threadIdx.x];
  if (!kRight) ddf::cluster_arrive();
  if (!kRight) ddf::cluster_wait();
}

// Likewise, but each block reads the other one's memory, which is then filled again.
template <bool kRight>
__global__ void second_cluster_barrier(Arrays a) {
  DDF_SHARED(float, tile, [kThreads]);
  float sum = 0;
  for (int round = 0; round < 2; ++round) {
    tile[threadIdx.x] = a.in[(round * 4 + blockIdx.x) * kThreads + threadIdx.x];
    ddf::cluster_arrive();
    ddf::cluster_wait();
    const float* const other = ddf::in_block(tile, 1 - blockIdx.x % 2);
    sum += other[threadIdx.x];
    if (kRight || round == 1) ddf::cluster_arrive();
    if (kRight || round == 1) ddf::cluster_wait();
  }
  a.out[blockIdx.x * kThreads + threadIdx.x] = sum;
}

// The other block may not have begun.
template <bool kRight>
__global__ void cluster_has_begun(Arrays a) {
  DDF_SHARED(float, tile, [kThreads]);
  if (kRight) ddf::cluster_arrive();
  if (kRight) ddf::cluster_wait();
  const int i = blockIdx.x * kThreads + threadIdx.x;
  ddf::in_block(tile, 1 - blockIdx.x % 2)[threadIdx.x] = a.in[i];
  ddf::cluster_arrive();
  ddf::cluster_wait();
  a.out[i] = tile[threadIdx.x];
}

// The other block may have left.
template <bool kRight>
__global__ void cluster_is_there(Arrays a) {
  DDF_SHARED(float, tile, [kThreads]);
  const int i = blockIdx.x * kThreads + threadIdx.x;
  tile[threadIdx.x] = a.in[i];
  ddf::cluster_arrive();
  ddf::cluster_wait();
  a.out[i] = ddf::in_block(tile, 1 - blockIdx.x % 2)[threadIdx.x];
  if (kRight) ddf::cluster_arrive();
  if (kRight) ddf::cluster_wait();
}

template <bool kRight>
__global__ void awaited_cluster(Arrays a) {
  ddf::cluster_arrive();
  if (kRight) ddf::cluster_wait();
  a.out[blockIdx.x * kThreads + threadIdx.x] = a.in[blockIdx.x * kThreads + threadIdx.x];
}

template <bool kRight>
__global__ void cluster_of_all(Arrays a) {
  if (kRight || blockIdx.x % 2) ddf::cluster_arrive();
  if (kRight || blockIdx.x % 2) ddf::cluster_wait();
  a.out[blockIdx.x * kThreads + threadIdx.x] = a.in[blockIdx.x * kThreads + threadIdx.x];
}

template <bool kRight>
__global__ void cluster_bounds(Arrays a) {
  DDF_SHARED(float, tile, [kThreads]);
  const int i = blockIdx.x * kThreads + threadIdx.x;
  ddf::cluster_arrive();
  ddf::cluster_wait();
  float* const other = ddf::in_block(tile, 1 - blockIdx.x % 2);
  other[threadIdx.x + (kRight ? 0 : 1)] = a.in[i];
  ddf::cluster_arrive();
  ddf::cluster_wait();
  a.out[i] = tile[threadIdx.x];
}

}  // namespace

#define KERNEL(name, ...)                                                                \
  if (!strcmp(asked, #name)) {                                                           \
    return launch(grid(__VA_ARGS__), right ? name<true> : name<false>, Arrays{in, out}); \
  }

static ddf::Grid grid(unsigned blocks, unsigned cluster = 1) {
  return {dim3(blocks), dim3(kThreads), kThreads * sizeof(float), nullptr, cluster};
}

extern "C" int run(const char* asked, int right, const float* in, float* out) {
  KERNEL(block_barrier, 1)
  KERNEL(second_barrier, 1)
  KERNEL(warp_barrier, 1)
  KERNEL(barrier_of_the_warp_alone, 1)
  KERNEL(shuffle_for_a_barrier, 1)
  KERNEL(blocks_apart, 4)
  KERNEL(atomic_sum, 4)
  KERNEL(last_block, 4)
  KERNEL(shared_bounds, 1)
  KERNEL(dynamic_bounds, 1)
  KERNEL(global_bounds, 1)
  KERNEL(whole_output, 1)
  KERNEL(unset_tile, 1)
  KERNEL(coalesced, 1)
  KERNEL(banks, 1)
  KERNEL(traffic, 4)
  KERNEL(aligned, 1)
  KERNEL(same_barrier_for_all, 1)
  KERNEL(whole_mask, 1)
  KERNEL(awaited_copy, 1)
  KERNEL(copy_after_all_have_read, 1)
  KERNEL(awaited_bulk_copy, 1)
  KERNEL(arrivals_of_all, 1)
  KERNEL(cluster_barrier, 4, 2)
  KERNEL(second_cluster_barrier, 4, 2)
  KERNEL(cluster_has_begun, 4, 2)
  KERNEL(cluster_is_there, 4, 2)
  KERNEL(awaited_cluster, 4, 2)
  KERNEL(cluster_of_all, 4, 2)
  KERNEL(cluster_bounds, 4, 2)
  return -1;
}

extern "C" const char* why(int error) {
  return cudaGetErrorString(static_cast<cudaError_t>(error));
}
