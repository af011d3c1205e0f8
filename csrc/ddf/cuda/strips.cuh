// The backward kernel for NCHW: k = 3, 5, 7, stride 1, taps adjacent, all three gradients in one
// pass.
//
// Floor per element at k = 3, float32: 12.3 bytes (F and the output's gradient read, F's gradient
// written, S, C and their gradients 3 %), 45 operations.
//
// A block keeps a tile of the padded plane and walks over channels. A thread is a strip of 3
// elements below one another (k = 3; 2 at k = 5, 1 at k = 7), whose spatial taps and sums of their
// gradient stay in registers: 54 at k = 3, which leaves 512 threads on a multiprocessor, two strips
// of 224 columns. Four elements would be 72, which spilled at 128 registers. Below one another, as
// then neighbouring threads are neighbours in memory whatever the width, three elements share the
// rows of the output's gradient that they read (15 loads for 27 taps), and the sums over pixels, of
// the gradient of the channel filter, go through a third of the shuffles.
//
// Bands of whole rows come through shared memory as flat ranges, as in planes.cuh, three stages of
// them, copied asynchronously two channels ahead. Where a tile has fewer threads than a block,
// teams of them take channels of their own, in whole warps; their sums for the spatial filter are
// added at the end, one team after another.
//
// The padding is predicated, not multiplied by zero, where an output does not exist: an infinite
// feature or filter meets no product that is not there.
#pragma once

#include "ddf/cuda/backward.cuh"

namespace ddf {

struct StripsPlan {
  int rows, down;                  // of a tile, in the padded plane; tiles of it
  int columns;                     // of the padded plane
  int chunk;                       // channels of a block
  int lanes, team;                 // channels worked on at a time; threads of each, whole warps
  int features_place, lane_bytes;  // bytes: of the gradient's band, and of both bands of a channel
  BackwardParts parts;
};

template <typename T, int kSize>
struct StripsShape : BackwardShape<kSize> {
  static constexpr bool kDouble = sizeof(T) == 8;
  static constexpr int kRows = kSize == 3 ? (kDouble ? 2 : 3) : kSize == 5 ? 2 : 1;
  static constexpr int kThreads = kDouble ? 256 : kSize == 3 ? 512 : 384;
};

constexpr int kStripsStages = 3;

// Bytes of shared memory in front of the stages: the channel taps, and what the warps add to their
// gradient, of this turn and the last.
template <typename T, int kSize>
__host__ __device__ constexpr int strips_front(int chunk, int threads) {
  using Shape = StripsShape<T, kSize>;
  return round_up((chunk * Shape::kStoredTaps + 2 * (threads / 32) * Shape::kTaps) *
                      int(sizeof(Accumulator<T>)),
                  16);
}

template <typename T, int kSize, bool kAdd>
__global__ void __launch_bounds__(StripsShape<T, kSize>::kThreads, 1)
    strips_kernel(const Params p, const StripsPlan plan) {
  using A = Accumulator<T>;
  using Shape = StripsShape<T, kSize>;
  constexpr int kRows = Shape::kRows, kPad = Shape::kPad, kTaps = Shape::kTaps;
  constexpr int kRowTaps = Shape::kRowTaps, kStoredTaps = Shape::kStoredTaps;
  constexpr int kStages = kStripsStages;
  const int height = int(p.height), width = int(p.width);
  const int chunks = int(ceil_div(p.channels, plan.chunk)), chunk = blockIdx.x % chunks;
  const int tile = blockIdx.x / chunks % plan.down;
  const int64_t n = blockIdx.x / chunks / plan.down, c0 = int64_t(chunk) * plan.chunk;
  const int channels = int(p.channels - c0 < plan.chunk ? p.channels - c0 : plan.chunk);
  // The rows of the output's gradient and of the features that the tile reads.
  const int y0 = tile * plan.rows, end = y0 + plan.rows;
  const int grad_top = y0 < kSize ? 0 : y0 - (kSize - 1), grad_bottom = end < height ? end : height;
  const int top = y0 < kPad ? 0 : y0 - kPad;
  const int bottom = end - kPad < height ? end - kPad : height;

  const int thread = threadIdx.x, threads = blockDim.x;
  const int lane = thread / plan.team, member = thread % plan.team;
  A* channel = dynamic_shared<A>();
  A* warp_sums = channel + plan.chunk * kStoredTaps;  // [2][warps][kTaps]
  char* stages = dynamic_shared<char>() + strips_front<T, kSize>(plan.chunk, threads);

  // A team copies the bands of its own channel.
  const auto copy_band = [&](char* to, const T* source, int rows) {
    if (rows <= 0) return;
    const char* from = reinterpret_cast<const char*>(source - off_piece(source));
    const int bytes = (off_piece(source) + rows * width) * int(sizeof(T));
    for (int i = member * 16; i < bytes; i += plan.team * 16) {
      copy_async<16>(to + i, from + i, bytes - i < 16 ? bytes - i : 16);
    }
  };
  const auto place = [&](int turn) {
    return stages + (turn % kStages * plan.lanes + lane) * plan.lane_bytes;
  };
  const auto issue = [&](int turn) {
    const int c = turn * plan.lanes + lane;
    if (c >= channels) return;
    copy_band(place(turn), at<T>(p.out, n, c0 + c, grad_top, 0), grad_bottom - grad_top);
    copy_band(place(turn) + plan.features_place, at<T>(p.features, n, c0 + c, top, 0),
              bottom - top);
  };

  for (int i = thread; i < channels * kTaps; i += threads) {
    const int c = i / kTaps, j = i % kTaps;
    channel[c * kStoredTaps + j / kSize * kRowTaps + j % kSize] =
        widen(*at<T>(p.channel, n, c0 + c, j / kSize, j % kSize));
  }

  // This thread's elements, their spatial taps, and the sums of these taps' gradients.
  const int column = member % plan.columns, row = member / plan.columns * kRows;
  const int first = y0 + row, x = column - kPad;
  const bool active = row < plan.rows;
  bool column_inside[kSize];
#pragma unroll
  for (int j = 0; j < kSize; ++j) {
    column_inside[j] = active && column - j >= 0 && column - j < width;
  }
  A spatial[kTaps][kRows], grad_spatial[kTaps][kRows] = {};
#pragma unroll
  for (int t = 0; t < kTaps; ++t) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const int y = first + r - t / kSize;
      const bool inside = column_inside[t % kSize] && y >= 0 && y < height;
      spatial[t][r] = inside ? widen(*at<T>(p.spatial, n, t, y, column - t % kSize)) : A(0);
    }
  }

  // Adds up what the warps of each team found for its channel.
  const auto add_warps = [&](int turn) {
    const A* sums = warp_sums + turn % 2 * (threads / 32) * kTaps;
    const int warps = plan.team / 32;
    for (int i = thread; i < plan.lanes * kTaps; i += threads) {
      const int c = turn * plan.lanes + i / kTaps;
      if (c >= channels) break;
      A sum = 0;
      for (int w = 0; w < warps; ++w) sum += sums[(i / kTaps * warps + w) * kTaps + i % kTaps];
      store_channel<T>(p, plan.parts.channel, tile, n, c0 + c, i % kTaps, sum);
    }
  };

  const int turns = int(ceil_div(channels, plan.lanes));
#pragma unroll 1
  for (int turn = 1 - kStages; turn < turns; ++turn) {
    if (turn >= 0) {
      copies_wait<kStages - 2>();
      __syncthreads();  // these channels are there for all, and all are done with those before
    }
    if (turn + kStages - 1 < turns) issue(turn + kStages - 1);
    copies_commit();
    if (turn < 0) continue;
    if (turn > 0) add_warps(turn - 1);
    const int c = turn * plan.lanes + lane;
    if (c >= channels) continue;

    // Where the strip begins in both bands.
    const T* grad = reinterpret_cast<const T*>(place(turn)) +
                    off_piece(at<T>(p.out, n, c0 + c, grad_top, 0)) +
                    (first - (kSize - 1) - grad_top) * width + column;
    const T* features = reinterpret_cast<const T*>(place(turn) + plan.features_place) +
                        off_piece(at<T>(p.features, n, c0 + c, top, 0)) +
                        (first - kPad - top) * width + x;
    A feature[kRows], sum[kRows] = {};
    bool stored[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const int y = first + r - kPad;
      stored[r] = active && x >= 0 && x < width && y >= 0 && y < height;
      feature[r] = stored[r] ? widen(features[r * width]) : A(0);
    }
    A grad_taps[kSize][kRowTaps] = {}, warp_sum[kSize];
#pragma unroll
    for (int m = 0; m < kRows + kSize - 1; ++m) {
      const int y = first + m - (kSize - 1);
      if (active && y >= 0 && y < height) {
        A d[kSize];
#pragma unroll
        for (int j = 0; j < kSize; ++j) {
          d[j] = column_inside[j] ? widen(grad[m * width - j]) : A(0);
        }
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
          const int i = r + kSize - 1 - m;
          if (i < 0 || i >= kSize) continue;
          A taps[kRowTaps];
          load_row<kSize>(channel + c * kStoredTaps + i * kRowTaps, taps);
#pragma unroll
          for (int j = 0; j < kSize; ++j) {
            const A own = spatial[i * kSize + j][r];
            const A product = (column_inside[j] ? feature[r] : A(0)) * d[j];
            grad_spatial[i * kSize + j][r] += kAdd ? product : product * taps[j];
            grad_taps[i][j] += kAdd ? product : product * own;
            if (column_inside[j]) sum[r] += combined<kAdd>(own, taps[j]) * d[j];
          }
        }
      }
      const int i = kRows + kSize - 2 - m;  // a row of taps that is complete
      if (i < kSize) warp_sum[i] = sum_over_lanes(grad_taps[i], thread % 32);
    }
    A* to = warp_sums + (turn % 2 * (threads / 32) + thread / 32) * kTaps;
    const int held = thread % 32 / Shape::kHolders;
    if (thread % Shape::kHolders == 0 && held < kSize) {
#pragma unroll
      for (int i = 0; i < kSize; ++i) to[i * kSize + held] = warp_sum[i];
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      if (!stored[r] || !p.grad_features.data) continue;
      Pack<T, 1> value;
      narrow(sum[r], &value[0]);
      store<Hint::streaming>(at<T>(p.grad_features, n, c0 + c, first + r - kPad, x), value);
    }
  }
  __syncthreads();
  add_warps(turns - 1);

  // One team after another adds its sums for the spatial filter; the last one has all.
  A* team_sums = reinterpret_cast<A*>(stages);
#pragma unroll 1
  for (int l = 0; l < plan.lanes; ++l) {
    if (lane == l) {
#pragma unroll
      for (int t = 0; t < kTaps; ++t) {
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
          A* place = team_sums + (t * kRows + r) * plan.team + member;
          if (l > 0) grad_spatial[t][r] += *place;
          if (l + 1 < plan.lanes) *place = grad_spatial[t][r];
        }
      }
    }
    __syncthreads();
  }
  if (lane + 1 < plan.lanes) return;
#pragma unroll
  for (int t = 0; t < kTaps; ++t) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const int y = first + r - t / kSize;
      if (!column_inside[t % kSize] || y < 0 || y >= height) continue;
      store_spatial<T>(p, plan.parts.spatial, chunk, n, t, y, column - t % kSize,
                       grad_spatial[t][r]);
    }
  }
}

}  // namespace ddf
