// The inner loops with AVX512 instructions; empty on other processors than x86-64.
#include <cstdint>
#include <type_traits>

#include "rows.h"

#if defined(__x86_64__)
#include <immintrin.h>
#define ADVFEAT_LEVEL level_avx512
// Masked with all ones, which is the plain instruction without gcc 12's warning of an undefined operand.
#define ADVFEAT_WIDEN(v) ((v8d)_mm512_maskz_cvtps_pd(0xff, (__m256)(v)))
#define ADVFEAT_WIDEN_U16(v) ((v8u32)_mm256_cvtepu16_epi32((__m128i)(v)))
#define ADVFEAT_FMA(a, b, c) ((v8d)_mm512_fmadd_pd((__m512d)(a), (__m512d)(b), (__m512d)(c)))
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl"))), apply_to = function)
#include "rows.inl.h"
#pragma clang attribute pop
#elif defined(__GNUC__)
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512")
#include "rows.inl.h"
#pragma GCC pop_options
#endif
#endif
