// The one file of involution that knows torch: schema, checks, output, and the way to the kernel.
//
// As ddf/tensors.h it uses torch's stable C interface only. The fake kernel, autograd and autocast
// are registered beside the public function, in ops/core/native_involution.py.

#include "ddf/tensors.h"
#include "involution/involution.h"

namespace ddf {
namespace {

// Checks the inputs against one another and describes them; `out` is still missing.
InvolutionParams describe(const Tensor& features, const Tensor& reduce_weight, const Tensor& scale,
                          const Tensor& shift, const Tensor& span_weight, const Tensor& span_bias) {
  InvolutionParams p{};
  p.dtype = dtype_of(features);
  const Sizes shape = sizes(features);
  if (shape.size() != 4 || shape[1] < 1 || shape[2] < 1 || shape[3] < 1) {
    fail("features: expected shape (N, C, H, W), only N may be 0, got ", show(shape));
  }
  p.batch = shape[0];
  p.channels = shape[1];
  p.height = p.out_height = shape[2];
  p.width = p.out_width = shape[3];
  const Sizes reduce = sizes(reduce_weight), span = sizes(span_weight);
  if (reduce.size() != 4 || reduce[0] < 1) {
    fail("reduce_weight: expected shape (hidden, C, 1, 1), got ", show(reduce));
  }
  if (span.size() != 4 || span[0] < 1) {
    fail("span_weight: expected shape (filters, hidden, 1, 1), got ", show(span));
  }
  p.hidden = reduce[0];
  p.filters = span[0];
  check("reduce_weight", reduce_weight, {p.hidden, p.channels, 1, 1}, "(hidden, C, 1, 1)",
        features);
  check("scale", scale, {p.hidden}, "(hidden,)", features);
  check("shift", shift, {p.hidden}, "(hidden,)", features);
  check("span_weight", span_weight, {p.filters, p.hidden, 1, 1}, "(filters, hidden, 1, 1)",
        features);
  check("span_bias", span_bias, {p.filters}, "(filters,)", features);
  p.features = input(features);
  p.reduce_weight = input(reduce_weight);
  p.scale = input(scale);
  p.shift = input(shift);
  p.span_weight = input(span_weight);
  p.span_bias = input(span_bias);
  return p;
}

Tensor involution_filters(const Tensor& features, const Tensor& reduce_weight, const Tensor& scale,
                          const Tensor& shift, const Tensor& span_weight, const Tensor& span_bias) {
  InvolutionParams p = describe(features, reduce_weight, scale, shift, span_weight, span_bias);
  const Tensor out =
      contiguous({p.batch, p.filters, p.height, p.width}, dtype_code(features), features);
  p.out = output(out);
  cpu_involution_filters(p, parallel_for);
  return out;
}

}  // namespace

// A fragment: the namespace is csrc/ddf's, which may not be loaded.
STABLE_TORCH_LIBRARY_FRAGMENT(ddf, m) {
  m.def(
      "involution_filters(Tensor features, Tensor reduce_weight, Tensor scale, Tensor shift, "
      "Tensor span_weight, Tensor span_bias) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(ddf, CPU, m) {
  m.impl("involution_filters", TORCH_BOX(&involution_filters));
}

}  // namespace ddf
