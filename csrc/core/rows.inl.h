// The inner loops of rows.h, compiled once for each SIMD level: each rows_<level>.cpp includes this with ADVFEAT_LEVEL
// and ADVFEAT_BYTES set, inside a region that switches the instruction set. Everything here is static or in the level's
// own namespace, and nothing of the standard library is first instantiated here: else the linker could keep a copy that
// an older processor cannot run.
//
// Sums run over sixteen float64 lanes whatever the level, and products are not contracted into fused multiply-adds
// (-ffp-contract=off) but where they are exact (multiply_add), so every level gives the same bits.

#include "vectors.inl.h"

namespace advfeat::cpu::ADVFEAT_LEVEL {

// Comparisons with NaN are false, so a NaN value stays NaN and stays where it is.
template <typename V>
ADVFEAT_INLINE V clip(V v, V lo, V hi) {
  v = v < lo ? lo : v;
  return v > hi ? hi : v;
}

// The pointers of a row.
template <typename T, typename G>
struct Row {
  T* out;
  const T* x;
  const G* grad;
  const T* x0;
  T* velocity;
};

template <typename T, typename G>
ADVFEAT_INLINE Row<T, G> row_of(const StepArgs& a, int64_t row) {
  return {static_cast<T*>(a.out) + row * a.out_stride, static_cast<const T*>(a.x) + row * a.x_stride,
          static_cast<const G*>(a.grad) + (a.grad ? row * a.grad_stride : 0),
          static_cast<const T*>(a.x0) + row * a.x0_stride,
          static_cast<T*>(a.velocity) + (a.velocity ? row * a.velocity_stride : 0)};
}

// Sixteen values of a row from `i` on, those beyond its end zeros.
template <typename T>
struct Sixteen {
  T padded[16];
  const T* at;

  Sixteen(const T* row, int64_t i, int64_t dim) : at(row + i) {
    if (i + 16 <= dim) return;
    for (int64_t j = 0; j < 16; ++j) padded[j] = i + j < dim ? row[i + j] : T{};
    at = padded;
  }
};

// out = body(x, grad, x0, lo, hi) for each value, a register at a time, the last ones by way of a padded copy. Operands
// that are not asked for are zero. With momentum the body gets x + momentum velocity for x, and the velocity becomes
// out - x, with out as it is stored.
template <bool kGrad, bool kX0, bool kVelocity, typename T, typename G, typename Body>
ADVFEAT_INLINE void move_values(const StepArgs& args, const Box& box, int64_t row, int64_t begin, int64_t end,
                                Body body) {
  using A = Arithmetic<T>;
  constexpr int N = kLanesOf<A>;
  using V = Vec<A, N>;
  const Row<T, G> r = row_of<T, G>(args, row);
  const A* lo_row = static_cast<const A*>(box.lo_row);
  const A* hi_row = static_cast<const A*>(box.hi_row);
  V lo = broadcast<A, N>(static_cast<A>(box.lo)), hi = broadcast<A, N>(static_cast<A>(box.hi));
  const V momentum = broadcast<A, N>(static_cast<A>(args.momentum));
  const auto some = [&](const T* x, const G* grad, const T* x0, T* velocity, T* out) __attribute__((always_inline)) {
    const V here = load<N>(x);
    V g = {}, centre = {};
    if constexpr (kGrad) g = load<N>(grad);
    if constexpr (kX0) centre = load<N>(x0);
    if constexpr (kVelocity) {
      store<N>(out, body(here + momentum * load<N>(velocity), g, centre, lo, hi));
      store<N>(velocity, load<N>(out) - here);
    } else {
      store<N>(out, body(here, g, centre, lo, hi));
    }
  };
  const auto at = [&](int64_t i) __attribute__((always_inline)) {
    some(r.x + i, r.grad + i, r.x0 + i, kVelocity ? r.velocity + i : nullptr, r.out + i);
  };
  int64_t i = begin;
  if (lo_row) {
    for (; i + N <= end; i += N) {
      lo = load<N>(lo_row + i);
      hi = load<N>(hi_row + i);
      at(i);
    }
  } else {
#pragma GCC unroll 2
    for (; i + N <= end; i += N) at(i);
  }
  if (i == end) return;
  T x[N] = {}, x0[N] = {}, velocity[N] = {}, out[N];
  G grad[N] = {};
  A lows[N] = {}, highs[N] = {};
  const int64_t left = end - i;
  for (int64_t j = 0; j < left; ++j) {
    x[j] = r.x[i + j];
    if constexpr (kX0) x0[j] = r.x0[i + j];
    if constexpr (kGrad) grad[j] = r.grad[i + j];
    if constexpr (kVelocity) velocity[j] = r.velocity[i + j];
    if (lo_row) {
      lows[j] = lo_row[i + j];
      highs[j] = hi_row[i + j];
    }
  }
  if (lo_row) {
    lo = load<N>(lows);
    hi = load<N>(highs);
  }
  some(x, grad, x0, velocity, out);
  for (int64_t j = 0; j < left; ++j) {
    r.out[i + j] = out[j];
    if constexpr (kVelocity) r.velocity[i + j] = velocity[j];
  }
}

template <bool kGrad, bool kX0, typename T, typename G, typename Body>
ADVFEAT_INLINE void for_each_value(const StepArgs& args, const Box& box, int64_t row, int64_t begin, int64_t end,
                                   Body body) {
  if (args.velocity)
    move_values<kGrad, kX0, true, T, G>(args, box, row, begin, end, body);
  else
    move_values<kGrad, kX0, false, T, G>(args, box, row, begin, end, body);
}

template <typename T, typename G>
static void linf(const StepArgs& args, const Box& box, int64_t row, int64_t begin, int64_t end, double step_size,
                 double eps_) {
  using A = Arithmetic<T>;
  constexpr int N = kLanesOf<A>;
  using V = Vec<A, N>;
  const V a = broadcast<A, N>(static_cast<A>(step_size)), eps = broadcast<A, N>(static_cast<A>(eps_)), zero = {};
  if (args.grad) {
    for_each_value<true, true, T, G>(args, box, row, begin, end,
                                     [=](V x, V g, V x0, V lo, V hi) __attribute__((always_inline)) {
                                       const V step = g > 0 ? a : (g < 0 ? -a : zero);
                                       return clip(clip(x + step, x0 - eps, x0 + eps), lo, hi);
                                     });
  } else {
    for_each_value<false, true, T, G>(args, box, row, begin, end,
                                      [=](V x, V, V x0, V lo, V hi) __attribute__((always_inline)) {
                                        return clip(clip(x, x0 - eps, x0 + eps), lo, hi);
                                      });
  }
}

template <typename T, typename G>
static uint8_t grad_flags(const StepArgs& args, int64_t row, int64_t begin, int64_t end) {
  using A = Arithmetic<G>;
  constexpr int N = kLanesOf<A>;
  using V = Vec<A, N>;
  const G* grad = row_of<T, G>(args, row).grad;
  decltype(V{} != V{}) nonzero = {}, not_finite = {};
  const auto look = [&](const G* p) __attribute__((always_inline)) {
    const V g = load<N>(p);
    nonzero |= g != 0;
    not_finite |= ~(g - g == 0);
  };
  int64_t i = begin;
  for (; i + N <= end; i += N) look(grad + i);
  if (i < end) {
    G last[N] = {};
    for (int64_t j = 0; j < end - i; ++j) last[j] = grad[i + j];
    look(last);
  }
  bool any_nonzero = false, any_not_finite = false;
  for (int j = 0; j < N; ++j) {
    any_nonzero |= nonzero[j] != 0;
    any_not_finite |= not_finite[j] != 0;
  }
  return static_cast<uint8_t>((any_nonzero ? kGradNonzero : 0) | (any_not_finite ? kGradNotFinite : 0));
}

// Sums over a row: sixteen float64 lanes, value i goes to lane i mod 16.
constexpr int kChains = 16 / kSumLanes;

struct Sum {
  VecSum chains[kChains] = {};
};

// Lanes are added in one fixed order.
ADVFEAT_INLINE double total(const Sum& sum) {
  double lanes[16], v[8];
  __builtin_memcpy(lanes, sum.chains, sizeof lanes);
  for (int i = 0; i < 8; ++i) v[i] = lanes[i] + lanes[8 + i];
  return ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7]));
}

// Calls body(chain, x, grad, x0) for all values, sixteen at a time, the last ones padded with zeros. With momentum the
// body gets x + momentum velocity for x, rounded as in move_values.
template <typename T, typename G, typename Body>
ADVFEAT_INLINE void for_each_sixteen(const StepArgs& args, int64_t row, int64_t begin, int64_t end, Body body) {
  using V = Vec<Arithmetic<T>, kSumLanes>;
  const Row<T, G> r = row_of<T, G>(args, row);
  const V momentum = broadcast<Arithmetic<T>, kSumLanes>(static_cast<Arithmetic<T>>(args.momentum));
  const auto sixteen = [&](const T* x, const G* grad, const T* x0, const T* velocity) __attribute__((always_inline)) {
#pragma GCC unroll 8
    for (int c = 0; c < kChains; ++c) {
      Vec<Arithmetic<G>, kSumLanes> g = {};
      if (grad) g = load<kSumLanes>(grad + c * kSumLanes);
      V from = load<kSumLanes>(x + c * kSumLanes);
      if (velocity) from = from + momentum * load<kSumLanes>(velocity + c * kSumLanes);
      body(c, from, g, load<kSumLanes>(x0 + c * kSumLanes));
    }
  };
  int64_t i = begin;
  if (args.velocity) {  // only with a gradient
    for (; i + 16 <= end; i += 16) sixteen(r.x + i, r.grad + i, r.x0 + i, r.velocity + i);
  } else if (args.grad) {
    for (; i + 16 <= end; i += 16) sixteen(r.x + i, r.grad + i, r.x0 + i, nullptr);
  } else {
    for (; i + 16 <= end; i += 16) sixteen(r.x + i, nullptr, r.x0 + i, nullptr);
  }
  if (i == end) return;
  T x[16] = {}, x0[16] = {}, velocity[16] = {};
  G grad[16] = {};
  for (int64_t j = 0; j < end - i; ++j) {
    x[j] = r.x[i + j];
    x0[j] = r.x0[i + j];
    if (args.grad) grad[j] = r.grad[i + j];
    if (args.velocity) velocity[j] = r.velocity[i + j];
  }
  sixteen(x, grad, x0, args.velocity ? velocity : nullptr);
}

template <typename T, typename G>
static L2Sums l2_sums(const StepArgs& args, int64_t row, int64_t begin, int64_t end, const L2Scales& scales) {
  Sum gg, dg, dd;
  const double gs = scales.grad, ds = scales.d;
  if (gs == 1 && ds == 1) {
    for_each_sixteen<T, G>(args, row, begin, end, [&](int c, auto x, auto g_, auto x0) __attribute__((always_inline)) {
      const VecSum g = widen(g_), d = widen(x - x0);
      gg.chains[c] = multiply_add<T>(g, g, gg.chains[c]);
      dg.chains[c] = multiply_add<T>(d, g, dg.chains[c]);
      dd.chains[c] = multiply_add<T>(d, d, dd.chains[c]);
    });
  } else {
    for_each_sixteen<T, G>(args, row, begin, end, [&](int c, auto x, auto g_, auto x0) __attribute__((always_inline)) {
      const VecSum g = widen(g_) * gs, d = widen(x - x0) * ds;
      gg.chains[c] += g * g;
      dg.chains[c] += d * g;
      dd.chains[c] += d * d;
    });
  }
  return {total(gg), total(dg), total(dd)};
}

template <typename T, typename G>
static L2Max l2_max(const StepArgs& args, int64_t row, int64_t begin, int64_t end) {
  L2Max m;
  for_each_sixteen<T, G>(args, row, begin, end, [&](int, auto x, auto g_, auto x0) __attribute__((always_inline)) {
    const VecSum g = widen(g_), d = widen(x - x0);
    for (int i = 0; i < kSumLanes; ++i) {
      const double ag = g[i] < 0 ? -g[i] : g[i], ad = d[i] < 0 ? -d[i] : d[i];
      m.grad = ag > m.grad || ag != ag ? ag : m.grad;
      m.d = ad > m.d || ad != ad ? ad : m.d;
    }
  });
  return m;
}

template <typename T, typename G>
static double l2_moved_sum(const StepArgs& args, int64_t row, int64_t begin, int64_t end, const L2Move& move,
                           double scale) {
  Sum sum;
  const double prescale = move.prescale, factor = move.factor;
  for_each_sixteen<T, G>(args, row, begin, end, [&](int c, auto x, auto g, auto x0) __attribute__((always_inline)) {
    const VecSum d = (widen(x - x0) + (widen(g) * prescale) * factor) * scale;
    sum.chains[c] += d * d;
  });
  return total(sum);
}

template <typename T, typename G>
static void l2_apply(const StepArgs& args, const Box& box, int64_t row, int64_t begin, int64_t end,
                     const L2Move& move) {
  using A = Arithmetic<T>;
  using V = Vec<A, kLanesOf<A>>;
  const A prescale = static_cast<A>(move.prescale), factor = static_cast<A>(move.factor);
  const A d_prescale = static_cast<A>(move.d_prescale), shrink = static_cast<A>(move.shrink);
  if (move.inside && move.has_grad) {
    for_each_value<true, false, T, G>(args, box, row, begin, end,
                                      [=](V x, V g, V, V lo, V hi) __attribute__((always_inline)) {
                                        return clip(x + (g * prescale) * factor, lo, hi);
                                      });
  } else if (move.inside) {
    for_each_value<false, false, T, G>(args, box, row, begin, end,
                                       [=](V x, V, V, V lo, V hi)
                                           __attribute__((always_inline)) { return clip(x, lo, hi); });
  } else if (move.has_grad) {
    for_each_value<true, true, T, G>(
        args, box, row, begin, end, [=](V x, V g, V x0, V lo, V hi) __attribute__((always_inline)) {
          return clip(x0 + (((x - x0) * d_prescale) * shrink + (g * prescale) * factor), lo, hi);
        });
  } else {
    for_each_value<false, true, T, G>(args, box, row, begin, end,
                                      [=](V x, V, V x0, V lo, V hi) __attribute__((always_inline)) {
                                        return clip(x0 + ((x - x0) * d_prescale) * shrink, lo, hi);
                                      });
  }
}

template <typename G>
static double l1_sum(const void* row, int64_t begin, int64_t end, double scale) {
  const G* grad = static_cast<const G*>(row);
  Sum sum;
  const auto sixteen = [&](const G* p) __attribute__((always_inline)) {
#pragma GCC unroll 8
    for (int c = 0; c < kChains; ++c) {
      const VecSum g = widen(load<kSumLanes>(p + c * kSumLanes)) * scale;
      sum.chains[c] += g < 0 ? -g : g;
    }
  };
  int64_t i = begin;
  for (; i + 16 <= end; i += 16) sixteen(grad + i);
  if (i < end) {
    G last[16] = {};
    for (int64_t j = 0; j < end - i; ++j) last[j] = grad[i + j];
    sixteen(last);
  }
  return total(sum);
}

template <bool kGrad, typename T, typename G>
ADVFEAT_INLINE void accumulate_values(T* total, const G* grad, int64_t begin, int64_t end, double decay_,
                                      double prescale_, double factor_) {
  using A = Arithmetic<T>;
  constexpr int N = kLanesOf<A>;
  using V = Vec<A, N>;
  const V decay = broadcast<A, N>(static_cast<A>(decay_)), prescale = broadcast<A, N>(static_cast<A>(prescale_)),
          factor = broadcast<A, N>(static_cast<A>(factor_));
  const auto some = [&](T* t, const G* g) __attribute__((always_inline)) {
    V v = decay * load<N>(t);
    if constexpr (kGrad) v = v + (load<N>(g) * prescale) * factor;
    store<N>(t, v);
  };
  int64_t i = begin;
#pragma GCC unroll 2
  for (; i + N <= end; i += N) some(total + i, kGrad ? grad + i : nullptr);
  if (i == end) return;
  T t[N] = {};
  G g[N] = {};
  for (int64_t j = 0; j < end - i; ++j) {
    t[j] = total[i + j];
    if constexpr (kGrad) g[j] = grad[i + j];
  }
  some(t, g);
  for (int64_t j = 0; j < end - i; ++j) total[i + j] = t[j];
}

template <typename T, typename G>
static void accumulate(void* total, const void* grad, int64_t begin, int64_t end, double decay, double prescale,
                       double factor) {
  T* t = static_cast<T*>(total);
  const G* g = static_cast<const G*>(grad);
  if (g)
    accumulate_values<true>(t, g, begin, end, decay, prescale, factor);
  else
    accumulate_values<false>(t, g, begin, end, decay, prescale, factor);
}

}  // namespace advfeat::cpu::ADVFEAT_LEVEL

#include "hyperplane.inl.h"
#include "l1_row.inl.h"

namespace advfeat::cpu::ADVFEAT_LEVEL {

template <typename T, typename G>
constexpr RowKernels kernels_for() {
  return {.linf = linf<T, G>,
          .grad_flags = grad_flags<T, G>,
          .l2_sums = l2_sums<T, G>,
          .l2_max = l2_max<T, G>,
          .l2_moved_sum = l2_moved_sum<T, G>,
          .l2_apply = l2_apply<T, G>,
          .l1_sum = l1_sum<G>,
          .accumulate = accumulate<T, G>,
          .fab_row = fab_row<T, G>,
          .l1_row = l1_row<T, G>};
}

const RowKernels* table(Dtype dtype, Dtype grad_dtype) {
  static constexpr RowKernels float32 = kernels_for<float, float>(), float64 = kernels_for<double, double>(),
                              float16 = kernels_for<f16, f16>(), bfloat16 = kernels_for<bf16, bf16>(),
                              float32_f16 = kernels_for<float, f16>(), float32_bf16 = kernels_for<float, bf16>();
  switch (dtype) {
    case Dtype::float64:
      return &float64;
    case Dtype::float16:
      return &float16;
    case Dtype::bfloat16:
      return &bfloat16;
    case Dtype::float32:
      break;
  }
  if (grad_dtype == Dtype::float16) return &float32_f16;
  return grad_dtype == Dtype::bfloat16 ? &float32_bf16 : &float32;
}

}  // namespace advfeat::cpu::ADVFEAT_LEVEL

#undef ADVFEAT_INLINE
