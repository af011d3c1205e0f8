// The hot kernels: what large and small planes of float32 and of 16 bits run with, forward, back
// and in the fused module. The suite `resources` compiles them for every architecture.

#include "ddf/cuda/channels.cuh"
#include "ddf/cuda/module_backward.cuh"
#include "ddf/cuda/planes.cuh"
#include "ddf/cuda/rows.cuh"
#include "ddf/cuda/strips.cuh"
#include "ddf/cuda/walk.cuh"

namespace ddf {

#define HOT_ROWS(T, k, stride) \
  template __global__ void rows_kernel<T, k, stride, false>(const Params, const RowsPlan);
#define HOT_CHANNELS(T, k, stride) \
  template __global__ void channels_kernel<T, k, stride, false>(const Params, const ChannelsPlan);
#define HOT_PLANES(T, k) \
  template __global__ void planes_kernel<T, k, false>(const Params, const PlanesPlan);
#define HOT_STRIPS(T, k) \
  template __global__ void strips_kernel<T, k, false>(const Params, const StripsPlan);
#define HOT_WALK(T, k) \
  template __global__ void walk_kernel<T, k, false>(const Params, const WalkPlan);
#define HOT_PREDICT(T, k)                                                             \
  template __global__ void predict_kernel<T, k>(const ModuleParams, const ModuleWork, \
                                                const int64_t);
#define HOT_FEATURES(T, k)                                                             \
  template __global__ void features_kernel<T, k>(const ModuleParams, const ModuleWork, \
                                                 const int64_t, const int64_t);

HOT_ROWS(float, 3, 1)
HOT_ROWS(__half, 3, 1)
HOT_ROWS(__nv_bfloat16, 3, 1)
HOT_ROWS(float, 3, 2)
HOT_ROWS(float, 5, 1)
HOT_ROWS(__nv_bfloat16, 5, 1)
HOT_ROWS(float, 7, 1)
HOT_CHANNELS(float, 3, 1)
HOT_CHANNELS(__nv_bfloat16, 3, 1)
HOT_CHANNELS(float, 3, 2)
HOT_CHANNELS(float, 5, 1)
HOT_CHANNELS(__nv_bfloat16, 5, 1)
HOT_CHANNELS(float, 7, 1)
HOT_PLANES(float, 3)
HOT_PLANES(__half, 3)
HOT_PLANES(__nv_bfloat16, 3)
HOT_PLANES(float, 5)
HOT_STRIPS(float, 3)
HOT_STRIPS(__nv_bfloat16, 3)
HOT_WALK(float, 3)
HOT_WALK(__nv_bfloat16, 3)
HOT_PREDICT(float, 3)
HOT_PREDICT(__nv_bfloat16, 3)
HOT_FEATURES(float, 3)

}  // namespace ddf
