// The kernels of channels.cuh for k = 3.

#include "ddf/cuda/channels.cuh"

namespace ddf {

template ChannelsKernel channels_kernel_of<float, 3>(int64_t stride, bool add);
template ChannelsKernel channels_kernel_of<double, 3>(int64_t stride, bool add);
template ChannelsKernel channels_kernel_of<__half, 3>(int64_t stride, bool add);
template ChannelsKernel channels_kernel_of<__nv_bfloat16, 3>(int64_t stride, bool add);

}  // namespace ddf
