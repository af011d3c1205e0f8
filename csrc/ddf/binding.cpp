// The one file that knows torch: schemas, checks, outputs, and the way to the kernels.
//
// As ddf/tensors.h it uses torch's stable C interface only. Fake kernels,
// autograd and autocast are registered beside the public function, in ops/core/native.py.

#include <algorithm>
#include <string>
#include <tuple>

#include "ddf/ddf.h"
#include "ddf/tensors.h"

namespace ddf {
namespace {

// Checks the inputs against one another and describes them; `out` is still missing.
Params describe(const Tensor& features, const Tensor& channel_filter, const Tensor& spatial_filter,
                int64_t dilation, int64_t stride, StringHandle combine) {
  Params p = describe_features(features, combine);
  const Sizes filter = sizes(channel_filter);
  if (filter.size() != 4 || filter[2] % 2 == 0 || filter[2] > kMaxKernelSize) {
    fail("channel_filter: expected shape (N, C, k, k) with an odd k of at most ", kMaxKernelSize,
         ", got ", show(filter));
  }
  set_taps(p, filter[2], dilation, stride);
  const int64_t k = p.kernel_size;
  check("channel_filter", channel_filter, {p.batch, p.channels, k, k}, "(N, C, k, k)", features);
  check("spatial_filter", spatial_filter, {p.batch, k * k, p.out_height, p.out_width},
        "(N, k*k, Ho, Wo)", features);
  p.channel = input(channel_filter);
  p.spatial = input(spatial_filter);
  return p;
}

Sizes out_shape(const Params& p) { return {p.batch, p.channels, p.out_height, p.out_width}; }

void run_forward(const Params& p, [[maybe_unused]] const Tensor& features) {
  if (p.batch == 0) return;
  if (!features.is_cuda()) return cpu_forward(p, parallel_for);
#ifdef DDF_CUDA
  run_cuda(cuda_forward, p, features);
#else
  fail("features: on a CUDA device, but this library was built without CUDA, for want of nvcc");
#endif
}

void run_backward(Params& p, [[maybe_unused]] const Tensor& features) {
  if (p.batch == 0) return;
  if (!features.is_cuda()) return cpu_backward(p, parallel_for);
#ifdef DDF_CUDA
  const int64_t bytes = cuda_backward_work_bytes(p, features.get_device_index());
  const Tensor work = contiguous({bytes}, aoti_torch_dtype_uint8(), features);
  p.work = output(work).data;
  run_cuda(cuda_backward, p, features);
#else
  fail("features: on a CUDA device, but this library was built without CUDA, for want of nvcc");
#endif
}

Tensor forward(const Tensor& features, const Tensor& channel_filter, const Tensor& spatial_filter,
               int64_t dilation, int64_t stride, StringHandle combine) {
  Params p = describe(features, channel_filter, spatial_filter, dilation, stride, combine);
  const Tensor out = empty(out_shape(p), features);
  p.out = output(out);
  run_forward(p, features);
  return out;
}

// As `describe`, with the caller's output.
Params describe_into(const Tensor& out, const Tensor& features, const Tensor& channel_filter,
                     const Tensor& spatial_filter, int64_t dilation, int64_t stride,
                     StringHandle combine) {
  Params p = describe(features, channel_filter, spatial_filter, dilation, stride, combine);
  check("out", out, out_shape(p), "(N, C, Ho, Wo)", features);
  check_places("out", out);
  p.out = output(out);
  return p;
}

void forward_out(const Tensor& features, const Tensor& channel_filter, const Tensor& spatial_filter,
                 int64_t dilation, int64_t stride, StringHandle combine, const Tensor& out) {
  run_forward(
      describe_into(out, features, channel_filter, spatial_filter, dilation, stride, combine),
      features);
}

// By a CUDA kernel of that name, or not at all.
Tensor forward_by(const Tensor& features, const Tensor& channel_filter,
                  const Tensor& spatial_filter, int64_t dilation, int64_t stride,
                  StringHandle combine, StringHandle kernel) {
  const std::string name = take(kernel);
  Params p = describe(features, channel_filter, spatial_filter, dilation, stride, combine);
  if (!features.is_cuda()) fail("kernel: those named are CUDA's, got features elsewhere");
  const Tensor out = empty(out_shape(p), features);
  p.out = output(out);
#ifdef DDF_CUDA
  if (p.batch == 0) return out;
  const int32_t device = features.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  const int error = cuda_forward_by(name.c_str(), p, device, current_stream(device));
  if (error != 0) {
    fail("kernel: ", name, " does not serve features of shape ", show(sizes(features)), ": ",
         cuda_error_string(error));
  }
  return out;
#else
  fail("features: on a CUDA device, but this library was built without CUDA, for want of nvcc");
#endif
}

void paper_forward_out(const Tensor& features, const Tensor& channel_filter,
                       const Tensor& spatial_filter, int64_t dilation, int64_t stride,
                       StringHandle combine, const Tensor& out) {
  [[maybe_unused]] const Params p =
      describe_into(out, features, channel_filter, spatial_filter, dilation, stride, combine);
  if (!features.is_cuda()) fail("features: the published kernels run on CUDA alone");
#ifdef DDF_CUDA
  if (p.batch > 0) run_cuda(cuda_paper_forward, p, features);
#else
  fail("features: on a CUDA device, but this library was built without CUDA, for want of nvcc");
#endif
}

// A gradient that is not wanted comes back with no elements.
std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& grad, const Tensor& features,
                                            const Tensor& channel_filter,
                                            const Tensor& spatial_filter, int64_t dilation,
                                            int64_t stride, StringHandle combine,
                                            bool want_features, bool want_channel,
                                            bool want_spatial) {
  Params p = describe(features, channel_filter, spatial_filter, dilation, stride, combine);
  check("grad", grad, out_shape(p), "(N, C, Ho, Wo)", features);
  p.out = input(grad);
  const Tensor grad_features = empty_gradient(want_features, features, &p.grad_features);
  const Tensor grad_channel = empty_gradient(want_channel, channel_filter, &p.grad_channel);
  const Tensor grad_spatial = empty_gradient(want_spatial, spatial_filter, &p.grad_spatial);
  run_backward(p, features);
  return {grad_features, grad_channel, grad_spatial};
}

// ---- the fused module ----

// The parameters of a DDFPack, as its modules hold them.
struct Pack {
  const Tensor &spatial_weight, &spatial_bias;
  const Tensor &squeeze_weight, &squeeze_bias;
  const Tensor &excite_weight, &excite_bias;
  const Tensor& channel_std;
};

ModuleParams describe_module(const Tensor& features, const Pack& pack, double spatial_scale,
                             int64_t kernel_size, int64_t dilation, int64_t stride, int64_t head,
                             StringHandle combine) {
  ModuleParams p{};
  static_cast<Params&>(p) = describe_features(features, combine);
  if (kernel_size < 3 || kernel_size % 2 == 0 || kernel_size > kMaxKernelSize) {
    fail("kernel_size: expected an odd number from 3 to ", kMaxKernelSize, ", got ", kernel_size);
  }
  if (features.is_cuda() && kernel_size > 7) {
    fail("kernel_size: expected 3, 5 or 7 on CUDA, got ", kernel_size);
  }
  if (features.is_cuda() && kernel_size > 3 && p.dtype == DType::float64) {
    fail("features: expected float32, float16 or bfloat16 at kernel_size ", kernel_size,
         " on CUDA, got float64, which the unfused module serves");
  }
  set_taps(p, kernel_size, dilation, stride);
  if (head < 1 || p.channels % head) {
    fail("head: expected a divisor of the ", p.channels, " channels, got ", head);
  }
  p.head = head;
  p.spatial_scale = spatial_scale;
  const Sizes squeeze = sizes(pack.squeeze_weight);
  if (squeeze.size() != 4 || squeeze[0] < 1) {
    fail("squeeze_weight: expected shape (hidden, C, 1, 1), got ", show(squeeze));
  }
  p.hidden = squeeze[0];
  const int64_t c = p.channels, taps = kernel_size * kernel_size;
  check("spatial_weight", pack.spatial_weight, {head * taps, c, 1, 1}, "(head*k*k, C, 1, 1)",
        features);
  check("spatial_bias", pack.spatial_bias, {head * taps}, "(head*k*k,)", features);
  check("squeeze_weight", pack.squeeze_weight, {p.hidden, c, 1, 1}, "(hidden, C, 1, 1)", features);
  check("squeeze_bias", pack.squeeze_bias, {p.hidden}, "(hidden,)", features);
  check("excite_weight", pack.excite_weight, {c * taps, p.hidden, 1, 1}, "(C*k*k, hidden, 1, 1)",
        features);
  check("excite_bias", pack.excite_bias, {c * taps}, "(C*k*k,)", features);
  check("channel_std", pack.channel_std, {c * taps}, "(C*k*k,)", features);
  p.parameters = {input(pack.spatial_weight), input(pack.spatial_bias),  input(pack.squeeze_weight),
                  input(pack.squeeze_bias),   input(pack.excite_weight), input(pack.excite_bias),
                  input(pack.channel_std)};
  return p;
}

// The filters or their gradients, and what else a call needs; freed with it.
struct Rooms {
  Tensor spatial, channel;

  Rooms(const ModuleParams& p, const Tensor& features)
      : spatial(
            contiguous({p.batch, p.head * p.kernel_size * p.kernel_size, p.out_height, p.out_width},
                       dtype_code(features), features)),
        channel(contiguous({p.batch, p.channels, p.kernel_size, p.kernel_size},
                           dtype_code(features), features)) {}
};

Tensor work_room(ModuleParams& p, const Tensor& features) {
#ifdef DDF_CUDA
  const int64_t bytes = features.is_cuda() ? cuda_module_work_bytes(p, features.get_device_index())
                                           : cpu_module_work_bytes(p);
#else
  const int64_t bytes = cpu_module_work_bytes(p);
#endif
  const Tensor work = contiguous({bytes}, aoti_torch_dtype_uint8(), features);
  p.work = output(work).data;
  return work;
}

void run_module(const ModuleParams& p, const Tensor& features) {
  if (!features.is_cuda()) {
    return p.backward ? cpu_module_backward(p, parallel_for) : cpu_module_forward(p, parallel_for);
  }
#ifdef DDF_CUDA
  run_cuda(p.backward ? cuda_module_backward : cuda_module_forward, p, features);
#else
  fail("features: on a CUDA device, but this library was built without CUDA, for want of nvcc");
#endif
}

Tensor fused_forward(const Tensor& features, const Tensor& spatial_weight,
                     const Tensor& spatial_bias, const Tensor& squeeze_weight,
                     const Tensor& squeeze_bias, const Tensor& excite_weight,
                     const Tensor& excite_bias, const Tensor& channel_std, double spatial_scale,
                     int64_t kernel_size, int64_t dilation, int64_t stride, int64_t head,
                     StringHandle combine) {
  const Pack pack{spatial_weight, spatial_bias, squeeze_weight, squeeze_bias,
                  excite_weight,  excite_bias,  channel_std};
  ModuleParams p =
      describe_module(features, pack, spatial_scale, kernel_size, dilation, stride, head, combine);
  const Tensor out = empty(out_shape(p), features);
  if (p.batch == 0) return out;
  const Rooms filters(p, features);
  p.spatial = output(filters.spatial);
  p.channel = output(filters.channel);
  p.out = output(out);
  const Tensor work = work_room(p, features);
  run_module(p, features);
  return out;
}

// The gradients of the features and the seven parameters; those that are not wanted come back with
// no elements.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> fused_backward(
    const Tensor& grad, const Tensor& features, const Tensor& spatial_weight,
    const Tensor& spatial_bias, const Tensor& squeeze_weight, const Tensor& squeeze_bias,
    const Tensor& excite_weight, const Tensor& excite_bias, const Tensor& channel_std,
    double spatial_scale, int64_t kernel_size, int64_t dilation, int64_t stride, int64_t head,
    StringHandle combine, bool want_features, bool want_parameters) {
  const Pack pack{spatial_weight, spatial_bias, squeeze_weight, squeeze_bias,
                  excite_weight,  excite_bias,  channel_std};
  ModuleParams p =
      describe_module(features, pack, spatial_scale, kernel_size, dilation, stride, head, combine);
  check("grad", grad, out_shape(p), "(N, C, Ho, Wo)", features);
  p.backward = true;
  p.out = input(grad);
  const Tensor grad_features = empty(want_features ? sizes(features) : Sizes{0, 0, 0, 0}, features);
  if (want_features) p.grad_features = output(grad_features);
  const auto make = [&](const Tensor& like, View* where) {
    const Sizes none(sizes(like).size(), 0);
    const Tensor gradient =
        contiguous(want_parameters ? sizes(like) : none, dtype_code(like), like);
    if (want_parameters) *where = output(gradient);
    return gradient;
  };
  ModuleParameters& to = p.grad_parameters;
  const Tensor by_spatial_weight = make(spatial_weight, &to.spatial_weight);
  const Tensor by_spatial_bias = make(spatial_bias, &to.spatial_bias);
  const Tensor by_squeeze_weight = make(squeeze_weight, &to.squeeze_weight);
  const Tensor by_squeeze_bias = make(squeeze_bias, &to.squeeze_bias);
  const Tensor by_excite_weight = make(excite_weight, &to.excite_weight);
  const Tensor by_excite_bias = make(excite_bias, &to.excite_bias);
  const Tensor by_channel_std = make(channel_std, &to.channel_std);
  const Rooms filters(p, features), gradients(p, features);
  p.spatial = output(filters.spatial);
  p.channel = output(filters.channel);
  p.grad_spatial = output(gradients.spatial);
  p.grad_channel = output(gradients.channel);
  const Tensor work = work_room(p, features);
  run_module(p, features);
  return {grad_features,   by_spatial_weight, by_spatial_bias, by_squeeze_weight,
          by_squeeze_bias, by_excite_weight,  by_excite_bias,  by_channel_std};
}

}  // namespace

STABLE_TORCH_LIBRARY(ddf, m) {
  m.def(
      "forward(Tensor features, Tensor channel_filter, Tensor spatial_filter, int dilation, "
      "int stride, str combine) -> Tensor");
  m.def(
      "forward_out(Tensor features, Tensor channel_filter, Tensor spatial_filter, int dilation, "
      "int stride, str combine, Tensor(a!) out) -> ()");
  m.def(
      "forward_by(Tensor features, Tensor channel_filter, Tensor spatial_filter, int dilation, "
      "int stride, str combine, str kernel) -> Tensor");
  m.def(
      "paper_forward_out(Tensor features, Tensor channel_filter, Tensor spatial_filter, "
      "int dilation, int stride, str combine, Tensor(a!) out) -> ()");
  m.def(
      "backward(Tensor grad, Tensor features, Tensor channel_filter, Tensor spatial_filter, "
      "int dilation, int stride, str combine, bool want_features, bool want_channel, "
      "bool want_spatial) -> (Tensor, Tensor, Tensor)");
  m.def(
      "fused_forward("
      "Tensor features, Tensor spatial_weight, Tensor spatial_bias, Tensor squeeze_weight, "
      "Tensor squeeze_bias, Tensor excite_weight, Tensor excite_bias, Tensor channel_std, "
      "float spatial_scale, int kernel_size, int dilation, int stride, int head, str combine) -> "
      "Tensor");
  m.def(
      "fused_backward(Tensor grad, "
      "Tensor features, Tensor spatial_weight, Tensor spatial_bias, Tensor squeeze_weight, "
      "Tensor squeeze_bias, Tensor excite_weight, Tensor excite_bias, Tensor channel_std, "
      "float spatial_scale, int kernel_size, int dilation, int stride, int head, str combine, bool "
      "want_features, "
      "bool want_parameters) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(ddf, CPU, m) {
  m.impl("forward", TORCH_BOX(&forward));
  m.impl("forward_out", TORCH_BOX(&forward_out));
  m.impl("forward_by", TORCH_BOX(&forward_by));
  m.impl("paper_forward_out", TORCH_BOX(&paper_forward_out));
  m.impl("backward", TORCH_BOX(&backward));
  m.impl("fused_forward", TORCH_BOX(&fused_forward));
  m.impl("fused_backward", TORCH_BOX(&fused_backward));
}

// Without CUDA kernels too, so that the error says what is missing.
STABLE_TORCH_LIBRARY_IMPL(ddf, CUDA, m) {
  m.impl("forward", TORCH_BOX(&forward));
  m.impl("forward_out", TORCH_BOX(&forward_out));
  m.impl("forward_by", TORCH_BOX(&forward_by));
  m.impl("paper_forward_out", TORCH_BOX(&paper_forward_out));
  m.impl("backward", TORCH_BOX(&backward));
  m.impl("fused_forward", TORCH_BOX(&fused_forward));
  m.impl("fused_backward", TORCH_BOX(&fused_backward));
}

}  // namespace ddf
