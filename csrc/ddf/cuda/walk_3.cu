// The kernels of walk.cuh for k = 3.

#include "ddf/cuda/walk.cuh"

namespace ddf {

template WalkKernel walk_kernel_of<float, 3>(bool add);
template WalkKernel walk_kernel_of<__half, 3>(bool add);
template WalkKernel walk_kernel_of<__nv_bfloat16, 3>(bool add);
template WalkKernel walk_kernel_of<double, 3>(bool add);

}  // namespace ddf
