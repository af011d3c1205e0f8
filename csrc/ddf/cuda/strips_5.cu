// The kernels of strips.cuh for k = 5.

#include "ddf/cuda/strips.cuh"

namespace ddf {

template StripsKernel strips_kernel_of<float, 5>(bool add);
template StripsKernel strips_kernel_of<__half, 5>(bool add);
template StripsKernel strips_kernel_of<__nv_bfloat16, 5>(bool add);
template StripsKernel strips_kernel_of<double, 5>(bool add);

}  // namespace ddf
