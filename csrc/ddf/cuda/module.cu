// The fused module on CUDA: its launches, forward and back.

#include <algorithm>

#include "ddf/cuda/module_backward.cuh"
#include "ddf/cuda/table.h"

namespace ddf {
namespace {

// Calls body with an element of the type and a constant of the kernel size.
template <typename Body>
cudaError_t by_type_and_size(const ModuleParams& p, Body body) {
  const auto by_size = [&](auto element) {
    switch (p.kernel_size) {
      case 3:
        return body(element, std::integral_constant<int, 3>());
      case 5:
        return body(element, std::integral_constant<int, 5>());
      case 7:
        return body(element, std::integral_constant<int, 7>());
      default:
        return cudaErrorNotSupported;
    }
  };
  switch (p.dtype) {
    case DType::float32:
      return by_size(float());
    case DType::float64:
      return by_size(double());
    case DType::float16:
      return by_size(__half());
    case DType::bfloat16:
      return by_size(__nv_bfloat16());
  }
  return cudaErrorInvalidValue;
}

// How the work is cut, and where kernels leave what.
struct Plan {
  int64_t tiles;  // of pixels, of a sample
  int64_t chunk;  // channels of a block of excite
  int64_t parts;  // blocks of a sample on the way back through the convolution
  ModuleWork work;
  int64_t bytes;  // of work, up to that of the operator's own way back
};

// The operator of one head: its channels, and its spatial filter.
Params of_head(const ModuleParams& p, int64_t head, void* work) {
  Params one = p;
  one.channels = p.channels / p.head;
  one.work = work;
  const auto skip = [&](View* view, int64_t channels) {
    if (!view->data) return;
    view->data = static_cast<char*>(view->data) + channels * view->stride[1] * item_bytes(p.dtype);
  };
  for (View* view :
       {&one.features, &one.out, &one.channel, &one.grad_features, &one.grad_channel}) {
    skip(view, head * one.channels);
  }
  for (View* view : {&one.spatial, &one.grad_spatial}) {
    skip(view, head * p.kernel_size * p.kernel_size);
  }
  return one;
}

Plan plan_of(const ModuleParams& p, const Gpu& gpu, int64_t tile) {
  Plan plan = {};
  const int64_t wanted = ceil_div(2 * gpu.multiprocessors, std::max<int64_t>(1, p.batch));
  plan.tiles = ceil_div(p.height * p.width, tile);
  plan.chunk =
      ceil_div(p.channels, std::max<int64_t>(1, std::min(wanted, p.channels / kModuleWarps)));
  plan.parts = std::min(2 * wanted, plan.tiles);
  const int64_t item = p.dtype == DType::float64 ? 8 : 4, taps = p.kernel_size * p.kernel_size;
  const auto place = [&](void** to, int64_t elements) {
    *to = static_cast<char*>(p.work) + plan.bytes;
    plan.bytes += ceil_div(elements * item, 64) * 64;
  };
  ModuleWork& work = plan.work;
  place(&work.pooled, p.batch * plan.tiles * p.channels);
  if (!p.backward) return plan;
  place(&work.means, p.batch * p.channels);
  place(&work.hidden, p.batch * p.hidden);
  place(&work.spatial, p.batch * p.head * taps * p.out_height * p.out_width);
  place(&work.channel, p.batch * p.channels * taps);
  place(&work.by_std, p.batch * p.channels * taps);
  place(&work.grad_hidden, p.batch * p.hidden);
  place(&work.grad_mean, p.batch * p.channels);
  place(&work.weight_parts, p.batch * plan.parts * p.head * (p.channels + 1) * taps);
  return plan;
}

// Nothing is launched where there is nothing to do.
template <typename... P, typename... A>
cudaError_t run(void (*kernel)(P...), int64_t blocks, size_t shared, void* stream,
                const A&... arguments) {
  if (blocks == 0) return cudaSuccess;
  if (blocks > 0x7fffffff) return cudaErrorNotSupported;
  return launch({dim3(unsigned(blocks)), dim3(kModuleThreads), shared, stream}, kernel,
                arguments...);
}

template <typename T, int kSize>
cudaError_t predict(const ModuleParams& p, const Plan& plan, const Gpu& gpu, void* stream) {
  using Shape = PredictShape<T, kSize>;
  const int64_t held = (p.channels + p.hidden) * int64_t(sizeof(Accumulator<T>));
  if (std::max<int64_t>(Shape::kShared, held) > gpu.shared - 1024) return cudaErrorNotSupported;
  const cudaError_t error = run(predict_kernel<T, kSize>, p.batch * plan.tiles, Shape::kShared,
                                stream, p, plan.work, plan.tiles);
  if (error != cudaSuccess) return error;
  return run(excite_kernel<T>, p.batch * ceil_div(p.channels, plan.chunk), size_t(held), stream, p,
             plan.work, plan.tiles, plan.chunk);
}

// After the operator's own way back.
template <typename T, int kSize>
cudaError_t go_back(const ModuleParams& p, const Plan& plan, void* stream) {
  const auto threads = [](int64_t count) { return ceil_div(count, kModuleThreads); };
  const int64_t taps = kSize * kSize;
  cudaError_t error =
      run(spread_spatial_kernel<T>, threads(p.batch * p.head * p.out_height * p.out_width), 0,
          stream, p, plan.work);
  const auto then = [&](auto kernel, int64_t blocks, auto... arguments) {
    if (error == cudaSuccess) error = run(kernel, blocks, 0, stream, p, plan.work, arguments...);
  };
  then(spread_channel_kernel<T>, threads(p.batch * p.channels * 32));
  then(hidden_kernel<T>, p.batch * ceil_div(p.hidden, 32));
  then(parameters_kernel<T>, threads(p.channels * taps * (p.hidden + 2) +
                                     p.hidden * (p.channels + 1) + p.batch * p.channels));
  then(features_kernel<T, kSize>, p.batch * plan.parts, plan.tiles, plan.parts);
  if (p.grad_parameters.spatial_weight.data) {
    then(weights_kernel<T>, threads(p.head * taps * (p.channels + 1)), p.batch * plan.parts);
  }
  return error;
}

template <typename Pass>
int with_plan(const ModuleParams& p, int device, Pass pass) {
  Gpu gpu = {};
  const cudaError_t error = describe(device, &gpu);
  if (error != cudaSuccess) return error;
  return by_type_and_size(p, [&](auto element, auto size) {
    return pass(element, size, plan_of(p, gpu, PredictShape<decltype(element), size()>::kTile),
                gpu);
  });
}

}  // namespace

int64_t cuda_module_work_bytes(const ModuleParams& p, int device) {
  int64_t bytes = 0;
  with_plan(p, device, [&](auto, auto, const Plan& plan, const Gpu&) {
    bytes = plan.bytes;
    if (p.backward) bytes += cuda_backward_work_bytes(of_head(p, 0, nullptr), device);
    return cudaSuccess;
  });
  return bytes;
}

int cuda_module_forward(const ModuleParams& p, int device, void* stream) {
  return with_plan(p, device, [&](auto element, auto size, const Plan& plan, const Gpu& gpu) {
    cudaError_t error = predict<decltype(element), size()>(p, plan, gpu, stream);
    for (int64_t head = 0; error == cudaSuccess && head < p.head; ++head) {
      error = cudaError_t(cuda_forward(of_head(p, head, nullptr), device, stream));
    }
    return error;
  });
}

int cuda_module_backward(const ModuleParams& p, int device, void* stream) {
  return with_plan(p, device, [&](auto element, auto size, const Plan& plan, const Gpu& gpu) {
    using T = decltype(element);
    cudaError_t error = predict<T, size()>(p, plan, gpu, stream);
    void* rest = static_cast<char*>(p.work) + plan.bytes;
    for (int64_t head = 0; error == cudaSuccess && p.batch > 0 && head < p.head; ++head) {
      error = cudaError_t(cuda_backward(of_head(p, head, rest), device, stream));
    }
    return error == cudaSuccess ? go_back<T, size()>(p, plan, stream) : error;
  });
}

}  // namespace ddf
