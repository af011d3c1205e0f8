// acc = acc * a + b on registers alone, compiled once for each instruction set.
//
// A multiply-add takes about four cycles and two can begin in each, so at least eight chains must
// be independent. Twelve chains with their two constants fill the sixteen registers of AVX2;
// AVX-512 has thirty-two.

#include "roofs/multiply_add.h"

namespace roofs {
namespace {

#if defined(__AVX512F__)
constexpr int kBytes = 64, kChains = 24;
#elif defined(__AVX__)
constexpr int kBytes = 32, kChains = 12;
#else
constexpr int kBytes = 16, kChains = 12;
#endif

template <typename T>
int64_t multiply_add(int64_t steps) {
  typedef T Vector __attribute__((vector_size(kBytes)));
  Vector chains[kChains];
  // The fixed point of x * a + b is 1, so that values neither overflow nor become denormal.
  Vector a = Vector{} + T(0.5), b = Vector{} + T(0.5);
  asm volatile("" : "+m"(a), "+m"(b));  // unknown to the compiler, which could do the sums itself
  for (int c = 0; c < kChains; ++c) chains[c] = Vector{} + T(c);
  for (int64_t step = 0; step < steps; ++step) {
#pragma GCC unroll 24
    for (int c = 0; c < kChains; ++c) chains[c] = chains[c] * a + b;
  }
  for (int c = 0; c < kChains; ++c) asm volatile("" : : "m"(chains[c]));  // keeps the results
  return steps * kChains * int64_t(kBytes / sizeof(T));
}

}  // namespace

extern const Kernels KERNELS;
const Kernels KERNELS = {&multiply_add<float>, &multiply_add<double>};

}  // namespace roofs
