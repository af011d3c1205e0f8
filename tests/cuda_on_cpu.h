// Runs CUDA kernels on the CPU, so that a test without a GPU sees wrong indices, missing barriers
// and unset outputs.
//
// To be included ahead of a .cu file that g++ compiles (-x c++ -include cuda_on_cpu.h, with the
// CUDA headers on the path). A block's threads are fibers of one CPU thread, each run to its next
// __syncthreads; blocks follow one another. Fibers and blocks take turns in an order drawn anew
// each time, so that a kernel that leans on an order gives itself away. Shared memory is a static
// variable: one block at a time has it. There are no warps: shuffles and votes do not compile.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <functional>
#include <memory>
#include <numeric>
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

// A thread of the block; it lives on from block to block. Switching by setjmp spares the system
// call of swapcontext.
struct Fiber {
  ucontext_t start;
  jmp_buf here;
  std::unique_ptr<char[]> stack;
  bool started = false;
  bool done = true;
};

inline std::vector<Fiber> fibers;
inline jmp_buf scheduler;
inline Fiber* running = nullptr;
inline const std::function<void()>* kernel = nullptr;

inline void yield() {
  if (_setjmp(running->here) == 0) _longjmp(scheduler, 1);
}

inline void live() {
  for (;;) {
    (*kernel)();
    running->done = true;
    yield();
  }
}

inline void resume(Fiber& fiber) {
  running = &fiber;
  if (_setjmp(scheduler) != 0) return;
  if (fiber.started) _longjmp(fiber.here, 1);
  fiber.started = true;
  setcontext(&fiber.start);
}

inline void need_fibers(size_t count) {
  constexpr size_t kStack = 64 << 10;
  if (fibers.size() >= count) return;
  fibers = std::vector<Fiber>(count);
  for (Fiber& fiber : fibers) {
    fiber.stack.reset(new char[kStack]);
    getcontext(&fiber.start);
    fiber.start.uc_stack.ss_sp = fiber.stack.get();
    fiber.start.uc_stack.ss_size = kStack;
    makecontext(&fiber.start, live, 0);
  }
}

inline std::vector<unsigned> shuffled(unsigned count) {
  static std::mt19937 random(1);
  std::vector<unsigned> order(count);
  std::iota(order.begin(), order.end(), 0u);
  std::shuffle(order.begin(), order.end(), random);
  return order;
}

inline void run_block() {
  need_fibers(blockDim.x);
  for (unsigned i = 0; i < blockDim.x; ++i) fibers[i].done = false;
  for (bool any = true; any;) {
    any = false;
    for (const unsigned i : shuffled(blockDim.x)) {
      if (fibers[i].done) continue;
      threadIdx = {i, 0, 0};
      resume(fibers[i]);
      any = true;
    }
  }
}

template <typename... Args>
cudaError_t launch(const cudaLaunchConfig_t* config, void (*function)(Args...), Args... args) {
  blockDim = config->blockDim;
  gridDim = config->gridDim;
  const std::function<void()> call = [&] { function(args...); };
  kernel = &call;
  for (const unsigned i : shuffled(gridDim.x)) {
    blockIdx = {i, 0, 0};
    run_block();
  }
  return cudaSuccess;
}

}  // namespace cuda_on_cpu

#define __syncthreads cuda_on_cpu::yield
#define cudaLaunchKernelEx(config, kernel, ...) cuda_on_cpu::launch(config, kernel, __VA_ARGS__)
#define cudaSetDevice(device) ((void)(device), cudaSuccess)
#define cudaGetLastError() cudaSuccess
#define cudaGetErrorString(error) ((void)(error), "no error")
