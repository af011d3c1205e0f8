// The filters of involution on a CPU, one thread's part; compiled once per instruction set (KERNELS
// names the table it defines). involution.h has the formulas.
//
// An item is a vector of pixels, so that threads get even shares; up to three neighbours of a plane
// are a tile. Its features are copied into scratch memory, channel after channel, which settles
// strides and 16-bit elements in a fiftieth of the time, and its hidden units stay there: nothing
// but the filters goes to memory. Both layers are the same product: 8 rows of 3 vectors of sums are
// registers, and a channel takes 3 loads and 8 broadcasts for 24 multiply-adds. With 16 registers
// it is 6 rows of 2. Weights are read where they are if they can be.
//
// A sum takes its channels in one order whatever tile it is in, so that the same bits come out for
// any number of threads.

#include "ddf/scratch.h"
#include "ddf/simd.h"
#include "involution/involution_cpu.h"

namespace ddf::involution {
namespace {

constexpr int kRows = kManyRegisters ? 8 : 6, kMostVectors = kManyRegisters ? 3 : 2;

// A linear layer of each pixel: max(scale * sum + shift, floor).
template <typename A>
struct Layer {
  int64_t rows, depth;
  const A* weight;  // (rows, depth), a row `step` from the last
  int64_t step;
  const A* scale;  // null: ones
  const A* shift;
  A floor;
};

// Where a layer's rows go: `count` pixels of each.
template <typename T>
struct Target {
  T* data;
  int64_t step, count;
};

// Rows from `first` on, of kVectors adjacent vectors of pixels.
template <typename T, int kCount, int kVectors>
void rows_of(const Layer<Accumulator<T>>& layer, int64_t first, const Accumulator<T>* from,
             const Target<T>& to) {
  using A = Accumulator<T>;
  Vector<A> sum[kCount][kVectors] = {};
  const A* weight = layer.weight + first * layer.step;
  for (int64_t c = 0; c < layer.depth; ++c, from += kVectors * kLanes<A>) {
    Vector<A> f[kVectors];
    DDF_UNROLL
    for (int v = 0; v < kVectors; ++v) {
      f[v] = load(from + v * kLanes<A>);
      keep(f[v]);
    }
    DDF_UNROLL
    for (int r = 0; r < kCount; ++r) {
      const Vector<A> w = weight[r * layer.step + c] - Vector<A>{};
      DDF_UNROLL
      for (int v = 0; v < kVectors; ++v) sum[r][v] += w * f[v];
    }
  }
  DDF_UNROLL
  for (int r = 0; r < kCount; ++r) {
    const A scale = layer.scale ? layer.scale[first + r] : A{1};
    T* row = to.data + (first + r) * to.step;
    DDF_UNROLL
    for (int v = 0; v < kVectors; ++v) {
      const Vector<A> value = sum[r][v] * scale + layer.shift[first + r];
      const Vector<A> kept =
          value < layer.floor ? layer.floor - Vector<A>{} : value;  // nan is kept
      const int64_t x = v * kLanes<A>;
      if (x + kLanes<A> <= to.count) {
        store(row + x, kept);
      } else {
        for (int64_t i = x; i < to.count; ++i) store_one(row + i, kept[i - x]);
      }
    }
  }
}

template <typename T, int kVectors>
void apply(const Layer<Accumulator<T>>& layer, const Accumulator<T>* from, const Target<T>& to) {
  int64_t r = 0;
  for (; r + kRows <= layer.rows; r += kRows) rows_of<T, kRows, kVectors>(layer, r, from, to);
  if (r == layer.rows) return;
  // Some rows once more cost less than the rest one by one.
  if (r > 0) return rows_of<T, kRows, kVectors>(layer, layer.rows - kRows, from, to);
  for (; r < layer.rows; ++r) rows_of<T, 1, kVectors>(layer, r, from, to);
}

template <typename T>
struct Prediction {
  using A = Accumulator<T>;

  const InvolutionParams& p;
  const int64_t pixels, vectors;  // of a plane
  A *features, *hidden;           // of a tile
  Layer<A> reduce, span;

  Prediction(const InvolutionParams& p, Arena& arena)
      : p(p), pixels(p.height * p.width), vectors(ceil_div(pixels, kLanes<A>)) {
    constexpr int64_t kTile = kMostVectors * kLanes<A>;
    features = arena.take<A>(p.channels * kTile);
    hidden = arena.take<A>(p.hidden * kTile);
    reduce = layer(p.hidden, p.channels, p.reduce_weight, p.shift, arena);
    reduce.scale = column(p.scale, p.hidden, arena);
    span = layer(p.filters, p.hidden, p.span_weight, p.span_bias, arena);
    span.floor = -static_cast<A>(__builtin_inf());
  }

  static bool in_place(const View& weight) {
    return sizeof(T) == sizeof(A) && weight.stride[1] == 1;
  }

  // Without a base the arena only counts, and nothing is copied.
  static const A* column(const View& view, int64_t count, Arena& arena) {
    A* to = arena.take<A>(count);
    if (to) copy_row(to, at<T>(view, 0, 0, 0, 0), view.stride[0], count);
    return to;
  }

  static Layer<A> layer(int64_t rows, int64_t depth, const View& weight, const View& shift,
                        Arena& arena) {
    Layer<A> layer{rows, depth, nullptr, depth, nullptr, column(shift, rows, arena), A{0}};
    if (in_place(weight)) {
      layer.weight = reinterpret_cast<const A*>(at<T>(weight, 0, 0, 0, 0));
      layer.step = weight.stride[0];
      return layer;
    }
    A* to = arena.take<A>(rows * depth);
    for (int64_t r = 0; to && r < rows; ++r) {
      copy_row(to + r * depth, at<T>(weight, r, 0, 0, 0), weight.stride[1], depth);
    }
    layer.weight = to;
    return layer;
  }

  // Pixels from `first` on, those beyond the plane being zero.
  void load_features(int64_t n, int64_t first, int64_t count, int64_t pitch) {
    const View& view = p.features;
    const bool one_row = view.stride[2] == p.width * view.stride[3];
    if (count < pitch) clear(features, p.channels * pitch);
    for (int64_t i = 0; i < count;) {
      const int64_t y = (first + i) / p.width, x = (first + i) % p.width;
      const int64_t length = one_row ? count : least(count - i, p.width - x);
      int64_t c = 0;
      if constexpr (sizeof(T) == 4) {
        for (; view.stride[1] == 1 && c + kLanes<A> <= p.channels; c += kLanes<A>) {
          copy_pixels<A>(features + c * pitch + i, pitch, at<T>(view, n, c, y, x), view.stride[3],
                         length);
        }
      }
      for (; c < p.channels; ++c) {
        copy_row(features + c * pitch + i, at<T>(view, n, c, y, x), view.stride[3], length);
      }
      i += length;
    }
  }

  template <int kVectors>
  void predict(int64_t n, int64_t first) {
    constexpr int64_t kPitch = kVectors * kLanes<A>;
    const int64_t count = least(kPitch, pixels - first);
    load_features(n, first, count, kPitch);
    apply<A, kVectors>(reduce, features, {hidden, kPitch, kPitch});
    T* out = at<T>(p.out, n, 0, 0, 0) + first;
    apply<T, kVectors>(span, hidden, {out, p.out.stride[1], count});
  }

  static void run(const Params& params, int64_t begin, int64_t end, void* scratch) {
    const auto& p = static_cast<const InvolutionParams&>(params);
    Arena arena(scratch);
    Prediction work(p, arena);
    for (int64_t item = begin; item < end;) {
      const int64_t n = item / work.vectors, v = item % work.vectors, first = v * kLanes<A>;
      const int64_t count = least(kMostVectors, least(end - item, work.vectors - v));
      switch (count) {
        case 1:
          work.template predict<1>(n, first);
          break;
        case 2:
          work.template predict<2>(n, first);
          break;
        default:
          work.template predict<kMostVectors>(n, first);
      }
      item += count;
    }
  }
};

template <typename T>
Job filters_job(const InvolutionParams& p) {
  Arena arena(nullptr);
  const Prediction<T> work(p, arena);
  return {p.batch * work.vectors, kLanes<Accumulator<T>> * p.hidden * (p.channels + p.filters),
          arena.used(), Prediction<T>::run};
}

}  // namespace

extern const Kernels KERNELS = {DDF_BY_DTYPE(InvolutionParams, Job, filters_job)};

}  // namespace ddf::involution
