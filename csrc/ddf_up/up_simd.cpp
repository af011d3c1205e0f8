// The upsampling operator on a CPU, one thread's part; compiled once per instruction set (KERNELS
// names the table it defines).
//
// At s = 2 the four branches of a pixel take 72 operations at k = 3 and read the same 9 features.
// Two ways along memory:
//
//   pixels    Lanes are pixels of one channel. A row of outputs belongs to s branches: a vector of
//             each is summed, they are interleaved in registers and stored as s adjacent vectors,
//             so that the output is written once, in whole vectors, with no stack to shuffle. For
//             s = 2 a tap takes one load of F and two of S for four operations, C being in
//             registers: 27 loads for 36 operations.
//   channels  Lanes are adjacent channels of one pixel (channels last); each output is a store of
//             its own. Two branches share a loaded F: 27 loads for 36 operations, S being in
//             registers.
//
// Along pixels a tile of the features is copied, with its zero border, into scratch memory: one
// load and one store for the 72 operations. That settles padding, dilation, strided tensors and
// 16-bit elements. S is packed in the order of its use; a line of it stays in the first-level cache
// while a block of channels passes. Where rows are shorter than two vectors a line is the whole
// tile, rows and the border between them, so that a 7 x 7 plane fills whole vectors, and the
// outputs go through a line in scratch memory.
//
// The gradient of the features is the same sweep, the gradient of the output, taken apart by
// branch, as its source: one sum over the taps of all branches. Every sum is taken by one thread in
// one order, so that the same bits come out for any number of threads.

#include "ddf/scratch.h"
#include "ddf/simd.h"
#include "ddf_up/up_cpu.h"

namespace ddf::up {
namespace {

constexpr int64_t kFilterBytes = 96 << 10;   // S of a tile, packed
constexpr int64_t kColumns = 256;            // of a tile at most
constexpr int64_t kChannelBlock = 8;         // channels that share a line of S
constexpr int64_t kLastBlock = 64;           // channels of an item, channels last
constexpr int64_t kStreamedBytes = 8 << 20;  // of an output that stays in no cache until it is read

// ---- s vectors and s adjacent vectors ----

template <typename A>
struct IndexOf {
  using type = uint32_t;
};
template <>
struct IndexOf<double> {
  using type = uint64_t;
};
template <typename A>
using Index = VectorOfBytes<typename IndexOf<A>::type, kVectorBytes>;

// Lane i is that of `index[i]` in a and b together.
template <typename A>
inline Vector<A> pick(Vector<A> a, Vector<A> b, Index<A> index) {
#if defined(__clang__)
  Vector<A> result = {};
  for (int i = 0; i < kLanes<A>; ++i) {
    const int from = static_cast<int>(index[i]);
    result[i] = from < kLanes<A> ? a[from] : b[from - kLanes<A>];
  }
  return result;
#else
  return __builtin_shuffle(a, b, index);
#endif
}

// The v-th of the vectors that hold lane 0 of each of the S, then lane 1 of each, and so on.
template <typename A, int S>
inline Vector<A> interleaved(const Vector<A>* sums, int v) {
  Vector<A> result = sums[0];
  DDF_UNROLL
  for (int j = 1; j < S; ++j) {
    Index<A> index = {};
    DDF_UNROLL
    for (int i = 0; i < kLanes<A>; ++i) {
      const int place = v * kLanes<A> + i;
      const int kept = j == 1 && place % S == 0 ? place / S : i;
      index[i] =
          static_cast<typename IndexOf<A>::type>(place % S == j ? kLanes<A> + place / S : kept);
    }
    result = pick<A>(result, sums[j], index);
  }
  return result;
}

// Takes `count` groups of s neighbours apart: the j-th of each goes to the j-th of rows `plane`
// apart.
template <typename A>
void take_apart(A* to, int64_t plane, const A* from, int64_t s, int64_t count) {
  int64_t x = 0;
  if (s == 2) {
    Index<A> even = {};
    for (int i = 0; i < kLanes<A>; ++i) even[i] = static_cast<typename IndexOf<A>::type>(2 * i);
    for (; x + kLanes<A> <= count; x += kLanes<A>) {
      const Vector<A> a = load(from + 2 * x), b = load(from + 2 * x + kLanes<A>);
      store(to + x, pick<A>(a, b, even));
      store(to + plane + x, pick<A>(a, b, even + 1));
    }
  }
  for (; x < count; ++x) {
    for (int64_t j = 0; j < s; ++j) to[j * plane + x] = from[x * s + j];
  }
}

// ---- tiles ----

// How a plane of height x width pixels is cut. A tile's lines are its rows, or, where rows are
// short, one line is the whole tile, whose row r begins r*pitch into it.
struct Tiles {
  int64_t rows, columns, down, across;
  int64_t reach_y, reach_x;    // from the first tap to the last
  int64_t pitch, source_rows;  // of a source with its border
  bool by_row;
  int64_t lines, blocks;  // of a tile; vectors of a line

  int64_t count() const { return down * across; }
};

struct Place {
  int64_t n, y, x, rows, columns;
};

int64_t taps_of(const UpParams& p) { return p.kernel_size * p.kernel_size; }
int64_t branches_of(const UpParams& p) { return p.scale * p.scale; }

template <typename A>
Tiles cut(const UpParams& p) {
  Tiles t;
  // a dilation larger than the plane reads the same zeros as one of the plane's size
  t.reach_y = least(p.dilation, p.height) * (p.kernel_size - 1);
  t.reach_x = least(p.dilation, p.width) * (p.kernel_size - 1);
  t.by_row = p.width >= 2 * kLanes<A> || p.width == kLanes<A> || t.reach_x > p.width;
  t.columns = p.width <= kColumns ? p.width : round_up(even_part(p.width, kColumns), kLanes<A>);
  const int64_t blocks = ceil_div(t.columns, kLanes<A>);
  t.pitch = (t.by_row ? blocks * kLanes<A> : t.columns) + t.reach_x;
  const int64_t bytes = branches_of(p) * taps_of(p) * static_cast<int64_t>(sizeof(A)) *
                        (t.by_row ? blocks * kLanes<A> : t.pitch);
  t.rows = even_part(p.height, kFilterBytes / bytes);
  t.down = ceil_div(p.height, t.rows);
  t.across = ceil_div(p.width, t.columns);
  t.source_rows = t.rows + t.reach_y;
  t.lines = t.by_row ? t.rows : 1;
  t.blocks = t.by_row ? blocks : ceil_div((t.rows - 1) * t.pitch + t.columns, kLanes<A>);
  return t;
}

// Copies what lies inside of a part of a plane, from (y, x) on, to rows `pitch` apart.
template <typename A, typename T>
void copy_inside(A* to, int64_t pitch, const T* plane, const int64_t* stride, int64_t y, int64_t x,
                 int64_t rows, int64_t columns, int64_t height, int64_t width) {
  const int64_t first = most(0, -x), last = least(columns, width - x);
  if (first >= last) return;
  for (int64_t r = most(0, -y); r < least(rows, height - y); ++r) {
    copy_row(to + r * pitch + first, plane + (y + r) * stride[2] + (x + first) * stride[3],
             stride[3], last - first);
  }
}

// A tap as `Sweep::pack` is told of it: its number in S, how far from a target S is taken.
struct Tap {
  int64_t number, y, x;
};

// What all sweeps along pixels share: where they are, and the scratch memory of one tile.
template <typename T>
struct Sweep {
  using A = Accumulator<T>;

  const UpParams& p;
  const Tiles tiles;
  const int64_t taps, branches;
  Place place = {};

  int64_t* shift;  // of each tap in a source: from the line's beginning
  A* spatial;      // S, packed
  A* row;          // of S, or of a line of outputs

  Sweep(const UpParams& p, Arena& arena)
      : p(p), tiles(cut<A>(p)), taps(taps_of(p)), branches(branches_of(p)) {
    shift = arena.take<int64_t>(branches * taps);
    spatial = arena.take<A>(branches * taps * line_length() * tiles.lines);
    row = arena.take<A>(line_length() * p.scale);
  }

  int64_t line_length() const { return tiles.blocks * kLanes<A>; }
  int64_t lines() const { return tiles.by_row ? place.rows : 1; }
  int64_t line_of(int64_t r) const { return tiles.by_row ? r : 0; }
  // Where row r of the tile begins in its line.
  int64_t begin_of(int64_t r) const { return tiles.by_row ? 0 : r * tiles.pitch; }

  int64_t source_size() const { return tiles.source_rows * tiles.pitch + kLanes<A>; }

  int64_t shift_of(int64_t t) const {
    const int64_t k = p.kernel_size;
    const int64_t step_y = tiles.reach_y / most(1, k - 1), step_x = tiles.reach_x / most(1, k - 1);
    return t / k * step_y * tiles.pitch + t % k * step_x;
  }

  void move_to(int64_t index) {
    const int64_t tile = index % tiles.count();
    const int64_t y = tile / tiles.across * tiles.rows, x = tile % tiles.across * tiles.columns;
    place = {index / tiles.count(), y, x, least(tiles.rows, p.height - y),
             least(tiles.columns, p.width - x)};
  }

  // Packs S in groups of `together` taps that one call of `Line` uses, for each line. `of(g, w)` is
  // the w-th tap of group g: its number in S and how far from a target it is taken.
  template <typename Of>
  void pack(int64_t groups, int64_t together, Of of) {
    for (int64_t i = 0; i < groups * together; ++i) {
      const Tap tap = of(i / together, i % together);
      for (int64_t l = 0; l < lines(); ++l) {
        clear(row, line_length());
        copy_inside(row, tiles.pitch, at<T>(p.spatial, place.n, tap.number, 0, 0), p.spatial.stride,
                    place.y + l + tap.y, place.x + tap.x, tiles.by_row ? 1 : place.rows,
                    place.columns, p.height, p.width);
        A* to = packed(l * groups + i / together, together) + i % together * kLanes<A>;
        for (int64_t b = 0; b < tiles.blocks; ++b) {
          store(to + b * together * kLanes<A>, load(row + b * kLanes<A>));
        }
      }
    }
  }

  A* packed(int64_t group, int64_t together) const {
    return spatial + group * together * line_length();
  }

  // Copies a channel of the features, whose border is zero already.
  void load_features(A* to, int64_t c) {
    copy_inside(to, tiles.pitch, at<T>(p.features, place.n, c, 0, 0), p.features.stride,
                place.y - tiles.reach_y / 2, place.x - tiles.reach_x / 2,
                place.rows + tiles.reach_y, place.columns + tiles.reach_x, p.height, p.width);
  }

  // The number of C of channel c that belongs to tap t of branch b.
  A number(int64_t b, int64_t c, int64_t t) const {
    const int64_t k = p.kernel_size;
    return load_one(at<T>(p.channel, place.n, b * p.channels + c, t / k, t % k));
  }

  // Copies a channel of the output's gradient, by branch: rows y .. y + rows of columns x .. x +
  // columns of each branch's plane, to planes `plane` apart of rows at `begin(row)`. Outside it
  // stays as it was. `wide` is room for a row of outputs.
  template <typename Begin>
  void load_gradient(A* to, int64_t plane, Begin begin, A* wide, int64_t c, int64_t y, int64_t x,
                     int64_t rows, int64_t columns) {
    const int64_t s = p.scale, first = most(0, -x), last = least(columns, p.width - x);
    if (first >= last) return;
    for (int64_t r = most(0, -y); r < least(rows, p.height - y); ++r) {
      for (int64_t i = 0; i < s; ++i) {
        copy_row(wide, at<T>(p.out, place.n, c, (y + r) * s + i, (x + first) * s), p.out.stride[3],
                 (last - first) * s);
        take_apart(to + i * s * plane + begin(r) + first, plane, wide, s, last - first);
      }
    }
  }
};

// ---- the inner loop along pixels ----

// Sums of S_of branches at a time: for each vector of targets and each tap one vector of S a
// branch, one of the source and a number of C a branch. `shift` says where each tap reads. The
// first `whole` vectors are stored, s_of interleaved; of a further one `rest` pixels.
template <typename A>
using Line = void (*)(int64_t taps, const A* spatial, const A* numbers, const A* source,
                      const int64_t* shift, A* out, int64_t whole, int64_t rest, bool streamed);

template <typename A, int S, int K, bool kAdd>
void line(int64_t taps, const A* spatial, const A* numbers, const A* source, const int64_t* shift,
          A* out, int64_t whole, int64_t rest, bool streamed) {
  constexpr int kKept = K ? K * K : 1;
  A number[S * kKept];
  int64_t at[kKept];
  if constexpr (K > 0) {
    memcpy(number, numbers, sizeof(number));
    memcpy(at, shift, sizeof(at));
  }
  for (int64_t b = 0; b < whole + (rest > 0); ++b, source += kLanes<A>) {
    Vector<A> sums[S] = {};
    const auto add = [&](int64_t from, const A* c) __attribute__((always_inline)) {
      Vector<A> f = load(source + from);
      keep(f);
      DDF_UNROLL
      for (int j = 0; j < S; ++j, spatial += kLanes<A>) {
        const Vector<A> s = load(spatial);
        sums[j] += (kAdd ? s + c[j] : s * c[j]) * f;
      }
    };
    if constexpr (K > 0) {
      DDF_UNROLL
      for (int t = 0; t < kKept; ++t) add(at[t], number + t * S);
    } else {
      for (int64_t t = 0; t < taps; ++t) add(shift[t], numbers + t * S);
    }
    if (b < whole) {
      DDF_UNROLL
      for (int v = 0; v < S; ++v, out += kLanes<A>) {
        const Vector<A> value = interleaved<A, S>(sums, v);
        if (streamed) {
          stream(out, value);
        } else {
          store(out, value);
        }
      }
    } else {
      int64_t left = rest * S;
      DDF_UNROLL
      for (int v = 0; v < S; ++v, left -= kLanes<A>) {
        const auto lanes = most(0, least(left, kLanes<A>));
        store_lanes(out + v * kLanes<A>, static_cast<LaneBits>((1u << lanes) - 1),
                    interleaved<A, S>(sums, v));
      }
    }
  }
}

template <typename A, int S>
Line<A> choose(Combine combine, int64_t kernel_size) {
  if (combine == Combine::add) {
    return kernel_size == 3 ? line<A, S, 3, true> : line<A, S, 0, true>;
  }
  return kernel_size == 3 ? line<A, S, 3, false> : line<A, S, 0, false>;
}

// How many branches of a row of outputs are summed at once: all, or one after another.
int64_t together(int64_t scale) { return scale <= 4 ? scale : 1; }

template <typename A>
Line<A> choose_forward(const UpParams& p) {
  switch (together(p.scale)) {
    case 4:
      return choose<A, 4>(p.combine, p.kernel_size);
    case 3:
      return choose<A, 3>(p.combine, p.kernel_size);
    case 2:
      return choose<A, 2>(p.combine, p.kernel_size);
    default:
      return choose<A, 1>(p.combine, p.kernel_size);
  }
}

int64_t channel_blocks(const UpParams& p) { return ceil_div(p.channels, kChannelBlock); }

// Multiply-accumulates of a channel of a tile.
template <typename T>
int64_t work_of(const Sweep<T>& sweep) {
  return sweep.branches * sweep.taps * sweep.line_length() * sweep.tiles.lines;
}

// ---- forward, along pixels: an item is a block of channels of a tile ----

template <typename T>
struct Forward : Sweep<T> {
  using A = Accumulator<T>;
  using Sweep<T>::p, Sweep<T>::tiles, Sweep<T>::place, Sweep<T>::taps, Sweep<T>::row;

  const int64_t group, groups;  // branches summed at once, such groups in a row of outputs
  const Line<A> sum;
  A *sources, *numbers;  // of the channels of an item
  A* alone;              // a line of one branch of several
  bool direct;           // outputs are stored where they belong
  bool streamed;         // past the caches

  Forward(const UpParams& p, Arena& arena)
      : Sweep<T>(p, arena),
        group(together(p.scale)),
        groups(p.scale / group),
        sum(choose_forward<A>(p)) {
    sources = arena.take<A>(kChannelBlock * this->source_size());
    numbers = arena.take<A>(kChannelBlock * this->branches * taps);
    alone = groups == 1 ? nullptr : arena.take<A>(this->line_length());
    direct = tiles.by_row && !alone && sizeof(T) == sizeof(A) && p.out.stride[3] == 1;
    const int64_t bytes = p.batch * p.channels * p.height * p.width * this->branches *
                          static_cast<int64_t>(sizeof(T));
    streamed = direct && p.width % kLanes<A> == 0 && bytes >= kStreamedBytes &&
               reinterpret_cast<uintptr_t>(p.out.data) % kVectorBytes == 0;
    for (int i = 0; i < 3; ++i) streamed = streamed && p.out.stride[i] % kLanes<A> == 0;
  }

  // The branch that is the w-th of group g, g counting rows of outputs and groups in each.
  int64_t branch(int64_t g, int64_t w) const { return g * group + w; }

  void go_to(int64_t tile) {
    this->move_to(tile);
    clear(sources, kChannelBlock * this->source_size());
    for (int64_t t = 0; t < taps; ++t) this->shift[t] = this->shift_of(t);
    this->pack(p.scale * groups, taps * group, [&](int64_t g, int64_t w) {
      return Tap{branch(g, w % group) * taps + w / group, 0, 0};
    });
  }

  void load_channel(int64_t c, int64_t slot) {
    this->load_features(sources + slot * this->source_size(), c);
    A* to = numbers + slot * this->branches * taps;
    for (int64_t g = 0; g < p.scale * groups; ++g) {
      for (int64_t w = 0; w < taps * group; ++w) {
        *to++ = this->number(branch(g, w % group), c, w / group);
      }
    }
  }

  // Row i of each pixel's outputs, along a line of one channel.
  void outputs(int64_t l, int64_t i, int64_t c, int64_t slot) {
    const A* source = sources + slot * this->source_size() + l * tiles.pitch;
    const auto compute = [&](int64_t g, A* to, int64_t whole, int64_t rest, bool past) {
      sum(taps, this->packed((l * p.scale + i) * groups + g, taps * group),
          numbers + (slot * this->branches + (i * groups + g) * group) * taps, source, this->shift,
          to, whole, rest, past);
    };
    if (direct) {
      A* to = reinterpret_cast<A*>(this->output(c, l, i));
      return compute(0, to, place.columns / kLanes<A>, place.columns % kLanes<A>, streamed);
    }
    for (int64_t g = 0; g < groups; ++g) {
      compute(g, alone ? alone : row, tiles.blocks, 0, false);
      if (!alone) continue;
      for (int64_t x = 0; x < this->line_length(); ++x) row[x * p.scale + g] = alone[x];
    }
    for (int64_t r = l; r < (tiles.by_row ? l + 1 : place.rows); ++r) {
      store_row(this->output(c, r, i), p.out.stride[3], row + this->begin_of(r) * p.scale,
                place.columns * p.scale);
    }
  }

  T* output(int64_t c, int64_t r, int64_t i) const {
    return at<T>(p.out, place.n, c, (place.y + r) * p.scale + i, place.x * p.scale);
  }

  static void run(const Params& params, int64_t begin, int64_t end, void* scratch) {
    const auto& p = static_cast<const UpParams&>(params);
    Arena arena(scratch);
    Forward sweep(p, arena);
    int64_t loaded = -1;
    for (int64_t item = begin; item < end; ++item) {
      const int64_t tile = item / channel_blocks(p);
      if (tile != loaded) sweep.go_to(tile);
      loaded = tile;
      const int64_t first = item % channel_blocks(p) * kChannelBlock;
      const int64_t count = least(kChannelBlock, p.channels - first);
      for (int64_t c = 0; c < count; ++c) sweep.load_channel(first + c, c);
      for (int64_t l = 0; l < sweep.lines(); ++l) {
        for (int64_t i = 0; i < p.scale; ++i) {
          for (int64_t c = 0; c < count; ++c) sweep.outputs(l, i, first + c, c);
        }
      }
    }
    if (sweep.streamed) finish_streams();
  }
};

template <typename T>
Job forward_pixels_job(const UpParams& p) {
  Arena arena(nullptr);
  const Forward<T> sweep(p, arena);
  return {p.batch * sweep.tiles.count() * channel_blocks(p),
          least(kChannelBlock, p.channels) * work_of(sweep), arena.used(), Forward<T>::run};
}

// ---- forward, along channels: an item is some rows of pixels of a block of channels ----

// Branches b and on, kBranches of them, of a pixel: sums of each vector of channels. `channel` has
// for each vector and tap a vector of C for each of these branches, `numbers` likewise of S.
template <typename T, int K, int kBranches, bool kAdd>
void pixel(int64_t taps, const Accumulator<T>* channel, const Accumulator<T>* numbers,
           const T* const* features, T* const* out, int64_t vectors) {
  using A = Accumulator<T>;
  constexpr int kKept = K ? K * K : 1;
  A number[kBranches * kKept];
  const T* from[kKept];
  if constexpr (K > 0) {
    memcpy(number, numbers, sizeof(number));
    memcpy(from, features, sizeof(from));
  }
  for (int64_t v = 0; v < vectors; ++v) {
    Vector<A> sums[kBranches] = {};
    const auto add = [&](const T* tap, const A* s) __attribute__((always_inline)) {
      Vector<A> f = load(tap + v * kLanes<A>);
      keep(f);
      DDF_UNROLL
      for (int j = 0; j < kBranches; ++j, channel += kLanes<A>) {
        const Vector<A> c = load(channel);
        sums[j] += (kAdd ? c + s[j] : c * s[j]) * f;
      }
    };
    if constexpr (K > 0) {
      DDF_UNROLL
      for (int t = 0; t < kKept; ++t) add(from[t], number + t * kBranches);
    } else {
      for (int64_t t = 0; t < taps; ++t) add(features[t], numbers + t * kBranches);
    }
    DDF_UNROLL
    for (int j = 0; j < kBranches; ++j) store(out[j] + v * kLanes<A>, sums[j]);
  }
}

template <typename T, int K, int kBranches>
auto choose_pixel(Combine combine) {
  return combine == Combine::add ? pixel<T, K, kBranches, true> : pixel<T, K, kBranches, false>;
}

template <typename T>
struct Channels {
  using A = Accumulator<T>;
  static constexpr int64_t kMost = 2;  // branches at once

  const UpParams& p;
  const int64_t taps, branches, group, block, rows;
  A *channel, *numbers;
  const T** features;
  T* zeros;  // stands for the channels of a pixel in the padding

  Channels(const UpParams& p, Arena& arena)
      : p(p),
        taps(taps_of(p)),
        branches(branches_of(p)),
        group(p.scale % kMost == 0 ? kMost : 1),
        block(least(kLastBlock, p.channels)),
        rows(least(p.height, most(1, 256 / p.width))) {
    channel = arena.take<A>(branches * taps * block);
    numbers = arena.take<A>(branches * taps);
    features = arena.take<const T*>(taps);
    zeros = arena.take<T>(block);
  }

  int64_t blocks() const { return ceil_div(p.channels, block); }
  int64_t parts() const { return ceil_div(p.height, rows); }

  // C of channels first .. first + count, by group of branches, vector, tap and branch.
  void load_channels(int64_t n, int64_t first, int64_t count) {
    A* to = channel;
    const int64_t k = p.kernel_size;
    for (int64_t b = 0; b < branches; b += group) {
      for (int64_t v = 0; v < count; v += kLanes<A>) {
        for (int64_t t = 0; t < taps; ++t) {
          for (int64_t j = 0; j < group; ++j, to += kLanes<A>) {
            const int64_t c = (b + j) * p.channels + first + v;
            copy_row(to, at<T>(p.channel, n, c, t / k, t % k), p.channel.stride[1], kLanes<A>);
          }
        }
      }
    }
  }

  void go_to(int64_t n, int64_t c, int64_t y, int64_t x) {
    const int64_t k = p.kernel_size, middle = k / 2;
    for (int64_t t = 0; t < taps; ++t) {
      const int64_t from_y = y + (t / k - middle) * p.dilation;
      const int64_t from_x = x + (t % k - middle) * p.dilation;
      const bool inside = from_y >= 0 && from_y < p.height && from_x >= 0 && from_x < p.width;
      features[t] = inside ? at<T>(p.features, n, c, from_y, from_x) : zeros;
    }
    A* to = numbers;
    for (int64_t b = 0; b < branches; b += group) {
      for (int64_t t = 0; t < taps; ++t) {
        for (int64_t j = 0; j < group; ++j) {
          *to++ = load_one(at<T>(p.spatial, n, (b + j) * taps + t, y, x));
        }
      }
    }
  }

  static void run(const Params& params, int64_t begin, int64_t end, void* scratch) {
    const auto& p = static_cast<const UpParams&>(params);
    Arena arena(scratch);
    Channels work(p, arena);
    clear(work.zeros, work.block);
    const bool three = p.kernel_size == 3;
    const auto sum =
        work.group == 2
            ? (three ? choose_pixel<T, 3, 2>(p.combine) : choose_pixel<T, 0, 2>(p.combine))
            : (three ? choose_pixel<T, 3, 1>(p.combine) : choose_pixel<T, 0, 1>(p.combine));
    int64_t loaded = -1;
    for (int64_t item = begin; item < end; ++item) {
      const int64_t place = item / work.parts(), n = place / work.blocks();
      const int64_t first = place % work.blocks() * work.block;
      const int64_t count = least(work.block, p.channels - first);
      if (place != loaded) work.load_channels(n, first, count);
      loaded = place;
      const int64_t y0 = item % work.parts() * work.rows;
      for (int64_t y = y0; y < least(y0 + work.rows, p.height); ++y) {
        for (int64_t x = 0; x < p.width; ++x) {
          work.go_to(n, first, y, x);
          for (int64_t b = 0; b < work.branches; b += work.group) {
            T* out[kMost];
            for (int64_t j = 0; j < work.group; ++j) {
              out[j] =
                  at<T>(p.out, n, first, y * p.scale + b / p.scale, x * p.scale + b % p.scale + j);
            }
            sum(work.taps, work.channel + b * work.taps * count, work.numbers + b * work.taps,
                work.features, out, count / kLanes<A>);
          }
        }
      }
    }
  }
};

template <typename T>
Job forward_job(const UpParams& p) {
  constexpr int64_t lanes = kLanes<Accumulator<T>>;
  const bool adjacent = p.features.stride[1] == 1 && p.out.stride[1] == 1;
  if (!adjacent || p.channels % lanes != 0) return forward_pixels_job<T>(p);
  Arena arena(nullptr);
  const Channels<T> work(p, arena);
  return {p.batch * work.blocks() * work.parts(),
          work.rows * p.width * work.branches * work.taps * work.block, arena.used(),
          Channels<T>::run};
}

// ---- the gradient of the features: an item is a block of channels of a tile ----

template <typename T>
struct GradFeatures : Sweep<T> {
  using A = Accumulator<T>;
  using Sweep<T>::p, Sweep<T>::tiles, Sweep<T>::place, Sweep<T>::taps, Sweep<T>::row;

  const int64_t count;   // taps of all branches
  A *sources, *numbers;  // of one channel: its gradient, a plane a branch
  A* wide;               // a row of outputs

  GradFeatures(const UpParams& p, Arena& arena) : Sweep<T>(p, arena), count(this->branches * taps) {
    sources = arena.take<A>(this->branches * this->source_size());
    numbers = arena.take<A>(count);
    wide = arena.take<A>(p.width * p.scale);
  }

  // A target uses what the tap that leads to it used where it starts from.
  void go_to(int64_t tile) {
    this->move_to(tile);
    clear(sources, this->branches * this->source_size());
    const int64_t k = p.kernel_size;
    for (int64_t i = 0; i < count; ++i) {
      this->shift[i] = i / taps * this->source_size() + this->shift_of(i % taps);
    }
    this->pack(1, count, [&](int64_t, int64_t i) {
      const int64_t t = i % taps, step_y = tiles.reach_y / most(1, k - 1),
                    step_x = tiles.reach_x / most(1, k - 1);
      return Tap{i / taps * taps + taps - 1 - t, (t / k - k / 2) * step_y,
                 (t % k - k / 2) * step_x};
    });
  }

  void load_channel(int64_t c) {
    this->load_gradient(
        sources, this->source_size(), [&](int64_t r) { return r * tiles.pitch; }, wide, c,
        place.y - tiles.reach_y / 2, place.x - tiles.reach_x / 2, place.rows + tiles.reach_y,
        place.columns + tiles.reach_x);
    for (int64_t i = 0; i < count; ++i) {
      numbers[i] = this->number(i / taps, c, taps - 1 - i % taps);
    }
  }

  void targets(Line<A> sum, int64_t c) {
    for (int64_t l = 0; l < this->lines(); ++l) {
      sum(count, this->packed(l, count), numbers, sources + l * tiles.pitch, this->shift, row,
          tiles.blocks, 0, false);
      for (int64_t r = l; r < (tiles.by_row ? l + 1 : place.rows); ++r) {
        store_row(at<T>(p.grad_features, place.n, c, place.y + r, place.x),
                  p.grad_features.stride[3], row + this->begin_of(r), place.columns);
      }
    }
  }

  static void run(const Params& params, int64_t begin, int64_t end, void* scratch) {
    const auto& p = static_cast<const UpParams&>(params);
    Arena arena(scratch);
    GradFeatures sweep(p, arena);
    const Line<A> sum = p.combine == Combine::add ? line<A, 1, 0, true> : line<A, 1, 0, false>;
    int64_t loaded = -1;
    for (int64_t item = begin; item < end; ++item) {
      const int64_t tile = item / channel_blocks(p);
      if (tile != loaded) sweep.go_to(tile);
      loaded = tile;
      const int64_t first = item % channel_blocks(p) * kChannelBlock;
      for (int64_t c = first; c < least(first + kChannelBlock, p.channels); ++c) {
        sweep.load_channel(c);
        sweep.targets(sum, c);
      }
    }
  }
};

template <typename T>
Job grad_features_job(const UpParams& p) {
  Arena arena(nullptr);
  const GradFeatures<T> sweep(p, arena);
  return {p.batch * sweep.tiles.count() * channel_blocks(p),
          least(kChannelBlock, p.channels) * work_of(sweep), arena.used(), GradFeatures<T>::run};
}

// ---- the gradients of the filters ----

// A channel's features and, by branch, its output's gradient, in the lines of a tile.
template <typename T>
struct Products : Sweep<T> {
  using A = Accumulator<T>;
  using Sweep<T>::p, Sweep<T>::tiles, Sweep<T>::place, Sweep<T>::taps;

  const int64_t plane;  // of a branch's gradient
  A *source, *gradient, *wide;
  A* inside;  // a line of all ones where a target is, else zero, as bits

  Products(const UpParams& p, Arena& arena)
      : Sweep<T>(p, arena), plane(tiles.lines * this->line_length()) {
    source = arena.take<A>(this->source_size());
    gradient = arena.take<A>(this->branches * plane);
    wide = arena.take<A>(p.width * p.scale);
    inside = arena.take<A>(this->line_length());
  }

  void go_to(int64_t tile) {
    this->move_to(tile);
    clear(source, this->source_size());
    clear(gradient, this->branches * plane);
    clear(inside, this->line_length());
    for (int64_t r = 0; r < (tiles.by_row ? 1 : place.rows); ++r) {
      memset(inside + this->begin_of(r), 0xff, static_cast<size_t>(place.columns) * sizeof(A));
    }
    for (int64_t t = 0; t < taps; ++t) this->shift[t] = this->shift_of(t);
  }

  void load_channel(int64_t c) {
    this->load_features(source, c);
    this->load_gradient(
        gradient, plane,
        [&](int64_t r) { return this->line_of(r) * this->line_length() + this->begin_of(r); }, wide,
        c, place.y, place.x, place.rows, place.columns);
  }
};

// The features where a target is; what lies between rows may be infinite.
template <typename A>
inline Vector<A> masked(Vector<A> value, const A* inside) {
  return (Vector<A>)((Index<A>)value & load_as<Index<A>>(inside));
}

// For each tap and target g * f, times C; added up over channels in `sums`, by vector and tap.
template <typename A, bool kAdd>
void add_channel(int64_t taps, A* sums, const A* numbers, const A* gradient, const A* source,
                 const int64_t* shift, int64_t blocks) {
  for (int64_t b = 0; b < blocks; ++b, source += kLanes<A>) {
    const Vector<A> g = load(gradient + b * kLanes<A>);
    for (int64_t t = 0; t < taps; ++t, sums += kLanes<A>) {
      const Vector<A> product = g * load(source + shift[t]);
      store(sums, load(sums) + (kAdd ? product : product * numbers[t]));
    }
  }
}

// An item is a tile: S of each of its pixels is a sum over channels.
template <typename T>
struct GradSpatial : Products<T> {
  using A = Accumulator<T>;
  using Sweep<T>::p, Sweep<T>::tiles, Sweep<T>::place, Sweep<T>::taps, Sweep<T>::row;

  A* numbers;

  GradSpatial(const UpParams& p, Arena& arena) : Products<T>(p, arena) {
    numbers = arena.take<A>(taps);
  }

  A* sums(int64_t l, int64_t b) const { return this->packed(l * this->branches + b, taps); }

  void add(int64_t c) {
    const auto add = p.combine == Combine::add ? add_channel<A, true> : add_channel<A, false>;
    for (int64_t b = 0; b < this->branches; ++b) {
      for (int64_t t = 0; t < taps; ++t) numbers[t] = this->number(b, c, t);
      for (int64_t l = 0; l < this->lines(); ++l) {
        add(taps, sums(l, b), numbers, this->gradient + b * this->plane + l * this->line_length(),
            this->source + l * tiles.pitch, this->shift, tiles.blocks);
      }
    }
  }

  void store_sums() {
    for (int64_t i = 0; i < this->branches * taps; ++i) {
      for (int64_t l = 0; l < this->lines(); ++l) {
        const A* from = sums(l, i / taps) + i % taps * kLanes<A>;
        for (int64_t b = 0; b < tiles.blocks; ++b) {
          store(row + b * kLanes<A>, load(from + b * taps * kLanes<A>));
        }
        for (int64_t r = l; r < (tiles.by_row ? l + 1 : place.rows); ++r) {
          store_row(at<T>(p.grad_spatial, place.n, i, place.y + r, place.x),
                    p.grad_spatial.stride[3], row + this->begin_of(r), place.columns);
        }
      }
    }
  }

  static void run(const Params& params, int64_t begin, int64_t end, void* scratch) {
    const auto& p = static_cast<const UpParams&>(params);
    Arena arena(scratch);
    GradSpatial sweep(p, arena);
    for (int64_t item = begin; item < end; ++item) {
      sweep.go_to(item);
      clear(sweep.spatial, work_of(sweep));
      for (int64_t c = 0; c < p.channels; ++c) {
        sweep.load_channel(c);
        sweep.add(c);
      }
      sweep.store_sums();
    }
  }
};

template <typename T>
Job grad_spatial_job(const UpParams& p) {
  Arena arena(nullptr);
  const GradSpatial<T> sweep(p, arena);
  return {p.batch * sweep.tiles.count(), p.channels * work_of(sweep), arena.used(),
          GradSpatial<T>::run};
}

// For each tap the sum over targets of g * f, times S.
template <typename A, int K, bool kAdd>
void add_targets(int64_t taps, Vector<A>* sums, const A* spatial, const A* gradient,
                 const A* source, const int64_t* shift, const A* inside, int64_t blocks) {
  constexpr int kKept = K ? K * K : 1;
  Vector<A> kept[kKept];
  if constexpr (K > 0) {
    DDF_UNROLL
    for (int t = 0; t < kKept; ++t) kept[t] = sums[t];
  }
  for (int64_t b = 0; b < blocks; ++b, source += kLanes<A>) {
    const Vector<A> g = load(gradient + b * kLanes<A>);
    const auto product = [&](int64_t from) __attribute__((always_inline)) {
      const Vector<A> s = load(spatial), f = masked<A>(load(source + from), inside + b * kLanes<A>);
      spatial += kLanes<A>;
      return kAdd ? g * f : g * f * s;
    };
    if constexpr (K > 0) {
      DDF_UNROLL
      for (int t = 0; t < kKept; ++t) kept[t] += product(shift[t]);
    } else {
      for (int64_t t = 0; t < taps; ++t) sums[t] += product(shift[t]);
    }
  }
  if constexpr (K > 0) {
    DDF_UNROLL
    for (int t = 0; t < kKept; ++t) sums[t] = kept[t];
  }
}

// An item is a block of channels of a sample: C of each is a sum over all its pixels.
template <typename T>
struct GradChannel : Products<T> {
  using A = Accumulator<T>;
  using Sweep<T>::p, Sweep<T>::tiles, Sweep<T>::place, Sweep<T>::taps;

  Vector<A>* sums;  // of each channel, branch and tap

  GradChannel(const UpParams& p, Arena& arena) : Products<T>(p, arena) {
    sums = arena.take<Vector<A>>(kChannelBlock * this->branches * taps);
  }

  void pack_tile() {
    this->pack(this->branches, taps, [&](int64_t b, int64_t t) { return Tap{b * taps + t, 0, 0}; });
  }

  void add(Vector<A>* to) {
    const bool three = p.kernel_size == 3;
    const auto add = p.combine == Combine::add
                         ? (three ? add_targets<A, 3, true> : add_targets<A, 0, true>)
                         : (three ? add_targets<A, 3, false> : add_targets<A, 0, false>);
    for (int64_t l = 0; l < this->lines(); ++l) {
      for (int64_t b = 0; b < this->branches; ++b) {
        add(taps, to + b * taps, this->packed(l * this->branches + b, taps),
            this->gradient + b * this->plane + l * this->line_length(),
            this->source + l * tiles.pitch, this->shift, this->inside, tiles.blocks);
      }
    }
  }

  static void run(const Params& params, int64_t begin, int64_t end, void* scratch) {
    const auto& p = static_cast<const UpParams&>(params);
    Arena arena(scratch);
    GradChannel sweep(p, arena);
    const int64_t count = sweep.branches * sweep.taps, k = p.kernel_size;
    for (int64_t item = begin; item < end; ++item) {
      const int64_t n = item / channel_blocks(p), first = item % channel_blocks(p) * kChannelBlock;
      const int64_t channels = least(kChannelBlock, p.channels - first);
      clear(sweep.sums, kChannelBlock * count);
      for (int64_t tile = 0; tile < sweep.tiles.count(); ++tile) {
        sweep.go_to(n * sweep.tiles.count() + tile);
        sweep.pack_tile();
        for (int64_t c = 0; c < channels; ++c) {
          sweep.load_channel(first + c);
          sweep.add(sweep.sums + c * count);
        }
      }
      for (int64_t i = 0; i < channels * count; ++i) {
        const int64_t c = i / count, b = i % count / sweep.taps, t = i % sweep.taps;
        store_one(at<T>(p.grad_channel, n, b * p.channels + first + c, t / k, t % k),
                  total<A, kVectorBytes>(sweep.sums[i]));
      }
    }
  }
};

template <typename T>
Job grad_channel_job(const UpParams& p) {
  Arena arena(nullptr);
  const GradChannel<T> sweep(p, arena);
  return {p.batch * channel_blocks(p), kChannelBlock * sweep.tiles.count() * work_of(sweep),
          arena.used(), GradChannel<T>::run};
}

}  // namespace

extern const Kernels KERNELS = {
    DDF_BY_DTYPE(UpParams, Job, forward_job),
    DDF_BY_DTYPE(UpParams, Job, grad_features_job),
    DDF_BY_DTYPE(UpParams, Job, grad_channel_job),
    DDF_BY_DTYPE(UpParams, Job, grad_spatial_job),
};

}  // namespace ddf::up
