// Tensors of torch as the bindings see them: checked, described as views, made anew.
//
// It uses torch's stable C interface only, and nothing newer than TORCH_TARGET_VERSION (a compiler
// flag), so that one library serves every torch from that version on and any Python.
#pragma once

#include <dlfcn.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <sstream>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "ddf/ddf.h"

namespace ddf {
namespace {

using torch::stable::Tensor;
using Sizes = std::vector<int64_t>;

template <typename... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  throw std::runtime_error(text.str());
}

inline Sizes sizes(const Tensor& tensor) {
  const auto array = tensor.sizes();
  return Sizes(array.begin(), array.end());
}

inline std::string show(const Sizes& sizes) {
  std::ostringstream text;
  for (size_t i = 0; i < sizes.size(); ++i) text << (i ? ", " : "(") << sizes[i];
  text << (sizes.empty() ? "()" : sizes.size() == 1 ? ",)" : ")");
  return text.str();
}

inline int32_t dtype_code(const Tensor& tensor) {
  int32_t code = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(tensor.get(), &code));
  return code;
}

inline DType dtype_of(const Tensor& features) {
  const int32_t code = dtype_code(features);
  if (code == aoti_torch_dtype_float32()) return DType::float32;
  if (code == aoti_torch_dtype_float64()) return DType::float64;
  if (code == aoti_torch_dtype_float16()) return DType::float16;
  if (code == aoti_torch_dtype_bfloat16()) return DType::bfloat16;
  fail("features: expected float32, float64, float16 or bfloat16, got torch's dtype number ", code);
}

// A string argument, which is ours to delete. Taken by its handle: the conversion of torch's header
// to std::string, up to 2.13 at least, leaks a copy in every call, which keeps freed outputs apart.
inline std::string take(StringHandle handle) {
  size_t length = 0;
  const char* data = nullptr;
  TORCH_ERROR_CODE_CHECK(torch_string_length(handle, &length));
  TORCH_ERROR_CODE_CHECK(torch_string_c_str(handle, &data));
  const std::string text(data, length);
  TORCH_ERROR_CODE_CHECK(torch_delete_string(handle));
  return text;
}

inline Combine combine_of(const std::string& name) {
  if (name == "mul") return Combine::mul;
  if (name == "add") return Combine::add;
  fail("combine: expected mul or add, got '", name, "'");
}

inline void check(const char* name, const Tensor& tensor, const Sizes& expected,
                  const char* meaning, const Tensor& features) {
  if (sizes(tensor) != expected) {
    fail(name, ": expected shape ", show(expected), ", ", meaning, ", got ", show(sizes(tensor)));
  }
  if (dtype_code(tensor) != dtype_code(features)) {
    fail(name, ": expected the dtype of features, of shape ", show(sizes(features)),
         "; got another, with shape ", show(sizes(tensor)));
  }
  if (tensor.is_cuda() != features.is_cuda() ||
      tensor.get_device_index() != features.get_device_index()) {
    fail(name, ": expected the device of features, of shape ", show(sizes(features)),
         "; got another, with shape ", show(sizes(tensor)));
  }
}

inline void check_places(const char* name, const Tensor& tensor) {
  for (int i = 0; i < 4; ++i) {
    if (tensor.size(i) > 1 && tensor.stride(i) == 0) {
      fail(name, ": expected a place for each element, got shape ", show(sizes(tensor)),
           " with stride 0 in dimension ", i);
    }
  }
}

inline View view(const Tensor& tensor, void* data) {
  View view;
  view.data = data;
  const auto strides = tensor.strides();
  std::copy(strides.begin(), strides.end(), view.stride);
  return view;
}

inline View input(const Tensor& tensor) {
  const void* data = nullptr;
  TORCH_ERROR_CODE_CHECK(torch_get_const_data_ptr(tensor.get(), &data));
  return view(tensor, const_cast<void*>(data));
}

inline View output(const Tensor& tensor) {
  void* data = nullptr;
  TORCH_ERROR_CODE_CHECK(torch_get_mutable_data_ptr(tensor.get(), &data));
  return view(tensor, data);
}

// Describes the features; checks nothing else.
inline Params describe_features(const Tensor& features, StringHandle combine) {
  const std::string name = take(combine);
  Params p;
  p.dtype = dtype_of(features);
  p.combine = combine_of(name);
  const Sizes shape = sizes(features);
  if (shape.size() != 4 || shape[1] < 1 || shape[2] < 1 || shape[3] < 1) {
    fail("features: expected shape (N, C, H, W), only N may be 0, got ", show(shape));
  }
  p.batch = shape[0];
  p.channels = shape[1];
  p.height = shape[2];
  p.width = shape[3];
  p.features = input(features);
  return p;
}

inline void set_taps(Params& p, int64_t kernel_size, int64_t dilation, int64_t stride) {
  if (dilation < 1) fail("dilation: expected at least 1, got ", dilation);
  if (stride < 1) fail("stride: expected at least 1, got ", stride);
  p.kernel_size = kernel_size;
  p.out_height = (p.height - 1) / stride + 1;
  p.out_width = (p.width - 1) / stride + 1;
  // Beyond the size of the plane both have the same effect as that size, and no product can
  // overflow.
  p.stride = std::min(stride, std::max(p.height, p.width));
  p.dilation = std::min(dilation, std::max(p.height, p.width));
}

inline Tensor empty_strided(const Sizes& shape, const Sizes& strides, int32_t dtype,
                            const Tensor& like) {
  int32_t device_type = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  AtenTensorHandle handle = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<int64_t>(shape.size()), shape.data(),
                                                  strides.data(), dtype, device_type,
                                                  like.get_device_index(), &handle));
  return Tensor(handle);
}

inline Tensor contiguous(const Sizes& shape, int32_t dtype, const Tensor& like) {
  Sizes strides(shape.size(), 1);
  for (size_t i = shape.size(); i-- > 1;) strides[i - 1] = strides[i] * shape[i];
  return empty_strided(shape, strides, dtype, like);
}

// A new tensor in the memory format of `like`: channels last where channels are adjacent and pixels
// are not.
inline Tensor empty(const Sizes& shape, const Tensor& like) {
  const bool channels_last = like.stride(1) == 1 && like.stride(3) != 1;
  if (!channels_last) return contiguous(shape, dtype_code(like), like);
  const int64_t c = shape[1], h = shape[2], w = shape[3];
  return empty_strided(shape, {h * w * c, 1, w * c, c}, dtype_code(like), like);
}

// Room for the gradient of `like`, described in `where`; with no elements if it is not wanted.
inline Tensor empty_gradient(bool wanted, const Tensor& like, View* where) {
  const Tensor gradient = empty(wanted ? sizes(like) : Sizes{0, 0, 0, 0}, like);
  if (wanted) *where = output(gradient);
  return gradient;
}

inline void parallel_for(int64_t items, int64_t grain, void (*body)(int64_t, int64_t, void*),
                         void* context) {
  TORCH_ERROR_CODE_CHECK(torch_parallel_for(0, items, grain, body, context));
}

#ifdef DDF_CUDA
// The stream is asked of libtorch_cuda by name: a torch without CUDA lacks the function, and a hard
// reference to it would keep this library from loading there.
inline void* current_stream(int32_t device) {
  using Function = AOTITorchError (*)(int32_t, void**);
  static const Function function = [] {
    void* library = dlopen("libtorch_cuda.so", RTLD_NOLOAD | RTLD_NOW);
    void* symbol = library ? dlsym(library, "aoti_torch_get_current_cuda_stream") : nullptr;
    return reinterpret_cast<Function>(symbol);
  }();
  if (!function) fail("features: on a CUDA device, but this torch has no libtorch_cuda.so");
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(function(device, &stream));
  return stream;
}

template <typename P>
void run_cuda(int (*kernel)(const P&, int, void*), const P& p, const Tensor& features) {
  const int32_t device = features.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  const int error = kernel(p, device, current_stream(device));
  if (error != 0) {
    fail("ddf: the CUDA kernel for features of shape ", show(sizes(features)),
         " could not be launched: ", cuda_error_string(error));
  }
}
#endif

}  // namespace
}  // namespace ddf
