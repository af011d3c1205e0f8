// The filters of involution, predicted at each pixel: what the kernel is told, and what it offers.
// No torch in here.
//
//   out[n,r,y,x] = span_bias[r] + sum_h span_weight[r,h] * hidden[n,h,y,x]
//   hidden[n,h,y,x] = relu(scale[h] * sum_c reduce_weight[h,c] * F[n,c,y,x] + shift[h])
//
// Two 1x1 convolutions, the first with its normalisation and ReLU. Floor per pixel: hidden *
// (channels + filters) multiply-accumulates; the bytes of F and out once each. In RedNet, with 256
// channels and k = 3, these are 25,600 for 400 elements: arithmetic binds.
#pragma once

#include "ddf/ddf.h"

namespace ddf {

// Of `Params`: features, of which `out` (batch, filters, height, width) has every pixel; `out` is
// contiguous.
struct InvolutionParams : Params {
  int64_t hidden, filters;
  View reduce_weight, scale, shift;  // (hidden, channels), (hidden), (hidden)
  View span_weight, span_bias;       // (filters, hidden), (filters)
};

// Results do not depend on the number of threads.
void cpu_involution_filters(const InvolutionParams& params, ParallelFor parallel_for);

}  // namespace ddf
