// The kernels of rows.cuh for k = 7.

#include "ddf/cuda/rows.cuh"

namespace ddf {

template RowsKernel rows_kernel_of<float, 7>(int64_t stride, bool add);
template RowsKernel rows_kernel_of<double, 7>(int64_t stride, bool add);
template RowsKernel rows_kernel_of<__half, 7>(int64_t stride, bool add);
template RowsKernel rows_kernel_of<__nv_bfloat16, 7>(int64_t stride, bool add);

}  // namespace ddf
