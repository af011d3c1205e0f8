// Scratch memory of one thread, and rows to and from it. As simd.h, in an unnamed namespace and
// compiled once per instruction set.
#pragma once

#include "ddf/ddf.h"
#include "ddf/simd.h"

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#define DDF_FORBID(data, bytes) ASAN_POISON_MEMORY_REGION(data, bytes)
#else
#define DDF_FORBID(data, bytes) (void)0
#endif

namespace ddf {
namespace {

#ifdef __SANITIZE_ADDRESS__
constexpr int64_t kRedZone = 1 << 12;  // wider than a row of most tests, which a wrong index skips
#else
constexpr int64_t kRedZone = 0;
#endif

inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }
constexpr int64_t ceil_div(int64_t a, int64_t b) { return a >= 0 ? (a + b - 1) / b : -(-a / b); }
constexpr int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

// The size of equal parts of `total` that are at most `limit` long.
inline int64_t even_part(int64_t total, int64_t limit) {
  return ceil_div(total, ceil_div(total, most(1, limit)));
}

template <typename T>
T* at(const View& view, int64_t a, int64_t b, int64_t c, int64_t d) {
  return static_cast<T*>(view.data) + a * view.stride[0] + b * view.stride[1] + c * view.stride[2] +
         d * view.stride[3];
}

// Hands out scratch memory front to back; without a base it only counts. Under the address
// sanitizer what lies between two arrays is out of bounds.
class Arena {
 public:
  explicit Arena(void* base) : base_(static_cast<char*>(base)) {}

  template <typename T>
  T* take(int64_t count) {
    const int64_t bytes = count * static_cast<int64_t>(sizeof(T));
    const int64_t padded = round_up(bytes + kRedZone, 64);
    char* here = base_ ? base_ + used_ : nullptr;
    if (here) DDF_FORBID(here + bytes, static_cast<size_t>(padded - bytes));
    used_ += padded;
    return reinterpret_cast<T*>(here);
  }
  int64_t used() const { return used_; }

 private:
  char* base_;
  int64_t used_ = 0;
};

template <typename A>
void clear(A* data, int64_t count) {
  memset(data, 0, static_cast<size_t>(count) * sizeof(A));
}

template <typename A, typename T>
void copy_row(A* to, const T* from, int64_t from_stride, int64_t count) {
  if (from_stride == 1 && count >= kLanes<A>) {
    for (int64_t i = 0; i + kLanes<A> <= count; i += kLanes<A>) store(to + i, load(from + i));
    store(to + count - kLanes<A>, load(from + count - kLanes<A>));
  } else {
    for (int64_t i = 0; i < count; ++i) to[i] = load_one(from + i * from_stride);
  }
}

template <typename T, typename A>
void store_row(T* to, int64_t to_stride, const A* from, int64_t count) {
  if (to_stride == 1 && count >= kLanes<A>) {
    for (int64_t i = 0; i + kLanes<A> <= count; i += kLanes<A>) store(to + i, load(from + i));
    store(to + count - kLanes<A>, load(from + count - kLanes<A>));
  } else {
    for (int64_t i = 0; i < count; ++i) store_one(to + i * to_stride, from[i]);
  }
}

// Copies `count` pixels of kLanes adjacent channels, `step` elements apart, to a row for each
// channel, `pitch` elements apart.
template <typename A>
void copy_pixels(A* to, int64_t pitch, const A* from, int64_t step, int64_t count) {
  int64_t x = 0;
  for (; x + kLanes<A> <= count; x += kLanes<A>) {
    Vector<A> block[kLanes<A>];
    DDF_UNROLL
    for (int i = 0; i < kLanes<A>; ++i) block[i] = load(from + (x + i) * step);
    transpose<A>(block);
    DDF_UNROLL
    for (int i = 0; i < kLanes<A>; ++i) store(to + i * pitch + x, block[i]);
  }
  for (; x < count; ++x) {
    for (int i = 0; i < kLanes<A>; ++i) to[i * pitch + x] = from[x * step + i];
  }
}

// Copies `count` adjacent numbers of each of kLanes channels, `step` elements apart, to a vector of
// channels for each number.
template <typename A>
void copy_numbers(A* to, const A* from, int64_t step, int64_t count) {
  for (int64_t first = 0; first < count; first += kLanes<A>) {
    const int64_t rest = least(kLanes<A>, count - first);
    const LaneBits bits = static_cast<LaneBits>((1u << rest) - 1);
    Vector<A> block[kLanes<A>];
    DDF_UNROLL
    for (int i = 0; i < kLanes<A>; ++i) {
      block[i] = load_lanes<Vector<A>>(from + i * step + first, bits);
    }
    transpose<A>(block);
    DDF_UNROLL
    for (int i = 0; i < kLanes<A>; ++i) {
      if (i < rest) store(to + (first + i) * kLanes<A>, block[i]);
    }
  }
}

// `copy_pixels`, the way back.
template <typename A>
void store_pixels(A* to, int64_t step, const A* from, int64_t pitch, int64_t count) {
  int64_t x = 0;
  for (; x + kLanes<A> <= count; x += kLanes<A>) {
    Vector<A> block[kLanes<A>];
    DDF_UNROLL
    for (int i = 0; i < kLanes<A>; ++i) block[i] = load(from + i * pitch + x);
    transpose<A>(block);
    DDF_UNROLL
    for (int i = 0; i < kLanes<A>; ++i) store(to + (x + i) * step, block[i]);
  }
  for (; x < count; ++x) {
    for (int i = 0; i < kLanes<A>; ++i) to[x * step + i] = from[i * pitch + x];
  }
}

// Picks the element type. There is no other: the binding refuses it.
template <typename P, typename Result, Result (*f32)(const P&), Result (*f64)(const P&),
          Result (*f16)(const P&), Result (*bf16)(const P&)>
Result by_dtype(const P& p) {
  switch (p.dtype) {
    case DType::float32:
      return f32(p);
    case DType::float64:
      return f64(p);
    case DType::float16:
      return f16(p);
    case DType::bfloat16:
      return bf16(p);
  }
  __builtin_unreachable();
}

#define DDF_BY_DTYPE(P, result, f) by_dtype<P, result, f<float>, f<double>, f<Half>, f<BFloat16>>

}  // namespace
}  // namespace ddf
