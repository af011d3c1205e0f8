// The upsampling operator: what its kernels are told, and what they offer. No torch in here.
//
//   out[n,c,y*s+i,x*s+j] = sum_t combine(S[n,b*k^2+t,y,x], C[n,b*channels+c,t]) *
//                          F[n,c,y+dilation*dy_t,x+dilation*dx_t],   b = i*s + j
//
// Each of the s^2 branches b is the operator of ddf/ddf.h, at stride 1, with filters of its own,
// and fills every s-th row and column. Floor per output at k = 3: 9 multiply-accumulates and 9
// combinations, and of the bytes those of the output and of S; F is an s^2-th of the output.
#pragma once

#include "ddf/ddf.h"

namespace ddf {

// `channel` is (batch, s^2*channels, k, k), `spatial` (batch, s^2*k^2, height, width), `out`
// (batch, channels, height*s, width*s); out_height and out_width are a branch's, height and width;
// stride is 1.
struct UpParams : Params {
  int64_t scale;  // s
};

// Results do not depend on the number of threads.
void cpu_up_forward(const UpParams& params, ParallelFor parallel_for);
void cpu_up_backward(const UpParams& params, ParallelFor parallel_for);

// As cuda_forward and cuda_backward.
int cuda_up_forward(const UpParams& params, int device, void* stream);
int cuda_up_backward(const UpParams& params, int device, void* stream);

}  // namespace ddf
