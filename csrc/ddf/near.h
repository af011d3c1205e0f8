// What the kernels for adjacent taps share: how a row is cut into vectors, and the lanes that lie
// inside. As simd.h, in an unnamed namespace and compiled once per instruction set.
#pragma once

#include "ddf/ddf_cpu.h"
#include "ddf/scratch.h"
#include "ddf/simd.h"

namespace ddf::near {
namespace {

// An x86 without AVX2 is rare: it has the kernels for k = 3 alone, which saves time to compile.
#if defined(__x86_64__) && !defined(__AVX2__)
constexpr int kLargestKernel = 3;
#else
constexpr int kLargestKernel = 7;
#endif

// Keeps a loop out of its one caller, where gcc takes a third longer to compile it.
#define DDF_APART __attribute__((noinline))

template <bool value_>
struct Masked {
  static constexpr bool value = value_;
};

template <int value_>
struct Count {
  static constexpr int value = value_;
};

// Lanes of the vector at x that a tap at `shift` finds inside a row of this width.
inline LaneBits inside(int64_t x, int64_t shift, int64_t width, int64_t lanes) {
  const int64_t first = most(0, -(x + shift)), last = least(lanes, width - (x + shift));
  if (last <= first) return 0;
  return static_cast<LaneBits>(((1u << last) - 1) & ~((1u << first) - 1));
}

// How a row of targets is cut into vectors: whole ones and, for a rest of at most half a vector, a
// half one. Whole vectors from `inner` to `outer` need no masks.
struct Cut {
  int64_t whole = 0, half = 0, inner = 0, outer = 0;
  LaneBits* masks = nullptr;  // K + 1 for each vector, see `set`
  bool streamed = false;      // whole vectors are stored past the caches
  bool ahead = false;         // the source is fetched ahead
  bool claimed = false;       // so is the target

  template <typename A>
  void cut(int64_t columns) {
    const int64_t rest = columns % kLanes<A>;
    half = kHalves && rest > 0 && rest <= kLanes<A> / 2 ? 1 : 0;
    whole = columns / kLanes<A> + (rest > 0 && !half);
  }

  int64_t vectors() const { return whole + half; }
  template <typename A>
  int64_t lanes() const {
    return whole * kLanes<A> + half * (kLanes<A> / 2);
  }

  // For a row of `columns` pixels from x0 on of a plane: for each vector and column of taps the
  // lanes that are pixels of the row and whose tap lies inside, then all lanes that are pixels.
  template <typename A, int K>
  void set(int64_t x0, int64_t columns, int64_t plane_width) {
    const int64_t width = least(columns, plane_width - x0);
    inner = outer = kFreeMasks ? 0 : -1;
    for (int64_t v = 0; v < vectors(); ++v) {
      const int64_t x = v * kLanes<A>, length = v < whole ? kLanes<A> : kLanes<A> / 2;
      LaneBits* bits = masks + v * (K + 1);
      bits[K] = inside(x, 0, width, length);
      for (int64_t dx = 0; dx < K; ++dx) {
        bits[dx] = inside(x0 + x, dx - K / 2, plane_width, length) & bits[K];
      }
      if (kFreeMasks) continue;
      LaneBits all = inside(0, 0, length, length);
      for (int64_t i = 0; i <= K; ++i) all &= bits[i];
      const bool full = all == inside(0, 0, length, length);
      if (full && inner < 0) inner = outer = v;
      if (full) outer = v + 1;
    }
    inner = most(0, inner);
    outer = most(0, outer);
  }
};

constexpr int64_t kAheadBytes = 8 << 20;  // of a source: more than stays in caches until it is read

// Of a source or target.
template <typename T>
int64_t bytes(const Params& p) {
  return p.batch * p.channels * p.height * p.width * int64_t{sizeof(T)};
}

// Elements as they are summed: no conversion, and adjacent in a row.
template <typename T>
bool plain(const View& view) {
  return sizeof(T) == sizeof(Accumulator<T>) && view.stride[3] == 1;
}

template <typename T>
Accumulator<T>* plain_at(const View& view, int64_t a, int64_t b, int64_t c, int64_t d) {
  return reinterpret_cast<Accumulator<T>*>(at<T>(view, a, b, c, d));
}

// Whether a row of S is one run of memory, the taps of a pixel side by side.
inline bool taps_adjacent(const Params& p) {
  return p.spatial.stride[1] == 1 && p.spatial.stride[3] == p.kernel_size * p.kernel_size;
}

// Addresses of rows, those of a channel's first plane and as many bytes further on as a channel
// lies; rows that all channels share stay where they are.
template <int kCount>
struct Rows {
  static constexpr int kRoom = (kCount + 7) / 8;
  typedef int64_t Eight __attribute__((vector_size(64)));

  Eight address[kRoom];
  Eight moves[kRoom];  // all ones where channels have their own

  void set(int64_t i, const void* row, bool of_channel) {
    address[i / 8][i % 8] = reinterpret_cast<int64_t>(row);
    moves[i / 8][i % 8] = of_channel ? -1 : 0;
  }
  template <typename A>
  void of(int64_t bytes, A* (&to)[kRoom * 8]) const {
    static_assert(sizeof(A*) == 8, "an address is as wide as a lane");
    DDF_UNROLL
    for (int i = 0; i < kRoom; ++i) {
      const Eight moved = address[i] + (moves[i] & bytes);
      memcpy(to + i * 8, &moved, sizeof(moved));
    }
  }
};

// C of kLanes channels from c on, a vector for each tap.
template <typename T>
void load_channels(Accumulator<T>* to, const Params& p, int64_t n, int64_t c) {
  using A = Accumulator<T>;
  const int64_t* stride = p.channel.stride;
  const int64_t size = p.kernel_size;
  if (plain<T>(p.channel) && stride[2] == size) {
    copy_numbers(to, plain_at<T>(p.channel, n, c, 0, 0), stride[1], size * size);
    return;
  }
  for (int64_t j = 0; j < size * size; ++j) {
    copy_row(to + j * kLanes<A>, at<T>(p.channel, n, c, j / size, j % size), stride[1], kLanes<A>);
  }
}

}  // namespace
}  // namespace ddf::near
