// The kernels of channels.cuh for k = 5.

#include "ddf/cuda/channels.cuh"

namespace ddf {

template ChannelsKernel channels_kernel_of<float, 5>(int64_t stride, bool add);
template ChannelsKernel channels_kernel_of<double, 5>(int64_t stride, bool add);
template ChannelsKernel channels_kernel_of<__half, 5>(int64_t stride, bool add);
template ChannelsKernel channels_kernel_of<__nv_bfloat16, 5>(int64_t stride, bool add);

}  // namespace ddf
