// acc = acc * a + b on registers alone, in every thread of a full GPU.
//
// Eight chains a thread and enough threads to fill every multiprocessor hide the latency of about
// four cycles.

#include <cuda_runtime.h>

#include <cstdint>

namespace roofs {
namespace {

constexpr int kChains = 8, kThreads = 256, kBlocksPerMultiprocessor = 8;

template <typename T>
__global__ void multiply_add_kernel(int64_t steps, T a, T b, T* sink) {
  T chains[kChains];
#pragma unroll
  for (int c = 0; c < kChains; ++c) chains[c] = T(threadIdx.x + c);
  for (int64_t step = 0; step < steps; ++step) {
#pragma unroll
    for (int c = 0; c < kChains; ++c) chains[c] = chains[c] * a + b;
  }
  T sum = 0;
#pragma unroll
  for (int c = 0; c < kChains; ++c) sum += chains[c];
  if (sum == T(-1)) *sink = sum;  // never, but the compiler does not know
}

template <typename T>
cudaError_t launch(int64_t steps, int blocks, void* sink, cudaStream_t stream) {
  multiply_add_kernel<T>
      <<<blocks, kThreads, 0, stream>>>(steps, T(0.5), T(0.5), static_cast<T*>(sink));
  return cudaGetLastError();
}

}  // namespace
}  // namespace roofs

// Enqueues the loop; `sink` is 8 bytes of device memory. Returns a CUDA error code; `macs` is what
// it will do.
extern "C" __attribute__((visibility("default"))) int roofs_multiply_add_cuda(
    int bytes, int64_t steps, int multiprocessors, void* sink, void* stream, int64_t* macs) {
  using namespace roofs;
  const int blocks = multiprocessors * kBlocksPerMultiprocessor;
  *macs = steps * kChains * kThreads * blocks;
  const auto s = static_cast<cudaStream_t>(stream);
  return bytes == 8 ? launch<double>(steps, blocks, sink, s)
                    : launch<float>(steps, blocks, sink, s);
}
