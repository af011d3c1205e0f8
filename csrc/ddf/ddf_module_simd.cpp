// What the fused module adds to the operator: the prediction and the normalisation of both filters,
// and the way back; one thread's part, compiled once per instruction set (KERNELS names the table
// it defines). ddf.h has the formulas.
//
// Floor per pixel and channel at k = 3: 9 multiply-adds for the spatial filter and one addition for
// the mean; the features once. On the way back 18 multiply-adds: 9 for the gradient of the 1x1
// convolution's weight and 9 for that of the features.
//
//   predict_spatial    an item is a tile of pixels. The sums of 9 taps of 3 vectors of pixels are
//                      registers: 12 loads for 27 multiply-adds. Channels pass in blocks, and are
//                      summed over the tile on the way; then the tile's filters are normalised.
//   predict_channel    an item is a vector of channels: 9 rows of `excite` for each. Every thread
//                      adds up the tiles' means and squeezes them by itself, which is less than
//                      waiting for another.
//   normalise_spatial  an item is a tile of pixels.
//   excite, squeeze    an item is a vector of channels, a hidden unit.
//   grad_features      an item is a block of channels: one thread sums a channel's weights over all
//                      pixels. Weights and sums of 9 taps are registers: 11 loads for 18
//                      multiply-adds.
//
// Each sum is taken in an order that the shape alone decides, so that the same bits come out for
// any number of threads. The way back predicts the filters anew: nothing but the inputs is kept for
// it.

#include "ddf/near.h"

namespace ddf::module {
namespace {

using near::Count;
using near::inside;
using near::Masked;
using near::plain;
using near::plain_at;

constexpr int kMostVectors = kManyRegisters ? 3 : 1;

constexpr int kRows = 9;               // of a 1x1 convolution that are summed at once
constexpr int64_t kBlock = 32;         // channels between a load and a store of these sums
constexpr int64_t kBackwardBlock = 8;  // channels of an item of grad_features
constexpr int64_t kLeastPixels = 96, kMostPixels = 960;  // of a tile
constexpr int64_t kItems = 16;          // tiles of a plane that has the pixels for it
constexpr double kLeastSpread = 1e-10;  // is added to the spread of a filter

template <typename A>
constexpr A kTiny =
    sizeof(A) == 4 ? static_cast<A>(1.17549435e-38) : static_cast<A>(2.2250738585072014e-308);

int64_t taps_of(const Params& p) { return p.kernel_size * p.kernel_size; }
int64_t pixels_of(const Params& p) { return p.out_height * p.out_width; }

template <typename A>
int64_t whole(int64_t count) {
  return round_up(count, kLanes<A>);
}

// How the plane of outputs is cut into tiles. Where features are read in place their rows follow
// one another, and the plane counts as a single row. The pixels of a tile are consecutive in any
// case.
struct Tiles {
  bool in_place;
  int64_t height, width;
  int64_t rows, columns, down, across;

  int64_t count() const { return down * across; }
  int64_t pixels() const { return rows * columns; }
};

template <typename T>
bool in_place(const Params& p, const View& view) {
  return plain<T>(view) && p.stride == 1 && view.stride[2] == p.width;
}

template <typename T>
Tiles cut(const ModuleParams& p) {
  Tiles t;
  t.in_place =
      in_place<T>(p, p.features) && (!p.grad_features.data || in_place<T>(p, p.grad_features));
  t.height = t.in_place ? 1 : p.out_height;
  t.width = t.in_place ? pixels_of(p) : p.out_width;
  const int64_t part = round_up(ceil_div(pixels_of(p), kItems), kLeastPixels);
  const int64_t limit = least(part, kMostPixels);
  t.columns = least(t.width, limit);
  t.rows = least(t.height, limit / t.columns);
  t.down = ceil_div(t.height, t.rows);
  t.across = ceil_div(t.width, t.columns);
  return t;
}

struct Tile {
  int64_t y, x, rows, columns, first;  // the first pixel's place in its plane

  Tile(const Tiles& t, int64_t index)
      : y(index / t.across * t.rows),
        x(index % t.across * t.columns),
        rows(least(t.rows, t.height - y)),
        columns(least(t.columns, t.width - x)),
        first(y * t.width + x) {}

  int64_t pixels() const { return rows * columns; }
};

// What the jobs leave one another.
template <typename T>
struct Work {
  using A = Accumulator<T>;

  A* parts = nullptr;        // sums of the features over a tile: (batch, tiles, whole channels)
  A* means = nullptr;        // (batch, whole channels)
  A* hidden = nullptr;       // (batch, whole hidden)
  A* raw_spatial = nullptr;  // backward: (batch, head*k^2, pixels); then its gradient
  A* raw_channel = nullptr;  // (batch, vectors of channels, k^2, lanes)
  A* excited = nullptr;      // gradient of the hidden units, a part for each vector of channels
  A* squeezed = nullptr;     // the same complete, zero where the unit is

  Work(const ModuleParams& p, Arena& arena) {
    const int64_t channels = whole<A>(p.channels), units = whole<A>(p.hidden);
    parts = arena.take<A>(p.batch * cut<T>(p).count() * channels);
    if (!p.backward) return;
    means = arena.take<A>(p.batch * channels);
    hidden = arena.take<A>(p.batch * units);
    raw_spatial = arena.take<A>(p.batch * p.head * taps_of(p) * pixels_of(p));
    raw_channel = arena.take<A>(p.batch * channels * taps_of(p));
    excited = arena.take<A>(p.batch * channels / kLanes<A> * units);
    squeezed = arena.take<A>(p.batch * units);
  }
};

template <typename T>
Work<T> work_of(const ModuleParams& p) {
  Arena arena(p.work);
  return Work<T>(p, arena);
}

// The pixels of a block of channels of a tile, one after another: in place, or copied.
template <typename T>
struct Pixels {
  using A = Accumulator<T>;

  const ModuleParams& p;
  const View& view;
  const bool in_place;
  const int64_t pitch;  // of a copy
  A* copy;
  A* data = nullptr;
  int64_t step = 0;  // from channel to channel

  Pixels(const ModuleParams& p, const View& view, const Tiles& tiles, int64_t channels,
         Arena& arena)
      : p(p), view(view), in_place(tiles.in_place), pitch(whole<A>(tiles.pixels())) {
    copy = in_place ? nullptr : arena.take<A>(channels * pitch);
  }

  T* row(const Tile& tile, int64_t n, int64_t c, int64_t i) const {
    return at<T>(view, n, c, (tile.y + i) * p.stride, tile.x * p.stride);
  }

  void load(const Tile& tile, int64_t n, int64_t first, int64_t channels) {
    if (in_place) {
      data = plain_at<T>(view, n, first, 0, 0) + tile.first;
      step = view.stride[1];
      return;
    }
    data = copy;
    step = pitch;
    const int64_t next = view.stride[3] * p.stride;
    int64_t c = 0;
    if constexpr (sizeof(T) == 4) {
      for (; view.stride[1] == 1 && c + kLanes<A> <= channels; c += kLanes<A>) {
        for (int64_t i = 0; i < tile.rows; ++i) {
          copy_pixels<A>(copy + c * pitch + i * tile.columns, pitch, row(tile, n, first + c, i),
                         next, tile.columns);
        }
      }
    }
    for (; c < channels; ++c) {
      for (int64_t i = 0; i < tile.rows; ++i) {
        copy_row(copy + c * pitch + i * tile.columns, row(tile, n, first + c, i), next,
                 tile.columns);
      }
    }
  }

  void store(const Tile& tile, int64_t n, int64_t first, int64_t channels) const {
    if (in_place) return;
    const int64_t next = view.stride[3] * p.stride;
    int64_t c = 0;
    if constexpr (sizeof(T) == 4) {
      for (; view.stride[1] == 1 && c + kLanes<A> <= channels; c += kLanes<A>) {
        for (int64_t i = 0; i < tile.rows; ++i) {
          store_pixels<A>(row(tile, n, first + c, i), next, copy + c * pitch + i * tile.columns,
                          pitch, tile.columns);
        }
      }
    }
    for (; c < channels; ++c) {
      for (int64_t i = 0; i < tile.rows; ++i) {
        store_row(row(tile, n, first + c, i), next, copy + c * pitch + i * tile.columns,
                  tile.columns);
      }
    }
  }
};

// How the filters of a vector of pixels or channels are spread over their taps.
template <typename A>
struct Norm {
  Vector<A> mean;
  Vector<A> factor;  // 1 / (spread + 1e-10)
  Vector<A> slope;   // what the spread adds to the gradient of a deviation

  Norm(const A* raw, int64_t pitch, int64_t taps) {
    const Vector<A> tiny = kTiny<A> - Vector<A>{};
    Vector<A> sum = {}, squares = {};
    for (int64_t j = 0; j < taps; ++j) sum += load(raw + j * pitch);
    mean = sum / static_cast<A>(taps);
    for (int64_t j = 0; j < taps; ++j) {
      const Vector<A> deviation = load(raw + j * pitch) - mean;
      squares += deviation * deviation;
    }
    const Vector<A> variance = squares / static_cast<A>(taps - 1);
    const Words spread_out = (Words)(variance >= tiny);
    const Vector<A> spread = root((Vector<A>)select(spread_out, (Words)variance, (Words)tiny));
    factor = 1 / (spread + static_cast<A>(kLeastSpread));
    slope =
        (Vector<A>)((Words)(factor * factor / (spread * static_cast<A>(taps - 1))) & spread_out);
  }
};

// ---- the spatial filter and the sums of the features ----

// Adds what a block of channels gives to kRows taps of kVectors vectors of pixels, `last` being the
// lanes of the last one.
template <typename A, int kVectors, bool kMasked, bool kPool>
void add_channels(A* sums, int64_t pitch, const A* from, int64_t step, const A* weight, A* pooled,
                  int64_t channels, LaneBits last) {
  Vector<A> sum[kRows][kVectors];
  DDF_UNROLL
  for (int r = 0; r < kRows; ++r) {
    DDF_UNROLL
    for (int v = 0; v < kVectors; ++v) sum[r][v] = load(sums + r * pitch + v * kLanes<A>);
  }
  for (int64_t c = 0; c < channels; ++c) {
    Vector<A> f[kVectors];
    DDF_UNROLL
    for (int v = 0; v < kVectors; ++v) {
      const A* here = from + v * kLanes<A>;
      f[v] = kMasked && v == kVectors - 1 ? load_lanes<Vector<A>>(here, last) : load(here);
      keep(f[v]);
      __builtin_prefetch(here + kVectors * kLanes<A>);
    }
    if (kPool) {
      Vector<A> total = load(pooled);
      DDF_UNROLL
      for (int v = 0; v < kVectors; ++v) total += f[v];
      store(pooled, total);
    }
    DDF_UNROLL
    for (int r = 0; r < kRows; ++r) {
      const Vector<A> w = weight[r] - Vector<A>{};
      DDF_UNROLL
      for (int v = 0; v < kVectors; ++v) sum[r][v] += w * f[v];
    }
    from += step;
    weight += kRows;
    pooled += kLanes<A>;
  }
  DDF_UNROLL
  for (int r = 0; r < kRows; ++r) {
    DDF_UNROLL
    for (int v = 0; v < kVectors; ++v) store(sums + r * pitch + v * kLanes<A>, sum[r][v]);
  }
}

// The same for all pixels of a tile.
template <typename A, bool kPool>
void add_channels_to_tile(A* sums, int64_t pitch, const A* from, int64_t step, const A* weight,
                          A* pooled, int64_t channels, int64_t pixels) {
  constexpr int64_t kLanes_ = kLanes<A>;
  int64_t x = 0;
  const auto group = [&](auto vectors, auto masked) __attribute__((always_inline)) {
    constexpr int kVectors = decltype(vectors)::value;
    const LaneBits last = inside(x + (kVectors - 1) * kLanes_, 0, pixels, kLanes_);
    add_channels<A, kVectors, decltype(masked)::value, kPool>(sums + x, pitch, from + x, step,
                                                              weight, pooled, channels, last);
    x += kVectors * kLanes_;
  };
  const auto rest = [&](auto masked) __attribute__((always_inline)) {
    const int64_t vectors = ceil_div(pixels - x, kLanes_);
    if constexpr (kMostVectors == 3) {
      if (vectors == 3) return group(Count<3>{}, masked);
      if (vectors == 2) return group(Count<2>{}, masked);
    }
    if (vectors == 1) group(Count<1>{}, masked);
  };
  while (x + kMostVectors * kLanes_ < pixels) group(Count<kMostVectors>{}, Masked<false>{});
  if (pixels % kLanes_ == 0) {
    rest(Masked<false>{});
  } else {
    rest(Masked<true>{});
  }
}

template <typename T>
struct SpatialPrediction {
  using A = Accumulator<T>;

  const ModuleParams& p;
  const Work<T> work;
  const Tiles tiles;
  const int64_t filters, blocks;  // rows of the 1x1 convolution; blocks of them
  const int64_t pitch;
  Pixels<T> features;
  A* sums;     // (blocks*kRows, pitch)
  A* weights;  // (blocks, channels, kRows), zero beyond the rows that there are
  A* pooled;   // (whole channels, lanes)
  A* row;      // of features, where there is a stride

  SpatialPrediction(const ModuleParams& p, Arena& arena)
      : p(p),
        work(work_of<T>(p)),
        tiles(cut<T>(p)),
        filters(p.head * taps_of(p)),
        blocks(ceil_div(filters, kRows)),
        pitch(whole<A>(tiles.pixels())),
        features(p, p.features, tiles, kBlock, arena),
        sums(arena.take<A>(blocks * kRows * pitch)),
        weights(arena.take<A>(blocks * p.channels * kRows)),
        pooled(arena.take<A>(whole<A>(p.channels) * kLanes<A>)),
        row(arena.take<A>(whole<A>(p.width))) {}

  void load_weights() {
    clear(weights, blocks * p.channels * kRows);
    const View& view = p.parameters.spatial_weight;
    for (int64_t i = 0; i < filters; ++i) {
      A* to = weights + i / kRows * p.channels * kRows + i % kRows;
      for (int64_t c = 0; c < p.channels; ++c) to[c * kRows] = load_one(at<T>(view, i, c, 0, 0));
    }
  }

  void run(int64_t n, int64_t index) {
    const Tile tile(tiles, index);
    for (int64_t i = 0; i < blocks * kRows; ++i) {
      const View& bias = p.parameters.spatial_bias;
      const A start = i < filters ? load_one(at<T>(bias, i, 0, 0, 0)) : A{0};
      for (int64_t x = 0; x < pitch; ++x) sums[i * pitch + x] = start;
    }
    clear(pooled, whole<A>(p.channels) * kLanes<A>);
    for (int64_t first = 0; first < p.channels; first += kBlock) {
      const int64_t channels = least(kBlock, p.channels - first);
      features.load(tile, n, first, channels);
      for (int64_t b = 0; b < blocks; ++b) {
        const auto add = b == 0 && p.stride == 1 ? add_channels_to_tile<A, true>
                                                 : add_channels_to_tile<A, false>;
        add(sums + b * kRows * pitch, pitch, features.data, features.step,
            weights + (b * p.channels + first) * kRows, pooled + first * kLanes<A>, channels,
            tile.pixels());
      }
    }
    if (p.stride > 1) pool(tile, n);
    store_parts(n, index);
    if (p.backward) store_raw(tile, n);
    normalise(tile);
    for (int64_t i = 0; i < filters; ++i) {
      T* plane = at<T>(p.spatial, n, i, 0, 0);
      store_row(plane + tile.first, 1, sums + i * pitch, tile.pixels());
    }
  }

  // The features that a tile of outputs spans.
  void pool(const Tile& tile, int64_t n) {
    const int64_t y0 = tile.y * p.stride, y1 = least(p.height, (tile.y + tile.rows) * p.stride);
    const int64_t x0 = tile.x * p.stride, x1 = least(p.width, (tile.x + tile.columns) * p.stride);
    for (int64_t c = 0; c < p.channels; ++c) {
      Vector<A> sum = {};
      for (int64_t y = y0; y < y1; ++y) {
        clear(row, whole<A>(x1 - x0));
        copy_row(row, at<T>(p.features, n, c, y, x0), p.features.stride[3], x1 - x0);
        for (int64_t x = 0; x < x1 - x0; x += kLanes<A>) sum += load(row + x);
      }
      store(pooled + c * kLanes<A>, sum);
    }
  }

  void store_parts(int64_t n, int64_t index) {
    A* to = work.parts + (n * tiles.count() + index) * whole<A>(p.channels);
    for (int64_t c = 0; c < p.channels; c += kLanes<A>) {
      Vector<A> lanes[kLanes<A>];
      DDF_UNROLL
      for (int i = 0; i < kLanes<A>; ++i) lanes[i] = load(pooled + (c + i) * kLanes<A>);
      store(to + c, totals<A>(lanes));
    }
  }

  void store_raw(const Tile& tile, int64_t n) {
    for (int64_t i = 0; i < filters; ++i) {
      memcpy(work.raw_spatial + (n * filters + i) * pixels_of(p) + tile.first, sums + i * pitch,
             static_cast<size_t>(tile.pixels()) * sizeof(A));
    }
  }

  void normalise(const Tile& tile) {
    const int64_t taps = taps_of(p);
    for (int64_t h = 0; h < p.head; ++h) {
      for (int64_t x = 0; x < tile.pixels(); x += kLanes<A>) {
        A* filter = sums + h * taps * pitch + x;
        const Norm<A> norm(filter, pitch, taps);
        const Vector<A> factor = norm.factor * static_cast<A>(p.spatial_scale);
        for (int64_t j = 0; j < taps; ++j) {
          store(filter + j * pitch, (load(filter + j * pitch) - norm.mean) * factor);
        }
      }
    }
  }
};

// ---- the channel filter ----

// kLanes rows of a matrix times a vector whose padding is zero; rows beyond the last one repeat it.
template <typename T>
Vector<Accumulator<T>> multiply(const View& matrix, int64_t first, int64_t rows,
                                const Accumulator<T>* vector, int64_t columns,
                                Accumulator<T>* copy) {
  using A = Accumulator<T>;
  const bool in_place = sizeof(T) == sizeof(A) && matrix.stride[1] == 1;
  const A* from[kLanes<A>];
  for (int i = 0; i < kLanes<A>; ++i) {
    const T* row = at<T>(matrix, least(first + i, rows - 1), 0, 0, 0);
    from[i] = in_place ? reinterpret_cast<const A*>(row) : copy + i * whole<A>(columns);
    if (!in_place) copy_row(copy + i * whole<A>(columns), row, matrix.stride[1], columns);
  }
  Vector<A> sums[kLanes<A>] = {};
  int64_t x = 0;
  for (; x + kLanes<A> <= columns; x += kLanes<A>) {
    const Vector<A> v = load(vector + x);
    DDF_UNROLL
    for (int i = 0; i < kLanes<A>; ++i) sums[i] += load(from[i] + x) * v;
  }
  if (x < columns) {
    const Vector<A> v = load(vector + x);
    const LaneBits bits = inside(x, 0, columns, kLanes<A>);
    DDF_UNROLL
    for (int i = 0; i < kLanes<A>; ++i) sums[i] += load_lanes<Vector<A>>(from[i] + x, bits) * v;
  }
  return totals<A>(sums);
}

template <typename T>
struct ChannelPrediction {
  using A = Accumulator<T>;

  const ModuleParams& p;
  const Work<T> work;
  const int64_t tiles, taps;
  A *means, *hidden;
  A* copy;    // of rows of a matrix
  A* filter;  // (k^2, lanes), of a vector of channels
  int64_t n = -1;

  ChannelPrediction(const ModuleParams& p, Arena& arena)
      : p(p), work(work_of<T>(p)), tiles(cut<T>(p).count()), taps(taps_of(p)) {
    means = arena.take<A>(whole<A>(p.channels));
    hidden = arena.take<A>(whole<A>(p.hidden));
    copy = arena.take<A>(kLanes<A> * whole<A>(most(p.channels, p.hidden)));
    filter = arena.take<A>(taps * kLanes<A>);
  }

  void move_to(int64_t sample) {
    n = sample;
    const int64_t channels = whole<A>(p.channels);
    const A* parts = work.parts + n * tiles * channels;
    for (int64_t c = 0; c < channels; c += kLanes<A>) {
      Vector<A> sum = {};
      for (int64_t i = 0; i < tiles; ++i) sum += load(parts + i * channels + c);
      store(means + c, sum / static_cast<A>(p.height * p.width));
    }
    for (int64_t c = p.channels; c < channels; ++c) means[c] = 0;
    const ModuleParameters& m = p.parameters;
    for (int64_t i = 0; i < p.hidden; i += kLanes<A>) {
      Vector<A> sum = multiply<T>(m.squeeze_weight, i, p.hidden, means, p.channels, copy);
      store(hidden + i, sum);
    }
    for (int64_t i = 0; i < whole<A>(p.hidden); ++i) {
      const A sum = i < p.hidden ? hidden[i] + load_one(at<T>(m.squeeze_bias, i, 0, 0, 0)) : A{0};
      hidden[i] = sum < 0 ? A{0} : sum;  // nan stays
    }
  }

  void keep_hidden() {
    memcpy(work.means + n * whole<A>(p.channels), means,
           static_cast<size_t>(whole<A>(p.channels)) * sizeof(A));
    memcpy(work.hidden + n * whole<A>(p.hidden), hidden,
           static_cast<size_t>(whole<A>(p.hidden)) * sizeof(A));
  }

  void run(int64_t block) {
    const int64_t first = block * kLanes<A>, rows = p.channels * taps;
    const int64_t channels = least(kLanes<A>, p.channels - first);
    const ModuleParameters& m = p.parameters;
    for (int64_t i = 0; i < kLanes<A> * taps; i += kLanes<A>) {
      const Vector<A> sum =
          multiply<T>(m.excite_weight, first * taps + i, rows, hidden, p.hidden, copy);
      for (int l = 0; l < kLanes<A>; ++l) {
        const int64_t c = (i + l) / taps, j = (i + l) % taps;
        const bool exists = c < channels;
        filter[j * kLanes<A> + c] =
            exists ? sum[l] + load_one(at<T>(m.excite_bias, first * taps + i + l, 0, 0, 0)) : A{0};
      }
    }
    if (p.backward) {
      const int64_t size = taps * kLanes<A>, blocks = ceil_div(p.channels, kLanes<A>);
      memcpy(work.raw_channel + (n * blocks + block) * size, filter,
             static_cast<size_t>(size) * sizeof(A));
    }
    const Norm<A> norm(filter, kLanes<A>, taps);
    for (int64_t j = 0; j < taps; ++j) {
      const Vector<A> normed = (load(filter + j * kLanes<A>) - norm.mean) * norm.factor;
      for (int64_t c = 0; c < channels; ++c) {
        const A std = load_one(at<T>(m.channel_std, (first + c) * taps + j, 0, 0, 0));
        store_one(at<T>(p.channel, n, first + c, j / p.kernel_size, j % p.kernel_size),
                  normed[c] * std);
      }
    }
  }
};

// ---- the way back through the spatial filter's normalisation ----

template <typename T>
struct SpatialNormalisation {
  using A = Accumulator<T>;

  const ModuleParams& p;
  const Work<T> work;
  const Tiles tiles;
  const int64_t pitch;
  A *raw, *grad;  // of a head: (k^2, pitch)

  SpatialNormalisation(const ModuleParams& p, Arena& arena)
      : p(p), work(work_of<T>(p)), tiles(cut<T>(p)), pitch(whole<A>(tiles.pixels())) {
    raw = arena.take<A>(taps_of(p) * pitch);
    grad = arena.take<A>(taps_of(p) * pitch);
  }

  void run(int64_t n, int64_t index) {
    const Tile tile(tiles, index);
    const int64_t taps = taps_of(p), pixels = tile.pixels();
    for (int64_t h = 0; h < p.head; ++h) {
      A* kept = work.raw_spatial + (n * p.head + h) * taps * pixels_of(p) + tile.first;
      clear(raw, taps * pitch);
      clear(grad, taps * pitch);
      for (int64_t j = 0; j < taps; ++j) {
        copy_row(raw + j * pitch, kept + j * pixels_of(p), 1, pixels);
        copy_row(grad + j * pitch, at<T>(p.grad_spatial, n, h * taps + j, 0, 0) + tile.first, 1,
                 pixels);
      }
      for (int64_t x = 0; x < pixels; x += kLanes<A>) go_back(raw + x, grad + x, taps);
      for (int64_t j = 0; j < taps; ++j) {
        store_row(kept + j * pixels_of(p), 1, grad + j * pitch, pixels);
      }
    }
  }

  void go_back(const A* filter, A* slope, int64_t taps) const {
    const Norm<A> norm(filter, pitch, taps);
    Vector<A> mean = {}, product = {};
    for (int64_t j = 0; j < taps; ++j) {
      const Vector<A> g = load(slope + j * pitch) * static_cast<A>(p.spatial_scale);
      mean += g;
      product += g * (load(filter + j * pitch) - norm.mean);
    }
    mean /= static_cast<A>(taps);
    for (int64_t j = 0; j < taps; ++j) {
      const Vector<A> g = load(slope + j * pitch) * static_cast<A>(p.spatial_scale);
      const Vector<A> deviation = load(filter + j * pitch) - norm.mean;
      store(slope + j * pitch, norm.factor * (g - mean) - norm.slope * product * deviation);
    }
  }
};

// ---- the way back through the channel branch ----

template <typename T>
struct Excitation {
  using A = Accumulator<T>;

  const ModuleParams& p;
  const Work<T> work;
  const int64_t taps, units;
  A *grad, *std;          // of a vector of channels: (k^2, lanes)
  A *sum_std, *sum_bias;  // likewise
  A* sum_weight;          // (lanes*k^2, units)
  A* row;                 // of the weight

  Excitation(const ModuleParams& p, Arena& arena)
      : p(p), work(work_of<T>(p)), taps(taps_of(p)), units(whole<A>(p.hidden)) {
    grad = arena.take<A>(taps * kLanes<A>);
    std = arena.take<A>(taps * kLanes<A>);
    sum_std = arena.take<A>(taps * kLanes<A>);
    sum_bias = arena.take<A>(taps * kLanes<A>);
    sum_weight = arena.take<A>(taps * kLanes<A> * units);
    row = arena.take<A>(units);
  }

  void run(int64_t block) {
    const int64_t first = block * kLanes<A>, blocks = ceil_div(p.channels, kLanes<A>);
    const int64_t channels = least(kLanes<A>, p.channels - first);
    const ModuleParameters& m = p.parameters;
    clear(std, taps * kLanes<A>);
    clear(sum_std, taps * kLanes<A>);
    clear(sum_bias, taps * kLanes<A>);
    clear(sum_weight, taps * kLanes<A> * units);
    clear(grad, taps * kLanes<A>);
    for (int64_t i = 0; i < channels * taps; ++i) {
      std[i % taps * kLanes<A> + i / taps] =
          load_one(at<T>(m.channel_std, first * taps + i, 0, 0, 0));
    }
    for (int64_t n = 0; n < p.batch; ++n) {
      for (int64_t i = 0; i < channels * taps; ++i) {
        const int64_t c = i / taps, j = i % taps;
        grad[j * kLanes<A> + c] =
            load_one(at<T>(p.grad_channel, n, first + c, j / p.kernel_size, j % p.kernel_size));
      }
      normalise(work.raw_channel + (n * blocks + block) * taps * kLanes<A>);
      A* excited = work.excited + (n * blocks + block) * units;
      clear(excited, units);
      clear(row, units);
      for (int64_t i = 0; i < channels * taps; ++i) {
        const A g = grad[i % taps * kLanes<A> + i / taps];
        copy_row(row, at<T>(m.excite_weight, first * taps + i, 0, 0, 0), m.excite_weight.stride[1],
                 p.hidden);
        A* weight = sum_weight + i * units;
        const A* hidden = work.hidden + n * units;
        for (int64_t u = 0; u < units; u += kLanes<A>) {
          store(weight + u, load(weight + u) + g * load(hidden + u));
          store(excited + u, load(excited + u) + g * load(row + u));
        }
      }
    }
    const ModuleParameters& to = p.grad_parameters;
    if (!to.excite_weight.data) return;
    for (int64_t i = 0; i < channels * taps; ++i) {
      const int64_t at_i = first * taps + i, place = i % taps * kLanes<A> + i / taps;
      store_one(at<T>(to.channel_std, at_i, 0, 0, 0), sum_std[place]);
      store_one(at<T>(to.excite_bias, at_i, 0, 0, 0), sum_bias[place]);
      store_row(at<T>(to.excite_weight, at_i, 0, 0, 0), to.excite_weight.stride[1],
                sum_weight + i * units, p.hidden);
    }
  }

  // From the gradient of the filter to that of the raw one.
  void normalise(const A* raw) {
    const Norm<A> norm(raw, kLanes<A>, taps);
    Vector<A> mean = {}, product = {};
    for (int64_t j = 0; j < taps * kLanes<A>; j += kLanes<A>) {
      const Vector<A> deviation = load(raw + j) - norm.mean, g = load(grad + j);
      store(sum_std + j, load(sum_std + j) + g * deviation * norm.factor);
      mean += g * load(std + j);
      product += g * load(std + j) * deviation;
    }
    mean /= static_cast<A>(taps);
    for (int64_t j = 0; j < taps * kLanes<A>; j += kLanes<A>) {
      const Vector<A> deviation = load(raw + j) - norm.mean;
      const Vector<A> g =
          norm.factor * (load(grad + j) * load(std + j) - mean) - norm.slope * product * deviation;
      store(grad + j, g);
      store(sum_bias + j, load(sum_bias + j) + g);
    }
  }
};

template <typename T>
struct Squeeze {
  using A = Accumulator<T>;

  const ModuleParams& p;
  const Work<T> work;
  const int64_t channels;
  A* sums;

  Squeeze(const ModuleParams& p, Arena& arena)
      : p(p), work(work_of<T>(p)), channels(whole<A>(p.channels)), sums(arena.take<A>(channels)) {}

  void run(int64_t unit) {
    const int64_t units = whole<A>(p.hidden), blocks = channels / kLanes<A>;
    clear(sums, channels);
    A bias = 0;
    for (int64_t n = 0; n < p.batch; ++n) {
      A g = 0;
      for (int64_t b = 0; b < blocks; ++b) g += work.excited[(n * blocks + b) * units + unit];
      if (!(work.hidden[n * units + unit] > 0)) g = 0;
      work.squeezed[n * units + unit] = g;
      bias += g;
      for (int64_t c = 0; c < channels; c += kLanes<A>) {
        store(sums + c, load(sums + c) + g * load(work.means + n * channels + c));
      }
    }
    const ModuleParameters& to = p.grad_parameters;
    if (!to.squeeze_weight.data) return;
    store_one(at<T>(to.squeeze_bias, unit, 0, 0, 0), bias);
    store_row(at<T>(to.squeeze_weight, unit, 0, 0, 0), to.squeeze_weight.stride[1], sums,
              p.channels);
  }
};

// ---- the way back through the 1x1 convolution and the mean ----

// Of one channel and kRows filters: sums[r] += the sum over pixels of features * rows[r], and,
// where `grad` is given, grad += the sum over rows of weight * rows, and `constant`.
template <typename A, bool kGrad>
void add_filters(A* sums, A* grad, const A* features, const A* const* rows, const A* weight,
                 A constant, int64_t pixels) {
  Vector<A> sum[kRows];
  DDF_UNROLL
  for (int r = 0; r < kRows; ++r) sum[r] = load(sums + r * kLanes<A>);
  const auto step = [&](int64_t x, auto load_here, auto store_here) __attribute__((always_inline)) {
    const Vector<A> f = load_here(features + x);
    Vector<A> d = {};
    if constexpr (kGrad) d = load_here(grad + x) + constant;
    DDF_UNROLL
    for (int r = 0; r < kRows; ++r) {
      Vector<A> g = load_here(rows[r] + x);
      keep(g);
      sum[r] += g * f;
      if constexpr (kGrad) d += weight[r] * g;
    }
    if constexpr (kGrad) store_here(grad + x, d);
  };
  int64_t x = 0;
  for (; x + kLanes<A> <= pixels; x += kLanes<A>) {
    step(x, [](const A* from) { return load(from); }, [](A* to, Vector<A> v) { store(to, v); });
  }
  if (x < pixels) {
    const LaneBits bits = inside(x, 0, pixels, kLanes<A>);
    step(
        x, [bits](const A* from) { return load_lanes<Vector<A>>(from, bits); },
        [bits](A* to, Vector<A> v) { store_lanes(to, bits, v); });
  }
  DDF_UNROLL
  for (int r = 0; r < kRows; ++r) store(sums + r * kLanes<A>, sum[r]);
}

template <typename T>
struct FeatureGradient {
  using A = Accumulator<T>;

  const ModuleParams& p;
  const Work<T> work;
  const Tiles tiles;
  const int64_t filters, blocks;
  Pixels<T> features, gradient;
  A* weights;  // (blocks, channels of the item, kRows)
  A* sums;     // likewise, a vector for each
  A* zeros;    // a row for each filter that there is not
  A* row;      // of the gradient, where there is a stride

  FeatureGradient(const ModuleParams& p, Arena& arena)
      : p(p),
        work(work_of<T>(p)),
        tiles(cut<T>(p)),
        filters(p.head * taps_of(p)),
        blocks(ceil_div(filters, kRows)),
        features(p, p.features, tiles, kChannels(), arena),
        gradient(p, p.grad_features, tiles, kChannels(), arena),
        weights(arena.take<A>(blocks * kChannels() * kRows)),
        sums(arena.take<A>(blocks * kChannels() * kRows * kLanes<A>)),
        zeros(arena.take<A>(tiles.pixels())),
        row(arena.take<A>(p.width)) {}

  // Of an item: whole vectors where channels are adjacent, which then are transposed.
  static constexpr int64_t kChannels() {
    return kLanes<A> > kBackwardBlock ? kLanes<A> : kBackwardBlock;
  }

  void run(int64_t first, int64_t channels) {
    load_weights(first, channels);
    clear(sums, blocks * kChannels() * kRows * kLanes<A>);
    for (int64_t n = 0; n < p.batch; ++n) {
      A means[kChannels()];
      for (int64_t c = 0; c < channels; ++c) means[c] = mean_gradient(n, first + c);
      if (p.stride > 1 && p.grad_features.data) add_means(n, first, channels, means);
      for (int64_t i = 0; i < tiles.count(); ++i) {
        const Tile tile(tiles, i);
        features.load(tile, n, first, channels);
        if (p.grad_features.data) {
          gradient.load(tile, n, first, channels);
          for (int64_t c = 0; c < channels; ++c)
            add<true>(tile, n, c, p.stride > 1 ? A{0} : means[c]);
          gradient.store(tile, n, first, channels);
        } else {
          for (int64_t c = 0; c < channels; ++c) add<false>(tile, n, c, A{0});
        }
      }
    }
    const View& to = p.grad_parameters.spatial_weight;
    if (!to.data) return;
    for (int64_t i = 0; i < filters; ++i) {
      for (int64_t c = 0; c < channels; ++c) {
        const A* sum = sums + ((i / kRows * kChannels() + c) * kRows + i % kRows) * kLanes<A>;
        store_one(at<T>(to, i, first + c, 0, 0), total<A, kVectorBytes>(load(sum)));
      }
    }
  }

  void load_weights(int64_t first, int64_t channels) {
    clear(weights, blocks * kChannels() * kRows);
    for (int64_t i = 0; i < filters; ++i) {
      for (int64_t c = 0; c < channels; ++c) {
        weights[(i / kRows * kChannels() + c) * kRows + i % kRows] =
            load_one(at<T>(p.parameters.spatial_weight, i, first + c, 0, 0));
      }
    }
  }

  // What each pixel of a channel gets through the mean.
  A mean_gradient(int64_t n, int64_t c) const {
    A sum = 0;
    for (int64_t i = 0; i < p.hidden; ++i) {
      sum += work.squeezed[n * whole<A>(p.hidden) + i] *
             load_one(at<T>(p.parameters.squeeze_weight, i, c, 0, 0));
    }
    return sum / static_cast<A>(p.height * p.width);
  }

  void add_means(int64_t n, int64_t first, int64_t channels, const A* means) {
    for (int64_t c = 0; c < channels; ++c) {
      for (int64_t y = 0; y < p.height; ++y) {
        T* at_row = at<T>(p.grad_features, n, first + c, y, 0);
        copy_row(row, at_row, p.grad_features.stride[3], p.width);
        for (int64_t x = 0; x < p.width; ++x) row[x] += means[c];
        store_row(at_row, p.grad_features.stride[3], row, p.width);
      }
    }
  }

  template <bool kGrad>
  void add(const Tile& tile, int64_t n, int64_t c, A constant) {
    for (int64_t b = 0; b < blocks; ++b) {
      const A* rows[kRows];
      for (int64_t r = 0; r < kRows; ++r) {
        const int64_t i = b * kRows + r;
        rows[r] =
            i < filters ? work.raw_spatial + (n * filters + i) * pixels_of(p) + tile.first : zeros;
      }
      A* grad = kGrad ? gradient.data + c * gradient.step : nullptr;
      add_filters<A, kGrad>(
          sums + (b * kChannels() + c) * kRows * kLanes<A>, grad, features.data + c * features.step,
          rows, weights + (b * kChannels() + c) * kRows, b == 0 ? constant : A{0}, tile.pixels());
    }
  }
};

template <typename T>
struct BiasGradient {
  using A = Accumulator<T>;

  const ModuleParams& p;
  const Work<T> work;

  BiasGradient(const ModuleParams& p, Arena&) : p(p), work(work_of<T>(p)) {}

  void run(int64_t filter) const {
    const int64_t filters = p.head * taps_of(p), pixels = pixels_of(p);
    Vector<A> sum = {};
    for (int64_t n = 0; n < p.batch; ++n) {
      const A* from = work.raw_spatial + (n * filters + filter) * pixels;
      int64_t x = 0;
      for (; x + kLanes<A> <= pixels; x += kLanes<A>) sum += load(from + x);
      if (x < pixels) sum += load_lanes<Vector<A>>(from + x, inside(x, 0, pixels, kLanes<A>));
    }
    store_one(at<T>(p.grad_parameters.spatial_bias, filter, 0, 0, 0), total<A, kVectorBytes>(sum));
  }
};

// ---- the jobs ----

const ModuleParams& module_params(const Params& p) { return static_cast<const ModuleParams&>(p); }

template <typename Worker>
int64_t scratch_bytes(const ModuleParams& p) {
  Arena arena(nullptr);
  const Worker worker(p, arena);
  return arena.used();
}

template <typename T>
void predict_spatial(const Params& params, int64_t begin, int64_t end, void* scratch) {
  Arena arena(scratch);
  SpatialPrediction<T> prediction(module_params(params), arena);
  prediction.load_weights();
  const int64_t tiles = prediction.tiles.count();
  for (int64_t item = begin; item < end; ++item) prediction.run(item / tiles, item % tiles);
}

template <typename T>
Job predict_spatial_job(const ModuleParams& p) {
  const Tiles tiles = cut<T>(p);
  return {p.batch * tiles.count(), p.channels * p.head * taps_of(p) * tiles.pixels(),
          scratch_bytes<SpatialPrediction<T>>(p), predict_spatial<T>};
}

template <typename T>
void predict_channel(const Params& params, int64_t begin, int64_t end, void* scratch) {
  Arena arena(scratch);
  const ModuleParams& p = module_params(params);
  ChannelPrediction<T> prediction(p, arena);
  const int64_t blocks = ceil_div(p.channels, kLanes<Accumulator<T>>);
  for (int64_t item = begin; item < end; ++item) {
    if (prediction.n != item / blocks) prediction.move_to(item / blocks);
    if (p.backward && item % blocks == 0) prediction.keep_hidden();
    prediction.run(item % blocks);
  }
}

template <typename T>
Job predict_channel_job(const ModuleParams& p) {
  constexpr int64_t lanes = kLanes<Accumulator<T>>;
  return {p.batch * ceil_div(p.channels, lanes), lanes * taps_of(p) * p.hidden,
          scratch_bytes<ChannelPrediction<T>>(p), predict_channel<T>};
}

template <typename T>
void normalise_spatial(const Params& params, int64_t begin, int64_t end, void* scratch) {
  Arena arena(scratch);
  SpatialNormalisation<T> normalisation(module_params(params), arena);
  const int64_t tiles = normalisation.tiles.count();
  for (int64_t item = begin; item < end; ++item) normalisation.run(item / tiles, item % tiles);
}

template <typename T>
Job normalise_spatial_job(const ModuleParams& p) {
  const Tiles tiles = cut<T>(p);
  return {p.batch * tiles.count(), 8 * p.head * taps_of(p) * tiles.pixels(),
          scratch_bytes<SpatialNormalisation<T>>(p), normalise_spatial<T>};
}

template <typename T>
void grad_features(const Params& params, int64_t begin, int64_t end, void* scratch) {
  Arena arena(scratch);
  const ModuleParams& p = module_params(params);
  FeatureGradient<T> gradient(p, arena);
  constexpr int64_t channels = FeatureGradient<T>::kChannels();
  clear(gradient.zeros, gradient.tiles.pixels());
  for (int64_t item = begin; item < end; ++item) {
    gradient.run(item * channels, least(channels, p.channels - item * channels));
  }
}

template <typename T>
Job grad_features_job(const ModuleParams& p) {
  constexpr int64_t channels = FeatureGradient<T>::kChannels();
  return {ceil_div(p.channels, channels),
          2 * p.batch * channels * p.head * taps_of(p) * pixels_of(p),
          scratch_bytes<FeatureGradient<T>>(p), grad_features<T>};
}

// Jobs whose items are numbered through.
template <typename Worker>
void run_each(const Params& params, int64_t begin, int64_t end, void* scratch) {
  Arena arena(scratch);
  Worker worker(module_params(params), arena);
  for (int64_t item = begin; item < end; ++item) worker.run(item);
}

template <typename T>
Job excite_job(const ModuleParams& p) {
  constexpr int64_t lanes = kLanes<Accumulator<T>>;
  return {ceil_div(p.channels, lanes), 2 * p.batch * lanes * taps_of(p) * p.hidden,
          scratch_bytes<Excitation<T>>(p), run_each<Excitation<T>>};
}

template <typename T>
Job squeeze_job(const ModuleParams& p) {
  return {p.hidden, p.batch * p.channels, scratch_bytes<Squeeze<T>>(p), run_each<Squeeze<T>>};
}

template <typename T>
Job grad_bias_job(const ModuleParams& p) {
  if (!p.grad_parameters.spatial_bias.data) return {};
  return {p.head * taps_of(p), p.batch * pixels_of(p), 0, run_each<BiasGradient<T>>};
}

template <typename T>
int64_t work_bytes(const ModuleParams& p) {
  Arena arena(nullptr);
  const Work<T> work(p, arena);
  return arena.used();
}

}  // namespace

extern const Kernels KERNELS = {
    DDF_BY_DTYPE(ModuleParams, int64_t, work_bytes),
    DDF_BY_DTYPE(ModuleParams, Job, predict_spatial_job),
    DDF_BY_DTYPE(ModuleParams, Job, predict_channel_job),
    DDF_BY_DTYPE(ModuleParams, Job, normalise_spatial_job),
    DDF_BY_DTYPE(ModuleParams, Job, excite_job),
    DDF_BY_DTYPE(ModuleParams, Job, squeeze_job),
    DDF_BY_DTYPE(ModuleParams, Job, grad_features_job),
    DDF_BY_DTYPE(ModuleParams, Job, grad_bias_job),
};

}  // namespace ddf::module
