// Vectors of the width this file is compiled for, through the compiler's vector extension, and
// 16-bit floats in them.
//
// Everything is in an unnamed namespace: this header is compiled once per instruction set, and a
// function that the linker could share between them would run AVX-512 code on a machine without it.
// For the same reason nothing here or in ddf_simd.cpp calls a template of the standard library.
#pragma once

#include <cstdint>
#include <cstring>

#ifdef __SSE2__
#include <immintrin.h>
#endif

// Loops over taps, rows and pixels of a tile, whose vectors then are registers. Not under the
// address sanitizer, where they would take minutes to compile.
#ifdef __SANITIZE_ADDRESS__
#define DDF_UNROLL
#else
#define DDF_UNROLL _Pragma("GCC unroll 64")
#endif

namespace ddf {
namespace {

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

// What sums are taken in.
template <typename T>
struct AccumulatorOf {
  using type = float;
};
template <>
struct AccumulatorOf<double> {
  using type = double;
};
template <typename T>
using Accumulator = typename AccumulatorOf<T>::type;

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

// Whether there are 32 vector registers, else 16.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr bool kManyRegisters = true;
#else
constexpr bool kManyRegisters = false;
#endif

template <typename A>
constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(A));

template <typename A>
struct VectorOf;
template <>
struct VectorOf<float> {
  typedef float type __attribute__((vector_size(kVectorBytes)));
};
template <>
struct VectorOf<double> {
  typedef double type __attribute__((vector_size(kVectorBytes)));
};
template <typename A>
using Vector = typename VectorOf<A>::type;

typedef uint32_t Words __attribute__((vector_size(kVectorBytes)));
typedef uint16_t HalfWords __attribute__((vector_size(kVectorBytes / 2)));

template <typename To, typename From>
inline To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "bit_cast keeps the size");
  To to;
  memcpy(&to, &from, sizeof(to));
  return to;
}

// The conversions below hold for U = uint32_t with F = float and, lane by lane, for U = Words with
// F = Vector<float>.

// All ones where a < b, else zero; both below 2^31.
template <typename U>
inline U less(U a, U b) {
  return 0 - ((a - b) >> 31);
}

template <typename U>
inline U select(U mask, U yes, U no) {
  return (mask & yes) | (~mask & no);
}

template <typename F, typename U>
inline F widen(U bits, BFloat16) {
  return bit_cast<F>(bits << 16);
}

template <typename F, typename U>
inline F widen(U bits, Half) {
  const U zero = bits ^ bits;
  const U magnitude = (bits & 0x7fff) << 13;
  const U normal = magnitude + (zero + (112u << 23));  // exponent bias 15 -> 127
  const U infinite = normal + (zero + (112u << 23));   // exponent 31 -> 255
  const U one = zero + (113u << 23);                   // 2^-14, the least normal number
  const U subnormal = bit_cast<U>(bit_cast<F>(magnitude + one) - bit_cast<F>(one));
  const U finite = select(less<U>(magnitude, zero + (1u << 23)), subnormal, normal);
  const U value = select(less<U>(magnitude, zero + (31u << 23)), finite, infinite);
  return bit_cast<F>(value | ((bits & 0x8000) << 16));
}

// Rounds to nearest, ties to even; nan stays nan.
template <typename F, typename U>
inline U narrow(F value, BFloat16) {
  const U bits = bit_cast<U>(value);
  const U zero = bits ^ bits;
  const U rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  return select(less<U>(zero + (255u << 23), bits & 0x7fffffff), (bits >> 16) | 0x40, rounded);
}

template <typename F, typename U>
inline U narrow(F value, Half) {
  const U bits = bit_cast<U>(value);
  const U zero = bits ^ bits;
  const U magnitude = bits & 0x7fffffff;
  const U normal = (magnitude - (zero + (112u << 23)) + 0xfff + ((magnitude >> 13) & 1)) >> 13;
  // Adding 0.5 leaves the subnormal's bits, rounded, at the bottom of the mantissa.
  const U half = zero + (126u << 23);
  const U subnormal = bit_cast<U>(bit_cast<F>(magnitude) + bit_cast<F>(half)) - half;
  const U infinite = select(less<U>(zero + (255u << 23), magnitude), zero + 0x7e00, zero + 0x7c00);
  const U finite = select(less<U>(magnitude, zero + (113u << 23)), subnormal, normal);
  const U overflow =
      zero + (143u << 23);  // 2^16; from 65520 on, rounding carries into infinity by itself
  return select(less<U>(magnitude, overflow), finite, infinite) | ((bits >> 16) & 0x8000);
}

// One element, or a vector of consecutive ones at any address, as accumulators; and back.

template <typename T>
inline Accumulator<T> load_one(const T* from) {
  if constexpr (sizeof(T) == 2) {
    return widen<float>(static_cast<uint32_t>(from->bits), T{});
  } else {
    return *from;
  }
}

template <typename T>
inline void store_one(T* to, Accumulator<T> value) {
  if constexpr (sizeof(T) == 2) {
    to->bits = static_cast<uint16_t>(narrow<float, uint32_t>(value, T{}));
  } else {
    *to = value;
  }
}

template <typename T>
inline Vector<Accumulator<T>> load(const T* from) {
  if constexpr (sizeof(T) == 2) {
    HalfWords bits;
    memcpy(&bits, from, sizeof(bits));
    return widen<Vector<float>>(__builtin_convertvector(bits, Words), T{});
  } else {
    Vector<T> value;
    memcpy(&value, from, sizeof(value));
    return value;
  }
}

template <typename T>
inline void store(T* to, Vector<Accumulator<T>> value) {
  if constexpr (sizeof(T) == 2) {
    const HalfWords bits =
        __builtin_convertvector((narrow<Vector<float>, Words>(value, T{})), HalfWords);
    memcpy(to, &bits, sizeof(bits));
  } else {
    memcpy(to, &value, sizeof(value));
  }
}

// Vectors of a chosen width, and parts of them.

template <typename A, int kBytes>
struct VectorOfBytesHelper {
  typedef A type __attribute__((vector_size(kBytes)));
};
template <typename A, int kBytes>
using VectorOfBytes = typename VectorOfBytesHelper<A, kBytes>::type;

// Whether vectors of half the width have masks and registers as well.
#if defined(__AVX512VL__)
constexpr bool kHalves = true, kFreeMasks = true;
#else
constexpr bool kHalves = false, kFreeMasks = false;
#endif

// Keeps a loaded vector in a register for all its uses. Else the compiler, short of registers, may
// load it again for each, and loads are what the kernels run out of next to arithmetic.
template <typename V>
inline void keep([[maybe_unused]] V& vector) {
#if defined(__AVX512F__)
  asm("" : "+v"(vector));
#elif defined(__x86_64__)
  asm("" : "+x"(vector));
#elif defined(__aarch64__)
  asm("" : "+w"(vector));
#endif
}

// Lane i is that of `index[i]` in a and b together.
template <typename A>
inline Vector<A> shuffle(Vector<A> a, Vector<A> b, Words index) {
#if defined(__clang__)
  Vector<A> result = {};
  for (int i = 0; i < kLanes<A>; ++i) {
    const int from = static_cast<int>(index[i]);
    result[i] = from < kLanes<A> ? a[from] : b[from - kLanes<A>];
  }
  return result;
#else
  return __builtin_shuffle(a, b, index);
#endif
}

template <typename A>
using HalfVector = VectorOfBytes<A, kVectorBytes / 2>;

using LaneBits = uint16_t;  // a bit for each lane

#if defined(__AVX2__) && !defined(__AVX512VL__)
// All ones in the lanes of `bits`.
template <typename A>
inline __m256i lane_mask(LaneBits bits) {
  if constexpr (sizeof(A) == 4) {
    const __m256i each = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    return _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(bits), each), each);
  } else {
    const __m256i each = _mm256_setr_epi64x(1, 2, 4, 8);
    return _mm256_cmpeq_epi64(_mm256_and_si256(_mm256_set1_epi64x(bits), each), each);
  }
}
#endif

template <typename V, typename A>
inline V load_as(const A* from) {
  V value;
  memcpy(&value, from, sizeof(value));
  return value;
}

// Without masks it is a loop over lanes, kept out of the unrolled kernels that call it.
#if defined(__AVX2__)
#define DDF_LANES inline
#else
#define DDF_LANES __attribute__((noinline))
#endif

// The lanes of `bits`, the others being zero; memory that belongs to these is not touched.
template <typename V, typename A>
DDF_LANES V load_lanes(const A* from, LaneBits bits) {
#if defined(__AVX512VL__)
  if constexpr (sizeof(V) == 64 && sizeof(A) == 4) return (V)_mm512_maskz_loadu_ps(bits, from);
  if constexpr (sizeof(V) == 64 && sizeof(A) == 8) return (V)_mm512_maskz_loadu_pd(bits, from);
  if constexpr (sizeof(V) == 32 && sizeof(A) == 4) return (V)_mm256_maskz_loadu_ps(bits, from);
  if constexpr (sizeof(V) == 32 && sizeof(A) == 8) return (V)_mm256_maskz_loadu_pd(bits, from);
#elif defined(__AVX2__)
  const __m256i mask = lane_mask<A>(bits);
  if constexpr (sizeof(A) == 4) return (V)_mm256_maskload_ps(from, mask);
  if constexpr (sizeof(A) == 8) return (V)_mm256_maskload_pd(from, mask);
#else
  V value = {};
  for (unsigned i = 0; i < sizeof(V) / sizeof(A); ++i) {
    if (bits >> i & 1) value[i] = from[i];
  }
  return value;
#endif
}

template <typename V, typename A>
DDF_LANES void store_lanes(A* to, LaneBits bits, V value) {
#if defined(__AVX512VL__)
  if constexpr (sizeof(V) == 64 && sizeof(A) == 4) _mm512_mask_storeu_ps(to, bits, (__m512)value);
  if constexpr (sizeof(V) == 64 && sizeof(A) == 8) _mm512_mask_storeu_pd(to, bits, (__m512d)value);
  if constexpr (sizeof(V) == 32 && sizeof(A) == 4) _mm256_mask_storeu_ps(to, bits, (__m256)value);
  if constexpr (sizeof(V) == 32 && sizeof(A) == 8) _mm256_mask_storeu_pd(to, bits, (__m256d)value);
#elif defined(__AVX2__)
  const __m256i mask = lane_mask<A>(bits);
  if constexpr (sizeof(A) == 4) _mm256_maskstore_ps(to, mask, (__m256)value);
  if constexpr (sizeof(A) == 8) _mm256_maskstore_pd(to, mask, (__m256d)value);
#else
  for (unsigned i = 0; i < sizeof(V) / sizeof(A); ++i) {
    if (bits >> i & 1) to[i] = value[i];
  }
#endif
}

// Rows become columns: in log2(lanes) steps, each of which swaps the off-diagonal blocks of twice
// its size.
template <typename A>
inline void transpose(Vector<A>* rows) {
  using Index = Words;  // of a lane of two vectors
  static_assert(sizeof(A) == 4, "an index is as wide as an element");
  DDF_UNROLL
  for (int size = 1; size < kLanes<A>; size *= 2) {
    Index low = {}, high = {};
    DDF_UNROLL
    for (int i = 0; i < kLanes<A>; ++i) {
      low[i] = static_cast<uint32_t>(i & size ? i - size + kLanes<A> : i);
      high[i] = static_cast<uint32_t>(i & size ? i + kLanes<A> : i + size);
    }
    DDF_UNROLL
    for (int i = 0; i < kLanes<A>; ++i) {
      if (i & size) continue;
      const Vector<A> a = rows[i], b = rows[i + size];
      rows[i] = shuffle<A>(a, b, low);
      rows[i + size] = shuffle<A>(a, b, high);
    }
  }
}

// Adds up the lanes.
template <typename A, int kBytes>
A total(VectorOfBytes<A, kBytes> vector) {
  if constexpr (kBytes > 2 * sizeof(A)) {
    VectorOfBytes<A, kBytes / 2> halves[2];
    memcpy(halves, &vector, sizeof(vector));
    return total<A, kBytes / 2>(halves[0] + halves[1]);
  } else {
    return vector[0] + vector[1];
  }
}

// Lane i is the sum of the lanes of vectors[i]: as `transpose`, but what it would swap is added up.
template <typename A>
inline Vector<A> totals(Vector<A>* vectors) {
  if constexpr (sizeof(A) == 4) {
    DDF_UNROLL
    for (int size = 1; size < kLanes<A>; size *= 2) {
      Words low = {}, high = {};
      DDF_UNROLL
      for (int i = 0; i < kLanes<A>; ++i) {
        low[i] = static_cast<uint32_t>(i & size ? i - size + kLanes<A> : i);
        high[i] = static_cast<uint32_t>(i & size ? i + kLanes<A> : i + size);
      }
      DDF_UNROLL
      for (int i = 0; i < kLanes<A>; i += 2 * size) {
        const Vector<A> a = vectors[i], b = vectors[i + size];
        vectors[i] = shuffle<A>(a, b, low) + shuffle<A>(a, b, high);
      }
    }
    return vectors[0];
  } else {
    Vector<A> result = {};
    for (int i = 0; i < kLanes<A>; ++i) result[i] = total<A, kVectorBytes>(vectors[i]);
    return result;
  }
}

inline Vector<float> root(Vector<float> square) {
#if defined(__AVX512F__)
  // Unmasked, g++ 12 warns of the lanes that its header leaves undefined.
  return (Vector<float>)_mm512_maskz_sqrt_ps(0xffff, (__m512)square);
#elif defined(__AVX__)
  return (Vector<float>)_mm256_sqrt_ps((__m256)square);
#elif defined(__SSE2__)
  return (Vector<float>)_mm_sqrt_ps((__m128)square);
#else
  for (int i = 0; i < kLanes<float>; ++i) square[i] = __builtin_sqrtf(square[i]);
  return square;
#endif
}

inline Vector<double> root(Vector<double> square) {
#if defined(__AVX512F__)
  return (Vector<double>)_mm512_maskz_sqrt_pd(0xff, (__m512d)square);
#elif defined(__AVX__)
  return (Vector<double>)_mm256_sqrt_pd((__m256d)square);
#elif defined(__SSE2__)
  return (Vector<double>)_mm_sqrt_pd((__m128d)square);
#else
  for (int i = 0; i < kLanes<double>; ++i) square[i] = __builtin_sqrt(square[i]);
  return square;
#endif
}

// Stores past the caches; `to` is aligned to the vector. `finish_streams` orders such stores before
// what the thread does next.
template <typename V, typename A>
inline void stream(A* to, V value) {
#if defined(__AVX512F__)
  if constexpr (sizeof(V) == 64) return _mm512_stream_si512((__m512i*)to, (__m512i)value);
#endif
#if defined(__AVX__)
  if constexpr (sizeof(V) == 32) return _mm256_stream_si256((__m256i*)to, (__m256i)value);
#endif
#if defined(__SSE2__)
  if constexpr (sizeof(V) == 16) return _mm_stream_si128((__m128i*)to, (__m128i)value);
#endif
  memcpy(to, &value, sizeof(value));
}

inline void finish_streams() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

}  // namespace
}  // namespace ddf
