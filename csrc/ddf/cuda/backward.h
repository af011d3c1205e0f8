// What the dispatch of the CUDA backward pass asks of each family of kernels. No torch in here.
#pragma once

#include "ddf/cuda/forward.h"

namespace ddf {

// Partial sums of a gradient, one after another in memory, each as large as the gradient and
// contiguous. There are none where one block has the whole sum and stores it itself.
struct Parts {
  void* data = nullptr;
  int64_t count = 1;  // of parts
};

// The parts of the gradient of the spatial filter, one for each chunk of channels, and of the
// channel filter, one for each tile of pixels.
struct BackwardParts {
  Parts spatial, channel;
};

// Places the parts in `work`, and returns the bytes that they take.
int64_t place_parts(const Params& params, BackwardParts* parts);

// Adds them up, in their order, into the gradients.
int launch_sums(const Params& params, const BackwardParts& parts, void* stream);

// Each returns a cudaError_t, cudaErrorNotSupported where the kernels cannot serve. Where `bytes`
// is given it receives what `work` has to hold, and nothing is launched.
int launch_strips(const Params& params, const Gpu& gpu, void* stream, int64_t* bytes);
int launch_walk(const Params& params, const Gpu& gpu, void* stream, int64_t* bytes);
int launch_apart(const Params& params, void* stream, int64_t* bytes);

}  // namespace ddf
