// The operator on a CPU, one thread's part; compiled once per instruction set (KERNELS names
// the table it defines).
//
// There is one inner loop, `line`: a run of consecutive outputs, for each tap a vector of one
// filter, the other filter's number, and a vector of features. mul and add are symmetric in the two
// filters, so the same loop serves both layouts:
//
//   pixels    the outputs are pixels of one channel; S is the vector, C the number. Channels share
//   the loaded S. channels  the outputs are channels of one pixel, adjacent in memory; C is the
//   vector, S the number.
//
// Along pixels, work is cut into tiles whose filters fit the first-level cache (9 taps x 672 pixels
// x 4 B = 24 KB), and a tile of the features is copied, with its zero border, into scratch memory.
// That copy settles everything that is irregular at a tenth of the cost of the sum: padding,
// strided tensors, 16-bit elements, and a stride of the operator, for which every stride-th pixel
// goes to a plane of its own (its "phase"). After it all taps of all outputs are a constant
// distance apart, rows included, so that a 7 x 7 plane fills whole vectors; the columns between
// rows are computed and dropped.
//
// The gradient of the features is the same sweep with the output's gradient as its source and taps
// that run backwards, one sweep for each phase of the input. The other two gradients sum over
// channels and over pixels. Every sum is taken by one thread in one order, so that the same bits
// come out for any number of threads.

#include "ddf/ddf_cpu.h"
#include "ddf/scratch.h"
#include "ddf/simd.h"

namespace ddf {
namespace {

constexpr int64_t kFilterBytes = 256 << 10;  // of one tile, in scratch memory
constexpr int64_t kColumns = 256;            // of one tile at most
constexpr int64_t kChannelBlock = 32;        // channels of one item

// The taps along one axis of a sweep. Target t reads, for the i-th of `count` taps, the source at
// t*step + start[plane[i]] + shift[i]*step.
struct Axis {
  int64_t step = 1;
  int64_t count = 0, planes = 0;
  int64_t tap[kMaxKernelSize];     // which of the kernel_size taps
  int64_t plane[kMaxKernelSize];   // the phase of the source it reads
  int64_t shift[kMaxKernelSize];   // 0 .. halo
  int64_t start[kMaxKernelSize];   // by plane
  int64_t filter[kMaxKernelSize];  // target t uses S at t + filter[i]

  void add(int64_t j, int64_t from, int64_t by, int64_t filter_offset) {
    int64_t p = 0;
    while (p < planes && start[p] != from) ++p;
    if (p == planes) start[planes++] = from;
    tap[count] = j;
    plane[count] = p;
    shift[count] = by;
    filter[count++] = filter_offset;
  }
};

// A dilation larger than the plane reads the same zeros as one of the plane's size.
int64_t useful_dilation(const Params& p, int64_t size) { return least(p.dilation, size); }

int64_t halo(const Params& p, int64_t size) {
  return useful_dilation(p, size) * (p.kernel_size - 1) / p.stride;
}

// The outputs read the features.
Axis forward_axis(const Params& p, int64_t size) {
  const int64_t dilation = useful_dilation(p, size), pad = dilation * (p.kernel_size - 1) / 2;
  Axis axis;
  axis.step = p.stride;
  for (int64_t j = 0; j < p.kernel_size; ++j) {
    axis.add(j, dilation * j % p.stride - pad, dilation * j / p.stride, 0);
  }
  return axis;
}

// The gradients of the features at phase + q*stride read the gradient of the output, where a tap
// leads to one.
Axis backward_axis(const Params& p, int64_t size, int64_t phase) {
  const int64_t dilation = useful_dilation(p, size), pad = dilation * (p.kernel_size - 1) / 2;
  Axis axis;
  int64_t start = 0;
  for (int64_t j = p.kernel_size - 1; j >= 0; --j) {  // rising offsets
    const int64_t distance = phase + pad - dilation * j;
    if (distance % p.stride != 0) continue;
    const int64_t offset = distance / p.stride;
    if (axis.count == 0) start = offset;
    axis.add(j, start, offset - start, offset);
  }
  return axis;
}

// How the targets of a plane are cut. Row r of a tile begins r*pitch into its line.
struct Tiles {
  int64_t rows, columns, down, across;
  int64_t pitch, length, source_rows;

  int64_t count() const { return down * across; }
};

struct Place {
  int64_t y, x, rows, columns;
};

template <typename A>
Tiles cut(const Params& p, int64_t height, int64_t width) {
  const int64_t taps = p.kernel_size * p.kernel_size, halo_x = halo(p, p.width);
  const int64_t pixels = kFilterBytes / (taps * static_cast<int64_t>(sizeof(A)));
  Tiles t;
  t.columns = even_part(width, kColumns);
  t.pitch = t.columns + halo_x;
  t.rows = halo_x > t.columns ? 1 : even_part(height, pixels / t.pitch);
  t.down = ceil_div(height, t.rows);
  t.across = ceil_div(width, t.columns);
  t.length = round_up((t.rows - 1) * t.pitch + t.columns, kLanes<A>);
  t.source_rows = t.rows + halo(p, p.height);
  return t;
}

// One axis of a copy: element i comes from start + i*step, and is left alone where that is outside
// 0 .. size.
struct Range {
  int64_t first, last, start, step;

  Range(int64_t start, int64_t step, int64_t size, int64_t count)
      : first(most(0, ceil_div(-start, step))),
        last(most(first, least(count, ceil_div(size - start, step)))),
        start(start),
        step(step) {}
};

// Copies the part of a plane that `y` and `x` select.
template <typename A, typename T>
void copy_plane(A* to, int64_t pitch, const T* plane, const int64_t* stride, Range y, Range x) {
  if (x.first == x.last) return;
  for (int64_t i = y.first; i < y.last; ++i) {
    const T* row = plane + (y.start + i * y.step) * stride[2];
    copy_row(to + i * pitch + x.first, row + (x.start + x.first * x.step) * stride[3],
             x.step * stride[3], x.last - x.first);
  }
}

template <typename T, typename A>
void store_plane(T* to, int64_t stride_y, int64_t stride_x, const A* from, int64_t pitch,
                 const Place& place) {
  for (int64_t i = 0; i < place.rows; ++i) {
    store_row(to + i * stride_y, stride_x, from + i * pitch, place.columns);
  }
}

// The inner loop. `vectors` holds, for each block of kLanes outputs, one vector for each tap.
template <typename T, bool kAdd>
void line(int64_t taps, const Accumulator<T>* vectors, const Accumulator<T>* numbers,
          const T* const* features, T* out, int64_t blocks) {
  using A = Accumulator<T>;
  for (int64_t b = 0; b < blocks; ++b) {
    Vector<A> sum = {};
    for (int64_t j = 0; j < taps; ++j, vectors += kLanes<A>) {
      const Vector<A> filter = kAdd ? load(vectors) + numbers[j] : load(vectors) * numbers[j];
      sum += filter * load(features[j] + b * kLanes<A>);
    }
    store(out + b * kLanes<A>, sum);
  }
}

// The same for nine taps, whose numbers and addresses then stay in registers.
template <typename T, bool kAdd>
void line_of_9(int64_t, const Accumulator<T>* vectors, const Accumulator<T>* numbers,
               const T* const* features, T* out, int64_t blocks) {
  using A = Accumulator<T>;
  A number[9];
  const T* feature[9];
  memcpy(number, numbers, sizeof(number));
  memcpy(feature, features, sizeof(feature));
  for (int64_t b = 0; b < blocks; ++b) {
    Vector<A> sum = {};
#pragma GCC unroll 9
    for (int j = 0; j < 9; ++j) {
      const Vector<A> vector = load(vectors + (b * 9 + j) * kLanes<A>);
      const Vector<A> filter = kAdd ? vector + number[j] : vector * number[j];
      sum += filter * load(feature[j] + b * kLanes<A>);
    }
    store(out + b * kLanes<A>, sum);
  }
}

template <typename T>
using Line = void (*)(int64_t, const Accumulator<T>*, const Accumulator<T>*, const T* const*, T*,
                      int64_t);

template <typename T>
Line<T> choose_line(Combine combine, int64_t taps) {
  if (taps == 9) return combine == Combine::add ? line_of_9<T, true> : line_of_9<T, false>;
  return combine == Combine::add ? line<T, true> : line<T, false>;
}

// A sweep along pixels: where it is, and the scratch memory of one tile.
template <typename T>
struct Sweep {
  using A = Accumulator<T>;

  const Params& p;
  const View& source;
  int64_t source_height, source_width;
  Tiles tiles;
  Axis ys, xs;
  Place place;

  int64_t tile_size;
  A* tile;             // the source, a plane for each phase
  A* vectors;          // S, for each block of kLanes targets one vector for each tap
  A* row;              // a line of targets
  A* numbers;          // C of one channel
  const A** features;  // where each tap begins in the tile

  Sweep(const Params& p, const View& source, int64_t source_height, int64_t source_width,
        int64_t target_height, int64_t target_width, Arena& arena)
      : p(p),
        source(source),
        source_height(source_height),
        source_width(source_width),
        tiles(cut<A>(p, target_height, target_width)) {
    const int64_t k = p.kernel_size, phases = least(k, p.stride);
    tile_size = phases * phases * tiles.source_rows * tiles.pitch + kLanes<A>;
    tile = arena.take<A>(tile_size);
    vectors = arena.take<A>(k * k * tiles.length);
    row = arena.take<A>(tiles.length);
    numbers = arena.take<A>(k * k);
    features = arena.take<const A*>(k * k);
  }

  int64_t taps() const { return ys.count * xs.count; }
  int64_t blocks() const { return tiles.length / kLanes<A>; }

  void set_axes(const Axis& vertical, const Axis& horizontal) {
    ys = vertical;
    xs = horizontal;
    for (int64_t a = 0, i = 0; a < ys.count; ++a) {
      for (int64_t b = 0; b < xs.count; ++b, ++i) {
        const int64_t plane = ys.plane[a] * xs.planes + xs.plane[b];
        features[i] = tile + (plane * tiles.source_rows + ys.shift[a]) * tiles.pitch + xs.shift[b];
      }
    }
  }

  // Goes to a tile of a plane of targets of this size. The border of the source is zeroed here,
  // once for all channels.
  void move_to(int64_t index, int64_t height, int64_t width) {
    const int64_t y = index / tiles.across * tiles.rows, x = index % tiles.across * tiles.columns;
    place = {y, x, least(tiles.rows, height - y), least(tiles.columns, width - x)};
    clear(tile, tile_size);
  }

  void load_source(int64_t n, int64_t c) {
    const T* plane = at<T>(source, n, c, 0, 0);
    A* to = tile;
    for (int64_t a = 0; a < ys.planes; ++a) {
      const Range y(place.y * ys.step + ys.start[a], ys.step, source_height,
                    place.rows + tiles.source_rows - tiles.rows);
      for (int64_t b = 0; b < xs.planes; ++b, to += tiles.source_rows * tiles.pitch) {
        const Range x(place.x * xs.step + xs.start[b], xs.step, source_width,
                      place.columns + tiles.pitch - tiles.columns);
        copy_plane(to, tiles.pitch, plane, source.stride, y, x);
      }
    }
  }

  void load_vectors(int64_t n) {
    for (int64_t a = 0, i = 0; a < ys.count; ++a) {
      for (int64_t b = 0; b < xs.count; ++b, ++i) {
        clear(row, tiles.length);
        const Range y(place.y + ys.filter[a], 1, p.out_height, place.rows);
        const Range x(place.x + xs.filter[b], 1, p.out_width, place.columns);
        const T* plane = at<T>(p.spatial, n, ys.tap[a] * p.kernel_size + xs.tap[b], 0, 0);
        copy_plane(row, tiles.pitch, plane, p.spatial.stride, y, x);
        for (int64_t block = 0; block < blocks(); ++block) {
          store(vectors + (block * taps() + i) * kLanes<A>, load(row + block * kLanes<A>));
        }
      }
    }
  }

  void load_numbers(int64_t n, int64_t c) {
    for (int64_t a = 0, i = 0; a < ys.count; ++a) {
      for (int64_t b = 0; b < xs.count; ++b, ++i) {
        numbers[i] = load_one(at<T>(p.channel, n, c, ys.tap[a], xs.tap[b]));
      }
    }
  }

  // The gradient of the output in this tile, zero between the rows.
  void load_out(int64_t n, int64_t c) {
    clear(row, tiles.length);
    copy_plane(row, tiles.pitch, at<T>(p.out, n, c, 0, 0), p.out.stride,
               Range(place.y, 1, p.out_height, place.rows),
               Range(place.x, 1, p.out_width, place.columns));
  }
};

template <typename T>
Sweep<T> forward_sweep(const Params& p, Arena& arena) {
  return Sweep<T>(p, p.features, p.height, p.width, p.out_height, p.out_width, arena);
}

// ---- forward, along pixels: an item is a block of channels of a tile ----

int64_t channel_blocks(const Params& p) { return ceil_div(p.channels, kChannelBlock); }

template <typename T>
void forward_pixels(const Params& p, int64_t begin, int64_t end, void* scratch) {
  using A = Accumulator<T>;
  Arena arena(scratch);
  Sweep<T> sweep = forward_sweep<T>(p, arena);
  sweep.set_axes(forward_axis(p, p.height), forward_axis(p, p.width));
  const Line<A> sum = choose_line<A>(p.combine, sweep.taps());
  int64_t loaded = -1;
  for (int64_t item = begin; item < end; ++item) {
    const int64_t tile = item / channel_blocks(p), n = tile / sweep.tiles.count();
    if (tile != loaded) {
      sweep.move_to(tile % sweep.tiles.count(), p.out_height, p.out_width);
      sweep.load_vectors(n);
      loaded = tile;
    }
    const int64_t first = item % channel_blocks(p) * kChannelBlock;
    for (int64_t c = first; c < least(first + kChannelBlock, p.channels); ++c) {
      sweep.load_source(n, c);
      sweep.load_numbers(n, c);
      sum(sweep.taps(), sweep.vectors, sweep.numbers, sweep.features, sweep.row, sweep.blocks());
      store_plane(at<T>(p.out, n, c, sweep.place.y, sweep.place.x), p.out.stride[2],
                  p.out.stride[3], sweep.row, sweep.tiles.pitch, sweep.place);
    }
  }
}

template <typename T>
Job forward_pixels_job(const Params& p) {
  Arena arena(nullptr);
  const Sweep<T> sweep = forward_sweep<T>(p, arena);
  return {p.batch * sweep.tiles.count() * channel_blocks(p),
          least(kChannelBlock, p.channels) * p.kernel_size * p.kernel_size * sweep.tiles.length,
          arena.used(), forward_pixels<T>};
}

// ---- forward, along channels: an item is an output pixel ----

template <typename T>
struct ChannelScratch {
  using A = Accumulator<T>;

  int64_t taps, blocks, tail;  // whole vectors of channels, and the channels left over
  A* vectors;                  // C, as in `line`, the last vector padded
  A* numbers;                  // S of one pixel
  const T** features;
  T* zeros;  // stands for the channels of a pixel in the padding
  T* edge;   // the channels left over, padded, for each tap; then a result
  const T** edges;

  ChannelScratch(const Params& p, Arena& arena)
      : taps(p.kernel_size * p.kernel_size),
        blocks(p.channels / kLanes<A>),
        tail(p.channels % kLanes<A>) {
    vectors = arena.take<A>(taps * round_up(p.channels, kLanes<A>));
    numbers = arena.take<A>(taps);
    features = arena.take<const T*>(taps);
    zeros = arena.take<T>(p.channels);
    edge = arena.take<T>((taps + 1) * kLanes<A>);
    edges = arena.take<const T*>(taps);
  }

  // Its border values are set once: `zeros`, and the padding of `edge` and of `vectors`.
  void prepare(const Params& p) {
    clear(zeros, p.channels);
    clear(edge, (taps + 1) * kLanes<A>);
    clear(vectors, taps * round_up(p.channels, kLanes<A>));
    for (int64_t j = 0; j < taps; ++j) edges[j] = edge + j * kLanes<A>;
  }

  void load_vectors(const Params& p, int64_t n) {
    for (int64_t c = 0; c < p.channels; ++c) {
      A* to = vectors + c / kLanes<A> * taps * kLanes<A> + c % kLanes<A>;
      for (int64_t j = 0; j < taps; ++j) {
        to[j * kLanes<A>] = load_one(at<T>(p.channel, n, c, j / p.kernel_size, j % p.kernel_size));
      }
    }
  }

  void load_pixel(const Params& p, int64_t n, int64_t y, int64_t x) {
    const int64_t middle = (p.kernel_size - 1) / 2;
    for (int64_t j = 0; j < taps; ++j) {
      const int64_t from_y = y * p.stride + p.dilation * (j / p.kernel_size - middle);
      const int64_t from_x = x * p.stride + p.dilation * (j % p.kernel_size - middle);
      const bool inside = from_y >= 0 && from_y < p.height && from_x >= 0 && from_x < p.width;
      features[j] = inside ? at<T>(p.features, n, 0, from_y, from_x) : zeros;
      numbers[j] = load_one(at<T>(p.spatial, n, j, y, x));
    }
  }
};

template <typename T>
void forward_channels(const Params& p, int64_t begin, int64_t end, void* scratch) {
  using A = Accumulator<T>;
  Arena arena(scratch);
  ChannelScratch<T> s(p, arena);
  s.prepare(p);
  const Line<T> sum = choose_line<T>(p.combine, s.taps);
  int64_t loaded = -1;
  for (int64_t item = begin; item < end; ++item) {
    const int64_t x = item % p.out_width, y = item / p.out_width % p.out_height;
    const int64_t n = item / p.out_width / p.out_height;
    if (n != loaded) s.load_vectors(p, n);
    loaded = n;
    s.load_pixel(p, n, y, x);
    T* out = at<T>(p.out, n, 0, y, x);
    sum(s.taps, s.vectors, s.numbers, s.features, out, s.blocks);
    if (s.tail > 0) {
      const int64_t done = s.blocks * kLanes<A>;
      const size_t bytes = static_cast<size_t>(s.tail) * sizeof(T);
      for (int64_t j = 0; j < s.taps; ++j) {
        memcpy(s.edge + j * kLanes<A>, s.features[j] + done, bytes);
      }
      T* result = s.edge + s.taps * kLanes<A>;
      sum(s.taps, s.vectors + done * s.taps, s.numbers, s.edges, result, 1);
      memcpy(out + done, result, bytes);
    }
  }
}

template <typename T>
Job forward_channels_job(const Params& p) {
  Arena arena(nullptr);
  const ChannelScratch<T> s(p, arena);
  return {p.batch * p.out_height * p.out_width, s.taps * p.channels, arena.used(),
          forward_channels<T>};
}

template <typename T>
Job forward_job(const Params& p) {
  const bool adjacent = p.features.stride[1] == 1 && p.out.stride[1] == 1;
  const bool enough = p.channels >= kLanes<Accumulator<T>>;
  return adjacent && enough ? forward_channels_job<T>(p) : forward_pixels_job<T>(p);
}

// ---- gradient of the features: an item is a block of channels of a tile of a phase ----

// Phases along one axis that hold any pixel, and the pixels of the largest.
int64_t phases(const Params& p, int64_t size) { return least(p.stride, size); }
int64_t phase_size(const Params& p, int64_t size) { return ceil_div(size, p.stride); }

template <typename T>
Sweep<T> backward_sweep(const Params& p, Arena& arena) {
  return Sweep<T>(p, p.out, p.out_height, p.out_width, phase_size(p, p.height),
                  phase_size(p, p.width), arena);
}

template <typename T>
void grad_features(const Params& p, int64_t begin, int64_t end, void* scratch) {
  using A = Accumulator<T>;
  Arena arena(scratch);
  Sweep<T> sweep = backward_sweep<T>(p, arena);
  const int64_t phases_x = phases(p, p.width), all_phases = phases(p, p.height) * phases_x;
  int64_t loaded = -1;
  for (int64_t item = begin; item < end; ++item) {
    const int64_t group = item / channel_blocks(p), tile = group % sweep.tiles.count();
    const int64_t phase = group / sweep.tiles.count() % all_phases;
    const int64_t n = group / sweep.tiles.count() / all_phases;
    const int64_t phase_y = phase / phases_x, phase_x = phase % phases_x;
    if (group != loaded) {
      sweep.set_axes(backward_axis(p, p.height, phase_y), backward_axis(p, p.width, phase_x));
      sweep.move_to(tile, ceil_div(p.height - phase_y, p.stride),
                    ceil_div(p.width - phase_x, p.stride));
      sweep.load_vectors(n);
      loaded = group;
    }
    const Line<A> sum = choose_line<A>(p.combine, sweep.taps());
    const int64_t first = item % channel_blocks(p) * kChannelBlock;
    for (int64_t c = first; c < least(first + kChannelBlock, p.channels); ++c) {
      sweep.load_source(n, c);
      sweep.load_numbers(n, c);
      sum(sweep.taps(), sweep.vectors, sweep.numbers, sweep.features, sweep.row, sweep.blocks());
      T* to = at<T>(p.grad_features, n, c, phase_y + sweep.place.y * p.stride,
                    phase_x + sweep.place.x * p.stride);
      store_plane(to, p.grad_features.stride[2] * p.stride, p.grad_features.stride[3] * p.stride,
                  sweep.row, sweep.tiles.pitch, sweep.place);
    }
  }
}

template <typename T>
Job grad_features_job(const Params& p) {
  Arena arena(nullptr);
  const Sweep<T> sweep = backward_sweep<T>(p, arena);
  const int64_t all_phases = phases(p, p.height) * phases(p, p.width);
  return {p.batch * all_phases * sweep.tiles.count() * channel_blocks(p),
          least(kChannelBlock, p.channels) * p.kernel_size * p.kernel_size * sweep.tiles.length,
          arena.used(), grad_features<T>};
}

// ---- gradient of the spatial filter: an item is a tile; it sums over channels ----

// sums[block][tap] += gradient * features * (mul: number)
template <typename A, bool kAdd>
void add_products(int64_t taps, A* sums, const A* numbers, const A* const* features,
                  const A* gradient, int64_t blocks) {
  for (int64_t b = 0; b < blocks; ++b) {
    const Vector<A> g = load(gradient + b * kLanes<A>);
    for (int64_t j = 0; j < taps; ++j) {
      A* sum = sums + (b * taps + j) * kLanes<A>;
      const Vector<A> factor = kAdd ? g : g * numbers[j];
      store(sum, load(sum) + factor * load(features[j] + b * kLanes<A>));
    }
  }
}

template <typename T>
void grad_spatial(const Params& p, int64_t begin, int64_t end, void* scratch) {
  using A = Accumulator<T>;
  Arena arena(scratch);
  Sweep<T> sweep = forward_sweep<T>(p, arena);
  sweep.set_axes(forward_axis(p, p.height), forward_axis(p, p.width));
  const auto add = p.combine == Combine::add ? add_products<A, true> : add_products<A, false>;
  A* sums = sweep.vectors;  // the filter itself is not needed here
  const int64_t taps = sweep.taps();
  for (int64_t item = begin; item < end; ++item) {
    const int64_t n = item / sweep.tiles.count();
    sweep.move_to(item % sweep.tiles.count(), p.out_height, p.out_width);
    clear(sums, taps * sweep.tiles.length);
    for (int64_t c = 0; c < p.channels; ++c) {
      sweep.load_source(n, c);
      sweep.load_numbers(n, c);
      sweep.load_out(n, c);
      add(taps, sums, sweep.numbers, sweep.features, sweep.row, sweep.blocks());
    }
    for (int64_t j = 0; j < taps; ++j) {
      for (int64_t b = 0; b < sweep.blocks(); ++b) {
        store(sweep.row + b * kLanes<A>, load(sums + (b * taps + j) * kLanes<A>));
      }
      store_plane(at<T>(p.grad_spatial, n, j, sweep.place.y, sweep.place.x),
                  p.grad_spatial.stride[2], p.grad_spatial.stride[3], sweep.row, sweep.tiles.pitch,
                  sweep.place);
    }
  }
}

template <typename T>
Job grad_spatial_job(const Params& p) {
  Arena arena(nullptr);
  const Sweep<T> sweep = forward_sweep<T>(p, arena);
  return {p.batch * sweep.tiles.count(),
          p.channels * p.kernel_size * p.kernel_size * sweep.tiles.length, arena.used(),
          grad_spatial<T>};
}

// ---- gradient of the channel filter: an item is a block of channels; it sums over pixels ----

template <typename A>
A total(Vector<A> vector) {
  A sum = 0;
  for (int i = 0; i < kLanes<A>; ++i) sum += vector[i];
  return sum;
}

// sums[tap] += the sum over pixels of gradient * features * (mul: vector). The columns between rows
// are masked out: their gradient is zero, but zero times an infinite feature is not.
template <typename A, bool kAdd>
void add_totals(int64_t taps, A* sums, const A* vectors, const A* const* features,
                const A* gradient, const A* mask, int64_t blocks) {
  for (int64_t j = 0; j < taps; ++j) {
    Vector<A> sum = {};
    for (int64_t b = 0; b < blocks; ++b) {
      const Vector<A> g = load(gradient + b * kLanes<A>);
      const Vector<A> factor = kAdd ? g : g * load(vectors + (b * taps + j) * kLanes<A>);
      const Vector<A> product = factor * load(features[j] + b * kLanes<A>);
      sum += (Vector<A>)((Words)product & (Words)load(mask + b * kLanes<A>));
    }
    sums[j] += total<A>(sum);
  }
}

constexpr int64_t kReducedChannels =
    8;  // channels of one item here: fewer, since an item crosses the whole plane

template <typename T>
void grad_channel(const Params& p, int64_t begin, int64_t end, void* scratch) {
  using A = Accumulator<T>;
  Arena arena(scratch);
  Sweep<T> sweep = forward_sweep<T>(p, arena);
  sweep.set_axes(forward_axis(p, p.height), forward_axis(p, p.width));
  const auto add = p.combine == Combine::add ? add_totals<A, true> : add_totals<A, false>;
  const int64_t taps = sweep.taps(), groups = ceil_div(p.channels, kReducedChannels);
  A* sums = arena.take<A>(kReducedChannels * taps);
  A* mask = arena.take<A>(sweep.tiles.length);
  for (int64_t item = begin; item < end; ++item) {
    const int64_t n = item / groups, first = item % groups * kReducedChannels;
    const int64_t last = least(first + kReducedChannels, p.channels);
    clear(sums, kReducedChannels * taps);
    for (int64_t tile = 0; tile < sweep.tiles.count(); ++tile) {
      sweep.move_to(tile, p.out_height, p.out_width);
      clear(mask, sweep.tiles.length);
      for (int64_t i = 0; i < sweep.place.rows; ++i) {
        memset(mask + i * sweep.tiles.pitch, 0xff,
               static_cast<size_t>(sweep.place.columns) * sizeof(A));
      }
      if (p.combine == Combine::mul) sweep.load_vectors(n);
      for (int64_t c = first; c < last; ++c) {
        sweep.load_source(n, c);
        sweep.load_out(n, c);
        add(taps, sums + (c - first) * taps, sweep.vectors, sweep.features, sweep.row, mask,
            sweep.blocks());
      }
    }
    for (int64_t c = first; c < last; ++c) {
      for (int64_t j = 0; j < taps; ++j) {
        store_one(at<T>(p.grad_channel, n, c, j / p.kernel_size, j % p.kernel_size),
                  sums[(c - first) * taps + j]);
      }
    }
  }
}

template <typename T>
Job grad_channel_job(const Params& p) {
  using A = Accumulator<T>;
  Arena arena(nullptr);
  const Sweep<T> sweep = forward_sweep<T>(p, arena);
  const int64_t taps = p.kernel_size * p.kernel_size;
  arena.take<A>(kReducedChannels * taps);
  arena.take<A>(sweep.tiles.length);
  return {p.batch * ceil_div(p.channels, kReducedChannels),
          kReducedChannels * taps * sweep.tiles.count() * sweep.tiles.length, arena.used(),
          grad_channel<T>};
}

}  // namespace

extern const CpuKernels KERNELS = {
    DDF_BY_DTYPE(Params, Job, forward_job),
    DDF_BY_DTYPE(Params, Job, grad_features_job),
    DDF_BY_DTYPE(Params, Job, grad_channel_job),
    DDF_BY_DTYPE(Params, Job, grad_spatial_job),
};

}  // namespace ddf
