// The inner loops over (a part of) a row: one table of functions per SIMD level and pair of dtypes.
#pragma once

#include "args.h"
#include "hyperplane.h"
#include "l1_math.h"
#include "l2_math.h"

namespace advfeat::cpu {

// The box for the kernels: numbers, or rows of `dim` bounds in the arithmetic type (float, or double for float64).
struct Box {
  double lo, hi;
  const void* lo_row = nullptr;
  const void* hi_row = nullptr;
};

struct L2Max {
  double grad = 0, d = 0;
};

enum GradFlag : uint8_t { kGradNonzero = 1, kGradNotFinite = 2 };

// Values [begin, end) of row `row`.
struct RowKernels {
  void (*linf)(const StepArgs&, const Box&, int64_t row, int64_t begin, int64_t end, double step_size, double eps);
  uint8_t (*grad_flags)(const StepArgs&, int64_t row, int64_t begin, int64_t end);
  L2Sums (*l2_sums)(const StepArgs&, int64_t row, int64_t begin, int64_t end, const L2Scales&);
  L2Max (*l2_max)(const StepArgs&, int64_t row, int64_t begin, int64_t end);
  double (*l2_moved_sum)(const StepArgs&, int64_t row, int64_t begin, int64_t end, const L2Move&, double scale);
  void (*l2_apply)(const StepArgs&, const Box&, int64_t row, int64_t begin, int64_t end, const L2Move&);
  // These take the start of a row of each tensor. The sum of |grad * scale|; total = decay total + (grad prescale)
  // factor, without a gradient (null) decay total.
  double (*l1_sum)(const void* grad, int64_t begin, int64_t end, double scale);
  void (*accumulate)(void* total, const void* grad, int64_t begin, int64_t end, double decay, double prescale,
                     double factor);
  // A whole row of a FAB step, and of an L1 step or projection; they return its GradFlags. scratch: row_scratch(dim)
  // doubles.
  uint8_t (*fab_row)(const StepArgs&, const Box&, int64_t row, Norm, const FabNumbers&, double* scratch);
  uint8_t (*l1_row)(const StepArgs&, const Box&, int64_t row, double share, double* scratch);
};

inline int64_t row_scratch(int64_t dim) { return 3 * ((dim + 15) / 16 * 16); }

// The table for the best SIMD level of this processor (ADVFEAT_SIMD=default|avx2|avx512 lowers it).
const RowKernels& row_kernels(Dtype dtype, Dtype grad_dtype);

// "default", "avx2" or "avx512": the level in use, and the levels compiled into this library.
const char* simd_level();
const char* simd_levels();

}  // namespace advfeat::cpu
