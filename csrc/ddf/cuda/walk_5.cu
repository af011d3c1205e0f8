// The kernels of walk.cuh for k = 5.

#include "ddf/cuda/walk.cuh"

namespace ddf {

template WalkKernel walk_kernel_of<float, 5>(bool add);
template WalkKernel walk_kernel_of<__half, 5>(bool add);
template WalkKernel walk_kernel_of<__nv_bfloat16, 5>(bool add);
template WalkKernel walk_kernel_of<double, 5>(bool add);

}  // namespace ddf
