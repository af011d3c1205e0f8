// The hot kernels: what large and small planes of float32 and of 16 bits run with. The suite
// `resources` compiles them for every architecture.

#include "ddf/cuda/channels.cuh"
#include "ddf/cuda/planes.cuh"
#include "ddf/cuda/rows.cuh"

namespace ddf {

#define HOT_ROWS(T, k, stride) \
  template __global__ void rows_kernel<T, k, stride, false>(const Params, const RowsPlan);
#define HOT_CHANNELS(T, k, stride) \
  template __global__ void channels_kernel<T, k, stride, false>(const Params, const ChannelsPlan);
#define HOT_PLANES(T, k) \
  template __global__ void planes_kernel<T, k, false>(const Params, const PlanesPlan);

HOT_ROWS(float, 3, 1)
HOT_ROWS(__half, 3, 1)
HOT_ROWS(__nv_bfloat16, 3, 1)
HOT_ROWS(double, 3, 1)
HOT_ROWS(float, 3, 2)
HOT_ROWS(__nv_bfloat16, 3, 2)
HOT_ROWS(float, 5, 1)
HOT_ROWS(__nv_bfloat16, 5, 1)
HOT_ROWS(float, 7, 1)
HOT_ROWS(__nv_bfloat16, 7, 1)
HOT_CHANNELS(float, 3, 1)
HOT_CHANNELS(__half, 3, 1)
HOT_CHANNELS(__nv_bfloat16, 3, 1)
HOT_CHANNELS(float, 3, 2)
HOT_CHANNELS(__nv_bfloat16, 3, 2)
HOT_CHANNELS(float, 5, 1)
HOT_CHANNELS(__nv_bfloat16, 5, 1)
HOT_CHANNELS(float, 7, 1)
HOT_CHANNELS(__nv_bfloat16, 7, 1)
HOT_PLANES(float, 3)
HOT_PLANES(__half, 3)
HOT_PLANES(__nv_bfloat16, 3)
HOT_PLANES(double, 3)
HOT_PLANES(float, 5)

}  // namespace ddf
