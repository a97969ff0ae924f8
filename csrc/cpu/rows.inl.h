// The inner loops of rows.h, compiled once for each SIMD level: each rows_<level>.cpp includes this with ADVFEAT_LEVEL
// set, inside a region that switches the instruction set. Everything here is static or in the level's own namespace,
// and nothing of the standard library is first instantiated here: else the linker could keep a copy that an older
// processor cannot run.
//
// Sums run over sixteen float64 lanes whatever the level, and products are not contracted into fused multiply-adds
// (-ffp-contract=off), so every level gives the same bits. Where values are float32 or narrower their products are
// exact in float64; there a level may fuse (ADVFEAT_FMA), since the sum is rounded once in either form.

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wpsabi"
#endif

#define ADVFEAT_INLINE static inline __attribute__((always_inline))

namespace advfeat::cpu::ADVFEAT_LEVEL {

struct f16 {
  uint16_t bits;
};
struct bf16 {
  uint16_t bits;
};

template <typename T>
struct ArithmeticOf {
  using type = float;
  static constexpr int exponent = 126;
};
template <>
struct ArithmeticOf<double> {
  using type = double;
  static constexpr int exponent = 1022;
};

ADVFEAT_INLINE uint32_t bits_of(float v) {
  uint32_t w;
  __builtin_memcpy(&w, &v, 4);
  return w;
}
ADVFEAT_INLINE float float_of(uint32_t w) {
  float v;
  __builtin_memcpy(&v, &w, 4);
  return v;
}

ADVFEAT_INLINE float load(float v) { return v; }
ADVFEAT_INLINE double load(double v) { return v; }
ADVFEAT_INLINE float load(bf16 v) { return float_of(static_cast<uint32_t>(v.bits) << 16); }
// Branch-free, so that loops vectorise: rebias the exponent by a multiplication; subnormals by a subtraction.
ADVFEAT_INLINE float load(f16 v) {
  const uint32_t w = static_cast<uint32_t>(v.bits) << 16, sign = w & 0x80000000u, twice = w + w;
  const uint32_t normal = bits_of(float_of((twice >> 4) + (0xE0u << 23)) * 0x1.0p-112f);
  const uint32_t subnormal = bits_of(float_of((twice >> 17) | (126u << 23)) - 0.5f);
  return float_of(sign | (twice < (1u << 27) ? subnormal : normal));
}

ADVFEAT_INLINE void store(float* p, float v) { *p = v; }
ADVFEAT_INLINE void store(double* p, double v) { *p = v; }
// Round to nearest even, as torch does.
ADVFEAT_INLINE void store(bf16* p, float v) {
  const uint32_t w = bits_of(v), rounded = (w + 0x7FFFu + ((w >> 16) & 1u)) >> 16;
  p->bits = static_cast<uint16_t>((w & 0x7FFFFFFFu) > 0x7F800000u ? 0x7FC0u : rounded);
}
ADVFEAT_INLINE void store(f16* p, float v) {
  const uint32_t w = bits_of(v), twice = w + w, sign = w & 0x80000000u;
  float base = (float_of(w & 0x7FFFFFFFu) * 0x1.0p+112f) * 0x1.0p-110f;
  uint32_t bias = twice & 0xFF000000u;
  bias = bias < 0x71000000u ? 0x71000000u : bias;
  base = float_of((bias >> 1) + 0x07800000u) + base;
  const uint32_t b = bits_of(base), magnitude = ((b >> 13) & 0x7C00u) + (b & 0x0FFFu);
  p->bits = static_cast<uint16_t>((sign >> 16) | (twice > 0xFF000000u ? 0x7E00u : magnitude));
}

// Comparisons with NaN are false, so a NaN value stays NaN and stays where it is.
template <typename A>
ADVFEAT_INLINE A clip(A v, A lo, A hi) {
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
};

template <typename T, typename G>
ADVFEAT_INLINE Row<T, G> row_of(const StepArgs& a, int64_t row) {
  return {static_cast<T*>(a.out) + row * a.out_stride, static_cast<const T*>(a.x) + row * a.x_stride,
          static_cast<const G*>(a.grad) + (a.grad ? row * a.grad_stride : 0),
          static_cast<const T*>(a.x0) + row * a.x0_stride};
}

// Calls body(i, lo, hi) for each value; the two forms of the box are two loops, each without a branch inside.
template <typename A, typename Body>
ADVFEAT_INLINE void for_each_value(const Box& box, int64_t begin, int64_t end, Body body) {
  if (box.lo_row) {
    const A* lo = static_cast<const A*>(box.lo_row);
    const A* hi = static_cast<const A*>(box.hi_row);
#pragma omp simd
    for (int64_t i = begin; i < end; ++i) body(i, lo[i], hi[i]);
  } else {
    const A lo = static_cast<A>(box.lo), hi = static_cast<A>(box.hi);
#pragma omp simd
    for (int64_t i = begin; i < end; ++i) body(i, lo, hi);
  }
}

template <typename T, typename G>
static void linf(const StepArgs& args, const Box& box, int64_t row, int64_t begin, int64_t end, double step_size,
                 double eps_) {
  using A = typename ArithmeticOf<T>::type;
  const Row<T, G> r = row_of<T, G>(args, row);
  const A a = static_cast<A>(step_size), eps = static_cast<A>(eps_);
  if (args.grad) {
    for_each_value<A>(box, begin, end, [=](int64_t i, A lo, A hi) __attribute__((always_inline)) {
      const A x = load(r.x[i]), g = load(r.grad[i]), x0 = load(r.x0[i]);
      const A y = g > 0 ? x + a : (g < 0 ? x - a : x);
      store(r.out + i, clip(clip(y, x0 - eps, x0 + eps), lo, hi));
    });
  } else {
    for_each_value<A>(box, begin, end, [=](int64_t i, A lo, A hi) __attribute__((always_inline)) {
      const A x = load(r.x[i]), x0 = load(r.x0[i]);
      store(r.out + i, clip(clip(x, x0 - eps, x0 + eps), lo, hi));
    });
  }
}

template <typename T, typename G>
static uint8_t grad_flags(const StepArgs& args, int64_t row, int64_t begin, int64_t end) {
  using A = typename ArithmeticOf<G>::type;
  const G* grad = row_of<T, G>(args, row).grad;
  int nonzero = 0, not_finite = 0;
#pragma omp simd reduction(| : nonzero, not_finite)
  for (int64_t i = begin; i < end; ++i) {
    const A g = load(grad[i]);
    nonzero |= g != 0;
    not_finite |= !(g - g == 0);
  }
  return static_cast<uint8_t>((nonzero ? kGradNonzero : 0) | (not_finite ? kGradNotFinite : 0));
}

typedef double v8d __attribute__((vector_size(64)));
typedef float v8f __attribute__((vector_size(32)));

template <typename T>
struct Lanes {
  using type = v8f;
};
template <>
struct Lanes<double> {
  using type = v8d;
};

ADVFEAT_INLINE v8f load8(const float* p) {
  v8f v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
ADVFEAT_INLINE v8d load8(const double* p) {
  v8d v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
typedef uint16_t v8u16 __attribute__((vector_size(16)));
typedef uint32_t v8u32 __attribute__((vector_size(32)));
ADVFEAT_INLINE v8f load8(const bf16* p) {
  v8u16 bits;
  __builtin_memcpy(&bits, p, sizeof bits);
#ifdef ADVFEAT_WIDEN_U16
  const v8u32 wide = ADVFEAT_WIDEN_U16(bits) << 16;
#else
  const v8u32 wide = __builtin_convertvector(bits, v8u32) << 16;
#endif
  v8f v;
  __builtin_memcpy(&v, &wide, sizeof v);
  return v;
}
ADVFEAT_INLINE v8f load8(const f16* p) {
  float v[8];
  for (int i = 0; i < 8; ++i) v[i] = load(p[i]);
  return load8(v);
}
ADVFEAT_INLINE v8d widen(v8f v) {
#ifdef ADVFEAT_WIDEN  // one instruction, for which some compilers use five
  return ADVFEAT_WIDEN(v);
#else
  return __builtin_convertvector(v, v8d);
#endif
}
ADVFEAT_INLINE v8d widen(v8d v) { return v; }

// Lanes are added in one fixed order.
ADVFEAT_INLINE double total(v8d v) { return ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7])); }

// a * b + c, for products that are exact if T is not double.
template <typename T>
ADVFEAT_INLINE v8d multiply_add(v8d a, v8d b, v8d c) {
#ifdef ADVFEAT_FMA
  if constexpr (!std::is_same_v<T, double>) return ADVFEAT_FMA(a, b, c);
#endif
  return a * b + c;
}

// Calls body(k, x8, g8, x08) for eight values at a time, the last ones padded with zeros; k is 0 and 1 in turn, so that
// sums can run in two chains.
template <typename T, typename G, typename Body>
ADVFEAT_INLINE void for_each_eight(const StepArgs& args, int64_t row, int64_t begin, int64_t end, Body body) {
  const Row<T, G> r = row_of<T, G>(args, row);
  const bool grad = args.grad != nullptr;
  static const G no_grad[8] = {};
  int64_t i = begin;
  for (; i + 16 <= end; i += 16) {
    body(0, load8(r.x + i), load8(grad ? r.grad + i : no_grad), load8(r.x0 + i));
    body(1, load8(r.x + i + 8), load8(grad ? r.grad + i + 8 : no_grad), load8(r.x0 + i + 8));
  }
  int k = 0;
  if (i + 8 <= end) {
    body(k++, load8(r.x + i), load8(grad ? r.grad + i : no_grad), load8(r.x0 + i));
    i += 8;
  }
  if (i == end) return;
  T x[8] = {}, x0[8] = {};
  G g[8] = {};
  for (int64_t j = 0; j < end - i; ++j) {
    x[j] = r.x[i + j];
    x0[j] = r.x0[i + j];
    if (grad) g[j] = r.grad[i + j];
  }
  body(k, load8(x), load8(g), load8(x0));
}

template <typename T, typename G>
static L2Sums l2_sums(const StepArgs& args, int64_t row, int64_t begin, int64_t end, const L2Scales& scales) {
  v8d gg[2] = {}, dg[2] = {}, dd[2] = {};
  const double gs = scales.grad, ds = scales.d;
  if (gs == 1 && ds == 1) {
    for_each_eight<T, G>(args, row, begin, end, [&](int k, auto x, auto g_, auto x0) __attribute__((always_inline)) {
      const v8d g = widen(g_), d = widen(x - x0);
      gg[k] = multiply_add<T>(g, g, gg[k]);
      dg[k] = multiply_add<T>(d, g, dg[k]);
      dd[k] = multiply_add<T>(d, d, dd[k]);
    });
  } else {
    for_each_eight<T, G>(args, row, begin, end, [&](int k, auto x, auto g_, auto x0) __attribute__((always_inline)) {
      const v8d g = widen(g_) * gs, d = widen(x - x0) * ds;
      gg[k] += g * g;
      dg[k] += d * g;
      dd[k] += d * d;
    });
  }
  return {total(gg[0] + gg[1]), total(dg[0] + dg[1]), total(dd[0] + dd[1])};
}

template <typename T, typename G>
static L2Max l2_max(const StepArgs& args, int64_t row, int64_t begin, int64_t end) {
  L2Max m;
  for_each_eight<T, G>(args, row, begin, end, [&](int, auto x, auto g_, auto x0) __attribute__((always_inline)) {
    const v8d g = widen(g_), d = widen(x - x0);
    for (int i = 0; i < 8; ++i) {
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
  v8d sum = {};
  const double prescale = move.prescale, factor = move.factor;
  for_each_eight<T, G>(args, row, begin, end, [&](int, auto x, auto g, auto x0) __attribute__((always_inline)) {
    const v8d d = (widen(x - x0) + (widen(g) * prescale) * factor) * scale;
    sum += d * d;
  });
  return total(sum);
}

template <typename T, typename G>
static void l2_apply(const StepArgs& args, const Box& box, int64_t row, int64_t begin, int64_t end,
                     const L2Move& move) {
  using A = typename ArithmeticOf<T>::type;
  const Row<T, G> r = row_of<T, G>(args, row);
  const A prescale = static_cast<A>(move.prescale), factor = static_cast<A>(move.factor);
  const A d_prescale = static_cast<A>(move.d_prescale), shrink = static_cast<A>(move.shrink);
  if (move.inside && move.has_grad) {
    for_each_value<A>(box, begin, end, [=](int64_t i, A lo, A hi) __attribute__((always_inline)) {
      const A x = load(r.x[i]), g = static_cast<A>(load(r.grad[i]));
      store(r.out + i, clip(x + (g * prescale) * factor, lo, hi));
    });
  } else if (move.inside) {
    for_each_value<A>(box, begin, end, [=](int64_t i, A lo, A hi) __attribute__((always_inline)) {
      store(r.out + i, clip(static_cast<A>(load(r.x[i])), lo, hi));
    });
  } else if (move.has_grad) {
    for_each_value<A>(box, begin, end, [=](int64_t i, A lo, A hi) __attribute__((always_inline)) {
      const A x = load(r.x[i]), g = static_cast<A>(load(r.grad[i])), x0 = load(r.x0[i]);
      store(r.out + i, clip(x0 + (((x - x0) * d_prescale) * shrink + (g * prescale) * factor), lo, hi));
    });
  } else {
    for_each_value<A>(box, begin, end, [=](int64_t i, A lo, A hi) __attribute__((always_inline)) {
      const A x = load(r.x[i]), x0 = load(r.x0[i]);
      store(r.out + i, clip(x0 + ((x - x0) * d_prescale) * shrink, lo, hi));
    });
  }
}

template <typename T, typename G>
constexpr RowKernels kernels_for() {
  return {linf<T, G>, grad_flags<T, G>, l2_sums<T, G>, l2_max<T, G>, l2_moved_sum<T, G>, l2_apply<T, G>};
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
