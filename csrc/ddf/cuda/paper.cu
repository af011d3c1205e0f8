// The published forward kernels (Zhou et al., CVPR 2021), written afresh from their description:
// what speed-ups are told against, and the only ones that can reproduce the published latencies.
//
//   tiles    k <= 4, stride 1, H and W >= 14. A block is a tile of 16 x 16 pixels with four threads
//            a pixel, one for each of four channels; eight such blocks share the channels of a
//            sample. Features, spatial and channel filters go through shared memory.
//   pixels   everything else. A warp is a pixel, its lanes walk over the channels, so that they
//            read planes apart; 32 pixels a block, their spatial filters in shared memory.
//
// Both sum with compensation (Neumaier 1974), which turns an infinite sum into nan. Shared memory
// is an array of fixed size, and what does not fit is refused: k = 15, or dilation 8 on the tiles.
// Contiguous NCHW, float32 and float64. The output comes filled with zeros, as theirs does.

#include "ddf/ddf.h"
#include "ddf/device.cuh"

namespace ddf {
namespace {

constexpr int kTile = 16;  // pixels along a side of a tile
constexpr int kPixels = kTile * kTile;
constexpr int kChannelThreads = 4;  // of a block, and channels at a time
constexpr int kChannelBlocks = 8;   // of a sample
constexpr int kWarp = 32;
constexpr int kWarps = 32;  // pixels of a block
constexpr int kThreads = 1024;
constexpr int kElements = 6144;                         // of the shared array: 48 KB of float64
constexpr int kLeastSide = 14, kLargestTileKernel = 4;  // where the tiles serve

// A sum with the part that rounding took from it.
template <typename T>
struct Compensated {
  T sum = 0, lost = 0;

  __device__ void add(T value) {
    const T next = sum + value;
    const bool larger = (sum < 0 ? -sum : sum) >= (value < 0 ? -value : value);
    lost += larger ? (sum - next) + value : (value - next) + sum;
    sum = next;
  }
  __device__ T value() const { return sum + lost; }
};

template <bool kAdd, typename T>
__device__ inline T combined(T spatial, T channel) {
  return kAdd ? spatial + channel : spatial * channel;
}

// The elements of a plane, and what is outside of it.
template <typename T>
__device__ inline T inside_or_zero(const T* plane, const Params& p, int64_t y, int64_t x) {
  const bool inside = y >= 0 && y < p.height && x >= 0 && x < p.width;
  return inside ? plane[y * p.width + x] : T(0);
}

__device__ inline int64_t tiles_along(int64_t size) { return (size + kTile - 1) / kTile; }

template <typename T, bool kAdd>
__global__ void __launch_bounds__(kThreads) tiles_kernel(const Params p) {
  DDF_SHARED(T, shared, [kElements]);
  const int k = int(p.kernel_size), taps = k * k, dilation = int(p.dilation);
  const int pad = dilation * (k - 1) / 2, side = kTile + 2 * pad;
  T* spatial = shared;
  T* channel = spatial + taps * kPixels;
  T* features = channel + kChannelThreads * taps;

  const int64_t across = tiles_along(p.width), down = tiles_along(p.height);
  const int64_t tile = blockIdx.x % (across * down), rest = blockIdx.x / (across * down);
  const int64_t n = rest / kChannelBlocks, y0 = tile / across * kTile, x0 = tile % across * kTile;
  const int pixel = threadIdx.x % kPixels, mine = threadIdx.x / kPixels;
  const int64_t y = y0 + pixel / kTile, x = x0 + pixel % kTile;
  const bool inside = y < p.height && x < p.width;
  const int64_t plane = p.height * p.width;

  const T* spatial_filter = static_cast<const T*>(p.spatial.data) + n * taps * plane;
  for (int j = mine; j < taps && inside; j += kChannelThreads) {
    spatial[j * kPixels + pixel] = spatial_filter[j * plane + y * p.width + x];
  }
  const int64_t first = rest % kChannelBlocks * kChannelThreads;
  for (int64_t start = first; start < p.channels; start += kChannelThreads * kChannelBlocks) {
    const int64_t c = n * p.channels + start + mine;
    const bool there = start + mine < p.channels;
    T* own_channel = channel + mine * taps;
    T* own_features = features + mine * side * side;
    __syncthreads();  // the filters and features before are done with
    if (there) {
      const T* from = static_cast<const T*>(p.features.data) + c * plane;
      for (int i = pixel; i < side * side; i += kPixels) {
        own_features[i] = inside_or_zero(from, p, y0 - pad + i / side, x0 - pad + i % side);
      }
      if (pixel < taps) {
        own_channel[pixel] = static_cast<const T*>(p.channel.data)[c * taps + pixel];
      }
    }
    __syncthreads();
    if (!there || !inside) continue;
    const T* window = own_features + pixel / kTile * side + pixel % kTile;
    Compensated<T> sum;
    for (int j = 0; j < taps; ++j) {
      const T filter = combined<kAdd>(spatial[j * kPixels + pixel], own_channel[j]);
      sum.add(filter * window[j / k * dilation * side + j % k * dilation]);
    }
    static_cast<T*>(p.out.data)[c * plane + y * p.width + x] = sum.value();
  }
}

template <typename T, bool kAdd>
__global__ void __launch_bounds__(kThreads) pixels_kernel(const Params p) {
  DDF_SHARED(T, shared, [kElements]);
  const int k = int(p.kernel_size), taps = k * k;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int64_t out_plane = p.out_height * p.out_width;
  const int64_t place = int64_t(blockIdx.x) * kWarps + warp;
  const int64_t n = place / out_plane, pixel = place % out_plane;
  if (n >= p.batch) return;  // a whole warp
  const int64_t top = pixel / p.out_width * p.stride - p.dilation * (k - 1) / 2;
  const int64_t left = pixel % p.out_width * p.stride - p.dilation * (k - 1) / 2;

  T* spatial = shared + warp * taps;
  for (int j = lane; j < taps; j += kWarp) {
    spatial[j] = static_cast<const T*>(p.spatial.data)[(n * taps + j) * out_plane + pixel];
  }
  __syncwarp();
  for (int64_t c = n * p.channels + lane; c < (n + 1) * p.channels; c += kWarp) {
    const T* plane = static_cast<const T*>(p.features.data) + c * p.height * p.width;
    const T* channel = static_cast<const T*>(p.channel.data) + c * taps;
    Compensated<T> sum;
    for (int j = 0; j < taps; ++j) {
      const int64_t y = top + j / k * p.dilation, x = left + j % k * p.dilation;
      sum.add(combined<kAdd>(spatial[j], channel[j]) * inside_or_zero(plane, p, y, x));
    }
    static_cast<T*>(p.out.data)[c * out_plane + pixel] = sum.value();
  }
}

bool on_tiles(const Params& p) {
  return p.kernel_size <= kLargestTileKernel && p.stride == 1 && p.height >= kLeastSide &&
         p.width >= kLeastSide;
}

int64_t shared_elements(const Params& p) {
  const int64_t taps = p.kernel_size * p.kernel_size;
  if (!on_tiles(p)) return kWarps * taps;
  const int64_t side = kTile + p.dilation * (p.kernel_size - 1);
  return taps * kPixels + kChannelThreads * (taps + side * side);
}

bool contiguous(const View& view, int64_t b, int64_t c, int64_t d) {
  return view.stride[3] == 1 && view.stride[2] == d && view.stride[1] == c * d &&
         view.stride[0] == b * c * d;
}

bool contiguous(const Params& p) {
  const int64_t k = p.kernel_size, height = p.out_height, width = p.out_width;
  return contiguous(p.features, p.channels, p.height, p.width) &&
         contiguous(p.channel, p.channels, k, k) && contiguous(p.spatial, k * k, height, width) &&
         contiguous(p.out, p.channels, height, width);
}

template <typename T>
cudaError_t run(const Params& p, void* stream) {
  const bool tiles = on_tiles(p), add = p.combine == Combine::add;
  const auto kernel = tiles ? (add ? tiles_kernel<T, true> : tiles_kernel<T, false>)
                            : (add ? pixels_kernel<T, true> : pixels_kernel<T, false>);
  const int64_t blocks = tiles ? p.batch * kChannelBlocks * ((p.height + kTile - 1) / kTile) *
                                     ((p.width + kTile - 1) / kTile)
                               : (p.batch * p.out_height * p.out_width + kWarps - 1) / kWarps;
  if (blocks > 0x7fffffff) return cudaErrorInvalidConfiguration;
  Grid grid;
  grid.blocks = dim3(unsigned(blocks));
  grid.threads = dim3(kThreads);
  grid.stream = stream;
  return launch(grid, kernel, p);
}

}  // namespace

int cuda_paper_forward(const Params& p, int device, void* stream) {
  if (!contiguous(p) || shared_elements(p) > kElements) return cudaErrorNotSupported;
  const cudaError_t error = cudaSetDevice(device);
  if (error != cudaSuccess) return error;
  switch (p.dtype) {
    case DType::float32:
      return run<float>(p, stream);
    case DType::float64:
      return run<double>(p, stream);
    default:
      return cudaErrorNotSupported;
  }
}

}  // namespace ddf
