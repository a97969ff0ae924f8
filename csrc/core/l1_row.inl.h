// One row of an L1 step or projection, in the registers of a SIMD level; included by rows.inl.h. No sort: a threshold
// on the gradient and the multiplier of the projection are searched for in passes over the row, which stays in the
// cache.

namespace advfeat::cpu::ADVFEAT_LEVEL {

// The number of magnitudes that reach a threshold above 0; `sizes` is padded with zeros to sixteens.
template <typename A>
static double count_from(const A* sizes, int64_t padded, A threshold_) {
  constexpr int N = kLanesOf<A>;
  const Vec<A, N> threshold = broadcast<A, N>(threshold_);
  decltype(Vec<A, N>{} >= Vec<A, N>{}) counts = {};
  for (int64_t i = 0; i < padded; i += 16)
#pragma GCC unroll 8
    for (int j = 0; j < 16; j += N) counts -= load<N>(sizes + i + j) >= threshold;
  double sum = 0;
  for (int j = 0; j < N; ++j) sum += static_cast<double>(counts[j]);
  return sum;
}

template <typename T, typename G>
static uint8_t l1_row(const StepArgs& args, const Box& box, int64_t row_index, double share, double* scratch) {
  using A = Arithmetic<T>;
  using V = Vec<A, kSumLanes>;
  const Row<T, G> r = row_of<T, G>(args, row_index);
  const int64_t dim = args.dim, padded = (dim + 15) / 16 * 16;
  A *points = reinterpret_cast<A*>(scratch), *sizes = points + padded, *rooms = sizes + padded;
  const A *lo_row = static_cast<const A*>(box.lo_row), *hi_row = static_cast<const A*>(box.hi_row);
  const A box_lo = static_cast<A>(box.lo), box_hi = static_cast<A>(box.hi);
  const V zero = {};

  // The step: the same length for every value whose gradient reaches the threshold.
  uint8_t flags = 0;
  A by = 0, threshold = 0;
  if (args.grad) {
    const double largest = l2_max<T, G>(args, row_index, 0, dim).grad;
    flags = static_cast<uint8_t>((largest == 0 ? 0 : kGradNonzero) | (finite(largest) ? 0 : kGradNotFinite));
    if (flags == kGradNonzero) {
      for (int64_t i = 0; i < dim; i += 16) {
        const Sixteen<G> g(r.grad, i, dim);
#pragma GCC unroll 8
        for (int j = 0; j < 16; j += kSumLanes) {
          const auto w = __builtin_convertvector(load<kSumLanes>(g.at + j), V);
          store<kSumLanes>(sizes + i + j, w < 0 ? -w : w);
        }
      }
      constexpr A kSmallest = sizeof(A) == 4 ? static_cast<A>(0x1p-149) : static_cast<A>(0x1p-1074);
      using Bits = decltype(bits_of(A{}));
      ThresholdSearch<Bits> search(bits_of(static_cast<A>(largest)), count_from(sizes, padded, kSmallest),
                                   static_cast<double>(dim - l1_left_out(share, dim)));
      while (!search.done()) search.counted(count_from(sizes, padded, magnitude_of(search.trial)));
      threshold = magnitude_of(search.found);
      by = static_cast<A>(at(args.step_size, row_index)) * (A{1} / static_cast<A>(search.reached));
    }
  }

  const V momentum = broadcast<A, kSumLanes>(static_cast<A>(args.momentum)), up = broadcast<A, kSumLanes>(by);
  const V reaches = broadcast<A, kSumLanes>(threshold);
  const bool moves = flags == kGradNonzero;
  const G no_gradient = {};
  // Bounds of sixteen values.
  struct Bounds {
    A lo[16], hi[16];
  };
  const auto bounds_from = [&](int64_t i) __attribute__((always_inline)) {
    Bounds b;
    for (int j = 0; j < 16; ++j) {
      const bool inside = lo_row && i + j < dim;
      b.lo[j] = inside ? lo_row[i + j] : box_lo;
      b.hi[j] = inside ? hi_row[i + j] : box_hi;
    }
    return b;
  };
  Sum sum;
  double most = 0;
  for (int64_t i = 0; i < dim; i += 16) {
    const Sixteen<T> x(r.x, i, dim), x0(r.x0, i, dim), velocity(args.velocity ? r.velocity : r.x, i, dim);
    const Sixteen<G> g(moves ? r.grad : &no_gradient, moves ? i : 0, moves ? dim : 1);
    const Bounds b = bounds_from(i);
#pragma GCC unroll 8
    for (int c = 0; c < kChains; ++c) {
      const int at = c * kSumLanes;
      V y = load<kSumLanes>(x.at + at);
      if (args.velocity) y = y + momentum * load<kSumLanes>(velocity.at + at);
      if (moves) {
        const V w = __builtin_convertvector(load<kSumLanes>(g.at + at), V), s = load<kSumLanes>(sizes + i + at);
        const V step = s >= reaches ? (w > 0 ? up : (w < 0 ? -up : zero)) : zero;
        y = y + step;
      }
      const V centre = load<kSumLanes>(x0.at + at), d = y - centre;
      V room = d > 0 ? load<kSumLanes>(b.hi + at) - centre : centre - load<kSumLanes>(b.lo + at);
      V size = d < 0 ? -d : d;
      room = room > 0 ? room : zero;
      if (i + 16 > dim) {  // nothing beyond the end
        for (int j = 0; j < kSumLanes; ++j)
          if (i + at + j >= dim) size[j] = room[j] = 0;
      }
      store<kSumLanes>(points + i + at, y);
      store<kSumLanes>(sizes + i + at, size);
      store<kSumLanes>(rooms + i + at, room);
      sum.chains[c] += widen(size > room ? room : size);  // a NaN stays
      for (int j = 0; j < kSumLanes; ++j) most = size[j] > most ? size[j] : most;
    }
  }

  const double eps = at(args.eps, row_index);
  L1Search search;
  search.high = most;
  const bool is_point = !(eps > 0);  // a ball of its centre alone
  search.done = is_point || !finite(eps);
  if (!search.done) l1_search_step(search, eps, total(sum), 0);
  while (!search.done) {
    Sum at_l, moving;
    const VecSum l = broadcast<double, kSumLanes>(search.l), none = {}, one = broadcast<double, kSumLanes>(1.0);
    for (int64_t i = 0; i < padded; i += 16)
#pragma GCC unroll 8
      for (int c = 0; c < kChains; ++c) {
        const VecSum left = widen(load<kSumLanes>(sizes + i + c * kSumLanes)) - l,
                     room = widen(load<kSumLanes>(rooms + i + c * kSumLanes));
        const VecSum part = left < 0 ? none : left;
        at_l.chains[c] += part > room ? room : part;
        moving.chains[c] += left > 0 ? (left < room ? one : none) : none;
      }
    l1_search_step(search, eps, total(at_l), total(moving));
  }

  const bool keeps = !is_point && search.l == 0;  // within eps but for the box
  const VecSum l = broadcast<double, kSumLanes>(search.l), none = {};
  for (int64_t i = 0; i < dim; i += 16) {
    const Sixteen<T> x0(r.x0, i, dim);
    const Bounds b = bounds_from(i);
    A moved[16];
    T out[16];
#pragma GCC unroll 8
    for (int c = 0; c < kChains; ++c) {
      const int at = c * kSumLanes;
      const V y = load<kSumLanes>(points + i + at), centre = load<kSumLanes>(x0.at + at), d = y - centre;
      const VecSum left = widen(load<kSumLanes>(sizes + i + at)) - l, room = widen(load<kSumLanes>(rooms + i + at));
      VecSum part = left < 0 ? none : left;
      part = part > room ? room : part;
      const V by_part = __builtin_convertvector(part, V);
      V v = y;
      if (is_point)
        v = centre;
      else if (!keeps)
        v = centre + (d > 0 ? by_part : (d < 0 ? -by_part : (d == 0 ? zero : d)));
      store<kSumLanes>(moved + at, clip(v, load<kSumLanes>(b.lo + at), load<kSumLanes>(b.hi + at)));
    }
    constexpr int N = kLanesOf<A>;
    for (int j = 0; j < 16; j += N) store<N>(out + j, load<N>(moved + j));
    const int64_t left = dim - i < 16 ? dim - i : 16;
    if (args.velocity) {
      const Sixteen<T> before(r.x, i, dim);  // x may be out
      T velocity[16];
      for (int j = 0; j < 16; j += N) store<N>(velocity + j, load<N>(out + j) - load<N>(before.at + j));
      for (int j = 0; j < left; ++j) r.velocity[i + j] = velocity[j];
    }
    for (int j = 0; j < left; ++j) r.out[i + j] = out[j];
  }
  return flags;
}

}  // namespace advfeat::cpu::ADVFEAT_LEVEL
