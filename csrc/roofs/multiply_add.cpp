// Picks the loop for this machine's instruction set.

#include "roofs/multiply_add.h"

namespace roofs {

extern const Kernels kernels_baseline;
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;

static const Kernels& best() {
#ifdef HAS_KERNELS_avx512
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    return kernels_avx512;
  }
#endif
#ifdef HAS_KERNELS_avx2
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return kernels_avx2;
#endif
  return kernels_baseline;
}

}  // namespace roofs

extern "C" __attribute__((visibility("default"))) int64_t roofs_multiply_add_cpu(int bytes,
                                                                                 int64_t steps) {
  const auto& kernels = roofs::best();
  return bytes == 8 ? kernels.float64(steps) : kernels.float32(steps);
}
