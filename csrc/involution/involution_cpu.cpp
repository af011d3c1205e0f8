// The filters of involution on a CPU: picks the kernel for the instructions this machine has.

#include "involution/involution_cpu.h"

#include "ddf/jobs.h"

namespace ddf {
namespace {

const involution::Kernels& kernels() {
#ifdef HAS_KERNELS_avx512
  if (has_avx512()) return involution::kernels_avx512;
#endif
#ifdef HAS_KERNELS_avx2
  if (has_avx2()) return involution::kernels_avx2;
#endif
  return involution::kernels_baseline;
}

}  // namespace

void cpu_involution_filters(const InvolutionParams& params, ParallelFor parallel_for) {
  run(params, kernels().filters(params), parallel_for);
}

}  // namespace ddf
