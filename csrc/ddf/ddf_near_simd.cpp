// The operator on a CPU where taps are adjacent (stride 1, dilation 1, k = 3, 5, 7), and the
// gradient of its features, which is the same sum with the taps reversed; one thread's part,
// compiled once per instruction set (KERNELS names the table it defines).
//
// Floor per output: k^2 products of the filters and k^2 multiply-adds, two of 512 bits in two
// cycles where a core has one such unit; a vector load a cycle. Left to itself a tap needs two
// loads, S and F, so that loads, which cost double across a cache line, bind before arithmetic:
// tiles are shaped to share them.
//
//   Tile     pixels are adjacent. S is packed in the order of its use and read ahead from the
//            second-level cache by each group of channels, F and the output in place. A strip is
//            one vector of 4 or 7 rows of two channels, which share S; with 16 registers of one. By
//            columns of taps: a column of C is in registers, and a loaded row of F serves the k
//            output rows around it. At k = 3 that is 135 loads for 252 operations. Seven rows
//            divide the planes of networks that start at 224; where four leave fewer over it is
//            four. An S that is one number goes into C before, which leaves the multiply-adds of a
//            depthwise convolution with a filter for each sample.
//   Pixels   channels are adjacent. Two rows of four neighbours go together, with 16 registers one
//            row: the rows of C that a row of F meets are in registers, and each F is loaded once.
//            S is numbers in memory, of which a multiplication takes one at no cost of a load of a
//            vector: 33 such loads for 144 operations at k = 3, 129 for 784 at k = 7. Seven
//            neighbours where fewer than by fours lie outside (14 x 14). What a row of items needs,
//            addresses and S, is made ready at once: for each item it took a tenth of the time.
//
// Padding costs no copy: rows above and below are a row of zeros, columns left and right are masked
// out of the load, with which an infinite neighbour does not matter. A row's last vector is half as
// wide if that holds the rest (56 = 3 x 16 + 8). Elements that are not adjacent, or have 16 bits,
// go through scratch memory. Each output is summed by one thread in the order of the taps, so that
// the same bits come out for any number of threads.

#include "ddf/near.h"

namespace ddf::near {
namespace {

constexpr int64_t kNearBytes = 1 << 20;    // of a second-level cache
constexpr int64_t kTileBytes = 384 << 10;  // S of a tile, packed: in that cache
constexpr int64_t kChannelBlock = 8;       // channels of an item
constexpr int64_t kSegment = 896;          // pixels of a row made ready at once; 4 and 7 divide it

// What a tap multiplies F by: S and C combined, or the number that is left where S went into C.
enum class Factor { mul, add, number };

// kRows rows of targets, and the rows of the source that they read.
template <typename A, int K, int kRows>
struct Strip {
  Rows<kRows + K - 1> in;
  Rows<kRows> out;
  const A* spatial;  // packed in the order in which `step` uses it
};

// When `step` uses the tap j of a strip's row r.
template <int K, int kRows>
struct Order {
  int slot[kRows][K * K] = {};

  constexpr Order() {
    int next = 0;
    for (int dx = 0; dx < K; ++dx) {
      for (int y = 0; y < kRows + K - 1; ++y) {
        for (int r = 0; r < kRows; ++r) {
          if (y >= r && y - r < K) slot[r][(y - r) * K + dx] = next++;
        }
      }
    }
  }
};

// Channels that share the loads of S.
template <Factor kFactor>
constexpr int kTogether = kFactor != Factor::number && kManyRegisters ? 2 : 1;

// These channels: their C, and where their planes of the source and the target lie, in bytes from
// those of the first. From there to the next channels' it is `next` elements.
template <typename A, int kCount>
struct Group {
  const A* numbers[kCount];
  int64_t in[kCount], out[kCount];
  int64_t next_in, next_out;
};

// One vector of each row of a strip, by columns of taps. `masks` holds, for each column, the lanes
// that lie inside, then the lanes that are stored.
template <typename V, int K, int kRows, Factor kFactor, bool kMasked, typename A,
          int kCount = kTogether<kFactor>>
inline __attribute__((always_inline)) void step(
    const A* const (&c)[kCount], const A* const (*in)[Rows<kRows + K - 1>::kRoom * 8],
    A* const (*out)[Rows<kRows>::kRoom * 8], const A* spatial, const LaneBits* masks, int64_t x,
    bool streamed) {
  LaneBits bits[K + 1] = {};  // else they would be read again after each store
  DDF_UNROLL
  for (int i = 0; kMasked && i <= K; ++i) bits[i] = masks[i];
  V sum[kCount][kRows] = {};
  DDF_UNROLL
  for (int dx = 0; dx < K; ++dx) {
    V column[kCount][K];
    DDF_UNROLL
    for (int i = 0; i < kCount * K; ++i) {
      column[i / K][i % K] = c[i / K][i % K * K + dx] - V{};
    }
    DDF_UNROLL
    for (int y = 0; y < kRows + K - 1; ++y) {
      V f[kCount];
      DDF_UNROLL
      for (int i = 0; i < kCount; ++i) {
        const A* from = in[i][y] + x + dx - K / 2;
        f[i] = kMasked ? load_lanes<V>(from, bits[dx]) : load_as<V>(from);
        keep(f[i]);
      }
      DDF_UNROLL
      for (int r = 0; r < kRows; ++r) {
        if (y < r || y - r >= K) continue;
        V s = {};
        if constexpr (kFactor != Factor::number) {
          s = load_as<V>(spatial);
          if (kCount > 1) keep(s);
          spatial += sizeof(V) / sizeof(A);
        }
        DDF_UNROLL
        for (int i = 0; i < kCount; ++i) {
          V factor = column[i][y - r];
          if (kFactor == Factor::mul) factor *= s;
          if (kFactor == Factor::add) factor += s;
          sum[i][r] += factor * f[i];
        }
      }
    }
  }
  DDF_UNROLL
  for (int i = 0; i < kCount; ++i) {
    DDF_UNROLL
    for (int r = 0; r < kRows; ++r) {
      if (streamed) {
        stream(out[i][r] + x, sum[i][r]);
      } else if (kMasked) {
        store_lanes(out[i][r] + x, bits[K], sum[i][r]);
      } else {
        memcpy(out[i][r] + x, &sum[i][r], sizeof(V));
      }
    }
  }
}

// Computes strips of a group of channels. What is too large for the caches is fetched ahead: of
// each of the next channels' strips the source's rows that none before has read, and the target's.
template <typename A, int K, int kRows, Factor kFactor, int kCount = kTogether<kFactor>>
DDF_APART void sweep(const Strip<A, K, kRows>* first, const Strip<A, K, kRows>* end, const Cut& cut,
                     const Group<A, kCount>& group) {
  constexpr int kLength = kRows * K * K * kLanes<A>;
  for (const Strip<A, K, kRows>* strip = first; strip < end; ++strip) {
    alignas(64) const A* in[kCount][Rows<kRows + K - 1>::kRoom * 8];
    alignas(64) A* out[kCount][Rows<kRows>::kRoom * 8];
    DDF_UNROLL
    for (int i = 0; i < kCount; ++i) {
      strip->in.of(group.in[i], in[i]);
      strip->out.of(group.out[i], out[i]);
    }
    // They stay in memory. The compiler would take each out of a vector, which costs a tenth.
    asm("" : "+m"(in), "+m"(out));
    const A* spatial = strip->spatial;
    const LaneBits* masks = cut.masks;
    int64_t x = 0;
    const auto vectors = [&](int64_t last, auto masked) __attribute__((always_inline)) {
      for (; x < last; x += kLanes<A>, spatial += kLength, masks += K + 1) {
        if (cut.ahead) {
          DDF_UNROLL
          for (int i = 0; i < kCount; ++i) {
            DDF_UNROLL
            for (int r = 0; r < kRows; ++r) {
              __builtin_prefetch(in[i][r + K - 1] + x + group.next_in);
            }
            for (int y = 0; strip == first && y < K - 1; ++y) {
              __builtin_prefetch(in[i][y] + x + group.next_in);
            }
          }
        }
        if (cut.claimed) {
          DDF_UNROLL
          for (int i = 0; i < kCount; ++i) {
            DDF_UNROLL
            for (int r = 0; r < kRows; ++r) {
              __builtin_prefetch(out[i][r] + x + group.next_out, 1);
            }
          }
        }
        step<Vector<A>, K, kRows, kFactor, decltype(masked)::value>(group.numbers, in, out, spatial,
                                                                    masks, x, cut.streamed);
      }
    };
    if constexpr (!kFreeMasks) {
      vectors(cut.inner * kLanes<A>, Masked<true>{});
      vectors(cut.outer * kLanes<A>, Masked<false>{});
    }
    vectors(cut.whole * kLanes<A>, Masked<true>{});
    if constexpr (kHalves) {
      if (cut.half) {
        step<HalfVector<A>, K, kRows, kFactor, true>(group.numbers, in, out, spatial, masks, x,
                                                     false);
      }
    }
  }
}

// Whether a target, of which this thread writes so many bytes, is to be stored past the caches:
// more than stay in the second-level one. To fetch their lines first takes longer than to read the
// target from memory afterwards. Rows are `row` elements, vectors begin at multiples of their
// width.
template <typename T>
bool streams(const View& target, int64_t row, int64_t written) {
  constexpr int64_t width = kLanes<Accumulator<T>>;
  bool aligned = reinterpret_cast<uintptr_t>(target.data) % kVectorBytes == 0 && row % width == 0;
  for (int64_t stride : target.stride) aligned = aligned && (stride == 1 || stride % width == 0);
  return sizeof(T) == sizeof(Accumulator<T>) && aligned && written >= kNearBytes;
}

// Whether S is the same number everywhere, as a tensor expanded from one element is. The way back
// differs where a tap that does not exist meets an infinite filter.
bool is_number(const Params& p) {
  bool moves = p.grad_features.data;
  for (int64_t stride : p.spatial.stride) moves = moves || stride != 0;
  return !moves;
}

// A tile of targets and what its sweep needs: forward, or backward with the taps reversed.
template <typename T, int K, int kRows, Factor kFactor>
struct Tile {
  using A = Accumulator<T>;
  static constexpr int64_t kTaps = K * K, kPad = K / 2;
  static constexpr bool kPacked = kFactor != Factor::number;
  static constexpr int kCount = kTogether<kFactor>;
  static constexpr Order<K, kRows> kOrder{};

  const Params& p;
  const bool backward;
  const View &source, &target;
  int64_t rows, columns, down, across;  // of a tile; tiles
  int64_t n = 0, y0 = 0, x0 = 0;
  Cut cut;

  A* spatial;       // S of the tile, packed
  A* row;           // of S, zero where there is none
  A *zeros, *dump;  // rows outside the source; of targets that there are not
  A* numbers;       // C of an item's channels
  Strip<A, K, kRows>* strips;
  A *in, *out;  // a group of a source and a target that cannot be read and written in place

  Tile(const Params& p, Arena& arena)
      : p(p),
        backward(p.grad_features.data),
        source(backward ? p.out : p.features),
        target(backward ? p.grad_features : p.out) {
    constexpr int64_t size = kTaps * static_cast<int64_t>(sizeof(A));  // of S of a pixel
    columns = even_part(p.width, kTileBytes / 2 / (kRows * size));
    if (columns < p.width) columns = least(p.width, round_up(columns, kLanes<A>));
    rows = round_up(even_part(p.height, kTileBytes / (size * columns)), kRows);
    down = ceil_div(p.height, rows);
    across = ceil_div(p.width, columns);
    cut.template cut<A>(columns);

    spatial = arena.take<A>(kPacked ? kTaps * rows * lanes() : 0);
    row = arena.take<A>(lanes());
    zeros = arena.take<A>(p.width);
    dump = arena.take<A>(p.width);
    numbers = arena.take<A>(kChannelBlock * kTaps);
    cut.masks = arena.take<LaneBits>(cut.vectors() * (K + 1));
    strips = arena.take<Strip<A, K, kRows>>(rows / kRows);
    in = plain<T>(source) ? nullptr : arena.take<A>(kCount * in_size());
    out = plain<T>(target) ? nullptr : arena.take<A>(kCount * out_size());
    cut.ahead = bytes<T>(p) >= kAheadBytes;
  }

  int64_t count() const { return down * across; }
  int64_t items() const { return p.batch * count() * ceil_div(p.channels, kChannelBlock); }
  int64_t in_size() const { return (rows + K - 1) * p.width; }
  int64_t out_size() const { return rows * p.width; }
  int64_t lanes() const { return cut.template lanes<A>(); }

  // This thread does `count` of the items.
  void expect(int64_t count) {
    const int64_t written = bytes<T>(p) / items() * count;
    cut.streamed = !out && columns == p.width && streams<T>(target, p.width, written);
    cut.claimed = !out && !cut.streamed && written >= kNearBytes;
  }

  void move_to(int64_t sample, int64_t index) {
    n = sample;
    y0 = index / across * rows;
    x0 = index % across * columns;
    cut.template set<A, K>(x0, columns, p.width);
    for (int64_t y = 0; y < rows; y += kRows) set_strip(strips[y / kRows], y);
    if (kPacked) pack();
  }

  void set_strip(Strip<A, K, kRows>& strip, int64_t y) {
    for (int64_t i = 0; i < kRows + K - 1; ++i) {
      const int64_t from = y0 + y + i - kPad;
      if (from < 0 || from >= p.height) {
        strip.in.set(i, zeros + x0, false);
      } else if (in) {
        strip.in.set(i, in + (y + i) * p.width + x0, true);
      } else {
        strip.in.set(i, plain_at<T>(source, n, 0, from, x0), true);
      }
    }
    for (int64_t r = 0; r < kRows; ++r) {
      if (y0 + y + r >= p.height) {
        strip.out.set(r, dump, false);
      } else if (out) {
        strip.out.set(r, out + (y + r) * p.width, true);
      } else {
        strip.out.set(r, plain_at<T>(target, n, 0, y0 + y + r, x0), true);
      }
    }
    strip.spatial = spatial + y * kTaps * lanes();
  }

  // Tap by tap, as S lies in memory.
  void pack() {
    for (int64_t dy = 0; dy < K; ++dy) {
      for (int64_t dx = 0; dx < K; ++dx) pack_tap(dy, dx);
    }
  }

  // On the way back a target uses what the tap that leads to it used where it starts from.
  void pack_tap(int64_t dy, int64_t dx) {
    const int64_t tap = backward ? (K - 1 - dy) * K + K - 1 - dx : dy * K + dx;
    const int64_t from_y = y0 + (backward ? dy - kPad : 0);
    const int64_t from_x = x0 + (backward ? dx - kPad : 0);
    const int64_t first = most(0, -from_x), last = least(columns, p.width - from_x);
    const LaneBits* bits = cut.masks + (backward ? dx : K);
    const T* from = at<T>(p.spatial, n, tap, from_y, from_x);
    A* strip = spatial;
    for (int64_t y = 0; y < rows; y += kRows, strip += kRows * kTaps * lanes()) {
      for (int64_t r = 0; r < kRows; ++r, from += p.spatial.stride[2]) {
        const bool exists = from_y + y + r >= 0 && from_y + y + r < p.height;
        const A* source = row;
        if (exists && plain<T>(p.spatial)) {
          source = reinterpret_cast<const A*>(from);
        } else if (exists && first < last) {
          copy_row(row + first, from + first * p.spatial.stride[3], p.spatial.stride[3],
                   last - first);
        }
        pack_row(strip, kOrder.slot[r][dy * K + dx], source, bits, exists ? ~LaneBits{0} : 0);
      }
    }
  }

  // A row of a strip, where its vectors are used.
  void pack_row(A* strip, int64_t slot, const A* from, const LaneBits* bits, LaneBits all) const {
    for (int64_t v = 0; v < cut.whole; ++v, from += kLanes<A>, bits += K + 1) {
      store(strip + slot * kLanes<A>, load_lanes<Vector<A>>(from, *bits & all));
      strip += kRows * kTaps * kLanes<A>;
    }
    if constexpr (kHalves) {
      if (cut.half) {
        const auto half = load_lanes<HalfVector<A>>(from, *bits & all);
        memcpy(strip + slot * (kLanes<A> / 2), &half, sizeof(half));
      }
    }
  }

  // C of channels first .. last, in place if it is as `sweep` wants it.
  const A* load_numbers(int64_t first, int64_t last) {
    const int64_t* stride = p.channel.stride;
    if (kPacked && !backward && plain<T>(p.channel) && stride[2] == K && stride[1] == kTaps) {
      return plain_at<T>(p.channel, n, first, 0, 0);
    }
    const A s = kPacked ? A{1} : load_one(at<T>(p.spatial, 0, 0, 0, 0));
    A* to = numbers;
    for (int64_t c = first; c < last; ++c, to += kTaps) {
      const T* from = at<T>(p.channel, n, c, 0, 0);
      for (int64_t j = 0; j < kTaps; ++j) {
        const A number = load_one(from + j / K * stride[2] + j % K * stride[3]);
        to[backward ? kTaps - 1 - j : j] = s * number;
      }
    }
    return numbers;
  }

  void load_source(int64_t c, A* to) {
    const int64_t first = most(0, x0 - kPad), last = least(p.width, x0 + columns + kPad);
    for (int64_t y = most(0, y0 - kPad); y < least(p.height, y0 + rows + kPad); ++y) {
      copy_row(to + (y - y0 + kPad) * p.width + first, at<T>(source, n, c, y, first),
               source.stride[3], last - first);
    }
  }

  void store_target(int64_t c, const A* from) {
    const int64_t width = least(columns, p.width - x0);
    for (int64_t y = y0; y < least(p.height, y0 + rows); ++y) {
      store_row(at<T>(target, n, c, y, x0), target.stride[3], from + (y - y0) * p.width, width);
    }
  }

  // Channels from `c` on, of which the last may stand twice; `channel` is C of channel `first`.
  Group<A, kCount> group(int64_t c, int64_t first, int64_t last, const A* channel) const {
    Group<A, kCount> group;
    for (int i = 0; i < kCount; ++i) {
      const int64_t one = least(c + i, last - 1);
      group.numbers[i] = channel + (one - first) * kTaps;
      group.in[i] = (in ? (one - c) * in_size() : one * source.stride[1]) * int64_t{sizeof(A)};
      group.out[i] = (out ? (one - c) * out_size() : one * target.stride[1]) * int64_t{sizeof(A)};
    }
    group.next_in = kCount * source.stride[1];
    group.next_out = kCount * target.stride[1];
    return group;
  }

  // The targets of channels first .. last.
  void run(int64_t first, int64_t last) {
    const A* channel = load_numbers(first, last);
    const int64_t used = ceil_div(least(rows, p.height - y0), kRows);
    for (int64_t c = first; c < last; c += kCount) {
      const int64_t count = least(kCount, last - c);
      for (int64_t i = 0; in && i < count; ++i) load_source(c + i, in + i * in_size());
      sweep<A, K, kRows, kFactor>(strips, strips + used, cut, group(c, first, last, channel));
      for (int64_t i = 0; out && i < count; ++i) store_target(c + i, out + i * out_size());
    }
  }
};

template <typename T, int K, int kRows, Factor kFactor>
void run_tiles(const Params& p, int64_t begin, int64_t end, void* scratch) {
  Arena arena(scratch);
  Tile<T, K, kRows, kFactor> tile(p, arena);
  tile.expect(end - begin);
  clear(tile.zeros, p.width);
  const int64_t blocks = ceil_div(p.channels, kChannelBlock);
  int64_t loaded = -1;
  for (int64_t item = begin; item < end; ++item) {
    const int64_t index = item / blocks, block = item % blocks;
    if (index != loaded) tile.move_to(index / tile.count(), index % tile.count());
    loaded = index;
    const int64_t first = block * kChannelBlock, last = least(first + kChannelBlock, p.channels);
    tile.run(first, last);
  }
  finish_streams();
}

template <typename T, int K, int kRows, Factor kFactor>
Job tiles_job(const Params& p) {
  Arena arena(nullptr);
  const Tile<T, K, kRows, kFactor> tile(p, arena);
  return {tile.items(), least(kChannelBlock, p.channels) * K * K * tile.rows * tile.columns,
          arena.used(), run_tiles<T, K, kRows, kFactor>};
}

// ---- channels last: an item is kDown rows of kAcross neighbours ----

// How an item's pixels are read and written. Of the rows that no item above has read, the pixels
// that the next item is the first to read lie `ahead` elements further on than this one's; they are
// not fetched ahead if that is zero.
struct Access {
  bool streamed = false;   // written past the caches
  bool from_last = false;  // block of channels
  int64_t ahead = 0;
};

// Sums the pixels of an item over all channels. `features` holds the addresses of the pixels that
// they read, by columns, `spatial` for each row S of its pixels, `channel` for each block of
// channels a vector for each tap, `out` their own, by columns.
template <typename T, int K, bool kAdd, int kDown, int kAcross>
DDF_APART void sum_pixels(const T* const* features, const Accumulator<T>* const (&spatial)[kDown],
                          const Accumulator<T>* channel, T* const* out, int64_t channels,
                          const Access& access) {
  using A = Accumulator<T>;
  constexpr int kWidth = K + kAcross - 1, kHeight = K + kDown - 1;
  const A* number[kDown];
  for (int r = 0; r < kDown; ++r) number[r] = spatial[r];
  const int64_t blocks = ceil_div(channels, kLanes<A>), step = access.from_last ? -1 : 1;
  int64_t block = access.from_last ? blocks - 1 : 0;
  for (int64_t left = blocks; left > 0; --left, block += step) {
    const A* numbers = channel + block * K * K * kLanes<A>;
    // the last block may overlap another
    const int64_t at = least(block * kLanes<A>, channels - kLanes<A>);
    if (access.ahead) {
      DDF_UNROLL
      for (int i = 0; i < kDown * kAcross; ++i) {
        const int y = K - 1 + i % kDown, x = K - 1 + i / kDown;
        __builtin_prefetch(features[x * kHeight + y] + at + access.ahead);
      }
    }
    Vector<A> sum[kDown][kAcross] = {};
    Vector<A> c[K][K];
    DDF_UNROLL
    for (int y = 0; y < kHeight; ++y) {
      DDF_UNROLL
      for (int x = 0; x < K; ++x) {
        if (y >= K) continue;
        c[y][x] = load(numbers + (y * K + x) * kLanes<A>);
        keep(c[y][x]);
      }
      DDF_UNROLL
      for (int x = 0; x < kWidth; ++x) {
        Vector<A> f = load(features[x * kHeight + y] + at);
        keep(f);
        DDF_UNROLL
        for (int r = 0; r < kDown; ++r) {
          if (y < r || y - r >= K) continue;
          DDF_UNROLL
          for (int i = 0; i < kAcross; ++i) {
            if (x < i || x - i >= K) continue;
            const int dy = y - r, dx = x - i;
            const A s = number[r][(i * K + dy) * K + dx];
            const Vector<A> factor = kAdd ? c[dy][dx] + s : c[dy][dx] * s;
            sum[r][i] += factor * f;
          }
        }
      }
    }
    DDF_UNROLL
    for (int i = 0; i < kDown * kAcross; ++i) {
      const Vector<A> result = sum[i % kDown][i / kDown];
      if (access.streamed) {
        stream(reinterpret_cast<A*>(out[i] + at), result);
      } else {
        store(out[i] + at, result);
      }
    }
  }
}

template <typename T, int K, int kDown, int kAcross>
struct Pixels {
  using A = Accumulator<T>;
  static constexpr int64_t kTaps = K * K, kPad = K / 2;
  static constexpr int64_t kHeight = K + kDown - 1;

  const Params& p;
  const bool backward;
  const View &source, &target;
  Access access;
  const int64_t columns;  // of a segment of targets, with those that there are not
  int64_t n = 0;
  int64_t y0 = 0, x0 = 0;  // where the segment begins

  A* channel;               // C, for each block of channels a vector for each tap
  A* spatial;               // S of the segment where it is not used in place
  T *zeros, *dump;          // a pixel outside the source; one of targets that there are not
  const T** features;       // the pixels that the segment reads, by columns
  T** out;                  // its own, by columns
  const A* numbers[kDown];  // S of its rows, pixel by pixel

  Pixels(const Params& p, Arena& arena)
      : p(p),
        backward(p.grad_features.data),
        source(backward ? p.out : p.features),
        target(backward ? p.grad_features : p.out),
        columns(least(kSegment, round_up(p.width, kAcross))) {
    channel = arena.take<A>(kTaps * round_up(p.channels, kLanes<A>));
    spatial = arena.take<A>(in_place() ? 0 : kDown * columns * kTaps);
    zeros = arena.take<T>(p.channels);
    dump = arena.take<T>(p.channels);
    features = arena.take<const T*>(kHeight * (columns + K - 1));
    out = arena.take<T*>(kDown * columns);
  }

  static int64_t down(const Params& p) { return ceil_div(p.height, kDown); }
  static int64_t across(const Params& p) { return ceil_div(p.width, kAcross); }
  static int64_t items(const Params& p) { return p.batch * down(p) * across(p); }

  // This thread does `count` of the items.
  void expect(int64_t count) {
    access.streamed = streams<T>(target, p.channels, bytes<T>(p) / items(p) * count);
    access.from_last = follows();
    access.ahead = bytes<T>(p) >= kAheadBytes ? kAcross * source.stride[3] : 0;
  }

  // Whether loads, from the first block on, would soon meet addresses that end in the same 12 bits
  // as those of stores before them, for which a core makes them wait. From the last block on such
  // loads have been then.
  bool follows() const {
    const int64_t pixels = (source.stride[3] | target.stride[3]) * int64_t{sizeof(T)} | 1 << 12;
    const int64_t period = pixels & -pixels;  // the largest power of two that divides all steps
    const auto address = [](const View& view) { return reinterpret_cast<uintptr_t>(view.data); };
    const auto rest = static_cast<int64_t>(address(target) - address(source)) & (period - 1);
    return rest > 0 && rest < period / 2;
  }

  void load_channel() {
    for (int64_t block = 0; block < ceil_div(p.channels, kLanes<A>); ++block) {
      const int64_t c = least(block * kLanes<A>, p.channels - kLanes<A>);
      A* to = channel + block * kTaps * kLanes<A>;
      load_channels<T>(to, p, n, c);
      for (int64_t j = 0; backward && j < kTaps / 2; ++j) {
        swap(to + j * kLanes<A>, to + (kTaps - 1 - j) * kLanes<A>);
      }
    }
  }

  static void swap(A* a, A* b) {
    const Vector<A> first = load(a);
    store(a, load(b));
    store(b, first);
  }

  void move_to(int64_t y, int64_t x) {
    y0 = y;
    x0 = x;
    set_addresses();
    set_spatial();
  }

  void set_addresses() {
    for (int64_t i = 0; i < kHeight; ++i) {
      const int64_t y = y0 + i - kPad;
      const bool exists = y >= 0 && y < p.height;
      const T* from = exists ? at<T>(source, n, 0, y, 0) : zeros;
      const int64_t step = exists ? source.stride[3] : 0;
      const T** to = features + i;
      for (int64_t x = x0 - kPad; x < x0 + columns + kPad; ++x, to += kHeight) {
        *to = x >= 0 && x < p.width ? from + x * step : zeros;
      }
    }
    for (int64_t i = 0; i < kDown; ++i) {
      T* row = y0 + i < p.height ? at<T>(target, n, 0, y0 + i, 0) : nullptr;
      T** to = out + i;
      for (int64_t x = x0; x < x0 + columns; ++x, to += kDown) {
        *to = row && x < p.width ? row + x * target.stride[3] : dump;
      }
    }
  }

  template <bool kAdd>
  void run(int64_t x) const {
    const A* from[kDown];
    for (int i = 0; i < kDown; ++i) from[i] = numbers[i] + (x - x0) * kTaps;
    sum_pixels<T, K, kAdd, kDown, kAcross>(features + (x - x0) * kHeight, from, channel,
                                           out + (x - x0) * kDown, p.channels, access);
  }

  // Whether S lies as `sum_pixels` wants it.
  bool in_place() const {
    return sizeof(T) == sizeof(A) && !backward && taps_adjacent(p) && p.width % kAcross == 0;
  }

  // What the pixels multiply their taps by.
  void set_spatial() {
    for (int64_t i = 0; i < kDown; ++i) {
      const int64_t at_y = least(y0 + i, p.height - 1);
      if (in_place()) {
        numbers[i] = plain_at<T>(p.spatial, n, 0, at_y, x0);
        continue;
      }
      A* row = spatial + i * columns * kTaps;
      numbers[i] = row;
      for (int64_t j = 0; j < kTaps; ++j) pack_tap(row + j, at_y, j);
    }
  }

  // On the way back a pixel uses what the tap that leads to it used where it starts from.
  void pack_tap(A* to, int64_t at_y, int64_t j) const {
    const int64_t dy = backward ? j / K - kPad : 0, dx = backward ? j % K - kPad : 0;
    const bool exists = at_y + dy >= 0 && at_y + dy < p.height;
    const int64_t first = exists ? least(columns, most(0, -(x0 + dx))) : columns;
    const int64_t last =
        exists ? most(first, least(columns, p.width - (x0 + most(0, dx)))) : columns;
    const int64_t step = p.spatial.stride[3];
    for (int64_t x = 0; x < first; ++x) to[x * kTaps] = 0;
    const T* from = at<T>(p.spatial, n, backward ? kTaps - 1 - j : j, at_y + dy, x0 + first + dx);
    for (int64_t x = first; x < last; ++x, from += step) to[x * kTaps] = load_one(from);
    for (int64_t x = last; x < columns; ++x) to[x * kTaps] = 0;
  }
};

template <typename T, int K, bool kAdd, int kDown, int kAcross>
void run_pixels(const Params& p, int64_t begin, int64_t end, void* scratch) {
  using Items = Pixels<T, K, kDown, kAcross>;
  Arena arena(scratch);
  Items pixels(p, arena);
  pixels.expect(end - begin);
  clear(pixels.zeros, p.channels);
  const int64_t across = Items::across(p), down = Items::down(p);
  for (int64_t item = begin; item < end; ++item) {
    const int64_t x = item % across * kAcross, n = item / across / down;
    const bool first = item == begin;
    if (first || n != pixels.n) {
      pixels.n = n;
      pixels.load_channel();
    }
    if (first || x % kSegment == 0) {
      pixels.move_to(item / across % down * kDown, x - x % kSegment);
    }
    pixels.template run<kAdd>(x);
  }
  finish_streams();
}

template <typename T, int K, bool kAdd, int kDown, int kAcross>
Job pixels_job(const Params& p) {
  using Items = Pixels<T, K, kDown, kAcross>;
  Arena arena(nullptr);
  const Items pixels(p, arena);
  return {Items::items(p), kDown * kAcross * K * K * p.channels, arena.used(),
          run_pixels<T, K, kAdd, kDown, kAcross>};
}

template <typename T, int K, bool kAdd>
Job job(const Params& p) {
  const bool backward = p.grad_features.data;
  const View& source = backward ? p.out : p.features;
  const View& target = backward ? p.grad_features : p.out;
  const bool adjacent = source.stride[1] == 1 && target.stride[1] == 1;
  if (adjacent && p.channels >= kLanes<Accumulator<T>>) {
    constexpr int down = kManyRegisters ? 2 : 1;
    if constexpr (kManyRegisters && K == 3 && sizeof(T) == 4 && !kAdd) {
      if (round_up(p.width, 7) < round_up(p.width, 4)) return pixels_job<T, K, kAdd, down, 7>(p);
    }
    return pixels_job<T, K, kAdd, down, 4>(p);
  }
  if constexpr (sizeof(T) == 4 && !kAdd) {
    if (is_number(p)) return tiles_job<T, K, 7, Factor::number>(p);
  }
  constexpr Factor factor = kAdd ? Factor::add : Factor::mul;
  if (K == 3 && round_up(p.height, 7) <= round_up(p.height, 4)) {
    return tiles_job<T, K, K == 3 ? 7 : 4, factor>(p);
  }
  return tiles_job<T, K, 4, factor>(p);
}

// What is rarely wanted is left to the general kernels, which halves the time to compile this file.
template <typename T>
Job by_kernel_size(const Params& p) {
  const bool add = p.combine == Combine::add;
  if (p.kernel_size == 3) return add ? job<T, 3, true>(p) : job<T, 3, false>(p);
  if constexpr (kLargestKernel == 7 && sizeof(T) == 4) {
    if (p.kernel_size == 5 && !add) return job<T, 5, false>(p);
    if (p.kernel_size == 7 && !add) return job<T, 7, false>(p);
  }
  return {};
}

// The output, or the gradient of the features where that is asked for.
Job by_dtype(const Params& p) {
  switch (p.dtype) {
    case DType::float32:
      return by_kernel_size<float>(p);
    case DType::float16:
      return by_kernel_size<Half>(p);
    case DType::bfloat16:
      return by_kernel_size<BFloat16>(p);
    default:
      return {};
  }
}

}  // namespace

extern const Kernels KERNELS = {by_dtype, by_dtype};

}  // namespace ddf::near
