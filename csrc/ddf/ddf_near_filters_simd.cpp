// The gradients of the two filters where taps are adjacent (stride 1, dilation 1, k = 3, 5, 7); one
// thread's part, compiled once per instruction set (KERNELS names the table it defines).
//
//   grad_C[n,c,j]   = sum_yx g[n,c,y,x] * F[n,c,y+dy_j,x+dx_j] * (mul: S[n,j,y,x])
//   grad_S[n,j,y,x] = sum_c  g[n,c,y,x] * F[n,c,y+dy_j,x+dx_j] * (mul: C[n,c,j])
//
// Floor per pixel and channel at k = 3, for each: 9 products and 9 multiply-adds, or `add` 9
// multiply-adds. Where pixels are adjacent products are not shared between the two: the sums of one
// would have to be loaded and stored at each of its terms, which takes as long as to multiply
// again.
//
// The sums of all taps stay in registers (k = 3), or those of a column of taps (k = 5, 7), which
// then takes k passes over rows in the first-level cache. A loaded row of F serves several rows of
// g, as in ddf_near_simd.cpp: four for grad_C, of two channels that share S, whose lanes are added
// up at the end; two for grad_S, where a row of pixels has sums of its own, of which 18 are
// registers of 16 lanes at k = 3.
//
//   grad_C   an item is a block of channels: one thread sums a channel's plane. S is packed in the
//            order of its use and read from the second-level cache by each pair of channels: the
//            sums of a pair are loaded and stored once for many strips.
//   grad_S   an item is a few rows: one thread sums their channels, a block of them at a time.
//
// Where channels are adjacent they are the lanes (k = 3, float32) and both gradients come from one
// pass: a product of g and F serves both, 3 operations a tap instead of 4. A row of taps of four
// neighbours at a time: sums over channels are registers, sums over pixels, with C a third of both
// at a time, are in the first-level cache, loaded and stored once for the four: 28 loads, of them
// 12 of one number of S, and 3 stores for 36 operations. An item is a part of the rows of a plane
// and has sums over pixels of its own, which are added up in order.
//
// Each sum is taken in an order that the shape alone decides, so that the same bits come out for
// any number of threads.

#include "ddf/near.h"

namespace ddf::near::filters {
namespace {

constexpr int64_t kTileBytes = 128 << 10;  // S of a tile, packed: in a second-level cache
constexpr int64_t kSumBytes = 64 << 10;    // of grad_S of an item
constexpr int64_t kReducedChannels = 16;   // of an item of grad_C
constexpr int64_t kItems = 16;             // of grad_S in a plane that has the rows for it

// Channels between a load and a store of grad_S: in place, or where their planes are copied or
// several passes find them in the first-level cache.
constexpr int64_t kLongBlock = 64, kShortBlock = 16;

// Columns of taps whose sums are in registers, and rows that are summed together.
template <int K>
constexpr int kColumns = K == 3 ? 3 : 1;
constexpr int kTallRows = 4;
template <int K>
constexpr int kWideRows = kManyRegisters && K == 5 ? 4
                          : kManyRegisters         ? 2
                                                   : 1;

// A row of a block of channels: that of the block's c-th channel begins at data + c*step. Rows
// outside the plane are one row of zeros.
template <typename A>
struct Row {
  const A* data;
  int64_t step;
};

// The planes of a block of channels, read in place, or copied where elements are not adjacent or
// have 16 bits.
template <typename T>
struct Planes {
  using A = Accumulator<T>;

  const Params& p;
  const View& view;
  const int64_t pad, rows;  // above and below a tile; of a copy
  const A* zeros;
  A* copy;
  int64_t n = 0, first = 0, y0 = 0, x0 = 0;

  Planes(const Params& p, const View& view, int64_t pad, int64_t tile_rows, int64_t channels,
         const A* zeros, Arena& arena)
      : p(p), view(view), pad(pad), rows(tile_rows + 2 * pad), zeros(zeros) {
    copy = plain<T>(view) ? nullptr : arena.take<A>(channels * rows * p.width);
  }

  void move_to(int64_t sample, int64_t channel, int64_t channels, int64_t y, int64_t x,
               int64_t columns) {
    n = sample;
    first = channel;
    y0 = y;
    x0 = x;
    if (!copy) return;
    const int64_t left = most(0, x - pad), right = least(p.width, x + columns + pad);
    int64_t c = 0;
    if constexpr (sizeof(T) == 4) {
      for (; view.stride[1] == 1 && c + kLanes<A> <= channels; c += kLanes<A>) {
        for (int64_t i = most(0, pad - y); i < least(rows, p.height + pad - y); ++i) {
          copy_pixels<A>(copy + (c * rows + i) * p.width + left, rows * p.width,
                         at<T>(view, n, first + c, y + i - pad, left), view.stride[3],
                         right - left);
        }
      }
    }
    for (; c < channels; ++c) {
      for (int64_t i = most(0, pad - y); i < least(rows, p.height + pad - y); ++i) {
        copy_row(copy + (c * rows + i) * p.width + left,
                 at<T>(view, n, first + c, y + i - pad, left), view.stride[3], right - left);
      }
    }
  }

  Row<A> row(int64_t y) const {
    if (y < 0 || y >= p.height) return {zeros + x0, 0};
    if (copy) return {copy + (y - y0 + pad) * p.width + x0, step()};
    return {plain_at<T>(view, n, first, y, x0), step()};
  }

  int64_t step() const { return copy ? rows * p.width : view.stride[1]; }
};

// How planes are cut into tiles.
struct Tiles {
  int64_t rows, columns, down, across;

  int64_t count() const { return down * across; }
};

// Vectors to and from registers, one by one: a copy of the whole array would keep it in memory.
template <typename V, typename A>
inline __attribute__((always_inline)) void load_all(V* to, const A* from, int count) {
  DDF_UNROLL
  for (int i = 0; i < count; ++i) to[i] = load_as<V>(from + i * sizeof(V) / sizeof(A));
}

template <typename V, typename A>
inline __attribute__((always_inline)) void store_all(A* to, const V* from, int count) {
  DDF_UNROLL
  for (int i = 0; i < count; ++i) memcpy(to + i * sizeof(V) / sizeof(A), &from[i], sizeof(V));
}

// ---- gradient of the channel filter ----

// Channels that share the loads of S.
constexpr int kTogether = kManyRegisters ? 2 : 1;

template <typename A, int K, int kRows>
struct Strip {
  Rows<kRows + K - 1> in;
  Rows<kRows> out;
  const A* spatial;  // packed: by group of columns, by vector, in the order of `add_to_taps`
};

// Channels that go together: their sums, and where their planes lie, in bytes from those of the
// first of their block. From there to the next channels' it is `next` elements.
template <typename A>
struct Group {
  A* sums[kTogether];
  int64_t in[kTogether], out[kTogether];
  int64_t next_in, next_out;
};

// One vector of each row of a strip, for the columns of taps from `dx` on.
template <typename V, int K, int kRows, bool kAdd, bool kMasked, int kSums, typename A>
inline __attribute__((always_inline)) void add_to_taps(
    V (&sum)[kTogether][kSums], const A* const (*in)[Rows<kRows + K - 1>::kRoom * 8],
    const A* const (*out)[Rows<kRows>::kRoom * 8], const A* spatial, const LaneBits* masks,
    int64_t x, int64_t dx) {
  V g[kTogether][kRows];
  DDF_UNROLL
  for (int i = 0; i < kTogether * kRows; ++i) {
    const A* from = out[i / kRows][i % kRows] + x;
    g[i / kRows][i % kRows] = kMasked ? load_lanes<V>(from, masks[K]) : load_as<V>(from);
  }
  DDF_UNROLL
  for (int y = 0; y < kRows + K - 1; ++y) {
    DDF_UNROLL
    for (int column = 0; column < kColumns<K>; ++column) {
      V f[kTogether];
      DDF_UNROLL
      for (int i = 0; i < kTogether; ++i) {
        const A* from = in[i][y] + x + dx + column - K / 2;
        f[i] = kMasked ? load_lanes<V>(from, masks[dx + column]) : load_as<V>(from);
        keep(f[i]);
      }
      DDF_UNROLL
      for (int r = 0; r < kRows; ++r) {
        if (y < r || y - r >= K) continue;
        V s = {};
        if constexpr (!kAdd) {
          s = load_as<V>(spatial);
          if (kTogether > 1) keep(s);
          spatial += sizeof(V) / sizeof(A);
        }
        DDF_UNROLL
        for (int i = 0; i < kTogether; ++i) {
          const V product = g[i][r] * f[i];
          sum[i][(y - r) * kColumns<K> + column] += kAdd ? product : product * s;
        }
      }
    }
  }
}

// Adds what strips give to the sums of these channels: whole vectors for each tap, then half ones.
template <typename A, int K, int kRows, bool kAdd>
DDF_APART void sweep_taps(const Group<A>& group, const Strip<A, K, kRows>* begin,
                          const Strip<A, K, kRows>* end, const Cut& cut) {
  constexpr int kSums = K * kColumns<K>;
  constexpr int64_t kSlots = kRows * kSums;
  for (int64_t dx = 0; dx < K; dx += kColumns<K>) {
    Vector<A> sum[kTogether][kSums];
    DDF_UNROLL
    for (int i = 0; i < kTogether; ++i) load_all(sum[i], group.sums[i] + dx * K * kLanes<A>, kSums);
    for (const Strip<A, K, kRows>* strip = begin; strip < end; ++strip) {
      alignas(64) const A* in[kTogether][Rows<kRows + K - 1>::kRoom * 8];
      alignas(64) const A* out[kTogether][Rows<kRows>::kRoom * 8];
      DDF_UNROLL
      for (int i = 0; i < kTogether; ++i) {
        strip->in.of(group.in[i], in[i]);
        strip->out.of(group.out[i], out[i]);
      }
      asm("" : "+m"(in), "+m"(out));  // see ddf_near_simd.cpp
      const A* spatial = strip->spatial + dx / kColumns<K> * kSlots * cut.template lanes<A>();
      const LaneBits* masks = cut.masks;
      int64_t x = 0;
      const auto vectors = [&](int64_t last, auto masked) __attribute__((always_inline)) {
        for (; x < last; x += kLanes<A>, spatial += kSlots * kLanes<A>, masks += K + 1) {
          if (cut.ahead) {
            DDF_UNROLL
            for (int i = 0; i < kTogether * kRows; ++i) {
              const int r = i % kRows;
              __builtin_prefetch(in[i / kRows][r + K / 2] + x + group.next_in);
              __builtin_prefetch(out[i / kRows][r] + x + group.next_out);
            }
          }
          add_to_taps<Vector<A>, K, kRows, kAdd, decltype(masked)::value>(sum, in, out, spatial,
                                                                          masks, x, dx);
        }
      };
      if constexpr (!kFreeMasks) {
        vectors(cut.inner * kLanes<A>, Masked<true>{});
        vectors(cut.outer * kLanes<A>, Masked<false>{});
      }
      vectors(cut.whole * kLanes<A>, Masked<true>{});
      if constexpr (kHalves) {
        if (cut.half) {
          const int64_t at = K * K * kLanes<A> + dx * K * (kLanes<A> / 2);
          HalfVector<A> half[kTogether][kSums];
          DDF_UNROLL
          for (int i = 0; i < kTogether; ++i) load_all(half[i], group.sums[i] + at, kSums);
          add_to_taps<HalfVector<A>, K, kRows, kAdd, true>(half, in, out, spatial, masks, x, dx);
          DDF_UNROLL
          for (int i = 0; i < kTogether; ++i) store_all(group.sums[i] + at, half[i], kSums);
        }
      }
    }
    DDF_UNROLL
    for (int i = 0; i < kTogether; ++i) {
      store_all(group.sums[i] + dx * K * kLanes<A>, sum[i], kSums);
    }
  }
}

template <typename T, int K>
struct ChannelGradient {
  using A = Accumulator<T>;
  static constexpr int64_t kTaps = K * K;
  static constexpr int64_t kSumsSize = kTaps * (kLanes<A> + kLanes<A> / 2);

  const Params& p;
  Tiles tiles;
  int64_t y0 = 0, x0 = 0, height = 0;  // of the tile
  Cut cut;

  A* zeros;
  A* spatial;  // S of the tile, packed
  A* row;      // of S
  A* sums;     // of a channel: whole vectors, then half ones
  Planes<T> features, gradient;
  Strip<A, K, kTallRows>* tall;
  Strip<A, K, 1>* single;  // what four does not divide

  ChannelGradient(const Params& p, Arena& arena)
      : p(p),
        tiles(cut_tiles(p)),
        cut(whole_and_half(tiles.columns)),
        zeros(arena.take<A>(p.width)),
        spatial(arena.take<A>(kTaps * tiles.rows * cut.template lanes<A>())),
        row(arena.take<A>(cut.template lanes<A>())),
        sums(arena.take<A>(kReducedChannels * kSumsSize)),
        features(p, p.features, K / 2, tiles.rows, kReducedChannels, zeros, arena),
        gradient(p, p.out, 0, tiles.rows, kReducedChannels, zeros, arena) {
    tall = arena.take<Strip<A, K, kTallRows>>(tiles.rows / kTallRows);
    single = arena.take<Strip<A, K, 1>>(kTallRows);
    cut.masks = arena.take<LaneBits>(cut.vectors() * (K + 1));
    cut.ahead = bytes<T>(p) >= kAheadBytes;
  }

  static Tiles cut_tiles(const Params& p) {
    constexpr int64_t size = kTaps * static_cast<int64_t>(sizeof(A));  // of S of a pixel
    Tiles t;
    t.columns = least(p.width,
                      round_up(even_part(p.width, kTileBytes / 2 / (kTallRows * size)), kLanes<A>));
    t.rows =
        least(p.height, round_up(even_part(p.height, kTileBytes / (size * t.columns)), kTallRows));
    t.down = ceil_div(p.height, t.rows);
    t.across = ceil_div(p.width, t.columns);
    return t;
  }

  static Cut whole_and_half(int64_t columns) {
    Cut cut;
    cut.template cut<A>(columns);
    return cut;
  }

  int64_t tall_strips() const { return height / kTallRows; }
  int64_t single_strips() const { return height % kTallRows; }

  void move_to(int64_t n, int64_t tile) {
    y0 = tile / tiles.across * tiles.rows;
    x0 = tile % tiles.across * tiles.columns;
    height = least(tiles.rows, p.height - y0);
    cut.template set<A, K>(x0, tiles.columns, p.width);
    if (p.combine == Combine::mul) pack(n);
  }

  // S of the tile, strip by strip in the order of its use.
  void pack(int64_t n) {
    for (int64_t y = 0; y < height; ++y) {
      const bool in_tall = y < tall_strips() * kTallRows;
      const int64_t rows = in_tall ? kTallRows : 1, r = in_tall ? y % kTallRows : 0;
      A* strip = spatial + (y - r) * kTaps * cut.template lanes<A>();
      for (int64_t j = 0; j < kTaps; ++j) {
        const int64_t dy = j / K, group = j % K / kColumns<K>, i = j % K % kColumns<K>;
        const int64_t slots = rows * K * kColumns<K>;
        const A* from = row;
        if (plain<T>(p.spatial)) {
          from = plain_at<T>(p.spatial, n, j, y0 + y, x0);
        } else {
          copy_row(row, at<T>(p.spatial, n, j, y0 + y, x0), p.spatial.stride[3],
                   least(tiles.columns, p.width - x0));
        }
        pack_row(strip + group * slots * cut.template lanes<A>(), slots, slot(rows, r, dy, i),
                 from);
      }
    }
  }

  void pack_row(A* to, int64_t slots, int64_t slot, const A* from) {
    const LaneBits* bits = cut.masks + K;
    for (int64_t v = 0; v < cut.whole; ++v, from += kLanes<A>, bits += K + 1) {
      store(to + slot * kLanes<A>, load_lanes<Vector<A>>(from, *bits));
      to += slots * kLanes<A>;
    }
    if constexpr (kHalves) {
      if (cut.half) {
        const auto half = load_lanes<HalfVector<A>>(from, *bits);
        memcpy(to + slot * (kLanes<A> / 2), &half, sizeof(half));
      }
    }
  }

  // When `add_to_taps` uses the tap of row dy and column i for row r of a strip.
  static int64_t slot(int64_t rows, int64_t r, int64_t dy, int64_t i) {
    const auto using_row = [rows](int64_t y) {
      return least(y, rows - 1) - most(0, y - K + 1) + 1;
    };
    int64_t before = 0;
    for (int64_t y = 0; y < r + dy; ++y) before += using_row(y) * kColumns<K>;
    return before + i * using_row(r + dy) + r - most(0, r + dy - K + 1);
  }

  template <int kRows>
  void set_strip(Strip<A, K, kRows>& strip, int64_t y) {
    const auto set = [](auto& rows, int i, Row<A> row) { rows.set(i, row.data, row.step != 0); };
    for (int i = 0; i < kRows + K - 1; ++i) set(strip.in, i, features.row(y0 + y + i - K / 2));
    for (int r = 0; r < kRows; ++r) set(strip.out, r, gradient.row(y0 + y + r));
    strip.spatial = spatial + y * kTaps * cut.template lanes<A>();
  }

  // Adds what the tile gives to the sums of these channels.
  template <bool kAdd>
  void run(int64_t n, int64_t first, int64_t channels) {
    features.move_to(n, first, channels, y0, x0, tiles.columns);
    gradient.move_to(n, first, channels, y0, x0, tiles.columns);
    for (int64_t i = 0; i < tall_strips(); ++i) set_strip(tall[i], i * kTallRows);
    for (int64_t i = 0; i < single_strips(); ++i) {
      set_strip(single[i], tall_strips() * kTallRows + i);
    }
    for (int64_t c = 0; c < channels; c += kTogether) {
      sweep_taps<A, K, kTallRows, kAdd>(group(c, channels), tall, tall + tall_strips(), cut);
    }
    if (single_strips() == 0) return;
    for (int64_t c = 0; c < channels; c += kTogether) {
      sweep_taps<A, K, 1, kAdd>(group(c, channels), single, single + single_strips(), cut);
    }
  }

  // Channels from `c` on, of which the last may stand twice, then with sums that nobody wants.
  Group<A> group(int64_t c, int64_t channels) const {
    Group<A> group;
    for (int i = 0; i < kTogether; ++i) {
      const int64_t one = least(c + i, channels - 1);
      group.sums[i] = sums + (c + i) * kSumsSize;
      group.in[i] = one * features.step() * int64_t{sizeof(A)};
      group.out[i] = one * gradient.step() * int64_t{sizeof(A)};
    }
    group.next_in = kTogether * features.step();
    group.next_out = kTogether * gradient.step();
    return group;
  }

  void store_sums(int64_t n, int64_t first, int64_t channels) {
    for (int64_t c = 0; c < channels; ++c) {
      const A* whole = sums + c * kSumsSize;
      const A* halves = whole + kTaps * kLanes<A>;
      for (int64_t i = 0; i < kTaps; ++i) {
        A sum = 0;
        if (cut.whole) sum += total<A, kVectorBytes>(load(whole + i * kLanes<A>));
        if (cut.half) {
          sum += total<A, kVectorBytes / 2>(load_as<HalfVector<A>>(halves + i * kLanes<A> / 2));
        }
        // by group of columns, by row, by column of the group
        const int64_t group = i / (K * kColumns<K>), dy = i / kColumns<K> % K;
        store_one(at<T>(p.grad_channel, n, first + c, dy, group * kColumns<K> + i % kColumns<K>),
                  sum);
      }
    }
  }
};

int64_t channel_groups(const Params& p) { return ceil_div(p.channels, kReducedChannels); }

template <typename T, int K, bool kAdd>
void grad_channel(const Params& p, int64_t begin, int64_t end, void* scratch) {
  Arena arena(scratch);
  ChannelGradient<T, K> gradient(p, arena);
  clear(gradient.zeros, p.width);
  int64_t loaded = -1;
  for (int64_t item = begin; item < end; ++item) {
    const int64_t n = item / channel_groups(p);
    const int64_t first = item % channel_groups(p) * kReducedChannels;
    const int64_t channels = least(kReducedChannels, p.channels - first);
    clear(gradient.sums, channels * gradient.kSumsSize);
    for (int64_t tile = 0; tile < gradient.tiles.count(); ++tile) {
      if (gradient.tiles.count() > 1 || n != loaded) gradient.move_to(n, tile);
      gradient.template run<kAdd>(n, first, channels);
    }
    loaded = n;
    gradient.store_sums(n, first, channels);
  }
}

template <typename T, int K, bool kAdd>
Job grad_channel_job(const Params& p) {
  Arena arena(nullptr);
  const ChannelGradient<T, K> gradient(p, arena);
  return {p.batch * channel_groups(p), kReducedChannels * K * K * p.height * p.width, arena.used(),
          grad_channel<T, K, kAdd>};
}

// ---- gradient of the spatial filter ----

// Adds what a block of channels gives to one vector of each of kRows rows, for the columns of taps
// from `dx` on.
template <typename V, int K, int kRows, bool kAdd, bool kMasked, typename A>
inline __attribute__((always_inline)) void add_to_pixels(A* sums, const Row<A>* in,
                                                         const Row<A>* out, const A* channel,
                                                         int64_t channels, const LaneBits* masks,
                                                         int64_t x, int64_t dx) {
  constexpr int kSums = K * kColumns<K> * kRows;
  V sum[kSums];
  load_all(sum, sums, kSums);
  const A *from[kRows + K - 1], *grad[kRows];
  DDF_UNROLL
  for (int y = 0; y < kRows + K - 1; ++y) from[y] = in[y].data + x + dx - K / 2;
  DDF_UNROLL
  for (int r = 0; r < kRows; ++r) grad[r] = out[r].data + x;
  channel += dx;
  for (int64_t c = 0; c < channels; ++c, channel += K * K) {
    V g[kRows];
    DDF_UNROLL
    for (int r = 0; r < kRows; ++r) {
      g[r] = kMasked ? load_lanes<V>(grad[r], masks[K]) : load_as<V>(grad[r]);
      __builtin_prefetch(grad[r] + sizeof(V) / sizeof(A));
      grad[r] += out[r].step;
    }
    DDF_UNROLL
    for (int y = 0; y < kRows + K - 1; ++y) {
      DDF_UNROLL
      for (int i = 0; i < kColumns<K>; ++i) {
        V f = kMasked ? load_lanes<V>(from[y] + i, masks[dx + i]) : load_as<V>(from[y] + i);
        keep(f);
        DDF_UNROLL
        for (int r = 0; r < kRows; ++r) {
          if (y < r || y - r >= K) continue;
          const V product = g[r] * f;
          V& to = sum[((y - r) * kColumns<K> + i) * kRows + r];
          to += kAdd ? product : product * channel[(y - r) * K + i];
        }
      }
      __builtin_prefetch(from[y] + K - 1 + sizeof(V) / sizeof(A));
      from[y] += in[y].step;
    }
  }
  store_all(sums, sum, kSums);
}

// Adds what a block of channels gives to kRows rows.
template <typename A, int K, int kRows, bool kAdd>
DDF_APART void sweep_pixels(A* sums, const Row<A>* in, const Row<A>* out, const A* channel,
                            int64_t channels, const Cut& cut) {
  constexpr int64_t kSums = K * kColumns<K> * kRows;
  for (int64_t dx = 0; dx < K; dx += kColumns<K>) {
    const LaneBits* masks = cut.masks;
    int64_t x = 0;
    const auto vectors = [&](int64_t last, auto masked) __attribute__((always_inline)) {
      for (; x < last; x += kLanes<A>, sums += kSums * kLanes<A>, masks += K + 1) {
        add_to_pixels<Vector<A>, K, kRows, kAdd, decltype(masked)::value>(sums, in, out, channel,
                                                                          channels, masks, x, dx);
      }
    };
    if constexpr (!kFreeMasks) {
      vectors(cut.inner * kLanes<A>, Masked<true>{});
      vectors(cut.outer * kLanes<A>, Masked<false>{});
    }
    vectors(cut.whole * kLanes<A>, Masked<true>{});
    if constexpr (kHalves) {
      if (cut.half) {
        add_to_pixels<HalfVector<A>, K, kRows, kAdd, true>(sums, in, out, channel, channels, masks,
                                                           x, dx);
        sums += kSums * (kLanes<A> / 2);
      }
    }
  }
}

template <typename T, int K>
struct SpatialGradient {
  using A = Accumulator<T>;
  static constexpr int64_t kTaps = K * K;
  static constexpr int kRows = kWideRows<K>;

  const Params& p;
  const int64_t block;
  Tiles tiles;
  Cut cut;

  A* zeros;
  A* sums;     // of the tile: by strip, by group of columns, by vector, by tap, by row
  A* row;      // of results
  A* numbers;  // C of a block
  Planes<T> features, gradient;

  SpatialGradient(const Params& p, Arena& arena)
      : p(p),
        block(kColumns<K> == K && plain<T>(p.features) && plain<T>(p.out) ? kLongBlock
                                                                          : kShortBlock),
        tiles(cut_tiles(p)),
        cut(ChannelGradient<T, K>::whole_and_half(tiles.columns)),
        zeros(arena.take<A>(p.width)),
        sums(arena.take<A>(kTaps * tiles.rows * cut.template lanes<A>())),
        row(arena.take<A>(cut.template lanes<A>())),
        numbers(arena.take<A>(block * kTaps)),
        features(p, p.features, K / 2, tiles.rows, block, zeros, arena),
        gradient(p, p.out, 0, tiles.rows, block, zeros, arena) {
    cut.masks = arena.take<LaneBits>(cut.vectors() * (K + 1));
  }

  static Tiles cut_tiles(const Params& p) {
    constexpr int64_t size = kTaps * static_cast<int64_t>(sizeof(A));
    Tiles t;
    t.columns = least(p.width, round_up(even_part(p.width, kSumBytes / (kRows * size)), kLanes<A>));
    const int64_t rows = least(kSumBytes / (size * t.columns), ceil_div(p.height, kItems));
    t.rows = round_up(most(1, rows), kRows);
    t.down = ceil_div(p.height, t.rows);
    t.across = ceil_div(p.width, t.columns);
    return t;
  }

  // C of channels first .. first + channels, in place if it is as `sweep_pixels` wants it.
  const A* load_numbers(int64_t n, int64_t first, int64_t channels) {
    const int64_t* stride = p.channel.stride;
    if (plain<T>(p.channel) && stride[2] == K && stride[1] == kTaps) {
      return plain_at<T>(p.channel, n, first, 0, 0);
    }
    for (int64_t i = 0; i < channels * kTaps; ++i) {
      numbers[i] = load_one(at<T>(p.channel, n, first + i / kTaps, i % kTaps / K, i % K));
    }
    return numbers;
  }

  template <bool kAdd>
  void run(int64_t n, int64_t tile) {
    const int64_t y0 = tile / tiles.across * tiles.rows, x0 = tile % tiles.across * tiles.columns;
    const int64_t height = least(tiles.rows, p.height - y0);
    cut.template set<A, K>(x0, tiles.columns, p.width);
    clear(sums, kTaps * tiles.rows * cut.template lanes<A>());
    for (int64_t first = 0; first < p.channels; first += block) {
      const int64_t channels = least(block, p.channels - first);
      features.move_to(n, first, channels, y0, x0, tiles.columns);
      gradient.move_to(n, first, channels, y0, x0, tiles.columns);
      const A* channel = load_numbers(n, first, channels);
      for (int64_t y = 0; y < height; y += kRows) {
        Row<A> in[kRows + K - 1], out[kRows];
        for (int i = 0; i < kRows + K - 1; ++i) in[i] = features.row(y0 + y + i - K / 2);
        for (int r = 0; r < kRows; ++r) out[r] = gradient.row(y + r < height ? y0 + y + r : -1);
        sweep_pixels<A, K, kRows, kAdd>(sums + y * kTaps * cut.template lanes<A>(), in, out,
                                        channel, channels, cut);
      }
    }
    store_sums(n, y0, x0, height);
  }

  void store_sums(int64_t n, int64_t y0, int64_t x0, int64_t height) {
    constexpr int64_t kSlots = kRows * K * kColumns<K>;
    for (int64_t y = 0; y < height; ++y) {
      for (int64_t j = 0; j < kTaps; ++j) {
        const int64_t group = j % K / kColumns<K>, i = j % K % kColumns<K>;
        const int64_t slot = (j / K * kColumns<K> + i) * kRows + y % kRows;
        const A* from = sums + (y - y % kRows) * kTaps * cut.template lanes<A>();
        from += group * kSlots * cut.template lanes<A>();
        for (int64_t v = 0; v < cut.whole; ++v, from += kSlots * kLanes<A>) {
          store(row + v * kLanes<A>, load(from + slot * kLanes<A>));
        }
        if (cut.half) {
          memcpy(row + cut.whole * kLanes<A>, from + slot * (kLanes<A> / 2), kVectorBytes / 2);
        }
        store_row(at<T>(p.grad_spatial, n, j, y0 + y, x0), p.grad_spatial.stride[3], row,
                  least(tiles.columns, p.width - x0));
      }
    }
  }
};

template <typename T, int K, bool kAdd>
void grad_spatial(const Params& p, int64_t begin, int64_t end, void* scratch) {
  Arena arena(scratch);
  SpatialGradient<T, K> gradient(p, arena);
  clear(gradient.zeros, p.width);
  for (int64_t item = begin; item < end; ++item) {
    const int64_t n = item / gradient.tiles.count(), tile = item % gradient.tiles.count();
    gradient.template run<kAdd>(n, tile);
  }
}

template <typename T, int K, bool kAdd>
Job grad_spatial_job(const Params& p) {
  Arena arena(nullptr);
  const SpatialGradient<T, K> gradient(p, arena);
  return {p.batch * gradient.tiles.count(),
          p.channels * K * K * gradient.tiles.rows * gradient.tiles.columns, arena.used(),
          grad_spatial<T, K, kAdd>};
}

// ---- both where channels are adjacent, k = 3: they are the lanes ----

constexpr int64_t kSide = 3, kWindow = kSide * kSide;
constexpr int kPixels = kManyRegisters ? 4 : 2;  // neighbours whose sums are registers
constexpr int64_t kParts = 16;  // of a plane that has the rows for it; each has its own sums

template <bool kMasked, typename A>
inline __attribute__((always_inline)) Vector<A> load_block(const A* from, LaneBits bits) {
  return kMasked ? load_lanes<Vector<A>>(from, bits) : load(from);
}

// kCount neighbours in a row and what a row of their taps reads.
template <typename A, int kCount>
struct Window {
  const A* out[kCount];                   // the gradient
  const A* features[kCount + kSide - 1];  // from one pixel left of the first on; zeros outside
  const A* ahead = nullptr;               // pixels that are fetched ahead, if any
  int64_t ahead_step = 0;
};

// What a vector of channels, the one at c, gives to the sums of pixels, in registers, and to its
// own. `channel` and `sums` have a vector for each tap of the row, `spatial` is S, the taps of a
// pixel side by side.
template <int kCount, bool kAdd, bool kMasked, typename A>
inline __attribute__((always_inline)) void add_to_both(Vector<A> (&pixel_sums)[kCount][kSide],
                                                       A* sums, const A* channel,
                                                       const Window<A, kCount>& w, const A* spatial,
                                                       int64_t c, LaneBits bits) {
  if (w.ahead) {
    DDF_UNROLL
    for (int i = 0; i < kCount; ++i) __builtin_prefetch(w.ahead + i * w.ahead_step + c, 0, 2);
  }
  Vector<A> number[kSide], sum[kSide], f[kCount + kSide - 1];
  load_all(number, channel, kSide);
  load_all(sum, sums, kSide);
  DDF_UNROLL
  for (int i = 0; i < kCount + kSide - 1; ++i) {
    f[i] = load_block<kMasked>(w.features[i] + c, bits);
    keep(f[i]);
    if (i < kSide - 1) continue;
    const int pixel = i - (kSide - 1);
    Vector<A> g = load_block<kMasked>(w.out[pixel] + c, bits);
    keep(g);
    DDF_UNROLL
    for (int x = 0; x < kSide; ++x) {
      const Vector<A> product = g * f[pixel + x];
      pixel_sums[pixel][x] += kAdd ? product : product * number[x];
      sum[x] += kAdd ? product : product * spatial[pixel * kWindow + x];
    }
  }
  store_all(sums, sum, kSide);
}

// A thread's part of both gradients: rows of a plane.
template <typename A>
struct BothGradients {
  const Params& p;
  A* channel;  // C, for each vector of channels one for each tap, zero where there is none
  A* packed;   // a row of S where it is not used in place
  A* sums;     // of kLanes pixels over channels: for each tap a vector for each pixel
  A* results;  // of these pixels, tap by tap
  A* zeros;    // a pixel outside the plane
  int64_t n = -1;

  BothGradients(const Params& p, Arena& arena) : p(p) {
    channel = arena.take<A>(numbers(p));
    packed = arena.take<A>(taps_adjacent(p) ? 0 : p.width * kWindow);
    sums = arena.take<A>(kWindow * kLanes<A> * kLanes<A>);
    results = arena.take<A>(kWindow * kLanes<A>);
    zeros = arena.take<A>(p.channels);
  }

  // Of C of a sample, in whole vectors.
  static int64_t numbers(const Params& p) { return kWindow * round_up(p.channels, kLanes<A>); }
  static int64_t rows(const Params& p) { return ceil_div(p.height, kParts); }
  static int64_t parts(const Params& p) { return ceil_div(p.height, rows(p)); }

  void move_to(int64_t sample) {
    n = sample;
    clear(channel, numbers(p));
    int64_t c = 0;
    for (; c + kLanes<A> <= p.channels; c += kLanes<A>) {
      load_channels<A>(channel + c * kWindow, p, n, c);
    }
    for (; c < p.channels; ++c) {
      A* to = channel + c / kLanes<A> * kWindow * kLanes<A> + c % kLanes<A>;
      for (int64_t j = 0; j < kWindow; ++j) {
        to[j * kLanes<A>] = *at<A>(p.channel, n, c, j / kSide, j % kSide);
      }
    }
  }

  // A row of S, the taps of a pixel side by side.
  const A* load_spatial(int64_t y) const {
    if (taps_adjacent(p)) return at<A>(p.spatial, n, 0, y, 0);
    for (int64_t j = 0; j < kWindow; ++j) {
      const A* from = at<A>(p.spatial, n, j, y, 0);
      for (int64_t x = 0; x < p.width; ++x) {
        packed[x * kWindow + j] = from[x * p.spatial.stride[3]];
      }
    }
    return packed;
  }

  // By rows of taps, so that C and the sums of channels, a third of them at a time, stay in the
  // first-level cache.
  template <bool kAdd>
  void run(int64_t part) {
    A* const channel_sums = static_cast<A*>(p.work) + (n * parts(p) + part) * numbers(p);
    clear(channel_sums, numbers(p));
    const int64_t first = part * rows(p), last = least(first + rows(p), p.height);
    for (int64_t y = first; y < last; ++y) {
      const A* spatial = load_spatial(y);
      for (int64_t x = 0; x < p.width; x += kLanes<A>) {
        const int64_t end = least(x + kLanes<A>, p.width);
        for (int64_t dy = 0; dy < kSide; ++dy) {
          if (y + dy < 1 || y + dy > p.height) {
            clear(pixel_sums(dy, 0), kSide * kLanes<A> * kLanes<A>);
            continue;
          }
          int64_t at = x;
          const auto add_some = [&](auto count) {
            for (; at + count.value <= end; at += count.value) {
              add<count.value, kAdd>(channel_sums, spatial, y, dy, at);
            }
          };
          add_some(Count<kPixels>{});
          add_some(Count<2>{});
          add_some(Count<1>{});
        }
        if (p.grad_spatial.data) store_sums(y, x, end - x);
      }
    }
  }

  // Of the taps of row dy over channels, for the pixel at x: for each tap a vector, those of the
  // next pixel beside it.
  A* pixel_sums(int64_t dy, int64_t x) const {
    return sums + kLanes<A> * (dy * kSide * kLanes<A> + x % kLanes<A>);
  }

  // What channels give to kCount neighbours and they to the channels, by a row of taps.
  template <int kCount, bool kAdd>
  DDF_APART void add(A* channel_sums, const A* spatial, int64_t y, int64_t dy, int64_t x) const {
    Window<A, kCount> w;
    const A* out = at<A>(p.out, n, 0, y, x);
    const A* features = at<A>(p.features, n, 0, y + dy - 1, x - 1);
    DDF_UNROLL
    for (int i = 0; i < kCount; ++i) w.out[i] = out + i * p.out.stride[3];
    DDF_UNROLL
    for (int i = 0; i < kCount + kSide - 1; ++i) {
      w.features[i] = features + i * p.features.stride[3];
    }
    if (x == 0) w.features[0] = zeros;
    if (x + kCount == p.width) w.features[kCount + kSide - 2] = zeros;
    if (bytes<A>(p) >= kAheadBytes && dy < 2) {
      // what the next kLanes pixels are the first to read: their gradients, and the row below them
      const View& view = dy == 0 ? p.out : p.features;
      w.ahead = at<A>(view, n, 0, dy == 0 ? y : least(y + 1, p.height - 1), x + kLanes<A>);
      w.ahead_step = view.stride[3];
    }
    Vector<A> sum[kCount][kSide] = {};
    const LaneBits some =
        inside(p.channels - 1 - (p.channels - 1) % kLanes<A>, 0, p.channels, kLanes<A>);
    A* to = channel_sums + dy * kSide * kLanes<A>;
    const A* numbers = channel + dy * kSide * kLanes<A>;
    const A* s = spatial + x * kWindow + dy * kSide;
    int64_t c = 0;
    for (; c + kLanes<A> <= p.channels; c += kLanes<A>) {
      asm("" : "+r"(s));  // else the compiler keeps an address for each number
      add_to_both<kCount, kAdd, false>(sum, to + c * kWindow, numbers + c * kWindow, w, s, c, 0);
    }
    if (c < p.channels) {
      add_to_both<kCount, kAdd, true>(sum, to + c * kWindow, numbers + c * kWindow, w, s, c, some);
    }
    A* kept = pixel_sums(dy, x);
    DDF_UNROLL
    for (int i = 0; i < kCount * kSide; ++i) {
      store(kept + (i % kSide * kLanes<A> + i / kSide) * kLanes<A>, sum[i / kSide][i % kSide]);
    }
  }

  void store_sums(int64_t y, int64_t x, int64_t count) const {
    for (int64_t j = 0; j < kWindow; ++j) {
      Vector<A> vectors[kLanes<A>];
      load_all(vectors, sums + j * kLanes<A> * kLanes<A>, kLanes<A>);
      store(results + j * kLanes<A>, totals<A>(vectors));
    }
    A* to = at<A>(p.grad_spatial, n, 0, y, x);
    for (int64_t i = 0; i < count; ++i, to += p.grad_spatial.stride[3]) {
      DDF_UNROLL
      for (int64_t j = 0; j < kWindow; ++j) {
        to[j * p.grad_spatial.stride[1]] = results[j * kLanes<A> + i];
      }
    }
  }
};

template <typename A>
void grad_both(const Params& p, int64_t begin, int64_t end, void* scratch) {
  Arena arena(scratch);
  BothGradients<A> gradient(p, arena);
  clear(gradient.zeros, p.channels);
  for (int64_t item = begin; item < end; ++item) {
    if (gradient.n != item / gradient.parts(p)) gradient.move_to(item / gradient.parts(p));
    if (p.combine == Combine::add) {
      gradient.template run<true>(item % gradient.parts(p));
    } else {
      gradient.template run<false>(item % gradient.parts(p));
    }
  }
}

// Adds up the parts' sums of a vector of channels.
template <typename A>
void add_parts(const Params& p, int64_t begin, int64_t end, void*) {
  const int64_t blocks = ceil_div(p.channels, kLanes<A>), parts = BothGradients<A>::parts(p);
  for (int64_t item = begin; item < end; ++item) {
    const int64_t n = item / blocks, first = item % blocks * kLanes<A>;
    const A* from = static_cast<A*>(p.work) + n * parts * BothGradients<A>::numbers(p);
    Vector<A> sums[kWindow] = {};
    for (int64_t part = 0; part < parts; ++part, from += BothGradients<A>::numbers(p)) {
      DDF_UNROLL
      for (int64_t j = 0; j < kWindow; ++j) {
        sums[j] += load(from + first * kWindow + j * kLanes<A>);
      }
    }
    const int64_t count = least(kLanes<A>, p.channels - first);
    DDF_UNROLL
    for (int64_t j = 0; j < kWindow; ++j) {
      A row[kLanes<A>];
      store(row, sums[j]);
      store_row(at<A>(p.grad_channel, n, first, j / kSide, j % kSide), p.grad_channel.stride[1],
                row, count);
    }
  }
}

// Channels are adjacent, and all elements those that are summed.
bool adjacent_channels(const Params& p) {
  return p.dtype == DType::float32 && p.kernel_size == kSide && p.features.stride[1] == 1 &&
         p.out.stride[1] == 1 && p.channels >= kLanes<float>;
}

Job both(const Params& p) {
  if (!adjacent_channels(p)) return {};
  using Gradients = BothGradients<float>;
  Arena arena(nullptr);
  const Gradients gradient(p, arena);
  const int64_t parts = p.batch * Gradients::parts(p);
  return {parts, p.channels * kWindow * Gradients::rows(p) * p.width, arena.used(),
          grad_both<float>, parts * Gradients::numbers(p) * int64_t{sizeof(float)}};
}

Job finish(const Params& p) {
  if (!p.grad_channel.data) return {};
  const int64_t parts = BothGradients<float>::parts(p);
  return {p.batch * ceil_div(p.channels, kLanes<float>), parts * kWindow * kLanes<float>, 0,
          add_parts<float>};
}

// ---- the table ----

struct Channel {
  template <typename T, int K, bool kAdd>
  static Job job(const Params& p) {
    return grad_channel_job<T, K, kAdd>(p);
  }
};

struct Spatial {
  template <typename T, int K, bool kAdd>
  static Job job(const Params& p) {
    return grad_spatial_job<T, K, kAdd>(p);
  }
};

template <typename Gradient, typename T>
Job by_kernel_size(const Params& p) {
  const bool add = p.combine == Combine::add;
  if (p.kernel_size == 3) {
    return add ? Gradient::template job<T, 3, true>(p) : Gradient::template job<T, 3, false>(p);
  }
  if constexpr (kLargestKernel == 7 && sizeof(T) == 4) {
    if (p.kernel_size == 5 && !add) return Gradient::template job<T, 5, false>(p);
    if (p.kernel_size == 7 && !add) return Gradient::template job<T, 7, false>(p);
  }
  return {};
}

// Rare types and sizes are left to the general kernels, which saves time to compile.
template <typename Gradient>
Job by_dtype(const Params& p) {
  switch (p.dtype) {
    case DType::float32:
      return by_kernel_size<Gradient, float>(p);
    case DType::float16:
      return by_kernel_size<Gradient, Half>(p);
    case DType::bfloat16:
      return by_kernel_size<Gradient, BFloat16>(p);
    default:
      return {};
  }
}

}  // namespace

extern const Kernels KERNELS = {by_dtype<Channel>, by_dtype<Spatial>, both, finish};

}  // namespace ddf::near::filters
