// What the dispatch of the CUDA forward pass asks of each family of kernels. No torch in here.
#pragma once

#include "ddf/ddf.h"

namespace ddf {

// Of the GPU.
struct Gpu {
  int arch;  // compute capability, 90 for 9.0, or of the code that it runs if that is less
  int multiprocessors;
  int shared;  // bytes of shared memory that a block can have
};

// How the outputs of a sample are cut into blocks.
struct Cut {
  int rows;   // of a tile
  int down;   // tiles of a plane
  int chunk;  // channels of a block
};

// What a kernel allows: rows of a tile in steps of `row_unit`, channels of a block in steps of
// `channel_unit`; tiles that are as high lie `across` a plane.
struct CutLimits {
  int row_unit, most_rows;
  int channel_unit;
  int64_t most_chunk;
  int64_t across;
  int blocks_at_once;  // on a multiprocessor
};

// The fewest tiles that keep the multiprocessors busy with blocks of all channels, so that each
// fetches the spatial filter of its pixels and no other block does; where that would take tiles
// whose halo rows are more than kMostHalo of their own, channels are split.
Cut cut(const Params& params, const Gpu& gpu, const CutLimits& limits);

// The blocks of a cluster, where those that a tile's channels are split over are to run in
// clusters: as many as it takes or as divide them, at most 8, which every GPU with clusters has. A
// chunk may become smaller by that; 1: a tile is one block's.
int cluster_blocks(int64_t channels, int channel_unit, Cut* cut);

// Each returns a cudaError_t, cudaErrorNotSupported where the kernel cannot serve; nothing has
// happened then. cluster: blocks of a tile share one reading of its spatial filter; sm_90 on.
int launch_rows(const Params& params, const Gpu& gpu, void* stream, bool bulk);
int launch_planes(const Params& params, const Gpu& gpu, void* stream, bool bands, bool cluster);
int launch_channels(const Params& params, const Gpu& gpu, void* stream, bool cluster);
int launch_general(const Params& params, void* stream);

}  // namespace ddf
