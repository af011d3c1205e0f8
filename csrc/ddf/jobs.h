// How a library's CPU kernels are chosen and run: the instructions this machine has, scratch memory
// of a thread, work handed to threads. Not for files that are compiled once per instruction set.
#pragma once

#include <algorithm>
#include <memory>
#include <new>

#include "ddf/ddf_cpu.h"

namespace ddf {
namespace {

// Below this much work a further thread costs more than it saves.
constexpr int64_t kWorkPerThread = 1 << 15;

// Whether this machine runs what is compiled for an instruction set of ops/core/build.py.
#ifdef HAS_KERNELS_avx512
inline bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
#endif
#ifdef HAS_KERNELS_avx2
inline bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
#endif

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

inline void run(const Params& params, const Job& job, ParallelFor parallel_for) {
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

}  // namespace
}  // namespace ddf
