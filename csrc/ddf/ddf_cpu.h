// What ddf_simd.cpp, compiled once per instruction set, offers to ddf_cpu.cpp, which picks one of
// them and runs it.
#pragma once

#include "ddf/ddf.h"

namespace ddf {

// Work that threads share: items in any order and any split give the same bits.
struct Job {
  int64_t items = 0;
  int64_t work = 0;           // multiply-accumulates of one item, roughly
  int64_t scratch_bytes = 0;  // that one call of `run` needs, aligned to 64
  void (*run)(const Params&, int64_t begin, int64_t end, void* scratch) = nullptr;
  int64_t shared_bytes = 0;  // that all calls of `run` share, at `Params::work`
};

struct CpuKernels {
  Job (*forward)(const Params&);
  Job (*grad_features)(const Params&);
  Job (*grad_channel)(const Params&);
  Job (*grad_spatial)(const Params&);
};

extern const CpuKernels kernels_baseline;
extern const CpuKernels kernels_avx2;
extern const CpuKernels kernels_avx512;

namespace near {

// The operator where taps are adjacent. A job without items: not served.
struct Kernels {
  Job (*forward)(const Params&);
  Job (*grad_features)(const Params&);
};

extern const Kernels kernels_baseline;
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;

namespace filters {

// The gradients of the filters, likewise.
struct Kernels {
  Job (*grad_channel)(const Params&);
  Job (*grad_spatial)(const Params&);
  // Both at once, those that are wanted, where that is faster; then `finish`.
  Job (*both)(const Params&);
  Job (*finish)(const Params&);
};

extern const Kernels kernels_baseline;
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;

}  // namespace filters
}  // namespace near

namespace module {

// What the fused module adds to the operator; the jobs run in this order. Their `Params` are
// `ModuleParams`.
struct Kernels {
  int64_t (*work_bytes)(const ModuleParams&);
  Job (*predict_spatial)(const ModuleParams&);
  Job (*predict_channel)(const ModuleParams&);
  // On the way back, given the gradients of both filters and, where wanted, that of the features
  // through the operator alone.
  Job (*normalise_spatial)(const ModuleParams&);
  Job (*excite)(const ModuleParams&);
  Job (*squeeze)(const ModuleParams&);
  Job (*grad_features)(const ModuleParams&);
  Job (*grad_bias)(const ModuleParams&);
};

extern const Kernels kernels_baseline;
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;

}  // namespace module
}  // namespace ddf
