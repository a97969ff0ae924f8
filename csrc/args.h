// The contract between the checks (check.h) and the kernels (cpu/, cuda/): plain structs, no torch types.
//
// A batch [B, ...] is `rows` samples of `dim` values. Inside a row the values of every tensor of one call lie densely
// and in the same order (contiguous or channels_last); rows may be further apart than `dim`, or 0 apart for an expanded
// tensor.
#pragma once

#include <cstdint>

namespace advfeat {

enum class Dtype : int { float32, float64, float16, bfloat16 };

// A number for all rows, or one number a row (device pointer on CUDA, where it is never read by the host).
struct PerRow {
  double value = 0;
  const double* rows = nullptr;  // [B] or null
};

// A bound for all values, or one a channel: value i of a row belongs to channel (i / inner) % channels.
struct Bound {
  double value = 0;
  const double* channels = nullptr;  // [C] or null
};

// out = clip(ball(x + step)), the arguments of linf_step, l2_step and, without a gradient, of the projections.
struct StepArgs {
  void* out = nullptr;  // may be x
  const void* x = nullptr;
  const void* grad = nullptr;  // null: no step, only the projection
  const void* x0 = nullptr;
  int device = -1;  // CUDA device index
  int64_t rows = 0, dim = 0;
  int64_t out_stride = 0, x_stride = 0, grad_stride = 0, x0_stride = 0;  // values from one row to the next
  Dtype dtype = Dtype::float32;                                          // of out, x and x0
  Dtype grad_dtype = Dtype::float32;  // of grad: dtype, or a half type when dtype is float32
  PerRow step_size, eps;
  Bound lo, hi;
  int64_t channels = 1, inner = 1;
  int32_t* grad_status = nullptr;  // [B, 2] or null: column 0 += gradient all zero, column 1 += gradient not finite
};

// out = a random point of the ball around x0, clipped to the box. out and x0 are contiguous.
struct RandomStartArgs {
  void* out = nullptr;
  const void* x0 = nullptr;
  int device = -1;  // CUDA device index
  int64_t rows = 0, dim = 0;
  Dtype dtype = Dtype::float32;
  PerRow eps;
  Bound lo, hi;
  int64_t channels = 1, inner = 1;
  uint64_t seed = 0;
  const int64_t* sample_ids = nullptr;  // [B]
};

// For each row with value > best_value (or best_value NaN): best_x = x, best_value = value.
struct UpdateBestArgs {
  void* best_x = nullptr;
  const void* x = nullptr;
  void* best_value = nullptr;  // [B]
  const void* value = nullptr;
  int device = -1;  // CUDA device index
  int64_t rows = 0, row_bytes = 0;
  int64_t best_x_stride_bytes = 0, x_stride_bytes = 0;
  bool value_is_double = false;
};

}  // namespace advfeat
