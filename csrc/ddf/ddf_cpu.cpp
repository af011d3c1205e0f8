// The operator on a CPU: picks the kernels for the instructions this machine has, and hands their
// work to threads.

#include "ddf/ddf_cpu.h"

#include <algorithm>
#include <memory>
#include <new>

namespace ddf {
namespace {

// The widest vectors to use, in bits, so that a test can ask for narrower ones than the machine
// has.
#ifndef DDF_WIDEST_VECTOR
#define DDF_WIDEST_VECTOR 512
#endif

// Below this much work a further thread costs more than it saves.
constexpr int64_t kWorkPerThread = 1 << 15;

struct Kernels {
  const CpuKernels& general;
  const near::Kernels& near;
  const near::filters::Kernels& near_filters;
};

Kernels kernels() {
#ifdef __x86_64__
  static const Kernels best = []() -> Kernels {
    __builtin_cpu_init();
    // The names are those of the compiler's flags in ops/core/build.py.
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    if (avx512 && DDF_WIDEST_VECTOR >= 512)
      return {kernels_avx512, near::kernels_avx512, near::filters::kernels_avx512};
    if (avx2 && DDF_WIDEST_VECTOR >= 256)
      return {kernels_avx2, near::kernels_avx2, near::filters::kernels_avx2};
    return {kernels_baseline, near::kernels_baseline, near::filters::kernels_baseline};
  }();
  return best;
#else
  return {kernels_baseline, near::kernels_baseline, near::filters::kernels_baseline};
#endif
}

// A thread keeps its scratch memory between calls: fresh pages would cost more than a small call
// computes.
class Scratch {
 public:
  void* get(size_t bytes) {
#ifdef __SANITIZE_ADDRESS__
    const bool fits = false;  // exactly what was asked for, so that a read past the end is seen
#else
    const bool fits = bytes <= size_;
#endif
    if (!fits) {
      data_.reset();
      data_.reset(::operator new(bytes, kAlignment));
      size_ = bytes;
    }
    return data_.get();
  }

 private:
  static constexpr std::align_val_t kAlignment{64};
  struct Free {
    void operator()(void* data) const { ::operator delete(data, kAlignment); }
  };
  std::unique_ptr<void, Free> data_;
  size_t size_ = 0;
};

void run(const Params& params, const Job& job, ParallelFor parallel_for) {
  if (job.items == 0) return;
  struct Context {
    const Params& params;
    const Job& job;
  } context{params, job};
  const auto body = [](int64_t begin, int64_t end, void* opaque) {
    const auto& [params, job] = *static_cast<Context*>(opaque);
    thread_local Scratch scratch;
    job.run(params, begin, end, scratch.get(static_cast<size_t>(job.scratch_bytes)));
  };
  const int64_t grain = std::max<int64_t>(1, kWorkPerThread / std::max<int64_t>(1, job.work));
  parallel_for(job.items, grain, body, &context);
}

// A job of the kernels for adjacent taps where they serve the case, else of the general ones.
void run(const Params& params, Job (*near)(const Params&), Job (*general)(const Params&),
         ParallelFor parallel_for) {
  Job job;
  if (params.stride == 1 && params.dilation == 1) job = near(params);
  if (!job.run) job = general(params);
  run(params, job, parallel_for);
}

}  // namespace

void cpu_forward(const Params& params, ParallelFor parallel_for) {
  run(params, kernels().near.forward, kernels().general.forward, parallel_for);
}

void cpu_backward(const Params& params, ParallelFor parallel_for) {
  const auto [general, near, filters] = kernels();
  if (params.grad_features.data) {
    run(params, near.grad_features, general.grad_features, parallel_for);
  }
  if (params.grad_channel.data) {
    run(params, filters.grad_channel, general.grad_channel, parallel_for);
  }
  if (params.grad_spatial.data) {
    run(params, filters.grad_spatial, general.grad_spatial, parallel_for);
  }
}

}  // namespace ddf
