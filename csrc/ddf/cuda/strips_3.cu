// The kernels of strips.cuh for k = 3.

#include "ddf/cuda/strips.cuh"

namespace ddf {

template StripsKernel strips_kernel_of<float, 3>(bool add);
template StripsKernel strips_kernel_of<__half, 3>(bool add);
template StripsKernel strips_kernel_of<__nv_bfloat16, 3>(bool add);
template StripsKernel strips_kernel_of<double, 3>(bool add);

}  // namespace ddf
