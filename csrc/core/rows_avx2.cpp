// The inner loops with AVX2, FMA and F16C instructions; empty on other processors than x86-64.
#include <cstdint>
#include <type_traits>

#include "rows.h"

#if defined(__x86_64__)
#include <immintrin.h>
#define ADVFEAT_LEVEL level_avx2
#define ADVFEAT_BYTES 32
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#include "rows.inl.h"
#pragma clang attribute pop
#elif defined(__GNUC__)
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#include "rows.inl.h"
#pragma GCC pop_options
#endif
#endif
