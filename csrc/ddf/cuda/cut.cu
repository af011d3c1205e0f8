// How the outputs of a sample are cut into blocks: docs/operator.md has what comes of it.

#include <algorithm>

#include "ddf/cuda/common.cuh"
#include "ddf/cuda/forward.h"

namespace ddf {
namespace {

constexpr double kMostHalo = 0.45;  // in whole sectors, 28 x 28 in 16 bits then reads 1.49 times
constexpr int kMostCluster = 8;
constexpr double kEnough = 0.75;  // of the places for blocks: those of one wave share the memory

}  // namespace

Cut cut(const Params& p, const Gpu& gpu, const CutLimits& limits) {
  const int64_t samples = p.batch * limits.across;
  const int64_t fewest = ceil_div(p.channels, limits.most_chunk);
  const double overlap = double(std::max<int64_t>(0, p.kernel_size - p.stride));
  const auto tiles = [&](int64_t down, int64_t chunks) {
    Cut cut;
    cut.rows = round_up(int(ceil_div(p.out_height, down)), limits.row_unit);
    cut.down = int(ceil_div(p.out_height, cut.rows));
    cut.chunk = round_up(int(ceil_div(p.channels, chunks)), limits.channel_unit);
    return cut;
  };
  const auto halo = [&](const Cut& cut) { return (cut.down - 1) * overlap / double(p.height); };
  const int64_t least_down = ceil_div(p.out_height, limits.most_rows);
  const int64_t most_down = ceil_div(p.out_height, limits.row_unit);
  for (int at_once = limits.blocks_at_once; at_once > 0; --at_once) {
    const double wanted = kEnough * at_once * gpu.multiprocessors;
    for (int64_t down = least_down; down <= most_down; ++down) {
      const Cut whole = tiles(down, fewest);
      if (halo(whole) > kMostHalo && down > least_down) break;
      if (double(samples * whole.down * fewest) >= wanted) return whole;
    }
  }
  // By what the multiprocessors read: features with their halo, S once for each chunk.
  const double taps = double(p.kernel_size * p.kernel_size);
  double least = 0;
  Cut best = {};
  for (int64_t down = least_down; down <= most_down; ++down) {
    const double blocks = double(std::max<int64_t>(1, samples * tiles(down, fewest).down));
    const int64_t chunks = int64_t(kEnough * gpu.multiprocessors / blocks) + 1;
    const int64_t most = ceil_div(p.channels, std::max(8, limits.channel_unit));
    const Cut split = tiles(down, std::max(fewest, std::min(chunks, most)));
    if (halo(split) > 1 && best.rows > 0) break;
    const double read =
        1 + halo(split) + taps / split.chunk * double(p.out_height) / double(p.height);
    if (best.rows == 0 || read < least) least = read, best = split;
  }
  return best;
}

int cluster_blocks(int64_t channels, int channel_unit, Cut* cut) {
  for (; cut->chunk > 0; cut->chunk -= channel_unit) {
    const int64_t chunks = ceil_div(channels, cut->chunk);
    if (chunks == 1) return 1;
    for (int blocks = kMostCluster; blocks > 1; --blocks) {
      if (chunks % blocks == 0) return blocks;
    }
  }
  return 1;
}

}  // namespace ddf
