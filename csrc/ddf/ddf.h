// The DDF operator: what its kernels are told, and what they offer. No torch in here.
//
//   out[n,c,y,x] = sum_j combine(S[n,j,y,x], C[n,c,j]) *
//                  F[n,c, y*stride + dilation*dy_j, x*stride + dilation*dx_j]
//
// j runs over the k*k taps, dy_j and dx_j over -(k-1)/2 .. (k-1)/2; F is zero outside its plane. A
// tap in the padding is multiplied by that zero like any other, so that an infinite filter gives
// nan there, as in a padded copy of F. Floor per output at k = 3: 9 multiply-accumulates and 9
// combinations; the bytes of F, S, C and out once each.
#pragma once

#include <cstdint>

namespace ddf {

// Larger kernels are refused by name: 127 x 127 taps are 16,129 products an output.
constexpr int64_t kMaxKernelSize = 127;

enum class DType { float32, float64, float16, bfloat16 };
enum class Combine { mul, add };

// Data with four strides, counted in elements. A null pointer is a tensor that is not wanted.
struct View {
  void* data = nullptr;
  int64_t stride[4] = {};
};

struct Params {
  DType dtype;
  Combine combine;
  int64_t batch, channels;
  int64_t height, width;          // of the features
  int64_t out_height, out_width;  // floor((size - 1) / stride) + 1
  int64_t kernel_size, stride, dilation;

  View features;  // F: (batch, channels, height, width)
  View channel;   // C: (batch, channels, kernel_size, kernel_size)
  View spatial;   // S: (batch, kernel_size^2, out_height, out_width)
  View out;       // (batch, channels, out_height, out_width); on the way back its gradient

  View grad_features, grad_channel, grad_spatial;  // backward only: shaped as F, C and S

  void* work = nullptr;  // scratch memory of a call that needs it, aligned to 64, with any content
};

// The whole module, DDFPack, whose filters are predicted from the features:
//
//   raw S[n,h*k^2+j,y,x] = sum_c spatial_weight[h*k^2+j,c] * F[n,c,y*stride,x*stride] +
//   spatial_bias raw C[n,c*k^2+j]     = excite(relu(squeeze(mean over pixels of F[n]))), linear
//   layers
//
// Each filter is normalised over its k^2 taps to zero mean and unit spread, (x - mean) / (std +
// 1e-10) with the unbiased std, and multiplied by `spatial_scale` or `channel_std`. Head h applies
// its spatial filter to its own channels, the h-th of `head` equal groups.
struct ModuleParameters {
  View spatial_weight, spatial_bias;  // (head*k^2, channels), (head*k^2)
  View squeeze_weight, squeeze_bias;  // (hidden, channels), (hidden)
  View excite_weight, excite_bias;    // (channels*k^2, hidden), (channels*k^2)
  View channel_std;                   // (channels*k^2)
};

// `spatial` (batch, head*k^2, out_height, out_width) and `channel` are where the predicted filters
// go; on the way back `grad_spatial` and `grad_channel`, likewise, are room for their gradients.
// All four are contiguous.
struct ModuleParams : Params {
  int64_t head, hidden;
  double spatial_scale;
  bool backward;
  ModuleParameters parameters;
  ModuleParameters grad_parameters;  // null pointers where they are not wanted
};

// Calls body(begin, end, context) on ranges that cover 0 .. items, each at least `grain` long, on
// several threads.
using ParallelFor = void (*)(int64_t items, int64_t grain,
                             void (*body)(int64_t begin, int64_t end, void* context),
                             void* context);

// Results do not depend on the number of threads.
void cpu_forward(const Params& params, ParallelFor parallel_for);
void cpu_backward(const Params& params, ParallelFor parallel_for);

// Bytes of `work` that the passes of the module take.
int64_t cpu_module_work_bytes(const ModuleParams& params);
void cpu_module_forward(const ModuleParams& params, ParallelFor parallel_for);
void cpu_module_backward(const ModuleParams& params, ParallelFor parallel_for);

// Return a cudaError_t. The device is made current; `stream`, a cudaStream_t, belongs to it.
// Nothing is synchronised.
int cuda_forward(const Params& params, int device, void* stream);
int cuda_backward(const Params& params, int device, void* stream);

// Bytes of `work` that cuda_backward takes for these gradients.
int64_t cuda_backward_work_bytes(const Params& params, int device);

// The forward pass by the kernel of that name in cuda/kernels.def, "" for whichever the table
// means: cudaErrorNotSupported where it cannot serve, cudaErrorInvalidValue where there is none.
int cuda_forward_by(const char* name, const Params& params, int device, void* stream);

// Likewise the backward pass, by cuda/backward.def.
int cuda_backward_by(const char* name, const Params& params, int device, void* stream);
int64_t cuda_backward_work_bytes_by(const char* name, const Params& params, int device);

// The whole module, for kernel size 3, and 5 and 7 but in float64; else cudaErrorNotSupported.
int64_t cuda_module_work_bytes(const ModuleParams& params, int device);
int cuda_module_forward(const ModuleParams& params, int device, void* stream);
int cuda_module_backward(const ModuleParams& params, int device, void* stream);

// The published kernels, into an output that is filled with zeros; cudaErrorNotSupported where they
// cannot serve.
int cuda_paper_forward(const Params& params, int device, void* stream);
const char* cuda_error_string(int error);

}  // namespace ddf
