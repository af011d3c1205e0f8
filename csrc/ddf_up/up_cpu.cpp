// The upsampling operator on a CPU: picks the kernels for the instructions this machine has.

#include "ddf_up/up_cpu.h"

#include "ddf/jobs.h"

namespace ddf {
namespace {

const up::Kernels& kernels() {
#ifdef HAS_KERNELS_avx512
  if (has_avx512()) return up::kernels_avx512;
#endif
#ifdef HAS_KERNELS_avx2
  if (has_avx2()) return up::kernels_avx2;
#endif
  return up::kernels_baseline;
}

}  // namespace

void cpu_up_forward(const UpParams& params, ParallelFor parallel_for) {
  run(params, kernels().forward(params), parallel_for);
}

void cpu_up_backward(const UpParams& params, ParallelFor parallel_for) {
  if (params.grad_features.data) run(params, kernels().grad_features(params), parallel_for);
  if (params.grad_channel.data) run(params, kernels().grad_channel(params), parallel_for);
  if (params.grad_spatial.data) run(params, kernels().grad_spatial(params), parallel_for);
}

}  // namespace ddf
