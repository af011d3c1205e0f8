// The forward kernel for small planes and for rows of any length in NCHW: k = 3, 5, 7, any stride,
// taps adjacent.
//
// Batch 32, C 256, k 3, float32: the floor is 3.56 MB at 7 x 7 and 13.4 MB at 14 x 14, or 0.8 and
// 3.1 us at 4.3 TB/s, so that latency counts: one launch, one trip to memory. Rows of 28 or 56
// bytes misalign 16-byte accesses, but neighbouring rows are one flat range, and so are whole
// neighbouring planes: they are copied as such, in 16-byte pieces of memory, into shared memory,
// where they lie as far off such pieces as they did. A thread is a pixel and keeps its spatial
// taps; lanes of as many threads as there are pixels take turns over the channels, all at once
// where one stage holds them, else in two stages, of which one is copied while one is worked on.
// The padding is a place that is not read.
//
// Where a sample's channels are split over blocks, these can form a cluster (sm_90 on): each reads
// a share of the spatial filter, and stores it in the shared memory of all.
//
// Tiles are bands of whole rows, the plane itself where it is small. Any number of pixels, and any
// alignment of S and the output, is served alike, since neighbouring threads are neighbouring
// pixels; four of them in a thread, as in rows.cuh, would take half the instructions.
#pragma once

#include "ddf/cuda/common.cuh"

namespace ddf {

struct PlanesPlan {
  int rows, down;  // of a band; bands of a plane
  int chunk;       // channels of a block
  int held;        // channels of a stage
  int stages;      // 1 where it holds them all, else 2
  int lanes;       // planes that the threads of a block work on at a time
  int pitch;       // bytes of a plane's place in a stage; 0: planes follow one another as in memory
  int stage;       // bytes, a multiple of 16
  int cluster;     // blocks that share the reading of the spatial filter; 1: each reads for itself
};

// By what the taps take of the registers.
constexpr int planes_threads(int kernel_size) {
  return kernel_size == 3 ? 1024 : kernel_size == 5 ? 512 : 256;
}

template <typename T, int kSize>
struct PlanesShape {
  static constexpr int kTaps = kSize * kSize;
  static constexpr int kStoredTaps = round_up(kTaps, 4);  // of a channel in shared memory
  static constexpr int kChannelBytes = kStoredTaps * int(sizeof(Accumulator<T>));
};

template <typename T, int kSize, bool kAdd>
__global__ void __launch_bounds__(planes_threads(kSize), 1)
    planes_kernel(const Params p, const PlanesPlan plan) {
  using A = Accumulator<T>;
  using Shape = PlanesShape<T, kSize>;
  constexpr int kTaps = Shape::kTaps, kStoredTaps = Shape::kStoredTaps, kPad = (kSize - 1) / 2;
  const int height = int(p.height), width = int(p.width), stride = int(p.stride);
  const int out_width = int(p.out_width), pixels = plan.rows * out_width;
  const int chunks = int(ceil_div(p.channels, plan.chunk));
  const int band = blockIdx.x / chunks % plan.down;
  const int64_t n = blockIdx.x / chunks / plan.down;
  const int64_t c0 = int64_t(blockIdx.x % chunks) * plan.chunk;
  const int channels = int(p.channels - c0 < plan.chunk ? p.channels - c0 : plan.chunk);
  // Rows that the band reads: top to bottom.
  const int y0 = band * plan.rows, above = y0 * stride - kPad;
  const int below = above + (plan.rows - 1) * stride + kSize;
  const int top = above > 0 ? above : 0,
            bottom = plan.pitch != 0 && below < height ? below : height;
  const T* input = at<T>(p.features, n, c0, top, 0);
  const bool clusters = plan.cluster > 1;
  if (clusters) cluster_arrive();  // has begun

  A* channel = dynamic_shared<A>();
  char* stages = dynamic_shared<char>() + round_up(plan.chunk * Shape::kChannelBytes, 16);
  T* exchange = reinterpret_cast<T*>(stages + plan.stages * plan.stage);  // [kTaps][pixels]
  const int thread = threadIdx.x, threads = blockDim.x;

  // Whole planes are one range, which all threads copy; else a warp copies a band.
  const int team = plan.pitch == 0 ? threads : 32;
  const auto issue = [&](int turn) {
    const int first = turn * plan.held;
    const int here = channels - first < plan.held ? channels - first : plan.held;
    const int ranges = plan.pitch == 0 ? 1 : here;
    const int bytes = (bottom - top) * width * int(sizeof(T)) * (plan.pitch == 0 ? here : 1);
    for (int r = thread / team; r < ranges; r += threads / team) {
      const T* source = input + (first + r) * p.features.stride[1];
      const char* from = reinterpret_cast<const char*>(source - off_piece(source));
      char* to = stages + turn % plan.stages * plan.stage + r * plan.pitch;
      const int end = off_piece(source) * int(sizeof(T)) + bytes;
      for (int i = thread % team * 16; i < end; i += team * 16) {
        copy_async<16>(to + i, from + i, end - i < 16 ? end - i : 16);
      }
    }
  };
  issue(0);
  copies_commit();

  if (clusters) {
    const T* source = at<T>(p.spatial, n, 0, 0, 0);
    const Share share =
        share_of(source, kTaps * pixels, int(blockIdx.x) % plan.cluster, plan.cluster);
    cluster_wait();  // all have begun
#pragma unroll 1
    for (int i = share.begin + thread; i < share.end; i += threads) {
      store_in_all(exchange + i, source[i], plan.cluster);
    }
    cluster_arrive();  // has stored its share
  }
  for (int i = thread; i < channels * kTaps; i += threads) {
    const int c = i / kTaps, j = i % kTaps;
    channel[c * kStoredTaps + j] = widen(*at<T>(p.channel, n, c0 + c, j / kSize, j % kSize));
  }
  const int lane = thread / pixels, pixel = thread % pixels;
  const int y = y0 + pixel / out_width, x = pixel % out_width;
  const bool active = lane < plan.lanes && y < p.out_height;
  // Of the feature under the first tap, from the first that is read.
  const int under = (y * stride - kPad - top) * width + x * stride - kPad;
  A spatial[kTaps];
  bool row_inside[kSize], column_inside[kSize];
#pragma unroll
  for (int i = 0; i < kSize; ++i) {
    const int from_y = y * stride + i - kPad, from_x = x * stride + i - kPad;
    row_inside[i] = from_y >= 0 && from_y < height;
    column_inside[i] = from_x >= 0 && from_x < width;
  }
  if (clusters) cluster_wait();  // all have stored
#pragma unroll
  for (int j = 0; j < kTaps; ++j) {
    const T* tap = clusters ? exchange + j * pixels + pixel : at<T>(p.spatial, n, j, y, x);
    spatial[j] = active ? widen(*tap) : A(0);
  }
  T* out = active ? at<T>(p.out, n, c0, y, x) : nullptr;

  const int turns = int(ceil_div(channels, plan.held));
#pragma unroll 1
  for (int turn = 0; turn < turns; ++turn) {
    if (turn + 1 < turns) issue(turn + 1);
    copies_commit();
    copies_wait<1>();
    __syncthreads();
    const int first = turn * plan.held;
    const int here = channels - first < plan.held ? channels - first : plan.held;
    const char* stage = stages + turn % plan.stages * plan.stage;
#pragma unroll 1
    for (int i = active ? lane : here; i < here; i += plan.lanes) {
      const int64_t offset = (first + i) * p.features.stride[1];
      const T* plane =
          plan.pitch == 0
              ? reinterpret_cast<const T*>(stage) + i * p.features.stride[1] +
                    off_piece(input + first * p.features.stride[1])
              : reinterpret_cast<const T*>(stage + i * plan.pitch) + off_piece(input + offset);
      const A* taps = channel + (first + i) * kStoredTaps;
      A sum = 0;
#pragma unroll
      for (int j = 0; j < kTaps; j += 4) {
        const Pack<A, 4> four = load<4>(taps + j);
#pragma unroll
        for (int t = j; t < j + 4 && t < kTaps; ++t) {
          const bool inside = row_inside[t / kSize] && column_inside[t % kSize];
          const A value = inside ? widen(plane[under + t / kSize * width + t % kSize]) : A(0);
          sum += combined<kAdd>(spatial[t], four[t - j]) * value;
        }
      }
      Pack<T, 1> value;
      narrow(sum, &value[0]);
      store<Hint::streaming>(out + (first + i) * p.out.stride[1], value);
    }
    if (turn + 1 < turns) __syncthreads();  // all are done with what the next copies replace
  }
}

}  // namespace ddf
