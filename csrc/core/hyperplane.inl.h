// One row of a FAB step, in the registers of a SIMD level; included by rows.inl.h. Everything is computed in float64:
// the passes over a row that a search needs are short beside the model's, and a row's numbers stay in the cache.

namespace advfeat::cpu::ADVFEAT_LEVEL {

// The magnitudes of a row's gradient and the rooms on its two ways, padded with zeros to sixteens.
struct PlaneRow {
  int64_t dim, padded;
  double *sizes, *room, *room0;

  PlaneRow(int64_t dim_, double* scratch)
      : dim(dim_), padded((dim_ + 15) / 16 * 16), sizes(scratch), room(scratch + padded), room0(scratch + 2 * padded) {}
};

// Calls body(chain, s, r) for all values.
template <typename Body>
ADVFEAT_INLINE void for_each_room(const PlaneRow& row, const double* room, Body body) {
  for (int64_t i = 0; i < row.padded; i += 16) {
#pragma GCC unroll 8
    for (int c = 0; c < kChains; ++c)
      body(c, load<kSumLanes>(row.sizes + i + c * kSumLanes), load<kSumLanes>(room + i + c * kSumLanes));
  }
}

template <Norm norm>
static Way newton_way(const PlaneRow& row, const double* room, double gap) {
  Way way;
  const VecSum zero = {};
  while (!way.done) {
    Sum at_bounds, slope;
    const VecSum l = broadcast<double, kSumLanes>(way.l);
    for_each_room(row, room, [&](int c, VecSum s, VecSum r) __attribute__((always_inline)) {
      const auto at_bound = norm == Norm::l2 ? l * s >= r : l >= r;
      at_bounds.chains[c] += at_bound ? s * r : zero;
      slope.chains[c] += at_bound ? zero : (norm == Norm::l2 ? s * s : s);
    });
    newton_step(way, gap, total(at_bounds), total(slope));
  }
  return way;
}

// The largest threshold with which values above or at it close the gap: off the bits, from the highest on. `lowest` is
// the lowest bit that a magnitude can have.
static Way threshold_way(const PlaneRow& row, const double* room, double gap, int lowest) {
  const VecSum zero = {};
  const auto closed = [&](double l_) __attribute__((always_inline)) {
    Sum sum;
    const VecSum l = broadcast<double, kSumLanes>(l_);
    for_each_room(row, room, [&](int c, VecSum s, VecSum r) __attribute__((always_inline)) {
      sum.chains[c] += s >= l ? s * r : zero;
    });
    return total(sum);
  };
  Way way;
  way.done = true;
  if (!(closed(0) >= gap)) {
    way.l = -1;  // every value goes to its bound
    return way;
  }
  uint64_t bits = 0;
  for (int bit = 62; bit >= lowest; --bit) {
    const uint64_t more = bits | uint64_t{1} << bit;
    if (more < kInfinityBits && closed(magnitude_of(more)) >= gap) bits = more;
  }
  way.l = magnitude_of(bits);
  if (way.l == 0) {  // nothing to close
    way.l = kAllTheWay;
    return way;
  }
  Sum above, at, unbounded;
  const VecSum l = broadcast<double, kSumLanes>(way.l), one = broadcast<double, kSumLanes>(1.0);
  for_each_room(row, room, [&](int c, VecSum s, VecSum r) __attribute__((always_inline)) {
    const auto has_bound = r - r == 0;
    above.chains[c] += s > l ? s * r : zero;
    at.chains[c] += s == l ? (has_bound ? s * r : zero) : zero;
    unbounded.chains[c] += s == l ? (has_bound ? zero : one) : zero;
  });
  set_shares(way, gap, total(above), total(at), total(unbounded));
  return way;
}

template <Norm norm>
ADVFEAT_INLINE VecSum moved_by(const Way& way, VecSum s, VecSum r) {
  const VecSum l = broadcast<double, kSumLanes>(way.l);
  if constexpr (norm == Norm::l1) {
    const VecSum share = broadcast<double, kSumLanes>(way.share), zero = {};
    const VecSum at = r - r == 0 ? share * r : broadcast<double, kSumLanes>(way.unbounded);
    return s > l ? r : (s < l ? zero : at);
  }
  const VecSum far = norm == Norm::l2 ? l * s : l;
  return far < r ? far : r;
}

// The length of a way.
template <Norm norm>
static double length_of(const PlaneRow& row, const double* room, const Way& way) {
  Sum sum;
  for_each_room(row, room, [&](int c, VecSum s, VecSum r) __attribute__((always_inline)) {
    const VecSum by = moved_by<norm>(way, s, r);
    if constexpr (norm == Norm::linf)
      sum.chains[c] = by > sum.chains[c] ? by : sum.chains[c];
    else
      sum.chains[c] += norm == Norm::l2 ? by * by : by;
  });
  if constexpr (norm == Norm::linf) {
    double lanes[16], most = 0;
    __builtin_memcpy(lanes, sum.chains, sizeof lanes);
    for (double lane : lanes) most = lane > most ? lane : most;
    return most;
  }
  return norm == Norm::l2 ? __builtin_sqrt(total(sum)) : total(sum);
}

template <Norm norm, typename T, typename G>
static uint8_t fab_row_of(const StepArgs& args, const Box& box, int64_t row_index, const FabNumbers& n,
                          double* scratch) {
  using A = Arithmetic<T>;
  const Row<T, G> r = row_of<T, G>(args, row_index);
  const PlaneRow row(args.dim, scratch);
  const A *lo_row = static_cast<const A*>(box.lo_row), *hi_row = static_cast<const A*>(box.hi_row);
  const VecSum zero = {};

  const double largest = l2_max<T, G>(args, row_index, 0, args.dim).grad;
  const bool is_zero = largest == 0, not_finite = !finite(largest);
  Way way, way0;  // nothing moves
  double length = 0, length0 = 0;
  const bool usable = !is_zero && !not_finite && finite(n.gap);
  // A power of two, so exact: no product below overflows or vanishes.
  const double scale = inverse_power_of_two(exponent_of(largest), 1000);
  double gap = n.gap * scale, gap0 = gap;
  if (usable) {
    // The same hyperplane from x0: <grad, x0> is as far from it as <grad, x0 - x> brings it.
    Sum along;
    for_each_sixteen<T, G>(args, row_index, 0, args.dim,
                           [&](int c, auto x, auto g, auto x0) __attribute__((always_inline)) {
                             along.chains[c] += (widen(g) * scale) * (widen(x0) - widen(x));
                           });
    gap0 = gap + total(along);
    for (int64_t i = 0; i < row.dim; i += 16) {
      const Sixteen<T> x(r.x, i, row.dim), x0(r.x0, i, row.dim);
      const Sixteen<G> g(r.grad, i, row.dim);
      A los[16], his[16];
      for (int j = 0; j < 16; ++j) {
        const bool inside = lo_row && i + j < row.dim;
        los[j] = inside ? lo_row[i + j] : static_cast<A>(box.lo);
        his[j] = inside ? hi_row[i + j] : static_cast<A>(box.hi);
      }
#pragma GCC unroll 8
      for (int c = 0; c < kChains; ++c) {
        const int at = c * kSumLanes;
        const VecSum w = widen(load<kSumLanes>(g.at + at)) * scale, s = w < 0 ? -w : w;
        const VecSum lo = widen(load<kSumLanes>(los + at)), hi = widen(load<kSumLanes>(his + at));
        const auto room_of = [&](VecSum from, double gap_) __attribute__((always_inline)) {
          const VecSum sign = gap_ < 0 ? w : -w;
          VecSum room = sign > 0 ? hi - from : from - lo;
          room = room > 0 ? room : zero;
          return s > 0 ? room : zero;
        };
        store<kSumLanes>(row.sizes + i + at, s);
        store<kSumLanes>(row.room + i + at, room_of(widen(load<kSumLanes>(x.at + at)), gap));
        store<kSumLanes>(row.room0 + i + at, room_of(widen(load<kSumLanes>(x0.at + at)), gap0));
      }
    }
    const auto find = [&](const double* room, double gap_) {
      const double far = gap_ < 0 ? -gap_ : gap_;
      if constexpr (norm == Norm::l1)
        return threshold_way(row, room, far, std::is_same_v<G, double> ? 0 : 29);  // 52 bits of a double, 23 of a float
      else
        return newton_way<norm>(row, room, far);
    };
    way = find(row.room, gap);
    way0 = find(row.room0, gap0);
    length = length_of<norm>(row, row.room, way);
    length0 = length_of<norm>(row, row.room0, way0);
  }

  const double weight0 = fab_weight(length, length0, n.alpha_max), weight = 1 - weight0;
  const double eta = n.eta, side = gap < 0 ? eta : -eta, side0 = gap0 < 0 ? eta : -eta;
  for (int64_t i = 0; i < row.dim; i += 16) {
    const Sixteen<T> x(r.x, i, row.dim), x0(r.x0, i, row.dim);
    const Sixteen<G> g(r.grad, i, row.dim);
    A moved[16];
    T out[16];
#pragma GCC unroll 8
    for (int c = 0; c < kChains; ++c) {
      const int at = c * kSumLanes;
      VecSum d = zero, d0 = zero;
      if (usable) {
        const VecSum w = widen(load<kSumLanes>(g.at + at)), s = load<kSumLanes>(row.sizes + i + at);
        const VecSum by = moved_by<norm>(way, s, load<kSumLanes>(row.room + i + at)),
                     by0 = moved_by<norm>(way0, s, load<kSumLanes>(row.room0 + i + at));
        d = w > 0 ? side * by : (w < 0 ? -side * by : zero);
        d0 = w > 0 ? side0 * by0 : (w < 0 ? -side0 * by0 : zero);
      }
      const VecSum to =
          weight * (widen(load<kSumLanes>(x.at + at)) + d) + weight0 * (widen(load<kSumLanes>(x0.at + at)) + d0);
      const auto narrow = __builtin_convertvector(to, Vec<A, kSumLanes>);
      __builtin_memcpy(moved + at, &narrow, sizeof narrow);
    }
    const int64_t left = row.dim - i < 16 ? row.dim - i : 16;
    for (int j = 0; j < left; ++j) {
      const A lo = lo_row ? lo_row[i + j] : static_cast<A>(box.lo),
              hi = hi_row ? hi_row[i + j] : static_cast<A>(box.hi);
      moved[j] = moved[j] < lo ? lo : moved[j];
      moved[j] = moved[j] > hi ? hi : moved[j];
    }
    for (int j = static_cast<int>(left); j < 16; ++j) moved[j] = 0;
    constexpr int N = kLanesOf<A>;
    for (int j = 0; j < 16; j += N) store<N>(out + j, load<N>(moved + j));
    for (int j = 0; j < left; ++j) r.out[i + j] = out[j];
  }
  return static_cast<uint8_t>((is_zero ? 0 : kGradNonzero) | (not_finite ? kGradNotFinite : 0));
}

template <typename T, typename G>
static uint8_t fab_row(const StepArgs& args, const Box& box, int64_t row, Norm norm, const FabNumbers& numbers,
                       double* scratch) {
  if (norm == Norm::linf) return fab_row_of<Norm::linf, T, G>(args, box, row, numbers, scratch);
  if (norm == Norm::l2) return fab_row_of<Norm::l2, T, G>(args, box, row, numbers, scratch);
  return fab_row_of<Norm::l1, T, G>(args, box, row, numbers, scratch);
}

}  // namespace advfeat::cpu::ADVFEAT_LEVEL
