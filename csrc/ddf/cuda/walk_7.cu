// The kernels of walk.cuh for k = 7.

#include "ddf/cuda/walk.cuh"

namespace ddf {

template WalkKernel walk_kernel_of<float, 7>(bool add);
template WalkKernel walk_kernel_of<__half, 7>(bool add);
template WalkKernel walk_kernel_of<__nv_bfloat16, 7>(bool add);

}  // namespace ddf
