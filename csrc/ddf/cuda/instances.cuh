// What the kernels of this folder are compiled for, the general ones apart: k = 3, and of k = 5 and
// 7, which take several times as long to compile, what networks run with: filters that are
// multiplied, and no float64. The general kernels serve the rest.
#pragma once

#include <type_traits>

#include "ddf/cuda/common.cuh"

namespace ddf {

// Whether there are kernels of that size whose filters are added.
constexpr bool has_add(int64_t kernel_size) { return kernel_size == 3; }

// Calls body(element, size) with an element of the type and a constant of the kernel size.
template <typename Body>
cudaError_t by_type_and_size(const Params& p, Body body) {
  const auto by_size = [&](auto element) -> cudaError_t {
    if (p.kernel_size == 3) return body(element, std::integral_constant<int, 3>());
    if constexpr (sizeof(element) < 8) {
      if (p.kernel_size == 5) return body(element, std::integral_constant<int, 5>());
      if (p.kernel_size == 7) return body(element, std::integral_constant<int, 7>());
    }
    return cudaErrorNotSupported;
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

// Likewise for a pass of the operator.
template <typename Body>
cudaError_t by_instance(const Params& p, Body body) {
  if (p.combine == Combine::add && !has_add(p.kernel_size)) return cudaErrorNotSupported;
  return by_type_and_size(p, body);
}

}  // namespace ddf
