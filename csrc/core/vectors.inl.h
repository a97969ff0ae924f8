// Vectors for rows.inl.h, in the registers of its SIMD level: loads and stores of every dtype, widening, exact
// products.
//
// ADVFEAT_BYTES is the width of a register: 16 for the baseline, 32 for AVX2 (with FMA and F16C), 64 for AVX-512.
// Written with the compilers' vector types, and with intrinsics where those come out as many instructions: conversions
// of half types, which a plain loop leaves scalar on AVX2, made a step thirty times slower there.

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

template <typename T, int kLanes>
struct VectorOf {
  typedef T type __attribute__((vector_size(sizeof(T) * kLanes)));
};
template <typename T, int kLanes>
using Vec = typename VectorOf<T, kLanes>::type;

// What a dtype is computed in: half types in float.
template <typename T>
struct ArithmeticOf {
  using type = float;
};
template <>
struct ArithmeticOf<double> {
  using type = double;
};
template <typename T>
using Arithmetic = typename ArithmeticOf<T>::type;

// Lanes of a register, of floats or doubles.
template <typename A>
constexpr int kLanesOf = ADVFEAT_BYTES / sizeof(A);

template <typename To, typename From>
ADVFEAT_INLINE To bits_as(From v) {
  static_assert(sizeof(To) == sizeof(From));
  To w;
  __builtin_memcpy(&w, &v, sizeof w);
  return w;
}

template <typename A, int N>
ADVFEAT_INLINE Vec<A, N> broadcast(A v) {
  return v - Vec<A, N>{};
}

// --- 16-bit integers to 32 bits and back (the upper half is zero)

template <int N>
ADVFEAT_INLINE Vec<uint32_t, N> widen_u16(Vec<uint16_t, N> v) {
#if ADVFEAT_BYTES == 64
  if constexpr (N == 16) return bits_as<Vec<uint32_t, N>>(_mm512_maskz_cvtepu16_epi32(0xffff, bits_as<__m256i>(v)));
#endif
#if ADVFEAT_BYTES >= 32
  if constexpr (N == 8) return bits_as<Vec<uint32_t, N>>(_mm256_cvtepu16_epi32(bits_as<__m128i>(v)));
  if constexpr (N == 4) return bits_as<Vec<uint32_t, N>>(_mm_cvtepu16_epi32(_mm_cvtsi64_si128(bits_as<int64_t>(v))));
#endif
  return __builtin_convertvector(v, Vec<uint32_t, N>);
}

template <int N>
ADVFEAT_INLINE Vec<uint16_t, N> narrow_u32(Vec<uint32_t, N> v) {
#if ADVFEAT_BYTES == 64
  if constexpr (N == 16) return bits_as<Vec<uint16_t, N>>(_mm512_maskz_cvtepi32_epi16(0xffff, bits_as<__m512i>(v)));
#elif ADVFEAT_BYTES == 32
  if constexpr (N == 8) {
    const __m256i w = bits_as<__m256i>(v), packed = _mm256_packus_epi32(w, w);
    return bits_as<Vec<uint16_t, N>>(_mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 0x08)));
  }
#endif
  return __builtin_convertvector(v, Vec<uint16_t, N>);
}

// --- loads: N values as floats (doubles for double)

template <int N>
ADVFEAT_INLINE Vec<float, N> load(const float* p) {
  Vec<float, N> v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
template <int N>
ADVFEAT_INLINE Vec<double, N> load(const double* p) {
  Vec<double, N> v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
template <int N>
ADVFEAT_INLINE Vec<float, N> load(const bf16* p) {
  Vec<uint16_t, N> bits;
  __builtin_memcpy(&bits, p, sizeof bits);
  return bits_as<Vec<float, N>>(widen_u16<N>(bits) << 16);
}
template <int N>
ADVFEAT_INLINE Vec<float, N> load(const f16* p) {
  Vec<uint16_t, N> bits;
  __builtin_memcpy(&bits, p, sizeof bits);
#if ADVFEAT_BYTES == 64
  if constexpr (N == 16) return bits_as<Vec<float, N>>(_mm512_maskz_cvtph_ps(0xffff, bits_as<__m256i>(bits)));
#endif
#if ADVFEAT_BYTES >= 32
  if constexpr (N == 8) return bits_as<Vec<float, N>>(_mm256_cvtph_ps(bits_as<__m128i>(bits)));
  if constexpr (N == 4) return bits_as<Vec<float, N>>(_mm_cvtph_ps(_mm_cvtsi64_si128(bits_as<int64_t>(bits))));
#endif
  // Rebias the exponent by a multiplication; subnormals by a subtraction.
  const Vec<uint32_t, N> w = widen_u16<N>(bits) << 16, sign = w & 0x80000000u, twice = w + w;
  using F = Vec<float, N>;
  const auto normal = bits_as<Vec<uint32_t, N>>(bits_as<F>((twice >> 4) + (0xE0u << 23)) * 0x1.0p-112f);
  const auto subnormal = bits_as<Vec<uint32_t, N>>(bits_as<F>((twice >> 17) | (126u << 23)) - 0.5f);
  return bits_as<F>(sign | (twice < (1u << 27) ? subnormal : normal));
}

// --- stores, rounded to nearest even as torch does; NaN becomes the quiet NaN of its sign (bfloat16: positive)

template <int N>
ADVFEAT_INLINE void store(float* p, Vec<float, N> v) {
  __builtin_memcpy(p, &v, sizeof v);
}
template <int N>
ADVFEAT_INLINE void store(double* p, Vec<double, N> v) {
  __builtin_memcpy(p, &v, sizeof v);
}
template <int N>
ADVFEAT_INLINE void store(bf16* p, Vec<float, N> v) {
  using U = Vec<uint32_t, N>;
  const U w = bits_as<U>(v), rounded = (w + 0x7FFFu + ((w >> 16) & 1u)) >> 16;
  const auto bits = narrow_u32<N>(v != v ? broadcast<uint32_t, N>(0x7FC0u) : rounded);
  __builtin_memcpy(p, &bits, sizeof bits);
}
template <int N>
ADVFEAT_INLINE void store(f16* p, Vec<float, N> v) {
  using U = Vec<uint32_t, N>;
  Vec<uint16_t, N> bits;
#if ADVFEAT_BYTES >= 32
  // The hardware keeps a NaN's payload: cleared first, for the same bits on every level.
  const U nan = (bits_as<U>(v) & 0x80000000u) | 0x7FC00000u;
  v = v != v ? bits_as<Vec<float, N>>(nan) : v;
  constexpr int kNearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
#if ADVFEAT_BYTES == 64
  static_assert(N == 16);
  bits = bits_as<Vec<uint16_t, N>>(_mm512_maskz_cvtps_ph(0xffff, bits_as<__m512>(v), kNearest));
#else
  static_assert(N == 8);
  bits = bits_as<Vec<uint16_t, N>>(_mm256_cvtps_ph(bits_as<__m256>(v), kNearest));
#endif
#else
  using F = Vec<float, N>;
  const U w = bits_as<U>(v), twice = w + w, sign = w & 0x80000000u;
  F base = (bits_as<F>(w & 0x7FFFFFFFu) * 0x1.0p+112f) * 0x1.0p-110f;
  U bias = twice & 0xFF000000u;
  bias = bias < 0x71000000u ? broadcast<uint32_t, N>(0x71000000u) : bias;
  base = bits_as<F>((bias >> 1) + 0x07800000u) + base;
  const U b = bits_as<U>(base), magnitude = ((b >> 13) & 0x7C00u) + (b & 0x0FFFu);
  bits = narrow_u32<N>((sign >> 16) | (twice > 0xFF000000u ? broadcast<uint32_t, N>(0x7E00u) : magnitude));
#endif
  __builtin_memcpy(p, &bits, sizeof bits);
}

// --- float64 sums

constexpr int kSumLanes = kLanesOf<double>;
using VecSum = Vec<double, kSumLanes>;

ADVFEAT_INLINE VecSum widen(Vec<double, kSumLanes> v) { return v; }
ADVFEAT_INLINE VecSum widen(Vec<float, kSumLanes> v) {
#if ADVFEAT_BYTES == 64
  return bits_as<VecSum>(_mm512_maskz_cvtps_pd(0xff, bits_as<__m256>(v)));
#elif ADVFEAT_BYTES == 32
  return bits_as<VecSum>(_mm256_cvtps_pd(bits_as<__m128>(v)));
#else
  return __builtin_convertvector(v, VecSum);
#endif
}

// a * b + c. Products of float32 values are exact in float64, so that fusing them changes no bit; those of doubles are
// not, and are never fused.
template <typename T>
ADVFEAT_INLINE VecSum multiply_add(VecSum a, VecSum b, VecSum c) {
#if ADVFEAT_BYTES == 64
  if constexpr (!std::is_same_v<T, double>)
    return bits_as<VecSum>(_mm512_fmadd_pd(bits_as<__m512d>(a), bits_as<__m512d>(b), bits_as<__m512d>(c)));
#elif ADVFEAT_BYTES == 32
  if constexpr (!std::is_same_v<T, double>)
    return bits_as<VecSum>(_mm256_fmadd_pd(bits_as<__m256d>(a), bits_as<__m256d>(b), bits_as<__m256d>(c)));
#endif
  return a * b + c;
}

}  // namespace advfeat::cpu::ADVFEAT_LEVEL
