// Runs CUDA kernels on the CPU, so that a test without a GPU sees wrong indices, missing barriers
// and unset outputs.
//
// To be included ahead of a .cu file that g++ compiles (-x c++ -include cuda_on_cpu.h, with the
// CUDA headers on the path). A block's threads are fibers of one CPU thread, each run to its next
// __syncthreads; blocks follow one another. Fibers and blocks take turns in an order drawn anew for
// each launch, so that a kernel that leans on an order gives itself away. Shared memory is a static
// variable: one block at a time has it. There are no warps: shuffles and votes do not compile.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <ucontext.h>

#include <algorithm>
#include <functional>
#include <memory>
#include <random>
#include <vector>

#undef __global__
#undef __device__
#undef __shared__
#undef __launch_bounds__
#define __global__
#define __device__
#define __shared__ static
#define __launch_bounds__(...)

inline uint3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;

namespace cuda_on_cpu {

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  bool done = false;
};

inline ucontext_t scheduler;
inline Fiber* running = nullptr;
inline const std::function<void()>* kernel = nullptr;

inline void enter() {
  (*kernel)();
  running->done = true;
}

inline void yield() { swapcontext(&running->context, &scheduler); }

inline void run_block(std::mt19937& random) {
  constexpr size_t kStack = 64 << 10;
  std::vector<Fiber> fibers(blockDim.x);
  std::vector<unsigned> order(blockDim.x);
  for (unsigned i = 0; i < blockDim.x; ++i) {
    order[i] = i;
    fibers[i].stack.reset(new char[kStack]);
    getcontext(&fibers[i].context);
    fibers[i].context.uc_stack.ss_sp = fibers[i].stack.get();
    fibers[i].context.uc_stack.ss_size = kStack;
    fibers[i].context.uc_link = &scheduler;
    makecontext(&fibers[i].context, enter, 0);
  }
  for (bool any = true; any;) {
    any = false;
    std::shuffle(order.begin(), order.end(), random);
    for (const unsigned i : order) {
      if (fibers[i].done) continue;
      running = &fibers[i];
      threadIdx = {i, 0, 0};
      swapcontext(&scheduler, &running->context);
      any = true;
    }
  }
}

template <typename... Args>
cudaError_t launch(const cudaLaunchConfig_t* config, void (*function)(Args...), Args... args) {
  static std::mt19937 random(1);
  blockDim = config->blockDim;
  gridDim = config->gridDim;
  const std::function<void()> call = [&] { function(args...); };
  kernel = &call;
  std::vector<unsigned> blocks(config->gridDim.x);
  for (unsigned i = 0; i < blocks.size(); ++i) blocks[i] = i;
  std::shuffle(blocks.begin(), blocks.end(), random);
  for (const unsigned i : blocks) {
    blockIdx = {i, 0, 0};
    run_block(random);
  }
  return cudaSuccess;
}

}  // namespace cuda_on_cpu

#define __syncthreads cuda_on_cpu::yield
#define cudaLaunchKernelEx(config, kernel, ...) cuda_on_cpu::launch(config, kernel, __VA_ARGS__)
#define cudaSetDevice(device) ((void)(device), cudaSuccess)
#define cudaGetLastError() cudaSuccess
#define cudaGetErrorString(error) ((void)(error), "no error")
