// Chooses the SIMD level once, when the first kernel runs.
#include "rows.h"

#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

namespace advfeat::cpu {

namespace level_default {
const RowKernels* table(Dtype dtype, Dtype grad_dtype);
}
#if defined(__x86_64__)
namespace level_avx2 {
const RowKernels* table(Dtype dtype, Dtype grad_dtype);
}
namespace level_avx512 {
const RowKernels* table(Dtype dtype, Dtype grad_dtype);
}
#endif

namespace {

struct Level {
  const char* name;
  const RowKernels* (*table)(Dtype, Dtype);
  bool supported;
};

const Level& chosen() {
  static const Level level = [] {
#if defined(__x86_64__)
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    const Level levels[] = {{"avx512", level_avx512::table, avx512},
                            {"avx2", level_avx2::table, avx2},
                            {"default", level_default::table, true}};
#else
    const Level levels[] = {{"default", level_default::table, true}};
#endif
    const char* wanted = std::getenv("ADVFEAT_SIMD");
    if (wanted && !*wanted) wanted = nullptr;
    for (const Level& l : levels)
      if (l.supported && (!wanted || !std::strcmp(wanted, l.name))) return l;
    throw std::runtime_error(std::string("ADVFEAT_SIMD should be one of ") + simd_levels() +
                             " and supported by this processor, got " + wanted);
  }();
  return level;
}

}  // namespace

const RowKernels& row_kernels(Dtype dtype, Dtype grad_dtype) { return *chosen().table(dtype, grad_dtype); }

const char* simd_level() { return chosen().name; }

const char* simd_levels() {
#if defined(__x86_64__)
  return "default, avx2, avx512";
#else
  return "default";
#endif
}

}  // namespace advfeat::cpu
