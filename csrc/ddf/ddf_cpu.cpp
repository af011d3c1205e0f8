// The operator on a CPU: picks the kernels for the instructions this machine has, and hands their
// work to threads.

#include "ddf/ddf_cpu.h"

#include "ddf/jobs.h"

namespace ddf {
namespace {

struct Kernels {
  const CpuKernels& general;
  const near::Kernels& near;
  const near::filters::Kernels& near_filters;
  const module::Kernels& module;
};

// The names, and what is there, are from ops/core/build.py.
Kernels kernels() {
  static const Kernels best = []() -> Kernels {
#ifdef HAS_KERNELS_avx512
    if (has_avx512())
      return {kernels_avx512, near::kernels_avx512, near::filters::kernels_avx512,
              module::kernels_avx512};
#endif
#ifdef HAS_KERNELS_avx2
    if (has_avx2())
      return {kernels_avx2, near::kernels_avx2, near::filters::kernels_avx2, module::kernels_avx2};
#endif
    return {kernels_baseline, near::kernels_baseline, near::filters::kernels_baseline,
            module::kernels_baseline};
  }();
  return best;
}

// A job of the kernels for adjacent taps where they serve the case, else of the general ones.
void run(const Params& params, Job (*near)(const Params&), Job (*general)(const Params&),
         ParallelFor parallel_for) {
  Job job;
  if (params.stride == 1 && params.dilation == 1) job = near(params);
  if (!job.run) job = general(params);
  run(params, job, parallel_for);
}

// The gradients of the two filters.
void run_filters(const Params& params, ParallelFor parallel_for) {
  const auto [general, near, filters, module] = kernels();
  const Job both = params.stride == 1 && params.dilation == 1 ? filters.both(params) : Job{};
  if (both.run) {
    thread_local Scratch shared;
    Params p = params;
    p.work = shared.get(static_cast<size_t>(both.shared_bytes));
    run(p, both, parallel_for);
    run(p, filters.finish(p), parallel_for);
    return;
  }
  if (params.grad_channel.data) {
    run(params, filters.grad_channel, general.grad_channel, parallel_for);
  }
  if (params.grad_spatial.data) {
    run(params, filters.grad_spatial, general.grad_spatial, parallel_for);
  }
}

int64_t itemsize(DType dtype) {
  return dtype == DType::float64 ? 8 : dtype == DType::float32 ? 4 : 2;
}

// What lies `index` further on in dimension 1.
View from_channel(View view, int64_t index, DType dtype) {
  if (view.data) {
    view.data = static_cast<char*>(view.data) + index * view.stride[1] * itemsize(dtype);
  }
  return view;
}

// The operator as head `h` applies it.
Params head_of(const ModuleParams& params, int64_t h) {
  Params p = params;
  const int64_t group = p.channels / params.head, taps = p.kernel_size * p.kernel_size;
  p.channels = group;
  for (View* view : {&p.features, &p.channel, &p.out, &p.grad_features, &p.grad_channel}) {
    *view = from_channel(*view, h * group, p.dtype);
  }
  for (View* view : {&p.spatial, &p.grad_spatial}) {
    *view = from_channel(*view, h * taps, p.dtype);
  }
  return p;
}

}  // namespace

void cpu_forward(const Params& params, ParallelFor parallel_for) {
  run(params, kernels().near.forward, kernels().general.forward, parallel_for);
}

void cpu_backward(const Params& params, ParallelFor parallel_for) {
  if (params.grad_features.data) {
    run(params, kernels().near.grad_features, kernels().general.grad_features, parallel_for);
  }
  if (params.grad_channel.data || params.grad_spatial.data) run_filters(params, parallel_for);
}

int64_t cpu_module_work_bytes(const ModuleParams& params) {
  return kernels().module.work_bytes(params);
}

void cpu_module_forward(const ModuleParams& params, ParallelFor parallel_for) {
  const module::Kernels& module = kernels().module;
  run(params, module.predict_spatial(params), parallel_for);
  run(params, module.predict_channel(params), parallel_for);
  for (int64_t h = 0; h < params.head; ++h) cpu_forward(head_of(params, h), parallel_for);
}

void cpu_module_backward(const ModuleParams& params, ParallelFor parallel_for) {
  const module::Kernels& module = kernels().module;
  run(params, module.predict_spatial(params), parallel_for);
  run(params, module.predict_channel(params), parallel_for);
  for (int64_t h = 0; h < params.head; ++h) cpu_backward(head_of(params, h), parallel_for);
  for (const auto job : {module.normalise_spatial, module.excite, module.squeeze,
                         module.grad_features, module.grad_bias}) {
    run(params, job(params), parallel_for);
  }
}

}  // namespace ddf
