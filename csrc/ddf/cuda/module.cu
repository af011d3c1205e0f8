// The fused module on CUDA: its launches, forward and back.

#include <algorithm>

#include "ddf/cuda/instances.cuh"
#include "ddf/cuda/module_backward.cuh"
#include "ddf/cuda/table.h"

namespace ddf {
namespace {

// The kernels for an element type and a kernel size, and what their launches depend on: the pixels
// of a tile, and the bytes of shared memory that `predict` takes.
struct ModuleKernels {
  void (*predict)(const ModuleParams, const ModuleWork, const int64_t tiles);
  void (*excite)(const ModuleParams, const ModuleWork, const int64_t tiles, const int64_t chunk);
  void (*spread_spatial)(const ModuleParams, const ModuleWork);
  void (*spread_channel)(const ModuleParams, const ModuleWork);
  void (*hidden)(const ModuleParams, const ModuleWork);
  void (*parameters)(const ModuleParams, const ModuleWork);
  void (*features)(const ModuleParams, const ModuleWork, const int64_t tiles, const int64_t parts);
  void (*weights)(const ModuleParams, const ModuleWork, const int64_t blocks);
  int tile, shared;
};

template <typename T, int kSize>
constexpr ModuleKernels kernels_of() {
  using Shape = PredictShape<T, kSize>;
  return {predict_kernel<T, kSize>,
          excite_kernel<T>,
          spread_spatial_kernel<T>,
          spread_channel_kernel<T>,
          hidden_kernel<T>,
          parameters_kernel<T>,
          features_kernel<T, kSize>,
          weights_kernel<T>,
          Shape::kTile,
          Shape::kShared};
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

int64_t accumulator_bytes(DType dtype) { return dtype == DType::float64 ? 8 : 4; }

Plan plan_of(const ModuleParams& p, const Gpu& gpu, int64_t tile) {
  Plan plan = {};
  const int64_t wanted = ceil_div(2 * gpu.multiprocessors, std::max<int64_t>(1, p.batch));
  plan.tiles = ceil_div(p.height * p.width, tile);
  plan.chunk =
      ceil_div(p.channels, std::max<int64_t>(1, std::min(wanted, p.channels / kModuleWarps)));
  plan.parts = std::min(2 * wanted, plan.tiles);
  const int64_t taps = p.kernel_size * p.kernel_size;
  const auto place = [&](void** to, int64_t elements) {
    *to = static_cast<char*>(p.work) + plan.bytes;
    plan.bytes += ceil_div(elements * accumulator_bytes(p.dtype), 64) * 64;
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

cudaError_t predict(const ModuleParams& p, const ModuleKernels& kernels, const Plan& plan,
                    const Gpu& gpu, void* stream) {
  const int64_t held = (p.channels + p.hidden) * accumulator_bytes(p.dtype);
  if (std::max<int64_t>(kernels.shared, held) > gpu.shared - 1024) return cudaErrorNotSupported;
  const cudaError_t error = run(kernels.predict, p.batch * plan.tiles, size_t(kernels.shared),
                                stream, p, plan.work, plan.tiles);
  if (error != cudaSuccess) return error;
  return run(kernels.excite, p.batch * ceil_div(p.channels, plan.chunk), size_t(held), stream, p,
             plan.work, plan.tiles, plan.chunk);
}

// After the operator's own way back.
cudaError_t go_back(const ModuleParams& p, const ModuleKernels& kernels, const Plan& plan,
                    void* stream) {
  const auto threads = [](int64_t count) { return ceil_div(count, kModuleThreads); };
  const int64_t taps = p.kernel_size * p.kernel_size;
  cudaError_t error =
      run(kernels.spread_spatial, threads(p.batch * p.head * p.out_height * p.out_width), 0, stream,
          p, plan.work);
  const auto then = [&](auto kernel, int64_t blocks, auto... arguments) {
    if (error == cudaSuccess) error = run(kernel, blocks, 0, stream, p, plan.work, arguments...);
  };
  then(kernels.spread_channel, threads(p.batch * p.channels * 32));
  then(kernels.hidden, p.batch * ceil_div(p.hidden, 32));
  then(kernels.parameters, threads(p.channels * taps * (p.hidden + 2) +
                                   p.hidden * (p.channels + 1) + p.batch * p.channels));
  then(kernels.features, p.batch * plan.parts, plan.tiles, plan.parts);
  if (p.grad_parameters.spatial_weight.data) {
    then(kernels.weights, threads(p.head * taps * (p.channels + 1)), p.batch * plan.parts);
  }
  return error;
}

// Calls pass(kernels, plan, gpu).
template <typename Pass>
int with_plan(const ModuleParams& p, int device, Pass pass) {
  Gpu gpu = {};
  cudaError_t error = describe(device, &gpu);
  if (error != cudaSuccess) return error;
  ModuleKernels kernels = {};
  error = by_type_and_size(p, [&](auto element, auto size) {
    kernels = kernels_of<decltype(element), size()>();
    return cudaSuccess;
  });
  if (error != cudaSuccess) return error;
  return pass(kernels, plan_of(p, gpu, kernels.tile), gpu);
}

}  // namespace

int64_t cuda_module_work_bytes(const ModuleParams& p, int device) {
  int64_t bytes = 0;
  with_plan(p, device, [&](const ModuleKernels&, const Plan& plan, const Gpu&) {
    bytes = plan.bytes;
    if (p.backward) bytes += cuda_backward_work_bytes(of_head(p, 0, nullptr), device);
    return cudaSuccess;
  });
  return bytes;
}

int cuda_module_forward(const ModuleParams& p, int device, void* stream) {
  return with_plan(p, device, [&](const auto& kernels, const Plan& plan, const Gpu& gpu) {
    cudaError_t error = predict(p, kernels, plan, gpu, stream);
    for (int64_t head = 0; error == cudaSuccess && head < p.head; ++head) {
      error = cudaError_t(cuda_forward(of_head(p, head, nullptr), device, stream));
    }
    return error;
  });
}

int cuda_module_backward(const ModuleParams& p, int device, void* stream) {
  return with_plan(p, device, [&](const auto& kernels, const Plan& plan, const Gpu& gpu) {
    cudaError_t error = predict(p, kernels, plan, gpu, stream);
    void* rest = static_cast<char*>(p.work) + plan.bytes;
    for (int64_t head = 0; error == cudaSuccess && p.batch > 0 && head < p.head; ++head) {
      error = cudaError_t(cuda_backward(of_head(p, head, rest), device, stream));
    }
    return error == cudaSuccess ? go_back(p, kernels, plan, stream) : error;
  });
}

}  // namespace ddf
