// The forward kernel for channels last: k = 3, 5, 7, stride 1 and 2, taps adjacent.
//
// Floor as for NCHW. Neighbouring threads are neighbouring channels: 32 threads of 4 channels hold
// 128 of them, and eight such groups 8 rows; or 64 threads, and four rows, where planes are small.
// They walk over their tile, and then again with the next channels, so that the spatial filter of a
// tile is read by one block. A thread keeps the channel taps of its channels in registers (36 at
// k = 3) and walks along x. Each input column is loaded once, as vectors of
// channels, and goes at once to all the outputs that it is under: k of them are being summed at a
// time, in registers that take turns. The spatial taps are the same for all channels; they go
// through shared memory, in the order in which columns want them, and are broadcast.
//
// Where a tile's channels are split over blocks, these can form a cluster (sm_90 on): each reads a
// share of the spatial taps, and stores it in the shared memory of all.
//
// A tile of 32 columns and 8 rows reads 34 x 10 pixels, 1.33 times its own at the multiprocessor.
#pragma once

#include "ddf/cuda/common.cuh"

namespace ddf {

struct ChannelsPlan {
  int columns;       // outputs of a tile along x
  int lanes;         // threads along the channels
  int groups;        // threads along y
  int across, down;  // tiles of a plane
  int chunks;        // of channels, a block each
  int chunk;         // threads that its channels would take, in turns of `lanes`
  int cluster;       // blocks that share the reading of the spatial filter; 1: each for itself
};

// Channels of a thread, by what their taps and sums take of the registers.
template <typename T, int kSize>
struct ChannelsShape {
  static constexpr int kVector = kSize == 7 ? (sizeof(T) == 2 ? 2 : 1) : (sizeof(T) == 8 ? 2 : 4);
  static constexpr int kColumnTaps = round_up(kSize, 4);  // of a tap column in shared memory
  static constexpr int kStoredTaps = kSize * kColumnTaps;
  // Outputs that are being summed at a time, and input columns until their registers come round.
  static constexpr int slots(int stride) { return int(ceil_div(kSize, stride)); }
  static constexpr int period(int stride) { return slots(stride) * stride; }
  // Input columns of a tile, in whole periods.
  static constexpr int steps(int columns, int stride) {
    return round_up((columns - 1) * stride + kSize, period(stride));
  }
};

constexpr int kChannelsThreads = 256;

// Whether a block takes more channels than it has threads for: at k = 5 and 7 it has no registers.
template <int kSize>
constexpr bool kChannelsTurns = kSize == 3;

using ChannelsKernel = void (*)(const Params, const ChannelsPlan);

template <typename T, int kSize, int kStride, bool kAdd>
__global__ void __launch_bounds__(kChannelsThreads, kSize == 3 ? 2 : 1)
    channels_kernel(const Params p, const ChannelsPlan plan) {
  using A = Accumulator<T>;
  using Shape = ChannelsShape<T, kSize>;
  constexpr int kVector = Shape::kVector;
  constexpr int kStoredTaps = Shape::kStoredTaps, kColumnTaps = Shape::kColumnTaps;
  constexpr int kTaps = kSize * kSize, kPad = (kSize - 1) / 2;
  constexpr int kSlots = Shape::slots(kStride), kPeriod = Shape::period(kStride);

  const bool clusters = plan.cluster > 1;
  if (clusters) cluster_arrive();  // has begun
  int64_t index = blockIdx.x;
  const int64_t first_lane = index % plan.chunks * plan.chunk;  // in threads
  index /= plan.chunks;
  const int x0 = int(index % plan.across) * plan.columns;
  index /= plan.across;
  const int y0 = int(index % plan.down) * plan.groups;
  const int64_t n = index / plan.down;
  const int steps = Shape::steps(plan.columns, kStride), rows = plan.groups;

  // Spatial taps: what an input column asks of an output row is together, tap columns first.
  A* spatial = dynamic_shared<A>();  // [rows][steps][kStoredTaps]
  const bool taps_adjacent = p.spatial.stride[1] == 1;
  Share share = {0, rows * plan.columns * kTaps};
  if (clusters) {
    share = share_of(at<T>(p.spatial, n, 0, y0, x0), share.end, int(blockIdx.x) % plan.cluster,
                     plan.cluster);
    cluster_wait();  // all have begun
  }
  for (int i = share.begin + threadIdx.x; i < share.end; i += blockDim.x) {
    const int tap = taps_adjacent ? i % kTaps : i / plan.columns % kTaps;
    const int o = taps_adjacent ? i / kTaps % plan.columns : i % plan.columns;
    const int row = i / (kTaps * plan.columns), ky = tap / kSize, kx = tap % kSize;
    if (y0 + row >= p.out_height || x0 + o >= p.out_width) continue;
    const A value = widen(*at<T>(p.spatial, n, tap, y0 + row, x0 + o));
    A* place = spatial + (row * steps + o * kStride + kx) * kStoredTaps + kx * kColumnTaps + ky;
    if (clusters) {
      store_in_all(place, value, plan.cluster);
    } else {
      *place = value;
    }
  }
  if (clusters) cluster_arrive();  // has stored its share

  const int lane = threadIdx.x % plan.lanes, group = threadIdx.x / plan.lanes;
  const int y = y0 + group, top = y * kStride - kPad, left = x0 * kStride - kPad;
  const bool active = group < plan.groups && y < p.out_height;
  A channel[kTaps][kVector];
  // Channels are taken in turns; whether there is one. What it needs is computed anew each time: in
  // registers it would be in the way of the loop over columns.
  const auto load_channel = [&](int turn) {
    unsigned block = blockIdx.x;
    opaque(block);
    const int first = int(block) % plan.chunks * plan.chunk, ahead = turn * plan.lanes + lane;
    const int c = (first + ahead) * kVector;
    const bool there = active && ahead < plan.chunk && c < p.channels;
    const int64_t sample = int(block) / (plan.chunks * plan.across * plan.down);
#pragma unroll
    for (int j = 0; j < kTaps; ++j) {
#pragma unroll
      for (int v = 0; v < kVector; ++v) {
        channel[j][v] =
            there ? widen(*at<T>(p.channel, sample, c + v, j / kSize, j % kSize)) : A(0);
      }
    }
    return there;
  };
  bool there = load_channel(0);
  if (clusters) {
    cluster_wait();  // all have stored
  } else {
    __syncthreads();
  }

  // Each column is loaded one ahead, from a pointer that the compiler cannot compute beforehand: it
  // would hold one for each row and column of a period, and all their loads, in registers.
  const int64_t c = (first_lane + lane) * kVector;
  const T* next = at<T>(p.features, n, c, top, left);
  T* out = at<T>(p.out, n, c, y, x0);
  bool row_inside[kSize];
#pragma unroll
  for (int r = 0; r < kSize; ++r) row_inside[r] = top + r >= 0 && top + r < p.height;

#pragma unroll 1
  for (int turn = 1; there; there = kChannelsTurns<kSize> && load_channel(turn++)) {
    A sum[kSlots][kVector];
    Pack<T, kVector> ahead[kSize];
    const auto fetch = [&](int step) {
      const bool inside =
          left + step >= 0 && left + step < p.width && step < (plan.columns - 1) * kStride + kSize;
#pragma unroll
      for (int r = 0; r < kSize; ++r) {
        ahead[r] = {};
        if (inside && row_inside[r]) {
          ahead[r] = load<kVector>(next + r * p.features.stride[2]);
        }
      }
      next += p.features.stride[3];
      opaque(next);
    };
    fetch(0);
#pragma unroll 1
    for (int base = 0; base < steps; base += kPeriod) {
#pragma unroll
      for (int u = 0; u < kPeriod; ++u) {
        const int step = base + u;
        A features[kSize][kVector];
#pragma unroll
        for (int r = 0; r < kSize; ++r) {
#pragma unroll
          for (int v = 0; v < kVector; ++v) features[r][v] = widen(ahead[r][v]);
        }
        fetch(step + 1);
#pragma unroll
        for (int kx = 0; kx < kSize; ++kx) {
          if ((u - kx + kSize * kStride) % kStride != 0) continue;
          const int slot = (u - kx + kPeriod * kSize) / kStride % kSlots;
          A taps[kColumnTaps];
#pragma unroll
          for (int i = 0; i < kColumnTaps; i += 4) {
            const Pack<A, 4> four =
                load<4>(spatial + (group * steps + step) * kStoredTaps + kx * kColumnTaps + i);
#pragma unroll
            for (int j = 0; j < 4; ++j) taps[i + j] = four[j];
          }
#pragma unroll
          for (int ky = 0; ky < kSize; ++ky) {
#pragma unroll
            for (int v = 0; v < kVector; ++v) {
              const A term =
                  combined<kAdd>(taps[ky], channel[ky * kSize + kx][v]) * features[ky][v];
              // The first tap of an output takes its place from one that is done, or never was.
              sum[slot][v] = kx == 0 && ky == 0 ? term : sum[slot][v] + term;
            }
          }
        }
        if ((u + kPeriod * kSize - (kSize - 1)) % kStride != 0) continue;
        const int slot = (u + kPeriod * kSize - (kSize - 1)) / kStride % kSlots;
        const int done = step - (kSize - 1);  // its first column
        if (done < 0 || done / kStride >= plan.columns || x0 + done / kStride >= p.out_width)
          continue;
        Pack<T, kVector> pack;
#pragma unroll
        for (int v = 0; v < kVector; ++v) narrow(sum[slot][v], &pack[v]);
        store<Hint::streaming>(out + done / kStride * p.out.stride[3], pack);
      }
    }
    // `fetch` has passed all steps and one more.
    next += plan.lanes * kVector - (steps + 1) * p.features.stride[3];
    out += plan.lanes * kVector;
  }
}

}  // namespace ddf
