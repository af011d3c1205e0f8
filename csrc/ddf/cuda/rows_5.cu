// The kernels of rows.cuh for k = 5.

#include "ddf/cuda/rows.cuh"

namespace ddf {

template RowsKernel rows_kernel_of<float, 5>(int64_t stride, bool add);
template RowsKernel rows_kernel_of<double, 5>(int64_t stride, bool add);
template RowsKernel rows_kernel_of<__half, 5>(int64_t stride, bool add);
template RowsKernel rows_kernel_of<__nv_bfloat16, 5>(int64_t stride, bool add);

}  // namespace ddf
