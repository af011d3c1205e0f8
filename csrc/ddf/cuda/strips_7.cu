// The kernels of strips.cuh for k = 7.

#include "ddf/cuda/strips.cuh"

namespace ddf {

template StripsKernel strips_kernel_of<float, 7>(bool add);
template StripsKernel strips_kernel_of<__half, 7>(bool add);
template StripsKernel strips_kernel_of<__nv_bfloat16, 7>(bool add);

}  // namespace ddf
