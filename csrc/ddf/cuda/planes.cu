// The kernels of planes.cuh, and where they serve.

#include <algorithm>

#include "ddf/cuda/forward.h"
#include "ddf/cuda/planes.cuh"

namespace ddf {
namespace {

// Bytes of one access to flat ranges of planes: `chunk` of them, and what is left of `channels`.
int flat_bytes(const View& view, int64_t item, int64_t pixels, int64_t chunk, int64_t channels) {
  const int64_t bits = reinterpret_cast<int64_t>(view.data) | view.stride[0] * item |
                       chunk * pixels * item | channels % chunk * pixels * item | 16;
  return int(bits & -bits);
}

bool flat(const View& view, int64_t height, int64_t width) {
  return view.stride[3] == 1 && view.stride[2] == width && view.stride[1] == height * width;
}

template <typename T, int kSize>
cudaError_t run(const Params& p, const Gpu& gpu, void* stream) {
  constexpr int kTaps = kSize * kSize;
  const int64_t pixels = p.height * p.width, out_pixels = p.out_height * p.out_width;
  PlanesPlan plan = {};
  plan.lanes = int(kPlanesThreads / out_pixels);

  // A wave of blocks takes its turns over the channels, and a trip to memory, of some 16 turns.
  const int64_t slots = int64_t(gpu.multiprocessors) * (kSize == 3 ? 4 : 1);
  int64_t best = 0;
  int chosen = 0;
  for (plan.chunk = 4; plan.chunk <= 128; plan.chunk *= 2) {
    if (PlanesShared<T>(plan, pixels, out_pixels, kTaps).all() > 48 << 10) break;
    const int64_t waves = ceil_div(p.batch * ceil_div(p.channels, plan.chunk), slots);
    const int64_t cost = waves * (ceil_div(plan.chunk, plan.lanes) + 16);
    if (best == 0 || cost < best) best = cost, chosen = plan.chunk;
    if (plan.chunk >= p.channels) break;
  }
  if (chosen == 0) return cudaErrorNotSupported;
  plan.chunk = chosen;
  const int item = sizeof(T);
  const auto whole = [&](int bytes) {
    return bytes == 16 ? 16 : std::min(bytes, std::max(4, item));
  };
  plan.copy_bytes = whole(flat_bytes(p.features, item, pixels, plan.chunk, p.channels));
  plan.out_bytes = whole(flat_bytes(p.out, item, out_pixels, plan.chunk, p.channels));

  Grid grid;
  const int64_t blocks = p.batch * ceil_div(p.channels, plan.chunk);
  if (blocks > 0x7fffffff) return cudaErrorNotSupported;
  grid.blocks = dim3(unsigned(blocks));
  grid.threads = dim3(unsigned(round_up(int(plan.lanes * out_pixels), 32)));
  grid.shared = PlanesShared<T>(plan, pixels, out_pixels, kTaps).all();
  grid.stream = stream;
  const bool add = p.combine == Combine::add;
  return launch(grid, add ? planes_kernel<T, kSize, true> : planes_kernel<T, kSize, false>, p,
                plan);
}

template <typename T>
cudaError_t by_size(const Params& p, const Gpu& gpu, void* stream) {
  switch (p.kernel_size) {
    case 3:
      return run<T, 3>(p, gpu, stream);
    case 5:
      return run<T, 5>(p, gpu, stream);
    case 7:
      return run<T, 7>(p, gpu, stream);
    default:
      return cudaErrorNotSupported;
  }
}

}  // namespace

int launch_planes(const Params& p, const Gpu& gpu, void* stream) {
  if (p.dilation != 1 || std::max(p.height, p.width) > 1024 ||
      p.out_height * p.out_width > kPlanesThreads || !flat(p.features, p.height, p.width) ||
      !flat(p.out, p.out_height, p.out_width)) {
    return cudaErrorNotSupported;
  }
  switch (p.dtype) {
    case DType::float32:
      return by_size<float>(p, gpu, stream);
    case DType::float64:
      return by_size<double>(p, gpu, stream);
    case DType::float16:
      return by_size<__half>(p, gpu, stream);
    case DType::bfloat16:
      return by_size<__nv_bfloat16>(p, gpu, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace ddf
