// The one file of the upsampling operator that knows torch: schemas, checks, outputs, and the way
// to the kernels.
//
// As ddf/tensors.h it uses torch's stable C interface only. Fake kernels, autograd and autocast are
// registered beside the public function, in ops/core/native_up.py.

#include <tuple>

#include "ddf/tensors.h"
#include "ddf_up/up.h"

namespace ddf {
namespace {

constexpr int64_t kMaxScale = 64;  // 4096 branches

Sizes out_shape(const UpParams& p) {
  return {p.batch, p.channels, p.height * p.scale, p.width * p.scale};
}

// Checks the inputs against one another and describes them; `out` is still missing.
UpParams describe(const Tensor& features, const Tensor& channel_filter,
                  const Tensor& spatial_filter, int64_t scale, int64_t dilation,
                  StringHandle combine) {
  UpParams p{};
  static_cast<Params&>(p) = describe_features(features, combine);
  if (scale < 1 || scale > kMaxScale) {
    fail("scale: expected 1 to ", kMaxScale, ", got ", scale);
  }
  p.scale = scale;
  const Sizes filter = sizes(channel_filter);
  if (filter.size() != 4 || filter[2] % 2 == 0 || filter[2] > kMaxKernelSize) {
    fail("channel_filter: expected shape (N, scale^2*C, k, k) with an odd k of at most ",
         kMaxKernelSize, ", got ", show(filter));
  }
  set_taps(p, filter[2], dilation, 1);
  const int64_t k = p.kernel_size, branches = scale * scale;
  check("channel_filter", channel_filter, {p.batch, branches * p.channels, k, k},
        "(N, scale^2*C, k, k)", features);
  check("spatial_filter", spatial_filter, {p.batch, branches * k * k, p.height, p.width},
        "(N, scale^2*k*k, H, W)", features);
  p.channel = input(channel_filter);
  p.spatial = input(spatial_filter);
  return p;
}

void run_forward(const UpParams& p, [[maybe_unused]] const Tensor& features) {
  if (p.batch == 0) return;
  if (!features.is_cuda()) return cpu_up_forward(p, parallel_for);
#ifdef DDF_CUDA
  run_cuda(cuda_up_forward, p, features);
#else
  fail("features: on a CUDA device, but this library was built without CUDA, for want of nvcc");
#endif
}

void run_backward(const UpParams& p, [[maybe_unused]] const Tensor& features) {
  if (p.batch == 0) return;
  if (!features.is_cuda()) return cpu_up_backward(p, parallel_for);
#ifdef DDF_CUDA
  run_cuda(cuda_up_backward, p, features);
#else
  fail("features: on a CUDA device, but this library was built without CUDA, for want of nvcc");
#endif
}

Tensor up_forward(const Tensor& features, const Tensor& channel_filter,
                  const Tensor& spatial_filter, int64_t scale, int64_t dilation,
                  StringHandle combine) {
  UpParams p = describe(features, channel_filter, spatial_filter, scale, dilation, combine);
  const Tensor out = empty(out_shape(p), features);
  p.out = output(out);
  run_forward(p, features);
  return out;
}

void up_forward_out(const Tensor& features, const Tensor& channel_filter,
                    const Tensor& spatial_filter, int64_t scale, int64_t dilation,
                    StringHandle combine, const Tensor& out) {
  UpParams p = describe(features, channel_filter, spatial_filter, scale, dilation, combine);
  check("out", out, out_shape(p), "(N, C, H*scale, W*scale)", features);
  check_places("out", out);
  p.out = output(out);
  run_forward(p, features);
}

// A gradient that is not wanted comes back with no elements.
std::tuple<Tensor, Tensor, Tensor> up_backward(const Tensor& grad, const Tensor& features,
                                               const Tensor& channel_filter,
                                               const Tensor& spatial_filter, int64_t scale,
                                               int64_t dilation, StringHandle combine,
                                               bool want_features, bool want_channel,
                                               bool want_spatial) {
  UpParams p = describe(features, channel_filter, spatial_filter, scale, dilation, combine);
  check("grad", grad, out_shape(p), "(N, C, H*scale, W*scale)", features);
  p.out = input(grad);
  const Tensor grad_features = empty_gradient(want_features, features, &p.grad_features);
  const Tensor grad_channel = empty_gradient(want_channel, channel_filter, &p.grad_channel);
  const Tensor grad_spatial = empty_gradient(want_spatial, spatial_filter, &p.grad_spatial);
  run_backward(p, features);
  return {grad_features, grad_channel, grad_spatial};
}

}  // namespace

// A fragment: the namespace is csrc/ddf's, which may not be loaded.
STABLE_TORCH_LIBRARY_FRAGMENT(ddf, m) {
  m.def(
      "up_forward(Tensor features, Tensor channel_filter, Tensor spatial_filter, int scale, "
      "int dilation, str combine) -> Tensor");
  m.def(
      "up_forward_out(Tensor features, Tensor channel_filter, Tensor spatial_filter, int scale, "
      "int dilation, str combine, Tensor(a!) out) -> ()");
  m.def(
      "up_backward(Tensor grad, Tensor features, Tensor channel_filter, Tensor spatial_filter, "
      "int scale, int dilation, str combine, bool want_features, bool want_channel, "
      "bool want_spatial) -> (Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(ddf, CPU, m) {
  m.impl("up_forward", TORCH_BOX(&up_forward));
  m.impl("up_forward_out", TORCH_BOX(&up_forward_out));
  m.impl("up_backward", TORCH_BOX(&up_backward));
}

// Without CUDA kernels too, so that the error says what is missing.
STABLE_TORCH_LIBRARY_IMPL(ddf, CUDA, m) {
  m.impl("up_forward", TORCH_BOX(&up_forward));
  m.impl("up_forward_out", TORCH_BOX(&up_forward_out));
  m.impl("up_backward", TORCH_BOX(&up_backward));
}

}  // namespace ddf
